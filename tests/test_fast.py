"The fast loop gives the ordinary Learner's numbers, FusedAdam gives Adam's, and fastai goes on as always."

from itertools import accumulate

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from collab_repro.fast import FastLoop, FusedAdam, few_threads, in_numbers, unwrapped
from collab_repro.loaders import RatingsDL
from fastai.callback.core import Callback, CancelFitException, CancelTrainException
from fastai.callback.schedule import (
    Learner,
    SchedCos,
    SchedExp,
    SchedLin,
    SchedPoly,
    combine_scheds,
    combined_cos,
)
from fastai.callback.tracker import EarlyStoppingCallback, TerminateOnNaNCallback
from fastai.callback.training import GradientAccumulation, GradientClip, ShortEpochCallback
from fastai.collab import CollabDataLoaders
from fastai.data.core import DataLoaders
from fastai.learner import load_learner
from fastai.losses import CrossEntropyLossFlat, L1LossFlat, MSELossFlat
from fastai.metrics import mae, rmse
from fastai.optimizer import SGD, Adam
from torch import nn

from collab_repro.models import CollabNN, DotProduct, DotProductBias, DotProductBiasParams

MODELS = [DotProduct, DotProductBias, DotProductBiasParams]


def make(ratings, cbs=None, model=DotProductBias, n_factors=6, path=".", dls_bs=64, **kwargs) -> Learner:
    "A Learner as the chapter makes it, always from the same weights, split and order."
    dls = CollabDataLoaders.from_df(
        ratings, item_name="title", bs=dls_bs, seed=1, path=path, dl_type=RatingsDL, drop_last=False
    )
    torch.manual_seed(0)
    sizes = [len(c) for c in dls.classes.values()]
    net = model(*sizes, n_factors) if model in MODELS else model(sizes)
    return Learner(dls, net, loss_func=MSELossFlat(), cbs=cbs, **kwargs)


def quietly(learn, how="fit_one_cycle", *args, **kwargs):
    with learn.no_bar(), learn.no_logging():
        return getattr(learn, how)(*args, **kwargs)


def assert_same(fast: Learner, slow: Learner):
    "All that was recorded, all weights and all of the optimizer's state are equal to the bit."
    ours, theirs = fast.recorder, slow.recorder
    assert len(theirs.losses) > 0 and len(ours.losses) == len(theirs.losses)
    assert all(torch.equal(a, b) for a, b in zip(ours.losses, theirs.losses, strict=True))
    assert ours.lrs == theirs.lrs and ours.iters == theirs.iters
    assert ours.values == theirs.values and ours.metric_names == theirs.metric_names
    assert getattr(ours, "hps", None) == getattr(theirs, "hps", None)
    assert (fast.train_iter, fast.pct_train, fast.epoch) == (slow.train_iter, slow.pct_train, slow.epoch)
    assert fast.model.training == slow.model.training and fast.smooth_loss == slow.smooth_loss
    for (name, p), q in zip(fast.model.named_parameters(), slow.model.parameters(), strict=True):
        assert torch.equal(p, q), name
        a, b = fast.opt.state[p], slow.opt.state[q]
        assert a.keys() == b.keys() and all((torch.as_tensor(a[k]) == torch.as_tensor(b[k])).all() for k in a)
    assert fast.opt.hypers == slow.opt.hypers


def pair(ratings, how="fit_one_cycle", *args, cbs=(), fit_cbs=(), **kwargs):
    "The same training with the fast loop and without."
    learns = []
    for extra in ([FastLoop], []):
        learn = make(ratings, [*extra, *(cb() for cb in cbs)], **kwargs)
        quietly(learn, how, *args, cbs=[cb() for cb in fit_cbs])
        learns.append(learn)
    return learns


def nets(sizes):
    return CollabNN((sizes[0], 5), (sizes[1], 4), n_act=8)


def normed(sizes):
    "A model with dropout and batch norm, which tell training from evaluation."
    net = nets(sizes)
    net.layers = nn.Sequential(nn.BatchNorm1d(9), nn.Dropout(0.3), nn.Linear(9, 1))
    return net


# --- FastLoop -------------------------------------------------------------------------------------


