"""Each difference between the chapter's two DotProductBias models, reverted one at a time.

Chapter 8's Further Research asks for this list. `ablate` trains every change and derives its outcome,
one of `OUTCOMES`, from the trained models: what we expect plays no part.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import getitem, iadd
from textwrap import shorten

import pandas as pd
import torch
from fastai.layers import Embedding, trunc_normal_
from fastai.learner import Learner
from torch import Tensor, nn

from ..comparison import SameStart
from ..models import N_FACTORS, Y_RANGE, DotProductBias, DotProductBiasParams, create_params, squash, tables
from ..training import EPOCHS, fit, learner
from .lookups import GatherScatter

OUTCOMES = {
    "nothing changes": "same seed: all losses and final tables equal the unchanged model's to the bit",
    "same quality": "the initial weights differ, the validation MSE is the same within .02",
    "trains worse": "the initial weights differ, the validation MSE is higher by more than .02",
    "never trains": "a table ends as it began",
    "silently wrong": "the loss of a batch is not the mean of its rows' losses: rows get mixed, no error",
    "raises": "an exception stops it",
}


def mse(pred: Tensor, y: Tensor) -> Tensor:
    """Mean squared error as one writes it by hand: it silently broadcasts shapes that differ."""
    return ((pred - y) ** 2).mean()


def cut_normal(size: Sequence[int]) -> nn.Parameter:
    """A table drawn like fastai's `Embedding`: a normal cut at two standard deviations, times .01."""
    return nn.Parameter(trunc_normal_(torch.zeros(*size), std=0.01))


def drawn_twice(size: Sequence[int]) -> nn.Parameter:
    """A table after as many unused draws: nn.Embedding fills its table before fastai refills it."""
    torch.empty(*size).normal_()
    return create_params(size)


def column(size: Sequence[int], create=create_params):
    """`create` with at least two dimensions: a bias is (n, 1), as in an Embedding."""
    return create([*size, 1][:2])


class Params(DotProductBiasParams):
    """`DotProductBiasParams` with its four parts as arguments.

    `create(size)` makes a table, `lookup(table, idx)` reads rows, `keepdim` keeps the dimension that the
    dot product sums over, and `add(scores, user_bias, movie_bias)` adds the biases.
    """

    def __init__(
        self, n_users, n_movies, n_factors, create=create_params, lookup=getitem, keepdim=False, add=None
    ):
        nn.Module.__init__(self)
        self.user_factors = create([n_users, n_factors])
        self.user_bias = create([n_users])
        self.movie_factors = create([n_movies, n_factors])
        self.movie_bias = create([n_movies])
        self.y_range, self.lookup, self.keepdim = Y_RANGE, lookup, keepdim
        self.add = add or (lambda scores, *biases: sum(biases, scores))

    def forward(self, x: Tensor) -> Tensor:
        users, movies = x.T  # (bs,) each
        factors = self.lookup(self.user_factors, users) * self.lookup(self.movie_factors, movies)
        biases = self.lookup(self.user_bias, users), self.lookup(self.movie_bias, movies)
        return squash(self.add(factors.sum(dim=1, keepdim=self.keepdim), *biases), self.y_range)


own_backward = partial(Params, lookup=GatherScatter.apply)
cut = partial(Params, create=cut_normal)
twice = partial(Params, create=drawn_twice)
two_ints = partial(Params, create=lambda size: create_params(*size))
keepdim = partial(Params, keepdim=True)
columns = partial(Params, create=column)
columns_in_place = partial(columns, add=lambda scores, *biases: reduce(iadd, biases, scores))  # with +=
embeddings = partial(Params, create=partial(column, create=lambda size: Embedding(*size)), keepdim=True)
weight_brackets = partial(embeddings, lookup=lambda table, idx: table.weight[idx])


def redrawn(*sizes: int, sd: float) -> DotProductBias:
    """A `DotProductBias` with its tables drawn again from N(0, sd), not cut."""
    model = DotProductBias(*sizes)
    for table in tables(model).values():
        nn.init.normal_(table, 0, sd)
    return model


def bare_factors(*sizes: int) -> DotProductBiasParams:
    """A `DotProductBiasParams` whose movie factors are a tensor with a gradient, but no Parameter."""
    model = DotProductBiasParams(*sizes)
    factors = model.movie_factors.detach().requires_grad_()
    del model.movie_factors
    model.movie_factors = factors
    return model


def other_weights(*sizes: int) -> DotProductBiasParams:
    """A `DotProductBiasParams` that loads the weights of a `DotProductBias`."""
    model = DotProductBiasParams(*sizes)
    model.load_state_dict(DotProductBias(*sizes).state_dict())
    return model


@dataclass(frozen=True)
class Change:
    """One change to the model `of`, how to build the changed model, and the expected key of `OUTCOMES`."""

    change: str
    of: type[nn.Module]
    model: Callable[[int, int, int], nn.Module]  # n_users, n_movies, n_factors
    expected: str
    loss: Callable[[Tensor, Tensor], Tensor] | None = None  # instead of MSELossFlat


