"""FastLoop gives the ordinary Learner's numbers to the bit, and fastai goes on as always."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException, CancelTrainException
from fastai.callback.schedule import Learner
from fastai.callback.tracker import EarlyStoppingCallback, TerminateOnNaNCallback
from fastai.callback.training import GradientAccumulation, GradientClip, ShortEpochCallback
from fastai.collab import CollabDataLoaders
from fastai.data.core import DataLoaders
from fastai.losses import CrossEntropyLossFlat, L1LossFlat, MSELossFlat
from fastai.metrics import mae, rmse
from fastai.optimizer import SGD, Adam
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from collab_repro import (
    CollabNN,
    DotProduct,
    DotProductBias,
    DotProductBiasParams,
    FastLoop,
    FusedAdam,
    learner,
)
from collab_repro.loader import RatingsDL
from collab_repro.models import FROM_SIZES
from collab_repro.speed.loop import few_threads, no_subnormals, unwrapped

STEPS, VALID_STEPS = 16, 4  # of `few` in batches of 64


def make(ratings, cbs=None, model=DotProductBias, path=".", **kwargs) -> Learner:
    """A Learner as the chapter makes it, always from the same weights, split and order."""
    dls = CollabDataLoaders.from_df(
        ratings, item_name="title", bs=64, seed=1, path=path, dl_type=RatingsDL, drop_last=False
    )
    torch.manual_seed(0)
    sizes = [len(c) for c in dls.classes.values()]
    net = model(*sizes, 6) if model in FROM_SIZES else model(sizes)
    return Learner(dls, net, loss_func=MSELossFlat(), cbs=cbs, **kwargs)


def quietly(learn, how="fit_one_cycle", *args, **kwargs):
    with learn.no_bar(), learn.no_logging():
        return getattr(learn, how)(*args, **kwargs)


def assert_same(ours: Learner, theirs: Learner):
    """All that was recorded, all weights and all of the optimizer's state are equal to the bit."""
    for name in ("lrs", "iters", "hps", "metric_names"):
        assert getattr(ours.recorder, name, None) == getattr(theirs.recorder, name, None), name
    assert [list(row) for row in ours.recorder.values] == [list(row) for row in theirs.recorder.values]
    assert len(ours.recorder.losses) == len(theirs.recorder.losses) > 0
    assert all(map(torch.equal, ours.recorder.losses, theirs.recorder.losses))
    for (name, p), q in zip(ours.model.named_parameters(), theirs.model.parameters(), strict=True):
        assert torch.equal(p, q), name
        a, b = ours.opt.state[p], theirs.opt.state[q]
        assert a.keys() == b.keys(), name
        assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a), name
    assert ours.opt.hypers == theirs.opt.hypers
    assert ours.model.training == theirs.model.training
    epochs = ([getattr(dl, "epoch_no", None) for dl in learn.dls] for learn in (ours, theirs))
    assert next(epochs) == next(epochs)


def pair(ratings, how="fit_one_cycle", *args, fit_cbs=(), train_metrics=False, **kwargs):
    """The same training with the fast loop and without."""
    learns = []
    for cbs in ([FastLoop], []):
        learn = make(ratings, cbs, **kwargs)
        learn.recorder.train_metrics = train_metrics
        quietly(learn, how, *args, cbs=[cb() for cb in fit_cbs])
        learns.append(learn)
    return learns


def nets(sizes):
    return CollabNN((sizes[0], 5), (sizes[1], 4), n_act=8)


def normed(sizes):
    """A model with dropout and batch norm, which tell training from evaluation."""
    net = nets(sizes)
    net.layers = nn.Sequential(nn.BatchNorm1d(9), nn.Dropout(0.3), nn.Linear(9, 1))
    return net


def users_apart(model):
    return [[model.user_factors.weight, model.user_bias.weight], [*model.parameters()][2:]]


def early_stopping():
    return EarlyStoppingCallback(min_delta=10.0, patience=1)


# --- the same numbers -----------------------------------------------------------------------------

ONE_CYCLE = ("fit_one_cycle", 2, 5e-3)


