"""Four routes to a row and one derivative: the claims of nbs/01_why_embeddings, asserted."""

import warnings

import fastai.optimizer
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.losses import MSELossFlat
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from collab_repro.evidence import lookups
from collab_repro.evidence.lookups import (
    LOOKUPS,
    WAYS,
    GatherScatter,
    attempt,
    cost,
    draws,
    gradient,
    megabytes,
    one_hot,
    repeats,
)
from collab_repro.models import DotProductBias, DotProductBiasParams, copy_weights, tables
from collab_repro.training import FusedAdam, learner

ALL = {**LOOKUPS, "GatherScatter": GatherScatter.apply}
BOTH = DotProductBias, DotProductBiasParams
NAMES = dict(zip(LOOKUPS, ("Mm", "IndexSelect", "Index", "Embedding"), strict=True))


@st.composite
def cases(draw, dtype=torch.float64):
    """A table (n, k), rows to look up (bs,), some twice, maybe none, and a gradient for each (bs, k)."""
    n, k = draw(st.integers(1, 12)), draw(st.integers(1, 9))
    idx = torch.tensor(draw(st.lists(st.integers(0, n - 1), max_size=40)), dtype=torch.int64)
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    table, upstream = (torch.randn(rows, k, generator=random, dtype=dtype) for rows in (n, len(idx)))
    return table, idx, upstream


