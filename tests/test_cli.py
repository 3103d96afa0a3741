"""`python -m collab_repro`: what a person sees, and what is left behind when something goes wrong."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pandas as pd
import pytest
from filelock import FileLock

from collab_repro import results
from collab_repro.__main__ import main

FIGURES = ["curves", "difference"] + [
    f"{kind}-{model}" for kind in ("bias", "factors") for model in ("DotProductBias", "DotProductBiasParams")
]


@pytest.fixture(scope="module")
def own_csv(tmp_path_factory, planted):
    "The planted ratings as somebody's own file."
    file = tmp_path_factory.mktemp("own") / "mine.csv"
    planted.to_csv(file, index=False)
    return str(file)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, own_csv):
    "A folder with the results of a small main run, and what the run printed."
    out = tmp_path_factory.mktemp("out") / "results"
    command = [sys.executable, "-m", "collab_repro", "--data", own_csv, "--seeds", "2", "--epochs", "2"]
    run = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return out, run


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_main_prints_the_origin_the_tables_and_the_identity(finished):
    _, run = finished
    assert "Ratings: mine.csv, 4,000 ratings" in run.stdout
    assert re.search(
        r"\| DotProductBias +\| +1 \| \d\.\d{4} ± \d\.\d{4} \| \d\.\d{4} ± \d\.\d{4} \|", run.stdout
    )
    assert "100 of 100 training losses and 4 of 4 final tables are equal to the bit" in run.stdout
    assert "book" not in run.stdout.split("## Movie bias")[0].split("## Training")[1]


def test_main_writes_curves_tables_report_and_figures_and_nothing_else(finished):
    out, run = finished
    wanted = {
        "curves.csv",
        "report.md",
        "learned-DotProductBias.npz",
        "learned-DotProductBiasParams.npz",
        ".lock",
    }
    assert set(files(out)) == wanted | {f"{name}.png" for name in FIGURES}
    assert (out / "report.md").read_text() in run.stdout
    curves = pd.read_csv(out / "curves.csv")
    assert list(curves.columns) == results.CURVES
    assert curves.groupby(["model", "seed"]).size().eq(2).all() and len(curves) == 8


def test_stderr_stays_clean_when_it_is_no_terminal(finished):
    _, run = finished
    assert run.stderr == ""


def test_plots_draws_the_same_bytes_again_without_training(finished, capsys):
    out, _ = finished
    before = files(out)
    for name in FIGURES:
        (out / f"{name}.png").unlink()
    assert main(["plots", "--out", str(out)]) == 0
    assert files(out) == before


def test_the_same_command_gives_the_same_results_in_another_process(finished, own_csv, tmp_path):
    out, _ = finished
    assert main(["--data", own_csv, "--seeds", "2", "--epochs", "2", "--out", str(tmp_path)]) == 0
    ours, theirs = files(tmp_path), files(out)
    assert ours.keys() == theirs.keys()
    timed = [pd.read_csv(folder / "curves.csv").drop(columns="seconds") for folder in (out, tmp_path)]
    pd.testing.assert_frame_equal(*timed, check_exact=True)
    assert all(ours[name] == theirs[name] for name in ours if name != "curves.csv")


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
    "no such run": (["chapter", "--runs", "4,9"], "'4,9' is not a list like 1,4,5"),
    "no such title": (["--data", "synthetic", "--title", "Film 12 (1941)"], "did you mean"),
    "nothing to plot": (["plots"], "holds no curves.csv"),
}


@pytest.mark.parametrize(("arguments", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_clear_line_and_exit_code_2(arguments, said, tmp_path, capsys):
    command = [*arguments, "--out", str(tmp_path / "out")]
    try:
        code = main(command)
    except SystemExit as stop:  # argparse's own way
        code = stop.code
    error = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert said in error[-1] and "Traceback" not in "\n".join(error)
    assert [line for line in error if not line.startswith(("usage:", "    "))] == error[-1:]


def damaged(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["curves.csv", "learned-DotProductBias.npz"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"a,b\n1,2\n", b"\xff\xfe\x00"])
def test_a_damaged_result_is_named_and_the_others_stay(name, content, finished, tmp_path, capsys):
    for file, held in files(finished[0]).items():
        (tmp_path / file).write_bytes(held)
    damaged(tmp_path / name, content)
    before = files(tmp_path)
    assert main(["plots", "--out", str(tmp_path)]) == 2
    assert name in capsys.readouterr().err
    assert files(tmp_path) == before


def test_an_out_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    assert main(["--out", str(tmp_path / "taken")]) == 2
    assert "taken" in capsys.readouterr().err and (tmp_path / "taken").read_text() == "mine"


def test_two_runs_in_one_folder_keep_out_of_each_others_way(tmp_path, capsys):
    with FileLock(tmp_path / ".lock"):
        assert main(["plots", "--out", str(tmp_path)]) == 2
    assert "another run is writing" in capsys.readouterr().err


def test_the_main_command_alone_falls_back_on_synthetic_ratings_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLLAB_REPRO_DATA", str(tmp_path / "nowhere"))
    assert main(["chapter", "--splits", "1", "--out", str(tmp_path / "a")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert main(["--seeds", "1", "--epochs", "1", "--out", str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert said.index("Going on with synthetic ratings") < said.index("Ratings: synthetic")
    assert "book" not in said.split("## Training")[1]


def test_help_names_every_subcommand_and_option(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    for word in (
        "plots",
        "chapter",
        "--data",
        "--seeds",
        "--epochs",
        "--out",
        "--title",
        "COLLAB_REPRO_DATA",
    ):
        assert word in said


def test_chapter_resumes_after_a_kill_and_ends_with_the_same_bytes(own_csv, tmp_path):
    command = [sys.executable, "-m", "collab_repro", "chapter", "--data", own_csv]
    command += ["--runs", "4,5,7", "--splits", "3", "--epochs", "2", "--out"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    run = subprocess.Popen([*command, str(cut)], start_new_session=True, stdout=subprocess.DEVNULL)
    while not (cut / "chapter.csv").exists():
        time.sleep(0.01)
        assert run.poll() is None, "it ended before it could be killed"
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    kept = pd.read_csv(cut / "chapter.csv")
    assert 0 < len(kept) < len(pd.read_csv(whole / "chapter.csv"))
    subprocess.run([*command, str(cut)], check=True, capture_output=True)
    assert files(cut) == files(whole)


def test_an_interrupt_is_one_line_and_exit_code_130(finished, own_csv, interruptible):
    out, _ = finished
    before = files(out)
    command = [
        sys.executable,
        "-m",
        "collab_repro",
        "--data",
        own_csv,
        "--epochs",
        "50000",
        "--out",
        str(out),
    ]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout.readline().startswith("Ratings")  # training is next
    for _ in range(5):  # as a person does: a bare `except:` in a library may swallow one
        time.sleep(1)
        run.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            run.wait(15)
            break
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130 and said.startswith("collab_repro: interrupted") and said.count("\n") == 1
    assert files(out) == before