@pytest.mark.parametrize(
    "how, settings",
    [
        (ONE_CYCLE, {"opt_func": FusedAdam, "wd": 0.1}),
        (ONE_CYCLE, {"opt_func": Adam}),
        (ONE_CYCLE, {"model": DotProduct, "opt_func": SGD}),
        (ONE_CYCLE, {"model": DotProductBiasParams, "opt_func": FusedAdam}),
        (ONE_CYCLE, {"model": nets, "opt_func": FusedAdam}),
        (ONE_CYCLE, {"model": normed}),
        (ONE_CYCLE, {"metrics": [rmse, mae]}),
        (ONE_CYCLE, {"metrics": [rmse, mae], "train_metrics": True}),
        (("fit_one_cycle", 2, slice(1e-3, 1e-2)), {"splitter": users_apart}),
        (("fit_one_cycle", 5, 5e-3), {"fit_cbs": [early_stopping]}),
        (("fit", 2, 5e-3), {}),
        (("fit_flat_cos", 2, 5e-3), {}),
        (("fit_sgdr", 1, 2), {}),
    ],
)
def test_every_number_is_the_ordinary_learners_to_the_bit(few, how, settings):
    fast, slow = pair(few, *how, **settings)
    assert len(fast.recorder.values) == 2, "one run was to stop early"
    for goes_on in (True, False):
        assert_same(fast, slow)
        for name in ("train_iter", "pct_train", "epoch", "smooth_loss"):
            assert getattr(fast, name) == getattr(slow, name), name
        for learn in (fast, slow) if goes_on else ():
            torch.manual_seed(1)
            quietly(learn, "fit", 1, 1e-3)


def test_a_plain_pytorch_loader_works_too(few):
    data = TensorDataset(torch.tensor(few[["user", "movie"]].to_numpy()), torch.tensor(few["rating"]).float())
    learns = []
    for cbs in ([FastLoop], []):
        torch.manual_seed(0)
        dls = DataLoaders(*(DataLoader(data, batch_size=64) for _ in range(2)))
        learns.append(Learner(dls, DotProductBias(61, 46, 5), loss_func=MSELossFlat(), cbs=cbs))
        quietly(learns[-1], "fit_one_cycle", 1, 5e-3)
    assert_same(*learns)


@pytest.mark.parametrize("loss_func", [MSELossFlat(), L1LossFlat(reduction="sum")])
@pytest.mark.parametrize("shape", [(64, 1), (64,), (8, 5), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.float64])
def test_an_unwrapped_loss_is_fastais_to_the_bit(loss_func, shape, dtype):
    torch.manual_seed(0)
    targ = torch.rand(*shape, 2).mul(2).to(dtype)[..., 0]  # not contiguous
    results = []
    for f in (unwrapped(loss_func), loss_func):
        pred = torch.linspace(-1, 1, targ.numel()).view(shape).requires_grad_()
        loss = f(pred, targ)
        loss.backward()
        results.append((loss, pred.grad))
    assert unwrapped(loss_func) is not loss_func
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("loss_func", [CrossEntropyLossFlat(), MSELossFlat(axis=0), nn.MSELoss()])
def test_a_loss_of_another_kind_is_left_as_it_is(loss_func):
    assert unwrapped(loss_func) is loss_func


# --- the loop, and when it steps aside ------------------------------------------------------------


class Seen(Callback):
    """A user's own callback that looks at batches."""

    batches = 0

    def after_batch(self):
        self.batches += 1


class Doubling(Callback):
    """A callback that changes batches and the loss, as mixed precision does."""

    run_valid = False

    def before_batch(self):
        self.learn.yb = tuple(y * 1.01 for y in self.yb)

    def before_backward(self):
        self.learn.loss_grad = self.loss_grad * 2


def test_fastais_loop_runs_only_while_a_callback_must_see_batches(few, monkeypatch):
    seen, learn = Seen(), make(few, [FastLoop])
    with pytest.warns(UserWarning, match="steps aside"):
        quietly(learn, "fit", 1, cbs=seen)
    assert seen.batches == STEPS + VALID_STEPS
    monkeypatch.delattr(Learner, "one_batch")
    quietly(learn, "fit", 1)
    with pytest.raises(AttributeError, match="one_batch"):
        quietly(make(few), "fit", 1)


@pytest.mark.parametrize(
    "cb, name",
    [
        (lambda: GradientAccumulation(128), "GradientAccumulation"),
        (lambda: GradientClip(1e-4), "GradientClip"),
        (TerminateOnNaNCallback, "TerminateOnNaN"),
        (Doubling, "Doubling"),
        (lambda: ShortEpochCallback(0.5), "ShortEpoch"),
    ],
)
def test_it_steps_aside_for_a_callback_that_must_see_batches_and_says_so(few, cb, name):
    with pytest.warns(UserWarning, match=f"FastLoop steps aside: {name}") as said:
        assert_same(*pair(few, "fit_one_cycle", 1, 5e-3, fit_cbs=[cb]))
    assert len(said) == 1


