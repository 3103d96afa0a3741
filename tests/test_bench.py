"""The bench measures what it says: every way trains the same model, failing peers are left out by name."""

import json
import subprocess
import sys
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest

from collab_repro.__main__ import main, parser
from collab_repro.bench import accuracy, sizes, ways
from collab_repro.command.folder import SCALE
from collab_repro.models import DotProductBias
from collab_repro.sources.files import read_losses
from collab_repro.speed import big_batch
from collab_repro.training import learner


def cells(text: str) -> list[list[str]]:
    """The cells of the Markdown table in `text`."""
    rows = [line for line in text.splitlines() if line.startswith("|") and "--" not in line]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.fixture
def bench(tmp_path, capsys):
    """The command on synthetic ratings: called with parts, it returns exit code and output."""

    def run(parts: str) -> tuple[int, str, str]:
        code = main(["bench", "--data", "synthetic", "--parts", parts, "--out", str(tmp_path)])
        return code, *capsys.readouterr()

    return run


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # stock fastai's loader
def test_every_loop_trains_the_chapters_model(planted, monkeypatch):
    monkeypatch.setattr(ways, "SEEDS", 2)
    timings = ways.loops(planted, repeats=2, epochs=1)
    assert list(timings.columns) == ["loop", "repeat", "seconds", "valid_loss"]
    assert (timings.groupby("loop")["repeat"].agg(list).map(set) == {0, 1}).all()
    assert timings["loop"].nunique() == 7 and (timings["seconds"] > 0).all()
    assert np.ptp(timings["valid_loss"]) < 0.15, timings  # other weights and order, the same training
    ways.fit_quietly(stock := ways.stock_learner(planted), 1)
    assert stock.dls.bs == 64 and {hyper["wd"] for hyper in stock.opt.hypers} == {0.1}
    at = []
    monkeypatch.setattr(ways, "combined_cos", lambda _, start, top, end: lambda x: at.append(x) or top)
    ways.hand_written(learner(planted).dls, epochs=2)
    assert np.allclose(at, np.repeat(np.arange(100) / 100, 2))  # of the schedule, for rate and momentum


def test_ratios_are_of_medians_and_stock_stands_first(bench, monkeypatch):
    timings = {"loop": ["stock"] * 3 + ["hand-written", "ours"], "seconds": [8.0, 9.0, 100.0, 1.5, 3.0]}
    monkeypatch.setattr(ways, "loops", lambda ratings, repeats, **_: pd.DataFrame(timings))
    monkeypatch.setattr(ways, "main_command", lambda ratings, **_: {"ours": 3.0, "stock": 12.0})
    started = lambda repeats: pd.DataFrame({"process": ["an import"], "seconds": [repeats / 8]})  # noqa: E731
    monkeypatch.setattr(ways, "startup", started)
    code, out, _ = bench("startup,loops,main")
    assert code == 0 and "A model-epoch at batch 64, median of 3" in out
    assert "Whole processes, median of 3" in out and "Wrote bench-loops.csv, bench-startup.csv" in out
    assert cells(out) == [
        ["process", "seconds"],
        ["an import", "0.38"],
        ["loop", "x stock", "of hand-written", "seconds"],
        ["stock", "1.0", "6.00", "9.00"],
        ["hand-written", "6.0", "1.00", "1.50"],
        ["ours", "3.0", "2.00", "3.00"],
    ]
    assert "0.25 of stock fastai's time for the same model-epochs (3 s against 12 s)" in out


@pytest.mark.filterwarnings("ignore:.*have a user or item without a training row")
@pytest.mark.filterwarnings("ignore:Constructing a Categorical")  # fastai's way of finding the unknown
@pytest.mark.parametrize("columns", ["", sizes.ALL])
def test_a_size_is_planted_trained_and_measured(monkeypatch, capsys, columns):
    monkeypatch.setitem(sizes.SIZES, "small", (60, 40, 900))
    fitted = []
    monkeypatch.setattr(
        sizes, "fit_quietly", lambda ln, *a, **kw: fitted.append(ln) or ways.fit_quietly(ln, *a, **kw)
    )
    sizes.one_size("small" + columns, 2)
    row = json.loads(capsys.readouterr().out)
    model = fitted[0].model
    if columns:
        assert model.user_directions and model.movie_directions and model.movie_bags and model.clock
    else:
        assert type(model) is DotProductBias
    assert list({"size": "small", **row}) == SCALE
    assert row["bs"] == big_batch(720)["bs"] * (2 if columns else 1) and row["epochs"] == 2
    assert row["ratings_per_s"] == pytest.approx(900 / row["seconds"])
    assert 0.3 < row["valid_loss"] < 3 and 0.1 < row["memory"] < 24


