"""`split=` of `learner`: each way to name validation rows, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from collab_repro import BadRatings, learner

MASK = np.arange(4000) % 5 == 0
ROWS = np.flatnonzero(MASK)


@pytest.mark.parametrize(
    "split",
    [
        MASK,
        MASK.tolist(),
        pd.Series(MASK),
        pd.array(MASK, dtype="boolean"),
        ROWS,
        ROWS.tolist(),
        ROWS.astype(np.uint16),
        pd.Series(ROWS),
        pd.Index(ROWS),
        ROWS.astype(object),
        range(0, 4000, 5),
        np.ma.array(ROWS),
    ],
    ids=lambda split: type(split).__name__,
)
def test_a_mask_or_positions_put_each_row_in_one_part(planted, split):
    dls = learner(planted, split=split, n_factors=4).dls
    assert dls.valid_ds.items.index.tolist() == ROWS.tolist()
    assert sorted([*dls.train_ds.items.index, *dls.valid_ds.items.index]) == list(range(len(planted)))


@pytest.mark.parametrize(
    ("split", "said"),
    [
        *((split, "neither a mask of the 4,000 ratings in their order, nor a list") for split in (
            MASK[:10], pd.Series(MASK, index=range(1, 4001)), [0.5, 1], ["a", "b"], [], True, 1.0,
            pd.Series([True, None] * 2000, dtype="boolean"), np.array(3), ROWS[:, None],
            np.ma.array(ROWS, mask=ROWS < 9), np.ma.array(MASK, mask=~MASK))),
        ([2, 0.5, 1], "entry 0: 2.0, is neither"),
        (["a", 3], "entry 0: 'a', is neither"),
        ([True] * 3999 + [None], "entry 3999: None, is neither"),
        ([[1, 2], [3]], "neither a mask"),
        ([3, 1, 3], "entry 2: 3"),
        ([5, -1], "entry 1: -1"),
        ([0, 4000], "entry 1: 4000"),
        (np.zeros(4000, bool), "0 rows to validate on"),
        (list(range(3990)), "10 to train on"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_its_first_bad_entry(planted, split, said):
    with pytest.raises(BadRatings, match=said):
        learner(planted, split=split)


def test_labels_are_not_taken_for_positions(planted):
    mixed = planted.sample(frac=1, random_state=0)
    with pytest.raises(BadRatings, match="positions as in iloc"):
        learner(mixed, split=mixed.index[:800])
    rows = np.flatnonzero(mixed.index.isin(mixed.index[:800]))
    assert learner(mixed, split=rows, n_factors=4).dls.valid.n == 800


@pytest.mark.parametrize("seed", [3, np.int64(3), np.uint8(3)])
def test_a_whole_number_is_a_seed(planted, seed):
    assert learner(planted, split=seed, n_factors=4).dls.valid.n == len(planted) // 5
