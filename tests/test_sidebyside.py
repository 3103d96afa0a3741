"""Many seeds trained as one model end, each of them, to the bit where that seed ends alone."""

import pytest
import torch
from fastai.collab import EmbeddingDotBias
from test_loop import assert_same, quietly

from collab_repro import learner
from collab_repro.models import FROM_SIZES
from collab_repro.speed.sidebyside import fit_side_by_side

ODD = 7  # factors: no multiple of any vector width
SEEDS = [{"seed": seed} for seed in range(3)]


def learners(ratings, settings, **common):
    """A Learner for each of `settings`, untrained."""
    return [learner(ratings, **{"n_factors": ODD, **common, **its}) for its in settings]


def alone(learns, epochs=2, lr=5e-3, wd=0.1):
    """Each of `learns` fitted by itself."""
    for learn in learns:
        quietly(learn, "fit_one_cycle", epochs, lr, wd=wd)
    return learns


@pytest.mark.filterwarnings("ignore:Constructing a Categorical")  # fastai's way of finding the unknown
@pytest.mark.filterwarnings("ignore:.*without a training row")
@pytest.mark.parametrize(
    "settings, common, rare",
    [
        (SEEDS, {}, False),
        *((SEEDS, {"model": model}, True) for model in (*FROM_SIZES, EmbeddingDotBias)),
        (SEEDS, {"n_factors": 16}, True),
        ([{"split": 0}, {"order": 5}, {"init": 6}, {}], {"seed": 1}, False),
        (SEEDS, {"bs": 96}, False),  # the last batches, of 64 rows, are not full
        (SEEDS, {"bs": 100, "y_range": None}, True),
    ],
)
def test_each_ends_to_the_bit_where_it_ends_alone(few, settings, common, rare):
    if rare:  # films so rare that a split misses some, and vocabularies differ in size
        few = few[["user", "movie", "rating"]].copy()
        few["movie"] += 1000 * (few.index % 20)
    together, each = (learners(few, settings, **common) for _ in range(2))
    assert (len({len(learn.dls.classes[learn.dls.x_names[1]]) for learn in together}) > 1) == rare
    fit_side_by_side(together, 2, 5e-3, 0.1)
    for ours, theirs in zip(together, alone(each), strict=True):
        assert_same(ours, theirs)
    assert len({learn.recorder.values[-1][1] for learn in together}) == len(settings), (
        "two are one and the same"
    )


@pytest.mark.parametrize("bs", [100, 36])
def test_only_the_sigmoid_rounds_batches_of_odd_sizes_in_its_own_way(few, bs):
    """Its kernel takes the numbers past the last whole vector otherwise than those before."""
    together, each = (learners(few, SEEDS, bs=bs) for _ in range(2))
    fit_side_by_side(together, 1, 5e-3, 0.1)
    for ours, theirs in zip(together, alone(each, epochs=1), strict=True):
        for p, q in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-6)
        assert list(ours.recorder.values[0]) == pytest.approx(list(theirs.recorder.values[0]), rel=1e-6)


def test_what_one_does_afterwards_is_its_own(few):
    """It goes on, plots and predicts as if it had always been alone, and the other notices nothing."""
    together, each = (learners(few, SEEDS[:2]) for _ in range(2))
    held = [[id(p) for p in learn.model.parameters()] for learn in together]
    fit_side_by_side(together, 1, 5e-3, 0.1)
    alone(each, epochs=1)
    assert held == [[id(p) for p in learn.model.parameters()] for learn in together]
    for learns in (together, each):
        learns[0].recorder.lrs.append(0.5)
        alone(learns[:1], epochs=2, lr=1e-3, wd=0.01)
        learns[0].opt.set_hyper("lr", 0.5)
    for ours, theirs in zip(together, each, strict=True):
        assert_same(ours, theirs)
        for p in ours.model.parameters():
            for held_too in (p, ours.opt.state[p]["grad_avg"], ours.opt.state[p]["sqr_avg"]):
                assert held_too.untyped_storage().nbytes() == held_too.numel() * 4, "the wide table is kept"
        assert len(ours.recorder.plot_loss().lines) > 0
        assert torch.equal(*(quietly(learn, "get_preds")[0] for learn in (ours, theirs)))