@pytest.mark.parametrize(
    "event, times", [("before_train", 2), ("after_cancel_train", 0), ("after_cancel_validate", 0)]
)
def test_a_callback_hears_what_fastais_own_loop_lets_it_hear(few, event, times):
    """Late preparations, and cancellations, of which there are none."""
    heard = {True: [], False: []}
    for fast in heard:
        told = {"order": FastLoop.order + 1, event: lambda self, fast=fast: heard[fast].append(event)}
        learn = make(few, [FastLoop] * fast + [type("Told", (Callback,), told)])
        warned = pytest.warns(UserWarning, match="FastLoop steps aside: Told")
        with warned if fast else contextlib.nullcontext():
            quietly(learn, "fit", 2)
    assert heard[True] == heard[False] == [event] * times


class NoTraining(Callback):
    def before_train(self):
        raise CancelTrainException


class Enough(Callback):
    def after_train(self):
        raise CancelFitException


@pytest.mark.parametrize("cb, logged, steps", [(NoTraining, [1], 0), (Enough, [], STEPS)])
def test_what_another_callback_cancels_ends_as_always(few, cb, logged, steps):
    for learn in pair(few, "fit", 1 if logged else 3, fit_cbs=[cb]):
        assert [len(row) for row in learn.recorder.values] == logged
        assert len(learn.recorder.losses) == steps


def test_the_progress_bar_reaches_its_end(few):
    learn, told = make(few, [FastLoop]), []

    class Watch(Callback):
        order = 70  # after fastai has made the bar

        def before_train(self):
            self.learn.progress.pbar.update = told.append

    with learn.no_logging():
        learn.fit(1, 1e-3, cbs=Watch())
    assert told[-1] == STEPS


# --- what a Learner is used for afterwards --------------------------------------------------------


def test_a_fitted_learner_plots_predicts_and_validates_as_always(few):
    learns = pair(few, "fit_one_cycle", 2, 5e-3, metrics=[rmse])
    # One piece of memory an epoch: scattered, they kept 25 million ratings' gradients from being given back.
    assert len({loss.untyped_storage().data_ptr() for loss in learns[0].recorder.losses}) == 2
    for learn in learns:
        assert [len(line.get_ydata()) for line in learn.recorder.plot_loss().lines[-2:]] == [2 * STEPS - 5, 2]
        learn.recorder.plot_sched()
    assert all(map(torch.equal, *(quietly(learn, "get_preds") for learn in learns)))
    assert list(quietly(learns[0], "validate")) == list(quietly(learns[1], "validate"))


def test_lr_find_suggests_the_same_and_leaves_the_weights_alone(few, tmp_path):
    found = []
    for cbs in ([FastLoop], []):
        learn = make(few, cbs, path=tmp_path)
        weights = learn.model.movie_factors.weight.clone()
        with pytest.WarningsRecorder(_ispytest=True) as heard:
            found.append(quietly(learn, "lr_find", show_plot=False).valley)
        kinds = (
            "FastLoop steps aside",
            "numpy.core is d",
            "You are using `torch.load",
        )  # fastai saves weights
        assert all(str(w.message).startswith(kinds) for w in heard), [str(w.message) for w in heard]
        assert torch.equal(weights, learn.model.movie_factors.weight) and len(learn.recorder.lrs) > 50
    assert found[0] == found[1]


# --- interruptions and other devices --------------------------------------------------------------


# In training, in validation, and outside the loop's own frame.
@pytest.mark.parametrize("where, at", [("loss_func", 7), ("loss_func", STEPS + 3), ("metrics", 2)])
def test_an_interrupted_learner_is_still_usable_and_keeps_its_progress(few, where, at):
    learn, calls = make(few, [FastLoop]), []
    before, usual = learn.model.movie_bias.weight.clone(), getattr(learn, where)

    def interrupting(pred, y):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return nn.functional.mse_loss(pred.view(-1), y.view(-1))

    setattr(learn, where, interrupting)
    with pytest.raises(KeyboardInterrupt) as kept:
        learn.fit_one_cycle(2, 5e-3)
    assert kept.traceback and torch._C._is_torch_function_enabled(), "tensor subclasses stayed switched off"
    assert not torch.equal(before, learn.model.movie_bias.weight)
    assert len(learn.recorder.losses) == (6 if at == 7 else STEPS)
    setattr(learn, where, usual)
    quietly(learn, "fit_one_cycle", 1, 5e-3)
    assert len(learn.recorder.values) == 1 and len(learn.recorder.losses) == STEPS
    assert [type(cb).__name__ for cb in learn.cbs].count("ParamScheduler") == 0
    assert quietly(learn, "get_preds")[0].shape == (256, 1)