@pytest.mark.parametrize("opt_func", [Adam, FusedAdam, SGD])
@pytest.mark.parametrize("model", [*MODELS, nets])
def test_every_number_is_the_ordinary_learners_to_the_bit(planted, model, opt_func):
    assert_same(*pair(planted, "fit_one_cycle", 2, 5e-3, wd=0.1, model=model, opt_func=opt_func))


def test_a_model_with_dropout_and_batch_norm_is_in_the_right_mode_in_training_and_validation(planted):
    torch.manual_seed(0)
    assert_same(*pair(planted, "fit_one_cycle", 2, 5e-3, model=normed))


@pytest.mark.parametrize("train_metrics", [False, True])
def test_metrics_are_the_ordinary_learners_and_add_up(planted, train_metrics):
    learns = [make(planted, cbs, metrics=[rmse, mae]) for cbs in ([FastLoop], [])]
    for learn in learns:
        learn.recorder.train_metrics = train_metrics
        quietly(learn, "fit_one_cycle", 2, 5e-3)
    assert_same(*learns)
    names, row = learns[0].recorder.metric_names[1:-1], learns[0].recorder.values[-1]
    found = dict(zip(names, row, strict=True))
    prefix = "valid_" if train_metrics else ""
    assert len(found) == (6 if train_metrics else 4)
    preds, targets = quietly(make_like(learns[0]), "get_preds")
    assert found["valid_loss"] == pytest.approx(((preds - targets) ** 2).mean().item(), rel=1e-5)
    assert found[f"{prefix}mae"] == pytest.approx((preds - targets).abs().mean().item(), rel=1e-5)
    assert found[f"{prefix}_rmse"] == pytest.approx(found["valid_loss"] ** 0.5, rel=1e-5)


def make_like(learn) -> Learner:
    "An ordinary Learner of the same data and model."
    return Learner(learn.dls, learn.model, loss_func=MSELossFlat())


@pytest.mark.parametrize("how", ["fit", "fit_flat_cos", "fit_sgdr"])
def test_other_schedules_are_honoured(planted, how):
    args = (1, 2) if how == "fit_sgdr" else (2, 5e-3)
    assert_same(*pair(planted, how, *args))


@pytest.mark.parametrize(
    "f",
    [
        combined_cos(0.25, 2e-4, 5e-3, 5e-8),
        combine_scheds([0.1, 0.3, 0.6], [SchedLin(0, 1), SchedExp(1, 0.1), SchedPoly(0.1, 0, 3)]),
    ],
)
def test_a_schedule_in_numbers_is_fastais_to_the_bit(f):
    ours = in_numbers(f)
    assert ours is not f
    edges = [0.0, 0.1, 0.25, 0.1 + 0.3, 1.0]
    places = [edge + step * 1e-9 for edge in edges for step in range(-60, 61)]
    places += [*accumulate([1 / 6250] * 6250), *np.random.default_rng(0).random(3000)]
    assert [ours(place) for place in places if place >= 0] == [f(place) for place in places if place >= 0]
    assert type(ours(0.3)) is float


@pytest.mark.parametrize("f", [SchedCos(1, 0), lambda pct: 0.1 * pct, max])
def test_a_schedule_of_another_kind_is_left_as_it_is(f):
    assert in_numbers(f) is f


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
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("loss_func", [CrossEntropyLossFlat(), MSELossFlat(axis=0), nn.MSELoss()])
def test_a_loss_of_another_kind_is_left_as_it_is(loss_func):
    assert unwrapped(loss_func) is loss_func


def test_fitting_twice_goes_on_where_the_first_fit_ended(planted):
    learns = [make(planted, cbs) for cbs in ([FastLoop], [])]
    for learn in learns:
        quietly(learn, "fit_one_cycle", 1, 5e-3)
        quietly(learn, "fit", 1, 1e-3)
    assert_same(*learns)


def test_parameter_groups_with_their_own_rates_are_honoured(planted):
    def splitter(model):
        return [[model.user_factors.weight, model.user_bias.weight], [*model.parameters()][2:]]

    assert_same(*pair(planted, "fit_one_cycle", 2, slice(1e-3, 1e-2), splitter=splitter))


