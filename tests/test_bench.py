"""The bench measures what it says: every way trains the same model, failing peers are left out and said."""

import json

import numpy as np
import pandas as pd
import pytest

from collab_repro import bench, results
from collab_repro.__main__ import main
from collab_repro.files import read_losses
from collab_repro.training import big_batch


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bench, "SEEDS", 2)
    monkeypatch.setitem(bench.SIZES, "small", (60, 40, 900))


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # stock fastai's loader
def test_every_loop_trains_the_chapters_model(planted, small):
    found = bench.loops(planted, repeats=2, epochs=2)
    assert list(found.columns) == ["loop", "repeat", "seconds", "valid_loss"]
    assert len(found) == 2 * found["loop"].nunique() and (found["seconds"] > 0).all()
    means = found.groupby("loop")["valid_loss"].mean()
    assert means.max() - means.min() < 0.15, means  # other weights and order, the same training


def test_ratios_are_of_medians_and_stock_stands_first():
    found = pd.DataFrame(
        {
            "loop": ["stock", "stock", "stock", "hand-written", "ours"],
            "seconds": [8.0, 9.0, 100.0, 1.5, 3.0],
        }
    )
    lines = bench.ratios(found).splitlines()[2:]
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == [
        ["stock", "1.0", "6.00", "9.00"],
        ["hand-written", "6.0", "1.00", "1.50"],
        ["ours", "3.0", "2.00", "3.00"],
    ]


def test_a_size_is_planted_trained_and_measured(small, capsys):
    bench._one_size("small", 2)
    found = json.loads(capsys.readouterr().out)
    assert list({"size": "small", **found}) == results.SCALE
    assert found["bs"] == big_batch(720)["bs"] and found["epochs"] == 2
    assert found["ratings_per_s"] == pytest.approx(900 / found["seconds"])
    assert 0.3 < found["valid_loss"] < 3 and 0.1 < found["memory"] < 24
    bench._one_size("small", 1, 100)
    assert json.loads(capsys.readouterr().out)["bs"] == 100


def test_sizes_run_in_processes_of_their_own_and_a_failing_one_is_left_out(capsys):
    found = bench.scale(["no such size"], epochs=1)
    assert found.empty and "no such size: left out, KeyError" in capsys.readouterr().err


def test_accuracy_is_measured_on_the_held_out_rows_alone(planted, monkeypatch, capsys):
    def absent(*_):
        raise ImportError("no compiler")

    def mean(x, y, at):
        assert len(x) == len(y) == 3200 and len(at) == 800
        return np.full(len(at), y.mean()), 0.5

    monkeypatch.setattr(bench, "PEERS", {"absent": ("torch", absent), "mean": ("torch", mean)})
    monkeypatch.setitem(bench.ENSEMBLE, "models", 2)
    found = bench.accuracy(planted, splits=[3])
    assert "absent: left out, no compiler" in capsys.readouterr().err
    assert list(found["model"]) == ["one model, batch 64", "one model, big batch", "mean of 2", "mean"]
    held = np.random.default_rng(3).permutation(4000)[:800]
    stars = planted["rating"].to_numpy(float)
    rmse = found.set_index("model")["rmse"]
    assert rmse["mean"] == pytest.approx(np.sqrt(np.mean((stars[held] - np.delete(stars, held).mean()) ** 2)))
    assert (rmse.drop("mean") < rmse["mean"]).all() and (found["seconds"] > 0).all()


def test_tuning_never_sees_the_rows_that_accuracy_holds_out(planted, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(bench.ENSEMBLE, "models", 2)
    monkeypatch.setattr(bench, "GRID", {"n_factors": (4, 5), "wd": (0.1,)})
    seen = []
    ours = bench._ours
    monkeypatch.setattr(bench, "_ours", lambda rows, *rest: seen.append(rows) or ours(rows, *rest))
    found = bench.tuning(planted, splits=[3])
    assert found[["split", "n_factors", "wd"]].values.tolist() == [[3, 4, 0.1], [3, 5, 0.1]]
    assert found["rmse"].between(0.3, 1.5).all() and found["rmse"].nunique() == 2
    held = np.random.default_rng(3).permutation(4000)[:800]
    assert all(len(rows) == 3200 and not set(rows.index) & set(held) for rows in seen)

    monkeypatch.setattr(bench, "tuning", lambda ratings: found)
    asked = ["bench", "--data", "synthetic", "--parts", "tuning", "--out", str(tmp_path)]
    assert main(asked) == 0
    out = capsys.readouterr().out
    assert f"|         4 | 0.1 |  {found['rmse'][0]:.4f} |" in out and "Wrote bench-tuning.csv" in out


def test_the_command_prints_ratios_first_and_draws_cost_against_size(tmp_path, monkeypatch, capsys):
    sizes = [["100k", 100_000, 943, 1664, 1024, 5, 0.08, 1.25e6, 0.7, 0.75]]
    sizes += [["1m", 1_000_000, 6040, 3706, 4096, 5, 0.4, 2.5e6, 0.8, 0.7]]
    monkeypatch.setattr(bench, "scale", lambda: pd.DataFrame(sizes, columns=results.SCALE))
    rmse = [["ours", 0, 0.9, 1.0], ["theirs", 0, 0.95, 2.0]]
    rmse = pd.DataFrame(rmse, columns=["model", "split", "rmse", "seconds"])
    monkeypatch.setattr(bench, "accuracy", lambda ratings: rmse)
    asked = ["bench", "--data", "synthetic", "--parts", "scale,accuracy", "--out", str(tmp_path)]
    assert main(asked) == 0
    out = capsys.readouterr().out
    assert "usable cores" in out and "torch" in out
    assert "most to least per rating: 2.0" in out and "| theirs |  0.9500 |     2.0 |" in out
    assert read_losses(tmp_path / "bench-scale.csv", results.SCALE)["bs"].tolist() == [1024, 4096]
    assert (tmp_path / "bench-scale.png").stat().st_size > 5_000
    assert "bench-accuracy.csv, bench-scale.csv, bench-scale.png" in out.replace("\n", " ")


def test_no_size_at_all_is_one_clear_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "scale", lambda: pd.DataFrame([]))
    assert main(["bench", "--data", "synthetic", "--parts", "scale", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "collab_repro: not one size could be trained\n"
    assert not list(tmp_path.glob("*.csv"))


def test_the_whole_command_is_set_beside_as_many_stock_epochs(planted, monkeypatch, tmp_path):
    planted.to_csv(tmp_path / "mine.csv", index=False)
    planted = planted.copy()
    planted.attrs["name"] = str(tmp_path / "mine.csv")
    seconds = bench.main_command(planted, seeds=1, epochs=1)
    assert list(seconds) == ["main command", "stock collab_learner"] and min(seconds.values()) > 0