P, E = DotProductBiasParams, DotProductBias
CHANGES = (
    Change("the backward written by hand (GatherScatter)", P, own_backward, "nothing changes"),
    Change("biases (n, 1) and keepdim, both", P, partial(columns, keepdim=True), "nothing changes"),
    Change("call replaced by brackets on .weight", E, weight_brackets, "nothing changes"),
    Change("init cut at two sd, as Embedding's", P, cut, "same quality"),
    Change("every table drawn twice, as Embedding's", P, twice, "same quality"),
    Change("init not cut, as create_params'", E, partial(redrawn, sd=0.01), "same quality"),
    Change("nn.Embedding with its own init, N(0, 1)", E, partial(redrawn, sd=1), "trains worse"),
    Change("movie factors a bare tensor", P, bare_factors, "never trains"),
    Change("biases (n, 1), no keepdim, MSE by hand", P, columns, "silently wrong", mse),
    Change("keepdim, biases (n,), MSE by hand", P, keepdim, "silently wrong", mse),
    Change("only the loss: MSE by hand", P, Params, "silently wrong", mse),
    Change("biases (n, 1), no keepdim", P, columns, "raises"),
    Change("keepdim, biases (n,)", P, keepdim, "raises"),
    Change("biases (n, 1), no keepdim, added with +=", P, columns_in_place, "raises"),
    Change("call a Parameter", P, partial(Params, lookup=lambda table, idx: table(idx)), "raises"),
    Change("brackets on an Embedding", E, embeddings, "raises"),
    Change("create_params given two ints", P, two_ints, "raises"),
    Change("Embedding given one list", E, partial(Params, create=Embedding), "raises"),
    Change("load the other model's state_dict", P, other_weights, "raises"),
)


def ablate(
    ratings: pd.DataFrame,
    changes: Iterable[Change] = CHANGES,
    seeds: Iterable[int] = range(3),
    epochs: int = EPOCHS,
    wd: float = 0.2,
    bs: int = 512,
    n_factors: int = N_FACTORS,
) -> pd.DataFrame:
    """Train every change over `seeds`, each on the same split and batches as the unchanged model.

    A row for each unchanged model, then one for each change. Columns: change, of (the model), outcome,
    detail (the exception), loss (final validation loss by the run's own loss function), mse and sd
    (validation MSE of each row predicted by itself; sd over seeds). Losses are means over seeds, NaN where
    nothing was trained. Batches of 512 with `wd` .2 end at the same loss as the chapter's 64 with .1.
    """
    seeds, changes = list(seeds), list(changes)
    bases = [Change("as in the chapter", of, of, "") for of in (E, P) if any(c.of is of for c in changes)]
    unchanged, rows = {}, []
    for c in bases + changes:
        try:
            runs = _runs(ratings, c.model, c.loss, seeds, epochs, wd, bs, n_factors)
        except (RuntimeError, TypeError) as error:
            detail = shorten(f"{type(error).__name__}: {error}", 120, placeholder=" ...")
            found = "raises", detail, *[float("nan")] * 3
        else:
            base = unchanged.setdefault(c.of, runs)
            found = "" if base is runs else _outcome(runs, base), "", *_losses(runs)
        rows.append((c.change, c.of.__name__, *found))
    return pd.DataFrame(rows, columns=["change", "of", "outcome", "detail", "loss", "mse", "sd"])


@dataclass(frozen=True)
class _Run:
    learn: Learner
    initial: dict[str, Tensor]
    mse: float


def _runs(ratings, model, loss, seeds, epochs, wd, bs, n_factors) -> list[_Run]:
    """The model trained from each of `seeds`."""
    learns = [
        learner(ratings, lambda dls: model(*map(len, dls.classes.values()), n_factors), seed, bs=bs)
        for seed in seeds
    ]
    initial = [{n: t.detach().clone() for n, t in tables(learn.model).items()} for learn in learns]
    for learn in learns:
        learn.loss_func = loss or learn.loss_func
        x, y = learn.dls.valid.one_batch()
        with warnings.catch_warnings():  # torch warns of shapes that differ before it raises
            warnings.simplefilter("ignore")
            learn.loss_func(learn.model(x), y)  # here and not in a fit, which would wrap the exception
    first = learns[0].model
    together = len(tables(first)) == len(list(first.parameters()))  # else `fit` knows nothing of a table
    for part in [learns] if together else [[learn] for learn in learns]:
        fit(part, epochs, wd=wd)
    return [_Run(learn, start, mse_by_row(learn)) for learn, start in zip(learns, initial, strict=True)]


def mse_by_row(learn: Learner) -> float:
    """Validation MSE of each row by itself: where predictions are (bs, bs), row i's is on the diagonal."""
    total = 0.0
    with torch.no_grad():
        for x, y in learn.dls.valid.batches():
            pred = learn.model(x)
            pred = pred.diagonal() if pred.shape == (len(x), len(x)) else pred.view(-1)
            total += float((pred - y.view(-1)).square().sum())
    return total / learn.dls.valid.n


def _losses(runs: list[_Run]) -> tuple[float, float, float]:
    """Mean loss, mean MSE and the MSE's standard deviation over `runs`."""
    losses = pd.DataFrame([(run.learn.recorder.values[-1][1], run.mse) for run in runs])
    return *losses.mean(), losses[1].std()


def _outcome(runs: list[_Run], unchanged: list[_Run]) -> str:
    """The key of `OUTCOMES` that describes `runs` next to the unchanged model's runs on the same seeds."""
    if any(_mixes(run.learn) for run in runs):
        return "silently wrong"
    if any(torch.equal(t, run.initial[name]) for run in runs for name, t in tables(run.learn.model).items()):
        return "never trains"
    if all(
        SameStart.of(other.learn, run.learn).identical for run, other in zip(runs, unchanged, strict=True)
    ):
        return "nothing changes"
    worse = _losses(runs)[1] - _losses(unchanged)[1] > 0.02
    return "trains worse" if worse else "same quality"


def _mixes(learn: Learner) -> bool:
    """Whether the loss of a batch differs from the mean of its rows' losses."""
    x, y = (part[:8] for part in learn.dls.valid.one_batch())
    with torch.no_grad():
        each = [learn.loss_func(learn.model(x[i : i + 1]), y[i : i + 1]) for i in range(len(x))]
        return not torch.allclose(learn.loss_func(learn.model(x), y), torch.stack(each).mean(), rtol=1e-4)