def test_callbacks_that_need_no_batches_work_on(planted):
    def stopping():
        return EarlyStoppingCallback(min_delta=10.0, patience=1)

    fast, slow = pair(planted, "fit_one_cycle", 5, 5e-3, fit_cbs=[stopping])
    assert_same(fast, slow)
    assert len(fast.recorder.values) == 2, "it was to stop after the second epoch"


def test_plots_of_the_recorder_show_the_run(planted):
    fast, slow = pair(planted, "fit_one_cycle", 2, 5e-3)
    lines = []
    for learn in (fast, slow):
        plt.figure()
        ax = learn.recorder.plot_loss()
        curves = [line.get_ydata() for line in ax.lines]
        learn.recorder.plot_sched()
        curves += [line.get_ydata() for ax in plt.gcf().axes for line in ax.lines]
        lines.append([[float(y) for y in ys] for ys in curves])
        plt.close("all")
    assert len(lines[0]) == 4 and len(lines[0][0]) == 95 and len(lines[0][2]) == 100
    assert lines[0] == lines[1]


def test_the_loop_is_really_replaced(planted, monkeypatch):
    def forbidden(*_):
        raise AssertionError("fastai's own loop ran")

    monkeypatch.setattr(Learner, "one_batch", forbidden)
    quietly(make(planted, [FastLoop]), "fit_one_cycle", 1, 5e-3)
    with pytest.raises(AssertionError, match="own loop ran"):
        quietly(make(planted), "fit_one_cycle", 1, 5e-3)


def test_the_progress_bar_reaches_its_end(planted):
    learn, told = make(planted, [FastLoop]), []

    class Watch(Callback):
        order = 70  # after fastai has made the bar

        def before_train(self):
            self.learn.progress.pbar.update = told.append

    with learn.no_logging():
        learn.fit(1, 1e-3, cbs=Watch())
    assert told[-1] == 50


class Seen(Callback):
    "A user's own callback that looks at batches."

    def __init__(self):
        self.batches = 0

    def after_batch(self):
        self.batches += 1


class Doubling(Callback):
    "A callback that changes batches and the loss, as mixed precision does."

    run_valid = False

    def before_batch(self):
        self.learn.yb = tuple(y * 1.01 for y in self.yb)

    def before_backward(self):
        self.learn.loss_grad = self.loss_grad * 2


@pytest.mark.parametrize(
    "cb, name",
    [
        (lambda: GradientAccumulation(128), "GradientAccumulation"),
        (lambda: GradientClip(1e-4), "GradientClip"),
        (TerminateOnNaNCallback, "TerminateOnNaN"),
        (Doubling, "Doubling"),
        (Seen, "Seen"),
        (lambda: ShortEpochCallback(0.5), "ShortEpoch"),
    ],
)
def test_it_steps_aside_for_a_callback_that_must_see_batches_and_says_so(planted, cb, name):
    slow = make(planted)
    quietly(slow, "fit_one_cycle", 2, 5e-3, cbs=cb())
    fast = make(planted, [FastLoop])
    with pytest.warns(UserWarning, match=f"FastLoop steps aside: {name}") as said:
        quietly(fast, "fit_one_cycle", 2, 5e-3, cbs=cb())
    assert len(said) == 1
    assert_same(fast, slow)


def test_a_callbacks_view_of_all_batches_is_complete(planted):
    seen, learn = Seen(), make(planted, [FastLoop])
    with pytest.warns(UserWarning, match="steps aside"):
        quietly(learn, "fit", 1, cbs=seen)
    assert seen.batches == 50 + 13


def test_it_comes_back_when_that_callback_is_gone(planted, monkeypatch):
    learn = make(planted, [FastLoop])
    with pytest.warns(UserWarning, match="steps aside"):
        quietly(learn, "fit", 1, cbs=Seen())
    monkeypatch.delattr(Learner, "one_batch")
    quietly(learn, "fit", 1)


