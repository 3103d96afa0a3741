"Many seeds trained as one model end, each of them, to the bit where that seed ends alone."

import pytest
import torch
from fastai.callback.core import Callback
from fastai.collab import EmbeddingDotBias
from fastai.losses import L1LossFlat
from fastai.metrics import rmse
from fastai.tabular.core import TabDataLoader
from fastai.tabular.model import get_emb_sz

from collab_repro.models import CollabNN, DotProduct, DotProductBias, DotProductBiasParams
from collab_repro.sidebyside import fit_side_by_side
from collab_repro.training import curve, fit, learner

MODELS = [DotProduct, DotProductBias, DotProductBiasParams, EmbeddingDotBias]
ODD = 7  # factors: no multiple of any vector width


def assert_same(ours, theirs):
    "Weights, records and optimizer state of two learners are equal to the bit."
    for (name, p), q in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(p, q), name
        a, b = ours.opt.state[p], theirs.opt.state[q]
        assert a.keys() == b.keys() and a["step"] == b["step"]
        assert all(torch.equal(a[k], b[k]) for k in ("grad_avg", "sqr_avg")), name
        assert a["grad_avg"].shape == p.shape
    assert ours.opt.hypers == theirs.opt.hypers
    for name in ("lrs", "iters", "hps", "metric_names"):
        assert getattr(ours.recorder, name) == getattr(theirs.recorder, name), name
    assert [list(row) for row in ours.recorder.values] == [list(row) for row in theirs.recorder.values]
    assert len(ours.recorder.losses) == len(theirs.recorder.losses) > 0
    assert all(map(torch.equal, ours.recorder.losses, theirs.recorder.losses))


def alone(learns, epochs=2, lr=5e-3, wd=0.1):
    "Each of `learns` fitted by itself."
    for learn in learns:
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(epochs, lr, wd=wd)
    return learns


def passes(monkeypatch) -> list[int]:
    "How many learners each pass of `fit` trains side by side, as it goes on."
    sizes = []

    def counted(learns, *args):
        sizes.append(len(learns))
        return fit_side_by_side(learns, *args)

    monkeypatch.setattr("collab_repro.training.fit_side_by_side", counted)
    return sizes


@pytest.mark.parametrize("n_factors", [ODD, 16])
@pytest.mark.parametrize("model", MODELS)
def test_each_seed_ends_to_the_bit_where_it_ends_alone(planted, model, n_factors):
    def seeds():
        return [learner(planted, model, seed, n_factors=n_factors) for seed in range(3)]

    together, each = seeds(), alone(seeds())
    fit_side_by_side(together, 2, 5e-3, 0.1)
    for ours, theirs in zip(together, each, strict=True):
        assert_same(ours, theirs)
    weights = [torch.cat([p.flatten() for p in learn.model.parameters()]) for learn in together]
    assert not torch.equal(weights[0], weights[1]), "the seeds are one and the same run"


def test_splits_orders_and_weights_differ_from_seed_to_seed(planted):
    several = [{"split": 0}, {"order": 5}, {"init": 6}, {}]

    def learns():
        return [learner(planted, seed=1, n_factors=ODD, **own) for own in several]

    together, each = learns(), alone(learns())
    fit_side_by_side(together, 2, 5e-3, 0.1)
    for ours, theirs in zip(together, each, strict=True):
        assert_same(ours, theirs)
    ends = {round(learn.recorder.values[-1][1], 7) for learn in together}
    assert len(ends) == 4, "each of the three seeds has to matter"


@pytest.mark.filterwarnings("ignore:Constructing a Categorical")  # fastai's way of finding the unknown
@pytest.mark.parametrize("model", MODELS)
def test_vocabularies_may_differ_in_size(planted, model):
    rare = planted[["user", "movie", "rating"]].copy()
    rare["movie"] += 1000 * (rare.index % 20)  # rare enough that a split misses some

    def learns():
        return [learner(rare, model, seed, n_factors=ODD) for seed in range(3)]

    together, each = learns(), alone(learns())
    sizes = {len(learn.dls.classes["movie"]) for learn in together}
    assert len(sizes) > 1, "all vocabularies are equally large: the test shows nothing"
    fit_side_by_side(together, 2, 5e-3, 0.1)
    for ours, theirs in zip(together, each, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("rows, bs", [(3990, 64), (4000, 96)])
def test_a_last_batch_that_is_not_full_is_weighed_as_alone(planted, rows, bs):
    def learns():
        return [learner(planted[:rows], seed=seed, n_factors=ODD, bs=bs) for seed in range(2)]

    together, each = learns(), alone(learns(), epochs=1)
    assert any(dl.n % bs for dl in together[0].dls), "all batches are full"
    fit_side_by_side(together, 1, 5e-3, 0.1)
    for ours, theirs in zip(together, each, strict=True):
        assert_same(ours, theirs)


@pytest.mark.filterwarnings("ignore:Constructing a Categorical")  # fastai's way of finding the unknown
@pytest.mark.parametrize(
    "rows, bs, y_range", [(3990, 100, None), (3990, 100, (0, 5.5)), (3990, 36, (0, 5.5))]
)
def test_only_the_sigmoid_rounds_batches_of_odd_sizes_in_its_own_way(planted, rows, bs, y_range):
    "Its kernel takes the numbers past the last whole vector otherwise than those before."

    def learns():
        return [learner(planted[:rows], seed=s, n_factors=ODD, bs=bs, y_range=y_range) for s in range(3)]

    together, each = learns(), alone(learns(), epochs=1)
    fit_side_by_side(together, 1, 5e-3, 0.1)
    for ours, theirs in zip(together, each, strict=True):
        if y_range is None:
            assert_same(ours, theirs)
        for p, q in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-6)
        assert list(ours.recorder.values[0]) == pytest.approx(list(theirs.recorder.values[0]), rel=1e-6)