def test_sizes_run_in_processes_of_their_own_and_a_failing_one_is_left_out(monkeypatch, capsys):
    assert sizes.scale(["no such size"], epochs=1).empty
    assert "no such size: left out, KeyError" in capsys.readouterr().err
    ends = [subprocess.CompletedProcess([], code, '{"ratings": 9}', "") for code in (-9, 0)]
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ends.pop())
    assert sizes.scale(["one", "two"]).to_dict("records") == [{"size": "one", "ratings": 9}]
    assert capsys.readouterr().err == "two: left out, killed by signal 9\n"


def test_accuracy_is_measured_on_the_held_out_rows_alone(planted, monkeypatch, capsys):
    def absent(*_, **__):
        raise ImportError("no compiler")

    def mean(x, y, at):
        assert len(x) == len(y) == 3200 and len(at) == 800
        return np.full(len(at), y.mean()), 0.5

    monkeypatch.setattr(accuracy, "PEERS", {"absent": ("torch", absent), "mean": ("torch", mean)})
    monkeypatch.setitem(accuracy.ENSEMBLE, "models", 2)
    errors = accuracy.accuracy(planted, splits=[3, 4])  # said once, not for each split
    assert capsys.readouterr().err == "absent: left out, ImportError: no compiler\n"
    errors = errors[errors["split"] == 3]
    assert list(errors["model"]) == ["one model, batch 64", "one model, big batch", "mean of 2", "mean"]
    test = np.random.default_rng(3).permutation(4000)[:800]
    stars = planted["rating"].to_numpy(float)
    rmse = errors.set_index("model")["rmse"]
    assert rmse["mean"] == pytest.approx(np.sqrt(np.mean((stars[test] - np.delete(stars, test).mean()) ** 2)))
    assert (rmse.drop("mean") < rmse["mean"]).all() and (errors["seconds"] > 0).all()
    monkeypatch.setattr(accuracy, "_ours", absent)  # our own failures are not passed over
    with pytest.raises(ImportError, match="no compiler"):
        accuracy.accuracy(planted, splits=[3])


def test_each_library_gives_a_prediction_for_each_row_held_out(monkeypatch):
    fake = MagicMock()  # in the place of all three
    fake.SVD().fit().predict().est = 3.5
    fake.CMF().fit().predict.return_value = fake.MyFMRegressor().predict.return_value = np.full(2, 3.5)
    x, y = np.array([[0, 0], [0, 1], [1, 1]]), np.array([3.0, 4, 5])
    for package, peer in accuracy.PEERS.values():
        monkeypatch.setitem(sys.modules, package, fake)
        predicted, seconds = peer(x, y, at=x[:2])
        assert predicted.tolist() == [3.5, 3.5] and 0 <= seconds < 60


def test_tuning_never_sees_the_rows_that_accuracy_holds_out(planted, monkeypatch, bench):
    monkeypatch.setitem(accuracy.ENSEMBLE, "models", 2)
    monkeypatch.setattr(accuracy, "GRID", {"n_factors": (4, 5), "wd": (0.1,)})
    seen, ours = [], accuracy._ours
    monkeypatch.setattr(
        accuracy, "_ours", lambda rows, *given, **more: seen.append(rows) or ours(rows, *given, **more)
    )
    errors = accuracy.tuning(planted, splits=[3])
    assert errors[["split", "n_factors", "wd"]].values.tolist() == [[3, 4, 0.1], [3, 5, 0.1]]
    assert errors["rmse"].between(0.3, 1.5).all() and errors["rmse"].nunique() == 2
    test = np.random.default_rng(3).permutation(4000)[:800]
    assert all(len(rows) == 3200 and not set(rows.index) & set(test) for rows in seen)

    monkeypatch.setattr(accuracy, "tuning", lambda ratings, **_: errors)
    code, out, _ = bench("tuning")
    assert code == 0 and "Wrote bench-tuning.csv" in out
    assert cells(out) == [
        ["n_factors", "wd", "split 3"],
        *([str(n), "0.1", f"{rmse:.4f}"] for n, rmse in zip((4, 5), errors["rmse"], strict=True)),
    ]