def test_an_epoch_cancelled_by_another_callback_is_not_logged_as_trained(planted):
    class NoTraining(Callback):
        def before_train(self):
            raise CancelTrainException

    learns = [make(planted, cbs) for cbs in ([FastLoop], [])]
    for learn in learns:
        quietly(learn, "fit", 1, cbs=NoTraining())
    assert [len(learn.recorder.values[0]) for learn in learns] == [1, 1]
    assert learns[0].recorder.values == learns[1].recorder.values


def test_a_fit_cancelled_by_another_callback_ends_as_always(planted):
    class Enough(Callback):
        def after_train(self):
            raise CancelFitException

    learns = pair(planted, "fit", 3, fit_cbs=[Enough])
    assert [len(learn.recorder.losses) for learn in learns] == [50, 50]


def test_get_preds_validate_and_show_results_go_on_without_a_warning(planted, monkeypatch):
    shown = []
    monkeypatch.setattr("fastai.tabular.learner.display_df", shown.append)
    fast, slow = pair(planted, "fit_one_cycle", 1, 5e-3, metrics=[rmse])
    for a, b in zip(quietly(fast, "get_preds"), quietly(slow, "get_preds"), strict=True):
        assert torch.equal(a, b)
    assert list(quietly(fast, "validate")) == list(quietly(slow, "validate"))
    quietly(fast, "show_results", max_n=3)
    assert len(shown) == 1


def test_lr_find_suggests_the_same_and_leaves_the_weights_alone(planted, tmp_path):
    found = []
    for cbs in ([FastLoop], []):
        learn = make(planted, cbs, path=tmp_path)
        weights = learn.model.movie_factors.weight.clone()
        with ignored_on_saving():
            found.append(quietly(learn, "lr_find", show_plot=False).valley)
        assert torch.equal(weights, learn.model.movie_factors.weight)
        assert len(learn.recorder.lrs) > 50
    assert found[0] == found[1]


class ignored_on_saving(pytest.WarningsRecorder):
    "fastai's warnings when it saves and loads weights, and the fast loop's when it steps aside."

    def __init__(self):
        super().__init__(_ispytest=True)

    def __exit__(self, *why):
        kinds = {"FastLoop steps", "numpy.core is d", "You are using `"}  # the last before PyTorch 2.6
        heard = [str(w.message) for w in self.list]
        super().__exit__(*why)
        assert all(text[:14] in kinds or text[:15] in kinds for text in heard), heard


def test_export_and_load_learner_with_it_attached(planted, tmp_path):
    learn = make(planted, [FastLoop], path=tmp_path, opt_func=FusedAdam)
    quietly(learn, "fit_one_cycle", 1, 5e-3)
    expected, _ = quietly(learn, "get_preds")
    learn.export("m.pkl")
    loaded = load_learner(tmp_path / "m.pkl")
    dl = loaded.dls.test_dl(planted.loc[learn.dls.valid.items.index])
    assert torch.equal(quietly(loaded, "get_preds", dl=dl)[0], expected)
    quietly(learn, "fit_one_cycle", 1, 5e-3)
    assert len(learn.recorder.values) == 1


def interrupt(learn, at: int):
    "The learner's loss function, which stops the run at a call."
    calls = 0

    class Interrupting(nn.Module):
        def forward(self, pred, y):
            nonlocal calls
            calls += 1
            if calls == at:
                raise KeyboardInterrupt
            return nn.functional.mse_loss(pred.view(-1), y.view(-1))

    learn.loss_func = Interrupting()


@pytest.mark.parametrize("at", [7, 53])  # in training, in validation
def test_an_interrupted_learner_is_still_usable_and_keeps_its_progress(planted, at):
    learn = make(planted, [FastLoop])
    before = learn.model.movie_bias.weight.clone()
    interrupt(learn, at)
    with pytest.raises(KeyboardInterrupt) as kept:
        learn.fit_one_cycle(2, 5e-3)
    assert kept.traceback and torch._C._is_torch_function_enabled(), "tensor subclasses stayed switched off"
    assert not torch.equal(before, learn.model.movie_bias.weight)
    assert len(learn.recorder.losses) == min(at - 1, 50)
    learn.loss_func = MSELossFlat()
    quietly(learn, "fit_one_cycle", 1, 5e-3)
    assert len(learn.recorder.values) == 1 and len(learn.recorder.losses) == 50
    assert [type(cb).__name__ for cb in learn.cbs].count("ParamScheduler") == 0
    assert quietly(learn, "get_preds")[0].shape == (800, 1)


