"""`fit`: what is trained together and what apart, in one process or several, and how divergence ends."""

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.collab import EmbeddingNN
from fastai.losses import L1LossFlat, MSELossFlat
from fastai.metrics import rmse
from fastai.optimizer import Adam
from fastai.tabular.core import TabDataLoader
from fastai.tabular.model import get_emb_sz
from test_loop import assert_same
from test_sidebyside import alone, learners

from collab_repro import CollabNN, DotProductBias, DotProductBiasParams, RatingsDL, fit, learner
from collab_repro.speed import DivergedError, big_batch
from collab_repro.speed.sidebyside import fit_side_by_side

TWO = [{"seed": seed} for seed in range(2)]
NETWORK = {"model": lambda dls: CollabNN(*get_emb_sz(dls), n_act=9)}
BOTH_MODELS = [{**own, "model": m} for m in (DotProductBias, DotProductBiasParams) for own in TWO]


@pytest.fixture
def passes(monkeypatch) -> list:
    """For each pass of `fit` the Learners side by side in it and the wide one, as it goes on."""
    found = []

    def noted(learns, *args):
        found.append((learns, fit_side_by_side(learns, *args)))
        return found[-1][1]

    monkeypatch.setattr("collab_repro.speed.fitting.fit_side_by_side", noted)
    return found


@pytest.mark.parametrize(
    "settings, sizes",
    [
        ([*BOTH_MODELS, {"bs": 32}, NETWORK, {**NETWORK, "seed": 1}], [2, 2]),
        (
            [{"n_factors": 50, "bs": 192, "seed": s} for s in range(4)],
            [3],
        ),  # 9,600 numbers a batch
        ([{}, {"n_factors": 6}], []),
        ([{}, {"y_range": (0, 6)}], []),
        ([{}, {"bs": 65}], []),
        ([{"bs": 96}, {"bs": 96, "valid_pct": 0.204}], []),  # as many batches, fewer rows
    ],
)
def test_what_can_go_together_does_and_every_number_is_that_of_training_alone(few, passes, settings, sizes):
    together, each = (learners(few, settings) for _ in range(2))
    fit(together, 1, processes=1)
    assert [len(learns) for learns, _ in passes] == sizes
    for ours, theirs in zip(together, alone(each, epochs=1), strict=True):
        assert_same(ours, theirs)
    for learns, wide in passes:  # which shares its seconds out
        assert sum(learn.stopwatch.seconds[0] for learn in learns) == pytest.approx(wide.stopwatch.seconds[0])


class Quiet(Callback):
    """A callback of one's own."""

    def after_epoch(self):
        self.called = True


def another_loader(learn):
    valid = learn.dls.valid
    learn.dls.loaders[1] = TabDataLoader(valid.dataset, bs=64, device=valid.device)


class Doubled(RatingsDL):
    """A loader that changes what it serves."""

    def __iter__(self):
        yield from ((x, 2 * y) for x, y in super().__iter__())


OWN = {  # what a user may change about a Learner
    "loss": lambda learn: setattr(learn, "loss_func", L1LossFlat()),
    "sum": lambda learn: setattr(learn, "loss_func", MSELossFlat(reduction="sum")),
    "metrics": lambda learn: setattr(learn, "metrics", [rmse]),
    "optimizer": lambda learn: setattr(learn, "opt_func", Adam),
    "callback": lambda learn: learn.add_cb(Quiet()),
    "fitted": lambda learn: alone([learn], epochs=1),
    "loader": another_loader,
    "own loader": lambda learn: setattr(learn.dls.train, "__class__", Doubled),
    "drop_last": lambda learn: setattr(learn.dls.valid, "drop_last", True),
    "moms": lambda learn: setattr(learn, "moms", (0.8, 0.7, 0.8)),
    "padding": lambda learn: setattr(learn.model.user_factors, "padding_idx", 1),
    "by frequency": lambda learn: setattr(learn.model.movie_factors, "scale_grad_by_freq", True),
    "record": lambda learn: setattr(learn.recorder.smooth_loss, "beta", 0.5),
    "no time": lambda learn: setattr(learn.recorder, "add_time", False),
    "gradient": lambda learn: learn.model.movie_bias.weight.sum().backward(),
    "max_norm": lambda learn: setattr(learn.model.movie_factors, "max_norm", 0.01),
}


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # fastai's own loader
@pytest.mark.parametrize("changed", [[1], [0, 1]])
@pytest.mark.parametrize("own", OWN)
def test_what_is_a_learners_own_is_kept(few, passes, own, changed):
    together, each = (learners(few, TWO, bs=96) for _ in range(2))
    for learn in [learns[i] for learns in (together, each) for i in changed]:
        OWN[own](learn)
    fit(together, 1, processes=1)
    assert len(passes) == (own in ("drop_last", "moms") and len(changed) == 2)
    for ours, theirs in zip(together, alone(each, epochs=1), strict=True):
        assert_same(ours, theirs)
        assert not hasattr(ours, "quiet") or ours.quiet.called


