"""The summary of curves over seeds and the paired difference, by hand and by scipy."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from collab_repro import difference, summary

LOSS = [[[3.0, 2.0], [3.5, 2.5], [2.5, 2.25]], [[3.5, 1.0], [4.5, 1.0], [2.0, 1.75]]]


def table_of(loss, models=("a", "b")) -> pd.DataFrame:
    """Curves from `loss[model][seed][epoch]`."""
    return pd.DataFrame(
        [
            {"model": m, "seed": s, "epoch": e, "valid_loss": value, "train_loss": value / 2}
            for m, seeds in zip(models, loss, strict=True)
            for s, values in enumerate(seeds)
            for e, value in enumerate(values)
        ]
    )


def test_summary_is_mean_and_sd_over_seeds():
    found = summary(table_of(LOSS, models=("z", "b")))
    assert list(found.index) == [("z", 0), ("z", 1), ("b", 0), ("b", 1)]
    assert found.loc[("z", 0), ("valid_loss", "mean")] == 3
    assert found.loc[("z", 0), ("valid_loss", "std")] == pytest.approx(0.5)
    assert found.loc[("b", 1), ("train_loss", "mean")] == pytest.approx(1.25 / 2)
    assert summary(table_of([[[1.0]], [[2.0]]]))["valid_loss", "std"].isna().all()


@pytest.mark.parametrize("models", [("a", "b"), ("z", "b")])  # the order of appearance, not of the alphabet
def test_difference_is_second_minus_first_computed_by_hand(models):
    found = difference(table_of(LOSS, models))
    assert found.index.tolist() == [0, 1]
    assert found["mean"].tolist() == pytest.approx([1 / 3, -1.0])  # (.5, 1, -.5) and (-1, -1.5, -.5)
    assert found["sd"].tolist() == pytest.approx([(7 / 12) ** 0.5, 0.5])
    assert found["n"].tolist() == [3, 3]
    half = 4.302653 * 0.5 / 3**0.5  # the t value of two degrees of freedom
    assert found.loc[1, ["low", "high"]].tolist() == pytest.approx([-1 - half, -1 + half])


@pytest.mark.parametrize("level", [0.95, 0.5])
@pytest.mark.parametrize("loss", ["valid_loss", "train_loss"])
def test_difference_agrees_with_scipys_paired_t_test(loss, level):
    table = table_of(np.random.default_rng(0).normal(1, 0.1, (2, 7, 3))).sample(frac=1, random_state=1)
    table = table.sort_values("model", kind="stable")
    for epoch, row in difference(table, loss, level).iterrows():
        wide = table[table["epoch"] == epoch].pivot(index="seed", columns="model", values=loss)
        test = stats.ttest_rel(wide["b"], wide["a"])
        interval = test.confidence_interval(level)
        assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
        assert row["mean"] / (row["sd"] / 7**0.5) == pytest.approx(test.statistic)


def test_difference_of_one_seed_has_no_interval():
    found = difference(table_of([[[1.0]], [[1.5]]]))
    assert found["mean"].tolist() == [0.5] and found["n"].tolist() == [1]
    assert found[["sd", "low", "high"]].isna().all(axis=None)


@pytest.mark.parametrize(
    "table, why",
    [
        (table_of([[[1.0]]], models=["a"]), "two models"),
        (table_of([[[1.0]]] * 3, models=["a", "b", "c"]), "two models"),
        (table_of([[[1.0]], [[1.0], [2.0]]]), "same seeds"),
        (table_of([[[1.0, 2.0]], [[1.0]]]), "same seeds and epochs"),
    ],
)
def test_difference_refuses_what_is_not_paired(table, why):
    with pytest.raises(ValueError, match=why):
        difference(table)