def test_batches_in_any_form_that_fastai_takes(few):
    """Inputs as a list, as PyTorch makes them of rows ((user, movie), rating); rows without a rating."""

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 256

        def __getitem__(self, i):
            row = few.iloc[i]
            return (int(row["user"]) % 60, int(row["movie"]) % 45), np.float32(row["rating"])

    class OfList(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = DotProductBias(60, 45, 4)

        def forward(self, pair):
            return self.inner(torch.stack(pair, dim=1))

    learns = []
    for cbs in ([FastLoop], []):
        torch.manual_seed(0)
        dls = DataLoaders(*(DataLoader(Rows(), batch_size=64) for _ in range(2)), device="cpu")
        learns.append(Learner(dls, OfList(), loss_func=MSELossFlat(), opt_func=FusedAdam, cbs=cbs))
        quietly(learns[-1], "fit_one_cycle", 2, 5e-3)
    assert_same(*learns)
    for cbs in ([FastLoop], []):
        learn = make(few, cbs, metrics=[rmse])
        unrated = learn.dls.test_dl(few[["user", "title"]])
        assert list(quietly(learn, "validate", dl=unrated)) == [None, None]


def test_batches_on_another_device_than_the_model_are_moved_to_it(few):
    """As fastai does, whatever the loaders' device was."""

    class Elsewhere(RatingsDL):
        def __iter__(self):
            yield from (tuple(t.to("meta") for t in b) for b in super().__iter__())

    learn = make(few, [FastLoop])
    for dl in learn.dls.loaders:
        dl.__class__ = Elsewhere
    # Nothing comes back from the meta device: that the move is tried is what shows.
    with pytest.raises(NotImplementedError, match="meta"):
        quietly(learn, "fit", 1)


@pytest.mark.parametrize("work, inside", [(64 * 50, 1), (131_072, 1), (131_073, 2), (10**7, 2)])
def test_a_small_batch_gets_one_thread_and_the_users_setting_comes_back(work, inside):
    torch.set_num_threads(2)
    for error in (None, KeyError):
        with contextlib.suppress(KeyError), few_threads(work):
            assert torch.get_num_threads() == inside
            if error:
                raise error
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_other_threads_than_the_callers_keep_their_setting(threads):
    torch.set_num_threads(threads)
    with no_subnormals():
        assert bool(torch.tensor(1e-30) * 1e-10) == (threads == 2)
        much = torch.full((1_000_000,), 1e-30)
        assert bool((much * 1e-10).all()) == (threads == 2)
    torch.set_num_threads(2)
    assert (much * 1e-10).all()


@pytest.mark.parametrize("before", [False, True])
def test_the_smallest_numbers_are_zero_within_and_then_as_the_user_had_it(before):
    def tiny():
        return bool(torch.tensor(1e-30) * 1e-10)

    torch.set_flush_denormal(before)
    try:
        for error in (None, KeyError):
            with contextlib.suppress(KeyError), no_subnormals():
                assert not tiny()
                if error:
                    raise error
            assert tiny() is not before
    finally:
        torch.set_flush_denormal(False)


def test_averages_too_small_to_matter_become_zero_and_no_weight_changes(few):
    """With a memory this short the averages of a title shrink below 1e-38 within an epoch."""
    seen = []

    class Watched(FusedAdam):
        def step(self):
            super().step()
            averages = torch.cat([state["grad_avg"].ravel() for state in self.state.values()])
            seen.append(averages[averages != 0].abs().min())

    learns = pair(few, "fit_one_cycle", 4, 5e-3, opt_func=Watched, moms=(0.002,) * 3, wd=0.1)
    assert all(map(torch.equal, *(learn.recorder.losses for learn in learns)))
    assert all(map(torch.equal, *(learn.model.parameters() for learn in learns)))
    fast, plain = torch.stack(seen).view(2, -1).min(dim=1).values
    assert plain < torch.finfo(torch.float32).tiny <= fast


def test_the_bar_moves_within_an_epoch(few):
    moves = []

    class Noted(Callback):
        order = FastLoop.order - 1

        def before_train(self):
            self.learn.progress.pbar = SimpleNamespace(update=moves.append, on_iter_end=lambda: None)

    learn = learner(few, n_factors=4, bs=16)
    learn.add_cb(Noted())
    with learn.no_logging():
        learn.fit_one_cycle(1)
    assert moves[:3] == [25, 50, 64], "every 25 batches, and at the end"