def test_several_processes_give_the_numbers_of_one_and_tell_every_model_epoch(few):
    runs = []
    for processes in (1, 2):
        learns, told = learners(few, [*BOTH_MODELS, NETWORK]), []
        fit(learns, 2, progress=told.append, processes=processes)
        assert sum(told) == 10 and len(told) > 1
        runs.append(learns)
    for epochs in (2, 1):
        for ours, theirs in zip(*runs, strict=True):
            assert_same(ours, theirs)
            assert len(ours.stopwatch.seconds) == len(theirs.stopwatch.seconds) == epochs
        for processes, learns in enumerate(runs, 1):  # and they go on alike
            fit(learns, 1, processes=processes)


@pytest.mark.timeout(60)
def test_processes_forked_beside_two_threads_do_not_wait_for_them(few):
    torch.set_num_threads(2)
    torch.randn(10**6).exp()  # starts the second thread, which no fork takes along
    learns = learners(few, TWO, n_factors=200, bs=720)  # two threads' work
    fit(learns, 1, processes=2)
    assert all(len(learn.recorder.values) == 1 for learn in learns)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("together", [1, 2])
def test_epochs_lr_and_wd_are_honoured_and_default_to_the_chapters(few, together):
    def end(how, *args, **kwargs):
        learns = learners(few, TWO[:together])
        how(learns, *args, **kwargs)
        return torch.cat([p.detach().flatten() for p in learns[-1].model.parameters()])

    assert torch.equal(end(fit), end(alone, 5, 5e-3, 0.1))
    for changed in ({"epochs": 2}, {"lr": 6e-3}, {"wd": 0.2}):
        changed = {"epochs": 1, **changed}
        assert torch.equal(end(fit, **changed), end(alone, **changed)), changed


@pytest.mark.parametrize("processes", [1, 2])
def test_each_learner_may_have_a_weight_decay_of_its_own(few, passes, processes):
    decays = [0.0, 0.3, 0.3, 0.3, 0.01, 0.01]
    together, each = (learners(few, [*TWO, *TWO, NETWORK, NETWORK]) for _ in range(2))
    together[3].metrics = each[3].metrics = [rmse]  # fitted alone
    fit(together, 1, wd=np.array(decays), processes=processes)
    assert len(passes) == (processes == 1), "two of a kind and a decay"
    for ours, theirs, decay in zip(together, each, decays, strict=True):
        (theirs,) = alone([theirs], 1, wd=decay)
        assert_same(ours, theirs)
    with pytest.raises(ValueError, match="a list of 1 weight decays for 2 Learners"):
        fit(learners(few, TWO), 1, wd=[0.1])


def shared(ratings, what):
    """Three Learners, the last two of which share something that training changes."""
    learns = learners(ratings, [*TWO, {"seed": 1}])
    if what == "loaders":
        learns[2].dls = learns[1].dls
    elif what == "a table":
        learns[2].model.movie_factors = learns[1].model.movie_factors
    else:
        learns[2].model = learns[1].model
    return learns


