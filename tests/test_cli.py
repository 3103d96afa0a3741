"""`python -m collab_repro`: what a person sees, and what is left behind when something goes wrong."""

import gc
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from test_interpret import made
from test_kills import forked

from collab_repro import Learned, recommend
from collab_repro.__main__ import main, parser
from collab_repro.bench.accuracy import ENSEMBLE
from collab_repro.command import folder, report
from collab_repro.command.folder import CURVES
from collab_repro.interpret import suggest

MODELS = "DotProductBias", "DotProductBiasParams"
FIGURES = ["curves", "difference", *(f"{kind}-{model}" for kind in ("bias", "factors") for model in MODELS)]


@pytest.fixture(scope="module")
def own_csv(tmp_path_factory, planted):
    """The planted ratings as somebody's own file."""
    file = tmp_path_factory.mktemp("own") / "mine.csv"
    planted.to_csv(file, index=False)
    return str(file)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, own_csv):
    """A folder with the results of a small main run, and what the run printed."""
    out = tmp_path_factory.mktemp("out") / "results"
    command = [sys.executable, "-m", "collab_repro", "--data", own_csv, "--seeds", "2", "--epochs", "2"]
    run = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
    assert run.returncode == 0 and run.stderr == "", run.stderr
    return out, run.stdout


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_main_prints_and_writes_the_tables_and_the_figures_and_nothing_else(finished):
    out, said = finished
    assert said.startswith("Ratings: mine.csv, 4,000 ratings\n")
    assert re.search(r"Versions: Python 3[.\d]+, fastai 2\S+, torch 2\S+, pandas \S+, numpy \d", said)
    assert "mean ± sd over 2 seeds\n" in said
    loss = r"\d\.\d{4} ± \d\.\d{4} \|"
    assert re.search(rf"\| DotProductBias +\| +1 \| +{loss} +{loss}", said)
    assert (
        "\n\nFrom copied weights 100 of 100 training losses and 4 of 4 final tables are equal to the bit"
        in said
    )
    assert "book" not in said.split("## Movie bias")[0].split("## Training")[1]
    assert (out / "report.md").read_text() in said
    tables = {"curves.csv", "report.md", *(f"learned-{model}.npz" for model in MODELS)}
    assert set(files(out)) == tables | {".lock"} | {f"{name}.png" for name in FIGURES}
    curves = pd.read_csv(out / "curves.csv")
    assert list(curves.columns) == CURVES
    assert curves.groupby(["model", "seed"]).size().eq(2).all() and len(curves) == 8


def test_plots_draws_the_same_bytes_again_without_training(finished, capsys):
    out, _ = finished
    before = files(out)
    for name in FIGURES:
        (out / f"{name}.png").unlink()
    assert main(["plots", "--out", str(out)]) == 0
    assert files(out) == before
    assert gc.isenabled(), "it rests during imports alone"