def test_an_error_in_a_metric_leaves_tensor_subclasses_switched_on(planted):
    def broken(pred, y):
        raise RuntimeError("the metric broke")

    with pytest.raises(RuntimeError, match="the metric broke") as kept:
        quietly(make(planted, [FastLoop], metrics=[broken]), "fit", 1)
    assert kept.traceback and torch._C._is_torch_function_enabled()


def test_batches_on_another_device_than_the_model_are_moved_to_it(planted):
    "As fastai does, whatever the loaders' device was."
    learn = make(planted, [FastLoop])

    class Elsewhere(RatingsDL):
        def __iter__(self):
            yield from (tuple(t.to("meta") for t in b) for b in super().__iter__())

    for dl in learn.dls.loaders:
        dl.__class__ = Elsewhere
    # Nothing comes back from the meta device: that the move is tried is what shows.
    with pytest.raises(NotImplementedError, match="meta"):
        quietly(learn, "fit", 1)


def test_a_plain_pytorch_loader_works_too(planted):
    def torchs():
        rows = torch.tensor(planted[["user", "movie"]].to_numpy(), dtype=torch.int64)
        stars = torch.tensor(planted["rating"].to_numpy(), dtype=torch.float32)
        data = torch.utils.data.TensorDataset(rows, stars)
        dls = DataLoaders(*(torch.utils.data.DataLoader(data, batch_size=64) for _ in range(2)))
        torch.manual_seed(0)
        return dls, DotProductBias(121, 91, 5)

    learns = [Learner(*torchs(), loss_func=MSELossFlat(), cbs=cbs) for cbs in ([FastLoop], [])]
    for learn in learns:
        quietly(learn, "fit_one_cycle", 1, 5e-3)
    assert_same(*learns)


def test_the_losses_of_an_epoch_lie_in_one_piece_of_memory(planted):
    learn = make(
        planted, FastLoop
    )  # scattered, they kept 25 million ratings' gradients from being given back
    quietly(learn, "fit_one_cycle", 3)
    pieces = {loss.untyped_storage().data_ptr() for loss in learn.recorder.losses}
    assert len(learn.recorder.losses) == 150 and len(pieces) == 3


# --- FusedAdam ------------------------------------------------------------------------------------


def trained(opt_func, steps=30, do_wd=(True, True), wd=0.1, **hypers):
    "Two parameters after a fixed sequence of gradients, and the optimizer."
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(33, 7)), nn.Parameter(torch.randn(5))]
    opt = opt_func(params, lr=0.05, wd=wd, **hypers)
    for p, decays in zip(params, do_wd, strict=True):
        opt.state[p]["do_wd"] = decays
    steps_on(opt, params, range(steps))
    return params, opt


def steps_on(opt, params, steps):
    for step in steps:
        torch.manual_seed(100 + step)
        opt.set_hyper("lr", 0.05 / (1 + step))
        opt.set_hyper("mom", 0.95 - 0.003 * step)
        for p in params:
            p.grad = torch.randn_like(p) * 10.0 ** (step % 3 - 1)
        opt.step()