@settings(deadline=None)
@given(cases())
def test_all_look_up_the_same_rows_and_all_gradients_are_the_one_hot_products(case):
    table, idx, upstream = case
    oracle = F.one_hot(idx, len(table)).double().T @ upstream  # the product's derivative, by hand
    for lookup in ALL.values():
        assert torch.equal(lookup(table, idx), one_hot(table, idx))
        torch.testing.assert_close(gradient(lookup, table, idx, upstream), oracle, rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(cases(torch.float32))
def test_our_backward_and_pytorchs_are_equal_to_the_bit(case):
    theirs = gradient(LOOKUPS["Embedding"], *case)
    for name in ("table[idx]", "index_select", "GatherScatter"):
        assert torch.equal(gradient(ALL[name], *case), theirs)


@pytest.mark.parametrize("shape", [(944, 50, 64), (1665, 50, 64), (1665, 50, 8192)])
def test_bitwise_at_the_chapters_sizes(shape):
    n, k, bs = shape
    random = torch.Generator().manual_seed(0)
    table, upstream = (torch.randn(rows, k, generator=random) for rows in (n, bs))
    idx = torch.randint(n // 4, (bs,), generator=random)  # many come twice
    theirs = gradient(LOOKUPS["Embedding"], table, idx, upstream)
    for name in ("table[idx]", "index_select", "GatherScatter"):
        assert torch.equal(gradient(ALL[name], table, idx, upstream), theirs)
    oracle = gradient(one_hot, table.double(), idx, upstream.double())
    torch.testing.assert_close(theirs.double(), oracle, rtol=1e-4, atol=1e-4)


def test_a_gradient_adds_up_over_repeats():
    idx, upstream = torch.tensor([2, 0, 2]), torch.tensor([[1.0], [10.0], [100.0]])
    for lookup in ALL.values():
        assert gradient(lookup, torch.zeros(4, 1), idx, upstream).tolist() == [[10], [0], [101], [0]]


@pytest.mark.parametrize("name", ALL)
def test_gradcheck(name):
    leaf = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    for idx in ([4, 1, 4, 4], [0], []):
        idx = torch.tensor(idx, dtype=torch.int64)
        assert torch.autograd.gradcheck(lambda t, i=idx: ALL[name](t, i), leaf)
        if len(idx):  # PyTorch's own double backward of an Embedding raises on an empty batch
            assert torch.autograd.gradgradcheck(lambda t, i=idx: ALL[name](t, i), leaf)


def test_grad_fn_names():
    table, idx = torch.randn(4, 3, requires_grad=True), torch.tensor([2, 0, 2])
    for name, lookup in LOOKUPS.items():
        assert lookup(table, idx).grad_fn.name() == NAMES[name] + "Backward0"
    assert GatherScatter.apply(table, idx).grad_fn.name() == "GatherScatterBackward"


# One step (test_comparison trains both models to the end)


def by_one_hot(weights, x, y_range=(0, 5.5)):
    """DotProductBias written as matrix products, the oracle of both models; `weights` as in `tables`."""
    n_users, n_movies = len(weights["user_bias"]), len(weights["movie_bias"])
    users, movies = F.one_hot(x[:, 0], n_users).double(), F.one_hot(x[:, 1], n_movies).double()
    dots = ((users @ weights["user_factors"]) * (movies @ weights["movie_factors"])).sum(1)
    scores = dots + (users @ weights["user_bias"]).flatten() + (movies @ weights["movie_bias"]).flatten()
    return torch.sigmoid(scores) * (y_range[1] - y_range[0]) + y_range[0]


@pytest.mark.parametrize("model", BOTH)
def test_every_gradient_of_both_models_is_that_of_the_matrix_products(planted, model):
    """What fails when a model's backward is wrong: a lookup detached, a gradient scaled, repeats lost."""
    learn = learner(planted, model, seed=3, n_factors=7)
    x, y = learn.dls.train.one_batch()
    assert len(x[:, 0].unique()) < len(x) and len(x[:, 1].unique()) < len(x)
    with torch.no_grad():  # larger than at the start, so that each table's gradient counts
        for table in learn.model.parameters():
            table.mul_(30)
    weights = {n: t.detach().double().requires_grad_() for n, t in tables(learn.model).items()}
    pred = by_one_hot(weights, x)
    F.mse_loss(pred, y.flatten().double()).backward()

    ours = learn.model(x)
    torch.testing.assert_close(ours.flatten().double(), pred, rtol=1e-5, atol=1e-5)
    MSELossFlat()(ours, y).backward()
    for name, table in tables(learn.model).items():
        expected = weights[name].grad
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(table.grad.double(), expected, rtol=1e-4, atol=1e-7)


def test_one_step_is_equal_to_the_bit(planted):
    learns = [learner(planted, model, seed=1) for model in BOTH]
    copy_weights(learns[0].model, learns[1].model)
    before = {n: t.detach().clone() for n, t in tables(learns[0].model).items()}
    x, y = learns[0].dls.train.one_batch()
    for learn in learns:
        MSELossFlat()(learn.model(x), y).backward()
        FusedAdam(list(learn.model.parameters()), lr=5e-3, wd=0.1).step()
    ours, theirs = (tables(learn.model) for learn in learns)
    for name, table in ours.items():
        assert torch.equal(table, theirs[name].reshape(table.shape))
        assert (table != before[name]).all()  # weight decay moves the rows that the batch does not hold


# Where they begin


def test_embedding_draws_every_table_twice():
    own = [944 * 50, 944, 1665 * 50, 1665]
    before = torch.get_rng_state()
    assert draws(lambda: DotProductBiasParams(944, 1665, 50)) == own
    assert draws(lambda: DotProductBias(944, 1665, 50)) == [n for n in own for _ in range(2)]
    assert draws(lambda: torch.zeros(3)) == []
    assert torch.equal(before, torch.get_rng_state())


def test_distributions_of_the_initial_tables():
    torch.manual_seed(0)
    cut, whole = (tables(m(944, 1665, 50))["movie_factors"].detach() for m in BOTH)
    assert cut.abs().max() <= 0.02 and cut.std().item() == pytest.approx(0.0087, abs=2e-4)
    assert 0.035 < whole.abs().max() < 0.06 and whole.std().item() == pytest.approx(0.01, abs=2e-4)


# What nn.Embedding carries


def test_indexing_takes_what_embedding_refuses():
    weight, emb = nn.Parameter(torch.randn(5, 3)), nn.Embedding(5, 3)
    minus, bools = torch.tensor([-1]), torch.tensor([1, 0, 1, 1, 0]).bool()
    assert torch.equal(weight[minus], weight[4:])
    with pytest.raises(IndexError, match="out of range"):
        emb(minus)
    assert torch.equal(weight[bools], weight[[0, 2, 3]])
    with pytest.warns(UserWarning, match="uint8"):
        assert torch.equal(weight[bools.to(torch.uint8)], weight[[0, 2, 3]])
    for mask in (bools, bools.to(torch.uint8)):
        with pytest.raises(RuntimeError, match="scalar types"):
            emb(mask)
    assert weight[[1, 0]].shape == (2, 3)
    with pytest.raises(TypeError, match="must be Tensor"):
        emb([1, 0])


def test_both_refuse_a_row_too_many_and_short_ints_and_take_int32():
    weight, emb = nn.Parameter(torch.randn(5, 3)), nn.Embedding(5, 3)
    for idx in (torch.tensor([5]), torch.tensor([0], dtype=torch.int8), torch.tensor([0], dtype=torch.int16)):
        for lookup in (emb, weight.__getitem__):
            with pytest.raises((IndexError, RuntimeError)):
                lookup(idx)
    assert emb(torch.tensor([1], dtype=torch.int32)).shape == weight[torch.tensor([1]).int()].shape == (1, 3)


def test_padding_row_is_zero_and_gets_no_gradient():
    emb = nn.Embedding(4, 2, padding_idx=0)
    emb(torch.tensor([0, 1, 1])).sum().backward()
    assert emb.weight[0].tolist() == [0, 0]
    assert emb.weight.grad[:, 0].tolist() == [0, 2, 0, 0]


def test_max_norm_writes_in_forward_and_scale_grad_by_freq_divides():
    emb = nn.Embedding(3, 2, max_norm=1.0)
    with torch.no_grad():
        emb.weight.fill_(3.0)
        emb(torch.tensor([1]))
    assert emb.weight[[0, 2]].tolist() == [[3, 3], [3, 3]]
    assert emb.weight[1].norm().item() == pytest.approx(1, abs=1e-5)
    emb = nn.Embedding(4, 2, scale_grad_by_freq=True)
    emb(torch.tensor([2, 0, 2, 2])).sum().backward()
    assert emb.weight.grad[:, 0].tolist() == pytest.approx([1, 0, 1, 0])


def sparse_step(optimizer, **options):
    emb = nn.Embedding(5, 3, sparse=True)
    emb(torch.tensor([1, 1])).sum().backward()
    assert emb.weight.grad.is_sparse and emb.weight.grad.coalesce().indices().tolist() == [[1]]
    optimizer(list(emb.parameters()), lr=0.1, **options).step()


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_who_takes_a_sparse_gradient():
    for optimizer in (torch.optim.SGD, torch.optim.Adagrad, torch.optim.SparseAdam, fastai.optimizer.SGD):
        sparse_step(optimizer)
    for optimizer in (torch.optim.Adam, torch.optim.AdamW):
        with pytest.raises(RuntimeError, match="does not support sparse gradients"):
            sparse_step(optimizer)
    for optimizer in (fastai.optimizer.Adam, FusedAdam):
        with pytest.raises(NotImplementedError, match="Sparse"):
            sparse_step(optimizer)
    with pytest.raises(RuntimeError, match="sparse"):
        sparse_step(torch.optim.SGD, weight_decay=0.1)


@pytest.mark.parametrize("sparse, moves", [(False, [0, 1]), (True, [1])])
def test_adam_moves_absent_rows_and_sparse_adam_does_not(sparse, moves):
    emb = nn.Embedding(3, 2, sparse=sparse)
    opt = (torch.optim.SparseAdam if sparse else torch.optim.Adam)(emb.parameters(), lr=0.1)
    for row in (0, 1):
        before = emb.weight.detach().clone()
        opt.zero_grad()
        emb(torch.tensor([row])).sum().backward()
        opt.step()
    assert (emb.weight != before).any(dim=1).nonzero().flatten().tolist() == moves


def test_what_shows_of_a_table():
    emb, params = DotProductBias(5, 6, 2), DotProductBiasParams(5, 6, 2)
    assert "Embedding(6, 2)" in repr(emb) and repr(params) == "DotProductBiasParams()"
    assert "movie_bias.weight" in emb.state_dict() and "movie_bias" in params.state_dict()
    asked = []
    emb.movie_factors.register_forward_hook(lambda module, args, out: asked.append(len(out)))
    emb(torch.zeros(4, 2, dtype=torch.int64))
    assert asked == [4] and not hasattr(params.movie_factors, "register_forward_hook")


# Costs, and where equality to the bit ends


def test_megabytes_are_those_of_the_tensors_a_step_holds():
    n, k, bs = 300, 7, 11
    for way, (lookup, optimizer, options) in WAYS.items():
        table, idx = nn.Parameter(torch.randn(n, k)), torch.arange(bs)
        opt = optimizer([table], lr=0.1, **options)
        lookup(table, idx).sum().backward()
        opt.step()
        grad = table.grad
        tensors = [table, *(t for t in opt.state[table].values() if torch.is_tensor(t) and t.ndim)]
        tensors += [grad._values(), grad._indices()] if grad.is_sparse else [grad]
        tensors += [F.one_hot(idx, n), F.one_hot(idx, n).float()] if way == "one-hot" else []
        size = sum(t.numel() * t.element_size() for t in tensors) / 1e6
        assert size == pytest.approx(megabytes(way, n, k, bs))


def test_cost_measures_what_fits_and_says_what_does_not(monkeypatch):
    monkeypatch.setattr(lookups, "LIMIT", 1.7)
    threads = torch.get_num_threads()
    steps = cost(rows=(100, 2_000), bs=8, ways=["index", "one-hot"], spend=0)
    assert list(steps.columns) == ["way", "rows", "seconds", "megabytes", "note"]
    assert steps["way"].tolist() == ["index", "index", "one-hot", "one-hot"]
    skipped = steps.pop("seconds").isna()
    assert skipped.tolist() == [False, False, False, True] and steps["rows"].iloc[-1] == 2_000
    assert "limit" in steps["note"].iloc[-1] and (steps["note"][:3] == "").all()
    assert torch.get_num_threads() == threads


def test_a_big_table_costs_the_dense_ways_and_not_the_sparse_one():
    seconds = cost(rows=(50_000,)).set_index("way")["seconds"]
    assert list(seconds.index) == list(WAYS) and (seconds > 0).all()
    assert seconds["Embedding, sparse"] < seconds[["Embedding", "index"]].min() / 4
    assert seconds["one-hot"] > seconds[["Embedding", "index"]].max() * 2


@pytest.fixture
def two_threads():
    yield torch.set_num_threads(2)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)


def grads(name, bs, times=8):
    random = torch.Generator().manual_seed(0)
    idx, upstream = torch.randint(200, (bs,), generator=random), torch.randn(bs, 50, generator=random)
    return [gradient(ALL[name], torch.zeros(1665, 50), idx, upstream) for _ in range(times)]


def different(grads):
    return len({np.asarray(g).tobytes() for g in grads})


def test_two_threads_leave_small_batches_and_embeddings_equal(two_threads):
    for bs in (64, 512):
        assert different(grads("table[idx]", bs) + grads("Embedding", bs)) == 1
    assert different(grads("Embedding", 8192)) == 1


def test_deterministic_algorithms_bring_large_batches_back(two_threads):
    exact = grads("Embedding", 8192, 1)[0]
    torch.testing.assert_close(grads("table[idx]", 8192, 1)[0], exact, rtol=1e-4, atol=1e-4)
    torch.use_deterministic_algorithms(True)
    assert different([*grads("table[idx]", 8192), exact]) == 1


@pytest.mark.skipif(torch.__version__.startswith("2.4."), reason="PyTorch 2.4 does not list it yet")
def test_the_installed_documentation_lists_embedding_on_cuda():
    listed = " ".join(torch.use_deterministic_algorithms.__doc__.split())
    assert ":class:`torch.nn.Embedding` when attempting to differentiate a CUDA tensor" in listed


def test_repeats_counts_different_gradients(monkeypatch):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    found = repeats(bs=(64, 512), times=3)
    assert list(found.columns) == ["threads", "deterministic", "bs", "lookup", "different", "apart"]
    assert len(found) == 3 * 2 * 3 and set(zip(found["threads"], found["deterministic"], strict=True)) == {
        (1, False),
        (2, False),
        (2, True),
    }
    assert (found["different"] == 1).all() and (found["apart"] == 0).all()  # batches this small
    calls = []

    def noisy(table, idx):
        calls.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))
        return table[idx] * (1 + len(calls) / 100)

    monkeypatch.setitem(LOOKUPS, "noisy", noisy)
    noisy = repeats(bs=(8,), times=4, lookups=["noisy"])
    assert (noisy["different"] == 4).all() and (noisy["apart"] > 0.01).all()
    assert calls == [(1, False)] * 4 + [(2, False)] * 4 + [(2, True)] * 4
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads and not torch.are_deterministic_algorithms_enabled()