def test_recommend_reads_the_kept_tables_without_ratings_or_training(finished, tmp_path, monkeypatch, capsys):
    out, _ = finished
    before = files(out)
    monkeypatch.setenv("COLLAB_REPRO_DATA", str(tmp_path / "nowhere"))
    titles = Learned.load(out / f"learned-{MODELS[0]}.npz").titles[1:3]
    mine = tmp_path / "mine.csv"
    mine.write_text(f"film,stars\n{titles[0]},1\n{titles[1]},1\n")
    given = ["--rate", str(mine), "--rate", f"{titles[1]} = 4.5", "-n", "3"]
    assert main(["recommend", *given, "--out", str(out)]) == 0
    said = capsys.readouterr()
    rows = re.findall(r"(?m)^\| (Film .*?) +\| +(\d\.\d\d) \| +(\d+) \| ", said.out)
    stars = {titles[0]: 1, titles[1]: 4.5}  # the later one counts
    best = recommend([Learned.load(out / f"learned-{model}.npz") for model in MODELS], stars, 3)
    assert [row[0] for row in rows] == best["title"].tolist() and not set(titles) & set(best["title"])
    assert [row[1] for row in rows] == [f"{one:.2f}" for one in best["prediction"]]
    assert "nan" not in said.out  # where nothing rated is alike, no reason stands
    assert "2 ratings of yours" in said.out and "Ratings:" not in said.out and said.err == ""
    assert files(out) == before


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        ("Film=4", "did you mean 'Film "),
        ("TITLE=9", "'9' for 'TITLE' is no rating; give a number above 0 and below 5.5"),
        ("TITLE=good", "'good' for 'TITLE' is no rating"),
        ("TITLE", "is neither TITLE=STARS nor the path of a table"),
        ("gone.csv", "gone.csv"),
        ("one.csv", "one.csv has one column"),
    ],
)
def test_a_rating_that_cannot_be_used_is_one_clear_line(rate, said, finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.csv").write_text("film\nA\n")
    title = Learned.load(finished[0] / f"learned-{MODELS[0]}.npz").titles[1]
    assert main(["recommend", "--rate", rate.replace("TITLE", title), "--out", str(finished[0])]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert said.replace("for 'TITLE'", f"for {title!r}") in error


@pytest.fixture
def numbered(tmp_path):
    """A folder with a model of eight titles called 1 to 8, each with 60 training ratings or fewer."""
    learned = made(np.random.default_rng(0).normal(size=(8, 4)), [60, 60, 60, 9, 9, 9, 9, 0])
    replace(learned, titles=["#na#", *range(1, 9)]).save(tmp_path / "learned-A.npz")
    return tmp_path


def listed(said):
    return [int(title) for title in re.findall(r"(?m)^\| (\d+) ", said)]


def test_titles_that_are_numbers_are_rated_by_their_numbers(numbered, tmp_path, capsys):
    command = ["recommend", "--out", str(numbered), "--rate"]
    (mine := tmp_path / "mine.csv").write_text("movie,stars\n1,2\n3,5\n")
    assert main([*command, str(mine), "--rate", "1=4"]) == 0
    said = capsys.readouterr().out
    assert listed(said) == [2] and "2 ratings of yours" in said, "1 counts once"
    assert main([*command, "33=4"]) == 2 and "no title '33'; did you mean 3?" in capsys.readouterr().err
    assert suggest("99", pd.Index([8, 9])) == "; did you mean 9?"  # of int64


def test_where_no_title_is_rated_enough_the_others_are_listed_or_a_line_says_that_none_is_left(
    numbered, capsys
):
    command = ["recommend", "--out", str(numbered)]
    often = [f"--rate={title}=4" for title in (1, 2, 3)]
    assert main([*command, *often]) == 0
    said = capsys.readouterr().out
    assert said.startswith("No title that you haven't rated has 50 training ratings")
    assert sorted(listed(said)) == [4, 5, 6, 7], "8 has none: nothing was learned"
    assert main([*command, *often, *(f"--rate={title}=4" for title in (4, 5, 6, 7))]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("collab_repro: every title") and said.err.count("\n") == 1


def test_recommend_writes_nothing_and_waits_for_nobody(numbered, capsys):
    def rated():
        return main(["recommend", "--rate", "1=4", "--out", str(numbered)])

    before = files(numbered)
    assert rated() == 0 and files(numbered) == before
    with FileLock(numbered / ".lock"):
        assert rated() == 0


def test_the_same_command_gives_the_same_results_in_another_process(finished, own_csv, tmp_path):
    assert main(["--data", own_csv, "--seeds", "2", "--epochs", "2", "--out", str(tmp_path)]) == 0
    ours, theirs = files(tmp_path), files(finished[0])
    timed = [pd.read_csv(folder / "curves.csv").drop(columns="seconds") for folder in (finished[0], tmp_path)]
    pd.testing.assert_frame_equal(*timed, check_exact=True)
    assert ours | {"curves.csv": 0} == theirs | {"curves.csv": 0}


def test_ones_own_ratings_under_other_column_names(tmp_path, planted, capsys):
    mine = planted[["user", "movie", "rating"]].set_axis(["who", "what", "stars"], axis=1)
    mine["what"] = "item " + mine["what"].astype(str)
    mine.to_csv(tmp_path / "mine.csv", index=False)
    command = ["--data", str(tmp_path / "mine.csv"), "--seeds", "1", "--epochs", "1", "--title", "item 7"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "## Nearest to item 7\n" in capsys.readouterr().out


MISTAKES = {
    "unknown data": (["--data", "ml-1t"], "no ratings called 'ml-1t'"),
    "no such file": (["--data", "nowhere.csv"], "nowhere.csv"),
    "no seeds": (["--seeds", "0"], "'0' is not a whole number from 1 on"),
    "no epochs": (["--epochs", "-1"], "'-1' is not a whole number from 1 on"),
    "no such run": (["chapter", "--runs", "4,9"], "'4,9' is not a list"),
    "no such part": (["bench", "--parts", "loops,all"], "'loops,all' is not a list"),
    "empty data": (["--data", ""], "argument --data: '' is no name"),
    "empty out": (["plots", "--out", ""], "argument --out: '' is no name"),
    "no such title": (["--data", "OWN", "--title", "Film 12 (1900)"], "did you mean"),
    "nothing to plot": (["plots"], "holds no curves.csv"),
    "no such folder": (["plots", "--out", "gone"], "there is no folder gone"),
    "no tables": (["recommend", "--rate", "A=5"], "make them with `python -m collab_repro`"),
    "no such ratings": (["recommend", "--rate", "A=5", "--out", "gone"], "with `python -m collab_repro`"),
}


@pytest.mark.parametrize(("arguments", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_clear_line_and_exit_code_2(arguments, said, own_csv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = [own_csv if argument == "OWN" else argument for argument in arguments]
    try:
        code = main(command if "--out" in command else [*command, "--out", "."])
    except SystemExit as stop:  # argparse's own way
        code = stop.code
    error = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and said in error[-1]
    assert [line for line in error if not line.startswith(("usage:", "    "))] == error[-1:]


def test_the_process_ends_with_that_line_and_that_code(tmp_path):
    command = [sys.executable, "-m", "collab_repro", "--data", "nowhere.csv", "--out", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2 and run.stdout == ""
    assert re.fullmatch("collab_repro: nowhere.csv: .*\n", run.stderr)


@pytest.mark.parametrize("name", ["curves.csv", "learned-DotProductBias.npz"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"a,b\n1,2\n", b"\xff\xfe\x00"])
def test_a_damaged_result_is_named_and_the_others_stay(name, content, finished, tmp_path, capsys):
    before = files(finished[0]) | {name: content}
    for file, held in before.items():
        (tmp_path / file).write_bytes(held)
    assert main(["plots", "--out", str(tmp_path)]) == 2
    assert name in capsys.readouterr().err
    assert files(tmp_path) == before


def test_an_out_that_is_a_file_or_in_use_is_refused(tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    assert main(["--out", str(tmp_path / "taken")]) == 2
    assert "taken" in capsys.readouterr().err and (tmp_path / "taken").read_text() == "mine"
    with FileLock(tmp_path / ".lock"):
        assert main(["plots", "--out", str(tmp_path)]) == 2
    assert "another run is writing" in capsys.readouterr().err


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr("collab_repro.command.chapter8.fit", lambda *_, **__: pytest.fail("it is trained"))


@pytest.mark.parametrize("name", ["report.md", "bias-A.png", "learned-A.npz", "bench-main.csv"])
def test_a_folder_under_a_name_of_ours_is_refused_before_training(
    name, own_csv, tmp_path, capsys, no_training
):
    (tmp_path / "mine.csv").mkdir()  # of no concern
    (tmp_path / name).mkdir()
    assert main(["--data", own_csv, "--out", str(tmp_path)]) == 2
    assert f"{name} is not a regular file; remove it" in capsys.readouterr().err


@pytest.mark.parametrize("step", ["made", "written"])
def test_a_folder_that_cannot_be_written_is_refused_before_training(
    step, own_csv, tmp_path, monkeypatch, capsys, no_training
):
    class Full(io.BytesIO):
        def write(self, content):
            raise OSError(28, "No space left on device")

    def temporary(dir):
        if step == "written":
            return Full()
        raise PermissionError(13, "Permission denied", str(dir))

    (tmp_path / ".lock").touch()  # it may be there from an earlier run
    monkeypatch.setattr("collab_repro.sources.files.TemporaryFile", temporary)
    assert main(["--data", own_csv, "--out", str(tmp_path)]) == 2
    reason = {"made": "Permission denied", "written": "No space left on device"}[step]
    said = capsys.readouterr().err
    assert said == f"collab_repro: nothing can be written in {tmp_path} ({reason}); give another --out\n"
    assert [file.name for file in tmp_path.iterdir()] == [".lock"]


SMALL = ["--seeds", "1", "--epochs", "1"]


def test_a_disk_that_fills_up_costs_the_files_and_not_the_report(own_csv, tmp_path, monkeypatch, capsys):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    assert main(["--data", own_csv, *SMALL, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.err == f"collab_repro: {tmp_path}/curves.csv: No space left on device\n"
    assert "4 of 4 final tables are equal" in said.out and "Wrote" not in said.out
    seconds = pd.DataFrame({"process": ["an import"], "seconds": [0.375]})
    monkeypatch.setattr("collab_repro.bench.ways.startup", lambda repeats: seconds)
    assert main(["bench", "--data", own_csv, "--parts", "startup", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"collab_repro: {tmp_path}/bench-startup.csv: No space") and "0.38" in said.out


def test_after_training_a_bad_file_of_somebody_elses_costs_its_figure_alone(own_csv, tmp_path, capsys):
    for name in ("chapter.csv", "learned-x.npz", "bench-scale.csv"):
        (tmp_path / name).write_text("mine\n")
    assert main(["--data", own_csv, *SMALL, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert "report.md" in said.out and set(files(tmp_path)) >= {f"{name}.png" for name in FIGURES}
    bad = re.findall(r"(?m)^not drawn: \S+/(\S+) is", said.err.replace(" isn't", " is"))
    assert sorted(bad) == ["bench-scale.csv", "chapter.csv", "learned-x.npz"] and said.err.count("\n") == 3
    assert (tmp_path / "chapter.csv").read_text() == "mine\n"


def test_a_closed_or_full_output(finished, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    command = f"'{sys.executable}' -m collab_repro plots --out '{tmp_path}'"
    (tmp_path / "curves.csv").write_bytes((finished[0] / "curves.csv").read_bytes())
    assert subprocess.run(f"{command} >&- 2>&-", shell=True).returncode == 0
    assert {"curves.png", "difference.png"} <= set(files(tmp_path))
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    for start in ("", "PYTHONUNBUFFERED=1 "):
        run = subprocess.run(f"{start}{command} > /dev/full", shell=True, stderr=subprocess.PIPE, text=True)
        assert (run.returncode, run.stderr) == (2, "collab_repro: the output: No space left on device\n")


def test_a_file_called_as_the_books_ratings_are_is_not_taken_for_them(own_csv, tmp_path, capsys):
    mine = shutil.copy(own_csv, tmp_path / "ml-100k")
    command = ["--data", str(mine), "--epochs", "1", "--out", str(tmp_path / "out")]
    assert main([*command, "--seeds", "1"]) == 0
    assert main(["chapter", *command, "--runs", "4", "--splits", "2"]) == 0
    said = capsys.readouterr().out
    assert "## Run 4" in said and "| book" not in said and ": book" not in said and " z " not in said
    for name in ("curves.csv", "chapter.csv"):
        assert pd.read_csv(tmp_path / "out" / name)["data"].str.fullmatch("ml-100k [0-9a-f]{8}").all()


def rows(planted, file, n):
    planted.head(n).to_csv(file, index=False)
    return ["--data", str(file)]


def test_too_few_ratings_to_validate_on_are_refused_before_training(planted, tmp_path, capsys, no_training):
    for n in (2, 4):
        command = [*rows(planted, tmp_path / "few.csv", n), *SMALL, "--batch", "1", "--out", str(tmp_path)]
        assert main(command) == 2
        said = capsys.readouterr().err
        assert said == f"collab_repro: {n} ratings leave none to validate on; give five or more\n"


@pytest.mark.filterwarnings("ignore:.*have a user or item without a training row")
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # stock fastai's loader
@pytest.mark.filterwarnings("ignore:Constructing a Categorical")  # fastai's way of finding the unknown
@pytest.mark.parametrize("batch", ["16", "big"])
def test_a_smaller_batch_helps_where_a_message_says_so(batch, planted, tmp_path, monkeypatch, capsys):
    own = [*rows(planted, tmp_path / "few.csv", 50), "--out", str(tmp_path)]
    monkeypatch.setattr("collab_repro.bench.accuracy.PEERS", {})
    monkeypatch.setitem(ENSEMBLE, "models", 2)
    for command in (
        ["chapter", "--runs", "4", "--splits", "2", "--epochs", "1"],
        ["bench", "--parts", "loops,accuracy", "--repeats", "1"],
    ):
        assert main([*command, *own]) == 2
        assert "or a smaller --batch" in capsys.readouterr().err
        assert main([*command, *own, "--batch", batch]) == 0
    assert f"one model, batch {'40' if batch == 'big' else batch}" in capsys.readouterr().out


def test_the_main_command_alone_falls_back_on_synthetic_ratings(tmp_path, monkeypatch, capsys, planted):
    monkeypatch.setenv("COLLAB_REPRO_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr("collab_repro.sources.planted_ratings", lambda: (planted.copy(), None))
    assert main(["chapter", "--splits", "1", "--out", str(tmp_path / "a")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert main(["--seeds", "1", "--epochs", "1", "--out", str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert said.index("Going on with synthetic ratings") < said.index("Ratings: synthetic")
    assert "book" not in said.split("## Training")[1]


def test_help_names_every_subcommand_and_option():
    said = parser().format_help()
    options = "--data --seeds --epochs --out --title --user --item --rating --alike --y-range --batch"
    for word in ("plots", "recommend", "chapter", "bench", *options.split()):
        assert word in said
    assert "COLLAB_REPRO_DATA" in said


def test_an_interrupt_is_one_line_and_exit_code_130(finished, own_csv, tmp_path, interruptible):
    out, _ = finished
    before, log = files(out), tmp_path / "log"
    command = ["--data", own_csv, "--epochs", "50000", "--out", str(out)]
    child = forked(lambda: main(command), log)
    while not (log.exists() and log.read_text().startswith("Ratings")):  # training is next
        time.sleep(0.01)
    ended = 0
    for _ in range(5):  # as a person does: a bare `except:` in a library may swallow one
        time.sleep(1)
        os.kill(child, signal.SIGINT)
        until = time.monotonic() + 15
        while not ended and time.monotonic() < until:
            ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.01)
        if ended:
            break
    assert ended and os.waitstatus_to_exitcode(status) == 130
    _, said = log.read_text().splitlines()
    assert said.startswith("collab_repro: interrupted")
    assert files(out) == before


# --- details of the report and the figures --------------------------------------------------------


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_paired_difference_is_told_from_two_seeds_on(seeds):
    each = [(model, seed) for model in MODELS for seed in range(seeds)]
    curves = pd.DataFrame(each, columns=["model", "seed"]).assign(epoch=0, train_loss=0.8)
    curves["valid_loss"] = [0.90, 0.92, 0.91, 0.95][: 2 * seeds]
    told = report._paired(curves)
    assert [line.split(" ends at a validation MSE of ")[1] for line in told] == (
        [] if seeds == 1 else ["+0.0200 (95 % interval -0.1071 to +0.1471, 2 paired seeds)."]
    )


def test_cost_is_drawn_in_microseconds_a_rating(tmp_path):
    costs = pd.DataFrame({name: [4.0, 8.0] for name in folder.SCALE})
    costs.assign(ratings_per_s=[1e6, 4e6]).to_csv(tmp_path / "bench-scale.csv", index=False)
    (plot,) = folder._drawings(tmp_path / "bench-scale.csv").values()
    lines = {tuple(line.get_ydata()) for line in plot().lines}
    assert (1.0, 0.25) in lines


def test_a_figure_that_cannot_be_drawn_is_left_out_with_its_reason(tmp_path):
    def plot():
        raise ValueError("two titles\nat least")

    said = folder._draw_one(plot, tmp_path / "bias-X.png")
    assert said == ("bias-X.png is left out: two titles at least", []) and not list(tmp_path.iterdir())