def test_fitting_again_goes_on_as_alone(planted):
    together, each = ([learner(planted, seed=s, n_factors=ODD) for s in range(2)] for _ in range(2))
    fit_side_by_side(together, 1, 5e-3, 0.1)
    alone(each, epochs=1)
    fit(together, 2, 1e-3, 0.01)
    alone(each, epochs=2, lr=1e-3, wd=0.01)
    for ours, theirs in zip(together, each, strict=True):
        assert_same(ours, theirs)


def test_predictions_and_plots_of_each_learner_work_afterwards(planted):
    together, each = ([learner(planted, seed=s, n_factors=ODD) for s in range(2)] for _ in range(2))
    fit(together, 2)
    alone(each)
    for ours, theirs in zip(together, each, strict=True):
        assert len(ours.recorder.plot_loss().lines) > 0
        with ours.no_bar(), theirs.no_bar():
            assert torch.equal(ours.get_preds()[0], theirs.get_preds()[0])


def test_the_learners_models_stay_their_own(planted):
    learns = [learner(planted, seed=s, n_factors=ODD) for s in range(2)]
    held = [[id(p) for p in learn.model.parameters()] for learn in learns]
    fit(learns, 1)
    assert held == [[id(p) for p in learn.model.parameters()] for learn in learns]
    first = learns[1].model.movie_factors.weight.clone()
    with torch.no_grad():
        learns[0].model.movie_factors.weight.zero_()
    assert torch.equal(first, learns[1].model.movie_factors.weight), "two learners share memory"
    assert first.untyped_storage().nbytes() == first.numel() * 4


def test_fit_groups_what_can_go_together_and_gives_all_the_numbers_of_training_alone(planted, monkeypatch):
    def learns():
        both = [learner(planted, m, s, n_factors=ODD) for m in MODELS[1:3] for s in range(2)]
        other_rate = learner(planted, seed=4, n_factors=ODD, bs=32)
        nn = learner(planted, lambda dls: CollabNN(*get_emb_sz(dls), n_act=9), seed=0)
        return [*both, other_rate, nn]

    sizes = passes(monkeypatch)
    together, each = learns(), alone(learns(), epochs=1)
    fit(together, 1, processes=1)
    assert sizes == [2, 2]
    for ours, theirs in zip(together, each, strict=True):
        assert_same(ours, theirs)
        same = ["epoch", "train_loss", "valid_loss"]
        assert curve(ours)[same].equals(curve(theirs)[same])


@pytest.mark.parametrize(
    "own",
    [
        [{"n_factors": 5}, {"n_factors": 6}],
        [{"n_factors": 5}, {"n_factors": 5, "y_range": (0, 6)}],
        [{"n_factors": 5}, {"n_factors": 5, "bs": 65}],
        [{"n_factors": 5}, {"n_factors": 5, "valid_pct": 0.201}],  # as many batches, fewer rows
    ],
)
def test_fit_trains_apart_what_cannot_go_together(planted, monkeypatch, own):
    sizes = passes(monkeypatch)
    together, each = ([learner(planted, seed=1, **its) for its in own] for _ in range(2))
    fit(together, 1, processes=1)
    assert sizes == []
    for ours, theirs in zip(together, alone(each, epochs=1), strict=True):
        assert_same(ours, theirs)


class Quiet(Callback):
    "A callback of one's own on a learner."


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # fastai's own loader
@pytest.mark.parametrize("own", ["loss", "metric", "callback", "loader"])
def test_fit_trains_apart_learners_with_something_of_their_own(planted, own):
    def learns():
        made = [learner(planted, seed=s, n_factors=ODD) for s in range(2)]
        for learn in made:
            if own == "loss":
                learn.loss_func = L1LossFlat()
            elif own == "metric":
                learn.metrics = [rmse]
            elif own == "callback":
                learn.add_cb(Quiet(after_epoch=lambda self: setattr(self, "called", True)))
            else:
                valid = learn.dls.valid
                learn.dls.loaders[1] = TabDataLoader(valid.dataset, bs=64, device=valid.device)
        return made

    together, each = learns(), alone(learns())
    fit(together, 2, processes=1)
    for ours, theirs in zip(together, each, strict=True):
        assert_same(ours, theirs)
        assert own != "callback" or ours.quiet.called


def test_a_pass_holds_no_more_learners_than_one_thread_can_serve(planted, monkeypatch):
    sizes = passes(monkeypatch)
    learns = [learner(planted, seed=s, n_factors=50, bs=200) for s in range(4)]  # 10,000 numbers each
    fit(learns, 1, processes=1)
    assert sizes == [3]


@pytest.mark.parametrize("processes", [1, 2])
def test_progress_is_told_every_model_epoch(planted, processes):
    told = []
    learns = [learner(planted, seed=s, n_factors=ODD) for s in range(4)]
    fit(learns, 2, progress=told.append, processes=processes)
    assert sum(told) == 8 and len(told) > 1


def test_several_processes_give_the_numbers_of_one(planted):
    def learns():
        several = [learner(planted, m, s, n_factors=ODD) for m in MODELS[:2] for s in range(2)]
        return [*several, learner(planted, lambda dls: CollabNN(*get_emb_sz(dls), n_act=9), seed=0)]

    first, second = learns(), learns()
    fit(first, 2, processes=1)
    fit(second, 2, processes=2)
    for ours, theirs in zip(second, first, strict=True):
        assert_same(ours, theirs)
        assert len(ours.stopwatch.seconds) == 2
    fit(first, 1, processes=1)  # and they go on alike
    fit(second, 1, processes=2)
    for ours, theirs in zip(second, first, strict=True):
        assert_same(ours, theirs)