def test_repeats_restores_the_settings_when_a_lookup_fails(monkeypatch):
    def fails(table, idx):
        assert torch.get_num_threads() == 1
        raise ValueError("no")

    threads = torch.get_num_threads()
    monkeypatch.setitem(LOOKUPS, "fails", fails)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(ValueError, match="no"):
            repeats(bs=(8,), lookups=["fails"])
        assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == threads
    finally:
        torch.use_deterministic_algorithms(False)


def raising(error):
    raise error


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (lambda: torch.zeros(1, 3), "1 row"),
        (lambda: torch.zeros(5, 3), "5 rows"),
        (lambda: torch.zeros(5), "shape (5,)"),
        (lambda: "takes it", "takes it"),
        (lambda: None, "None"),
        (lambda: raising(IndexError("too big\nat row 5")), "IndexError: too big"),
        (lambda: raising(KeyError()), "KeyError: "),
        (lambda: [warnings.warn("soon gone", UserWarning, stacklevel=1), 3][1], "3, with a warning"),
        (lambda: "x" * 200, "x" * 100),
        (lambda: raising(ValueError("x" * 200)), "ValueError: " + "x" * 88),
    ],
)
def test_attempt_says_what_a_call_returns_or_raises(fn, said):
    assert attempt(fn) == said  # and no warning gets out, which would be an error here


def test_attempt_lets_go_through_what_is_no_error():
    with pytest.raises(KeyboardInterrupt):
        attempt(lambda: raising(KeyboardInterrupt()))