@pytest.mark.parametrize("what", ["loaders", "a table", "the model"])
@pytest.mark.parametrize("processes", [1, 2])
def test_what_two_share_is_trained_by_both_in_turn(few, what, processes):
    together, each = shared(few, what), alone(shared(few, what), epochs=1)
    fit(together, 1, processes=processes)
    for ours, theirs in zip(together, each, strict=True):
        assert_same(ours, theirs)


def test_dropout_draws_alike_in_one_process_and_several(few):
    net = {"model": lambda dls: EmbeddingNN(get_emb_sz(dls), layers=[5], ps=0.3)}
    ends = []
    for processes in (1, 2):
        learns = learners(few, [net, {**net, "seed": 1}])
        torch.manual_seed(5)
        fit(learns, 1, processes=processes)
        ends.append(([list(learn.recorder.values[0]) for learn in learns], torch.rand(1).item()))
    assert ends[0] == ends[1]


def test_tables_without_factors_or_without_validation_rows_to_serve(few):
    both = learners(few, BOTH_MODELS, n_factors=0)
    fit(both, 1, processes=0)
    assert all(learn.recorder.values[0][1] > 0 for learn in both)
    short = learners(few, TWO, split=range(10))
    for learn in short:
        learn.dls.valid.drop_last = True
    fit(short, 1)
    assert [list(learn.recorder.values[0])[1] for learn in short] == [None, None]


@pytest.mark.parametrize("wd", [{0: 0.1, 1: 0.2}, {0.1, 0.2}, []])
def test_decays_without_an_order_are_refused(few, wd):
    with pytest.raises(ValueError, match=rf"a {type(wd).__name__} of {len(wd)} weight decays for 2 Learners"):
        fit(learners(few, TWO), 1, wd=wd)


def test_no_learner_is_no_fault_but_one_twice_or_no_epoch_is(few):
    fit([])
    learns = learners(few, TWO)
    for wrong, epochs in ((learns[:1] * 2, 1), (learns, 0)):
        with pytest.raises(ValueError, match="differ and one epoch"):
            fit(wrong, epochs)


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("settings, lr, where", [
    ({}, 1e30, r"epoch 0, batch \d+ .*learning rate"),
    ({"y_range": None}, 1e30, r"epoch 0, batch \d+ .*learning rate"),
    # One batch an epoch: the training loss is still a number, the weights it leads to are not.
    ({"y_range": None, "bs": 1024}, 1e30, "epoch 0"),
])  # fmt: skip
def test_a_huge_learning_rate_ends_with_epoch_batch_and_cause(few, settings, lr, where, together):
    with pytest.raises(DivergedError, match=where):
        fit(learners(few, TWO[:together], **settings), epochs=2, lr=lr)


@pytest.mark.parametrize("at", [0, 15, 16, 22])
def test_the_first_bad_batch_is_named(few, at):
    learn, calls = learner(few, n_factors=5), []
    mse = learn.loss_func

    def poisoned(pred, y):
        calls.extend([1] * torch.is_grad_enabled())
        return mse(pred, y) * (float("nan") if len(calls) == at + 1 else 1)

    learn.loss_func = poisoned
    with pytest.raises(DivergedError, match=f"epoch {at // 16}, batch {at % 16} on"):
        fit([learn], epochs=3)


def test_a_bad_batch_of_one_of_several_models_is_named(few):
    learns = learners(few, [*TWO, {"seed": 2}], y_range=None)
    with torch.no_grad():
        learns[1].model.movie_bias.weight.fill_(float("inf"))
    with pytest.raises(DivergedError, match="epoch 0, batch 0 on"):
        fit(learns, epochs=1)


@pytest.mark.parametrize("n, bs", [(40, 40), (99, 64), (80_000, 1024), (800_000, 4096), (20_000_000, 65_536)])
def test_big_batches_grow_with_the_rows_but_slower(n, bs):
    assert big_batch(n)["bs"] == bs


def test_a_learner_made_by_fastai_alone_gets_its_epochs_timed(few):
    learns = learners(few, TWO)
    for learn in learns:
        learn.remove_cb(type(learn.stopwatch))
    fit(learns, 2, processes=1)
    assert [len(learn.stopwatch.seconds) for learn in learns] == [2, 2]
