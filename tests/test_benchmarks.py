"""Published beside measured: the protocols hold out what they say, and nothing is compared across them."""

import sys
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest
from test_bench import cells

from collab_repro import RatingsUnavailable
from collab_repro.__main__ import main
from collab_repro.bench import accuracy, benchmarks


@pytest.fixture
def no_peers(monkeypatch):
    monkeypatch.setattr(accuracy, "PEERS", {})


def test_each_model_is_measured_on_the_held_out_rows(planted, no_peers, monkeypatch):
    held = accuracy._fifth(len(planted), 0)[0]
    found = pd.DataFrame(benchmarks.measured(planted, held, models=2), columns=["model", "rmse", "seconds"])
    assert list(found["model"]) == [
        "one model, raters, genres, year",
        "mean of 2, ids only",
        "one model, all columns",
        "mean of 2, all columns",
        "one ordinal model, all columns",
        "mean of 2 ordinal models, all columns",
    ]
    stars = planted["rating"].to_numpy(float)
    uninformed = np.sqrt(np.mean((stars[held] - np.delete(stars, held).mean()) ** 2))
    assert (found["rmse"] < uninformed).all() and (found["rmse"] > 0.3).all() and (found["seconds"] > 0).all()
    assert found["rmse"].nunique() == 6, "each model of a mean has a seed of its own"
    for settings in (benchmarks.LARGE, benchmarks.LARGE_STARS):
        monkeypatch.setitem(settings, "bs", 64)
    large = benchmarks.measured(planted, held, large=True)
    assert [name for name, *_ in large] == [
        "one model, ids only",
        "one model, raters, genres, year",
        "one model, all columns, 100 factors",
        "mean of 3, all columns, 100 factors",
        "mean of 3 ordinal models, all columns, 100 factors",
    ]
    assert len({rmse for _, rmse, _ in large}) == 5 and max(rmse for _, rmse, _ in large) < uninformed


def test_myfm_gets_the_columns_that_our_models_get(planted, monkeypatch):
    fake, held = MagicMock(), accuracy._fifth(len(planted), 0)[0]
    fm = fake.MyFMRegressor.return_value
    fm.predict.side_effect = lambda main, blocks: np.full(main.shape[0], 3.5)
    monkeypatch.setitem(sys.modules, "myfm", fake)
    predicted, _ = benchmarks._myfm_columns(planted, held, benchmarks.columns_in(planted))
    assert predicted.tolist() == [3.5] * len(held)
    (main, _), given = fm.fit.call_args
    assert main.shape == (3200, benchmarks.SPANS + 1) and (main.sum(axis=1) == 1).all()
    sides = [call.args[1].shape[1] for call in fake.RelationBlock.call_args_list[: len(given["X_rel"])]]
    assert len(sides) == 2 and sum(given["group_shapes"]) == main.shape[1] + sum(sides)


def test_protocols_hold_out_what_they_say_and_missing_sets_are_named(monkeypatch, capsys):
    whole, seen = pd.DataFrame({"rating": range(1000)}), []

    def load(name="ml-100k", fold=None, **_):
        if name == "ml-1m":
            raise RatingsUnavailable("no ml-1m here")
        return whole if fold is None else whole.assign(held_out=whole.index % 5 == fold - 1)

    def measured(ratings, held, large=False):
        seen.append(held)
        return [("ours", float(len(seen)), 1.0)]

    monkeypatch.setattr(benchmarks, "load_ratings", load)
    monkeypatch.setattr(benchmarks, "measured", measured)
    found = benchmarks.benchmarks(splits=[0, 1])
    assert list(found["split"]) == ["fifth 0", "fifth 1", "u1", "u2", "u3", "u4", "u5"]
    assert set(seen[0]) == set(np.random.default_rng(0).permutation(1000)[:200])
    assert list(seen[3]) == list(range(1, 1000, 5))
    assert "1M, a random tenth: left out, no ml-1m here" in capsys.readouterr().err
    both = benchmarks.beside(found)
    ours = both[both["source"] == "measured here"].set_index("protocol")["rmse"]
    assert ours.to_dict() == {benchmarks.FIFTHS: 1.5, benchmarks.FOLD_1: 3, benchmarks.FOLDS: 5}
    assert len(both) == len(benchmarks.PUBLISHED) + 3
    for _, rows in both.groupby("protocol", sort=False):
        assert rows["rmse"].is_monotonic_increasing


def test_the_command_prints_both_tables(monkeypatch, tmp_path, capsys):
    rows = [(benchmarks.FIFTHS, "fifth 0", "ours", 0.9, 1.0), (benchmarks.FOLDS, "u1", "ours", 0.88, 1.0)]
    frame = pd.DataFrame(rows, columns=benchmarks.COLUMNS)
    monkeypatch.setattr(benchmarks, "benchmarks", lambda: frame)
    assert main(["bench", "--data", "synthetic", "--parts", "published", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert cells(out)[:3] == [
        ["protocol", "model", "split fifth 0", "split u1", "seconds"],
        [benchmarks.FOLDS, "ours", "", "0.8800", "1.0"],
        [benchmarks.FIFTHS, "ours", "0.9000", "", "1.0"],
    ]
    assert "| 100K, GroupLens' fold u1" in out and "measured here" in out and "GHRS" in out
    assert pd.read_csv(tmp_path / "bench-published.csv").shape == (2, 5)