def assert_close(ours, theirs):
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("do_wd", [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("hypers", [{}, {"sqr_mom": 0.9, "eps": 1e-2}, {"wd": 0.0}])
def test_fused_adam_is_adam_up_to_rounding(do_wd, hypers):
    ours, theirs = (trained(f, do_wd=do_wd, **hypers)[0] for f in (FusedAdam, Adam))
    assert_close(ours, theirs)


@pytest.mark.parametrize("changed", [{"wd": 0.5}, {"eps": 0.5}, {"sqr_mom": 0.5}])
def test_each_hyper_parameter_changes_the_result(changed):
    assert not torch.allclose(trained(FusedAdam)[0][0], trained(FusedAdam, **changed)[0][0], atol=1e-3)


def test_a_parameter_that_must_not_decay_does_not():
    decayed, not_decayed = (trained(FusedAdam, do_wd=(d, True))[0] for d in (True, False))
    assert not torch.equal(decayed[0], not_decayed[0]) and torch.equal(decayed[1], not_decayed[1])


def test_hyper_parameters_default_to_adams():
    ours, theirs = (f([nn.Parameter(torch.zeros(2))], lr=0.1).hypers for f in (FusedAdam, Adam))
    assert ours == theirs


def test_state_has_adams_names_and_values():
    (ours, opt), (theirs, adam) = trained(FusedAdam), trained(Adam)
    for p, q in zip(ours, theirs, strict=True):
        a, b = opt.state[p], adam.state[q]
        assert a.keys() == b.keys() and a["step"] == b["step"] == 30
        for name in ("grad_avg", "sqr_avg"):
            torch.testing.assert_close(a[name], b[name], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("first, then", [(Adam, FusedAdam), (FusedAdam, Adam), (FusedAdam, FusedAdam)])
def test_training_goes_on_from_a_state_dict_of_the_other_optimizer(first, then):
    params, opt = trained(first, steps=10)
    other = then(params, lr=1.0)
    other.load_state_dict(opt.state_dict())
    steps_on(other, params, range(10, 30))
    assert_close(params, trained(Adam)[0])


def test_a_saved_learner_goes_on_with_the_other_optimizer(planted, tmp_path):
    ends = []
    for first, then in ((Adam, Adam), (Adam, FusedAdam), (FusedAdam, Adam)):
        learn = make(planted, path=tmp_path, opt_func=first)
        quietly(learn, "fit", 1, 5e-3)
        state = learn.opt.state_dict()
        other = make(planted, path=tmp_path, opt_func=then)
        other.model.load_state_dict(learn.model.state_dict())
        other.create_opt()
        other.opt.load_state_dict(state)
        other.dls.train.epoch_no = 1
        quietly(other, "fit", 1, 5e-3)
        ends.append([p.detach() for p in other.model.parameters()])
    for end in ends[1:]:
        for p, q in zip(end, ends[0], strict=True):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4)


def test_a_whole_run_agrees_with_adams(planted):
    fused, plain = (pair(planted, "fit_one_cycle", 2, 5e-3, wd=0.1, opt_func=f)[0] for f in (FusedAdam, Adam))
    for a, b in zip(fused.recorder.values, plain.recorder.values, strict=True):
        assert list(a) == pytest.approx(list(b), rel=1e-4)


def test_a_frozen_group_stands_still_and_unfreezing_moves_it(planted):
    def splitter(model):
        return [[model.user_factors.weight, model.user_bias.weight], [*model.parameters()][2:]]

    learn = make(planted, [FastLoop], opt_func=FusedAdam, splitter=splitter)
    quietly(learn, "fit", 1, 5e-3)  # so that moments and gradients are left over from before
    learn.freeze()
    users, movies = (t.weight.clone() for t in (learn.model.user_factors, learn.model.movie_factors))
    quietly(learn, "fit", 1, 5e-3)
    assert torch.equal(users, learn.model.user_factors.weight)
    assert not torch.equal(movies, learn.model.movie_factors.weight)
    learn.unfreeze()
    quietly(learn, "fit", 1, 5e-3)
    assert not torch.equal(users, learn.model.user_factors.weight)


def test_a_parameter_without_gradient_is_left_alone():
    params, opt = trained(FusedAdam)
    before = [p.detach().clone() for p in params]
    opt.zero_grad()
    assert all(p.grad is None for p in params)
    opt.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    params[0].grad = torch.ones_like(params[0])
    opt.step()
    assert not torch.equal(params[0], before[0]) and torch.equal(params[1], before[1])


# --- few_threads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("work, inside", [(64 * 50, 1), (131_072, 1), (131_073, 2), (10**7, 2)])
def test_a_small_batch_gets_one_thread_and_a_large_one_the_users_setting(work, inside):
    torch.set_num_threads(2)
    with few_threads(work):
        assert torch.get_num_threads() == inside
    assert torch.get_num_threads() == 2


def test_the_users_threads_come_back_after_an_exception():
    torch.set_num_threads(2)
    with pytest.raises(RuntimeError), few_threads(1):
        raise RuntimeError
    assert torch.get_num_threads() == 2
