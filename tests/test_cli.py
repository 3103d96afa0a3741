"""`python -m collab_repro`: what a person sees, and what is left behind when something goes wrong."""

import gc
import os
import re
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from filelock import FileLock
from test_kills import forked

from collab_repro import Learned, recommend
from collab_repro.__main__ import main, parser
from collab_repro.command.folder import CURVES

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
