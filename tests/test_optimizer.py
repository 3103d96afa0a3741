"""FusedAdam is fastai's Adam up to rounding, in its results, its state and what a Learner does with it."""

import pytest
import torch
from fastai.optimizer import Adam
from test_loop import make, pair, quietly, users_apart
from torch import nn

from collab_repro import FastLoop, FusedAdam


def trained(opt_func, steps=30, do_wd=(True, True), wd=0.1, **hypers):
    """Two parameters after a fixed sequence of gradients, and the optimizer."""
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


@pytest.mark.parametrize("do_wd", [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("hypers", [{}, {"sqr_mom": 0.9, "eps": 1e-2}, {"wd": 0.0}])
def test_parameters_and_state_are_adams_up_to_rounding(do_wd, hypers):
    (ours, opt), (theirs, adam) = (trained(f, do_wd=do_wd, **hypers) for f in (FusedAdam, Adam))
    assert opt.hypers == adam.hypers
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=2e-5, atol=2e-6)
        assert opt.state[p].keys() == adam.state[q].keys() and opt.state[p]["step"] == 30
        for name in ("grad_avg", "sqr_avg"):
            torch.testing.assert_close(opt.state[p][name], adam.state[q][name], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("cut", [
    lambda whole: whole[:, :5],
    lambda whole: whole[::3],
    lambda whole: whole[:, ::2],
    lambda whole: whole.T,
    lambda whole: whole[2:7, 1:3],
])  # fmt: skip
def test_a_part_of_a_tensor_is_stepped_as_adam_does_and_the_rest_stays(cut):
    wholes = []
    for f in (FusedAdam, Adam):
        torch.manual_seed(0)
        whole = torch.randn(33, 9)
        param, rest = nn.Parameter(cut(whole)), torch.ones_like(whole)
        cut(rest).zero_()
        before, opt = whole[rest.bool()].clone(), f([param], lr=0.05, wd=0.1)
        steps_on(opt, [param], range(9))
        assert torch.equal(whole[rest.bool()], before)
        wholes.append((whole, opt.state[param]["grad_avg"], opt.state[param]["sqr_avg"]))
    torch.testing.assert_close(*wholes, rtol=2e-5, atol=2e-6)


def test_hyper_parameters_default_to_adams():
    ours, theirs = (f([nn.Parameter(torch.zeros(2))], lr=0.1).hypers for f in (FusedAdam, Adam))
    assert ours == theirs


@pytest.mark.parametrize("first, then", [(Adam, FusedAdam), (FusedAdam, Adam), (FusedAdam, FusedAdam)])
def test_training_goes_on_from_a_state_dict_of_the_other_optimizer(first, then):
    params, opt = trained(first, steps=10)
    other = then(params, lr=1.0)
    other.load_state_dict(opt.state_dict())
    steps_on(other, params, range(10, 30))
    for p, q in zip(params, trained(Adam)[0], strict=True):
        torch.testing.assert_close(p, q, rtol=2e-5, atol=2e-6)


def test_a_whole_run_agrees_with_adams(few):
    fused, plain = (pair(few, "fit_one_cycle", 2, 5e-3, wd=0.1, opt_func=f)[0] for f in (FusedAdam, Adam))
    for a, b in zip(fused.recorder.values, plain.recorder.values, strict=True):
        assert list(a) == pytest.approx(list(b), rel=1e-4)


def test_a_frozen_group_stands_still_and_unfreezing_moves_it(few):
    learn = make(few, [FastLoop], opt_func=FusedAdam, splitter=users_apart)
    quietly(learn, "fit", 1, 5e-3)  # so that moments and gradients are left over from before
    for prepare, users_move in ((learn.freeze, False), (learn.unfreeze, True)):
        prepare()
        users, movies = (t.weight.clone() for t in (learn.model.user_factors, learn.model.movie_factors))
        quietly(learn, "fit", 1, 5e-3)
        assert torch.equal(users, learn.model.user_factors.weight) != users_move
        assert not torch.equal(movies, learn.model.movie_factors.weight)


def test_a_parameter_without_gradient_is_left_alone():
    params, opt = trained(FusedAdam)
    before = [p.detach().clone() for p in params]
    opt.zero_grad()
    assert all(p.grad is None for p in params)
    params[0].grad = torch.ones_like(params[0])
    opt.step()
    assert not torch.equal(params[0], before[0]) and torch.equal(params[1], before[1])