def test_the_command_prints_its_tables_and_draws_cost_against_size(bench, tmp_path, monkeypatch):
    costs = [["100k", 100_000, 943, 1664, 1024, 5, 0.08, 1.25e6, 0.7, 0.75]]
    costs += [["1m", 1_000_000, 6040, 3706, 4096, 5, 0.4, 2.5e6, float("nan"), 0.7]]
    costs += [["1m" + sizes.ALL, 1_000_000, 6040, 3706, 4096, 5, 1.0, 1e6, 0.9, 0.6]]
    monkeypatch.setattr(sizes, "scale", lambda: pd.DataFrame(costs, columns=SCALE))
    rmse = [["theirs", 0, 0.95, 2.0], ["ours", 0, 0.9, 1.0]]
    rmse = pd.DataFrame(rmse, columns=["model", "split", "rmse", "seconds"])
    monkeypatch.setattr(accuracy, "accuracy", lambda ratings, **_: rmse)
    code, out, _ = bench("scale,accuracy")
    assert code == 0 and "usable cores" in out and "torch" in out
    assert "most to least per rating: 2.0" in out
    assert cells(out) == [
        ["model", "split 0", "seconds"],
        ["theirs", "0.9500", "2.0"],
        ["ours", "0.9000", "1.0"],
        SCALE,
        ["100k", "100000", "943", "1664", "1024", "5", "0.08", "1.25e+06", "0.7", "0.75"],
        ["1m", "1000000", "6040", "3706", "4096", "5", "0.4", "2.5e+06", "", "0.7"],
        ["1m + columns", "1000000", "6040", "3706", "4096", "5", "1", "1e+06", "0.9", "0.6"],
    ]
    assert read_losses(tmp_path / "bench-scale.csv", SCALE)["bs"].tolist() == [1024, 4096, 4096]
    assert (tmp_path / "bench-scale.png").stat().st_size > 5_000
    assert "bench-accuracy.csv, bench-scale.csv, bench-scale.png" in out.replace("\n", " ")


def test_no_size_at_all_is_one_clear_line(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "scale", lambda: pd.DataFrame([]))
    code, _, err = bench("scale")
    assert code == 2 and err == "collab_repro: not one size could be trained\n"
    assert not list(tmp_path.glob("*.csv"))


def test_the_whole_command_is_set_beside_as_many_stock_epochs(planted, monkeypatch):
    processes, fits = [], []

    def run(command, **settings):
        args = parser().parse_args(command[3:])
        assert command[1:3] == ["-m", "collab_repro"]
        processes.append((args.command, args.seeds, args.epochs, pd.read_csv(args.data)))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(ways, "fit_quietly", lambda learn, epochs: fits.append((learn.dls.bs, epochs)))
    seconds = ways.main_command(planted, seeds=2, epochs=1)
    assert list(seconds) == ["main command", "stock collab_learner"] and min(seconds.values()) > 0
    [(command, seeds, epochs, ratings)] = processes
    assert (command, seeds, epochs) == (None, 2, 1)
    assert ratings.equals(planted[["user", "title", "rating"]])
    assert fits == [(64, 1)] * 4


def test_a_process_that_fails_ends_with_its_last_words(planted, monkeypatch):
    failed = subprocess.CompletedProcess([], 2, stderr="Traceback\ncollab_repro: no such thing\n")
    monkeypatch.setattr(subprocess, "run", lambda command, **settings: failed)
    with pytest.raises(RuntimeError, match="collab_repro: no such thing"):
        ways.main_command(planted, seeds=1, epochs=1)


def test_startup_times_four_processes(monkeypatch):
    commands = []
    monkeypatch.setattr(ways, "_seconds_of", lambda *arguments: commands.append(arguments) or len(commands))
    seconds = ways.startup(repeats=3)
    assert list(seconds["process"]) == ["import fastai.collab", "import collab_repro", "--help", "plots"]
    assert seconds["seconds"].tolist() == [3, 6, 9, 12] and len(commands) == 13


def test_ratings_of_another_scale_are_benched_within_the_range_given(planted, monkeypatch, tmp_path):
    ten = planted.assign(rating=planted["rating"] * 2)[["user", "title", "rating"]]
    ten.to_csv(tmp_path / "ten.csv", index=False)
    seen = {}
    monkeypatch.setattr(ways, "loops", lambda ratings, repeats, **given: seen.update(given) or 1 / 0)
    command = ["bench", "--parts", "loops", "--data", str(tmp_path / "ten.csv"), "--out", str(tmp_path)]
    assert main([*command]) == 2
    with pytest.raises(ZeroDivisionError):
        main([*command, "--y-range", "0", "10.5", "--batch", "128"])
    assert seen == {"y_range": (0, 10.5), "bs": 128}
    monkeypatch.setitem(accuracy.ENSEMBLE, "models", 2)
    monkeypatch.setattr(accuracy, "PEERS", {})
    ours = accuracy.accuracy(ten, splits=[0], y_range=(0, 10.5))
    assert (ours["rmse"] < ten["rating"].std() * 1.2).all()
