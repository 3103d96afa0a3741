"""Each difference between the chapter's two DotProductBias models, reverted on its own.

Chapter 8's Further Research asks for this list. A change is a small subclass; `ablate` trains it, and
says from what it then finds, not from what we expect, which of `OUTCOMES` came of it.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from textwrap import shorten

import pandas as pd
import torch
from fastai.layers import Embedding, trunc_normal_
from fastai.learner import Learner
from torch import Tensor, nn

from .lookups import GatherScatter
from .models import DotProductBias, DotProductBiasParams, YRange, create_params, squash, tables
from .training import fit, learner

__all__ = ["CHANGES", "OUTCOMES", "Change", "ablate", "mse"]

OUTCOMES = {
    "nothing changes": "same seed, and all losses and final tables equal the unchanged model's to the bit",
    "trains from elsewhere": "the initial weights are others, the validation MSE is the same within .02",
    "trains worse": "the initial weights are others, the validation MSE is higher by more than .02",
    "never trains": "a table ends as it began",
    "silently wrong": "the loss of a batch is not the mean of its rows' losses: rows get mixed, no error",
    "raises": "an exception stops it",
}


def mse(pred: Tensor, y: Tensor) -> Tensor:
    "Mean squared error as one writes it by hand. Shapes that differ are broadcast without a word."
    return ((pred - y) ** 2).mean()


class Params(DotProductBiasParams):
    "`DotProductBiasParams` with its table maker, its lookup, and its two sums open to change."

    create = staticmethod(create_params)
    lookup = staticmethod(lambda table, idx: table[idx])
    keepdim = False

    def __init__(self, n_users: int, n_movies: int, n_factors: int, y_range: YRange = (0, 5.5)):
        nn.Module.__init__(self)
        self.user_factors = self.create([n_users, n_factors])
        self.user_bias = self.create([n_users])
        self.movie_factors = self.create([n_movies, n_factors])
        self.movie_bias = self.create([n_movies])
        self.y_range = y_range

    def forward(self, x: Tensor) -> Tensor:
        users, movies = x.T  # (bs,) each
        factors = self.lookup(self.user_factors, users) * self.lookup(self.movie_factors, movies)
        biases = self.lookup(self.user_bias, users), self.lookup(self.movie_bias, movies)
        return squash(self.add(factors.sum(dim=1, keepdim=self.keepdim), *biases), self.y_range)

    def add(self, scores: Tensor, user_bias: Tensor, movie_bias: Tensor) -> Tensor:
        return scores + user_bias + movie_bias


NAMES = "user_factors", "user_bias", "movie_factors", "movie_bias"


def embedding_law(size: Sequence[int]) -> nn.Parameter:
    "A table drawn as fastai's `Embedding` is: normal, cut at two sd, times .01."
    return nn.Parameter(trunc_normal_(torch.zeros(*size), std=0.01))


def drawn_twice(create: Callable[[Sequence[int]], nn.Parameter]) -> Callable[[Sequence[int]], nn.Parameter]:
    "`create`, after as many numbers drawn in vain: nn.Embedding fills its table before fastai refills it."
    return lambda size: [torch.empty(*size).normal_(), create(size)][1]


def column(size: Sequence[int]) -> nn.Parameter:
    "A table of at least two dimensions: a bias is (n, 1), as an Embedding holds it."
    return create_params([*size, 1][:2])


class Law(Params):
    create = staticmethod(embedding_law)


class Draws(Params):
    create = staticmethod(drawn_twice(create_params))


class LawAndDraws(Params):
    create = staticmethod(drawn_twice(embedding_law))


class Keepdim(Params):
    keepdim = True


class Columns(Params):
    create = staticmethod(column)


class ColumnsAndKeepdim(Columns):
    keepdim = True


class ColumnsInPlace(Columns):
    def add(self, scores: Tensor, user_bias: Tensor, movie_bias: Tensor) -> Tensor:
        scores += user_bias
        scores += movie_bias
        return scores


class Called(Params):
    lookup = staticmethod(lambda table, idx: table(idx))


class OwnBackward(Params):
    lookup = staticmethod(GatherScatter.apply)


class TwoInts(Params):
    create = staticmethod(lambda size: create_params(*size))


class BareFactors(Params):
    "Movie factors that are a tensor, gradient and all, but no Parameter."

    def __init__(self, *sizes, **settings):
        super().__init__(*sizes, **settings)
        factors = self.movie_factors.detach().requires_grad_()
        del self.movie_factors
        self.movie_factors = factors


class OtherKeys(Params):
    "Starts from the saved weights of a `DotProductBias`."

    def __init__(self, *sizes, **settings):
        super().__init__(*sizes, **settings)
        self.load_state_dict(DotProductBias(*sizes, **settings).state_dict())


class PlainEmbedding(DotProductBias):
    "PyTorch's nn.Embedding with its own init, N(0, 1), in place of fastai's."

    def __init__(self, *sizes, **settings):
        super().__init__(*sizes, **settings)
        for name in NAMES:
            setattr(self, name, nn.Embedding(*getattr(self, name).weight.shape))


class ParamsLaw(DotProductBias):
    "Embeddings drawn as `create_params` draws: normal, not cut."

    def __init__(self, *sizes, **settings):
        super().__init__(*sizes, **settings)
        for table in tables(self).values():
            nn.init.normal_(table, 0, 0.01)


class Bracketed(DotProductBias):
    def forward(self, x: Tensor) -> Tensor:
        return self.user_factors[x[:, 0]]


class WeightBracketed(DotProductBias):
    "Embeddings whose weight is indexed: the module's own call never runs."

    def forward(self, x: Tensor) -> Tensor:
        users, movies = x.T
        scores = (self.user_factors.weight[users] * self.movie_factors.weight[movies]).sum(1, keepdim=True)
        return squash(scores + self.user_bias.weight[users] + self.movie_bias.weight[movies], self.y_range)


class OneList(DotProductBias):
    def __init__(self, n_users: int, n_movies: int, n_factors: int, y_range: YRange = (0, 5.5)):
        nn.Module.__init__(self)
        self.user_factors = Embedding([n_users, n_factors])


@dataclass(frozen=True)
class Change:
    "One change to the model `of`, the class that makes it, and the outcome expected (a key of OUTCOMES)."

    change: str
    of: type[nn.Module]
    model: type[nn.Module]
    expected: str
    loss: Callable[[Tensor, Tensor], Tensor] | None = None  # instead of MSELossFlat


P, E = DotProductBiasParams, DotProductBias
CHANGES = (
    Change("the backward written by hand (GatherScatter)", P, OwnBackward, "nothing changes"),
    Change("biases (n, 1) and keepdim, both", P, ColumnsAndKeepdim, "nothing changes"),
    Change("call replaced by brackets on .weight", E, WeightBracketed, "nothing changes"),
    Change("init cut at two sd, as Embedding's", P, Law, "trains from elsewhere"),
    Change("every table drawn twice, as Embedding's", P, Draws, "trains from elsewhere"),
    Change("init not cut, as create_params'", E, ParamsLaw, "trains from elsewhere"),
    Change("nn.Embedding with its own init, N(0, 1)", E, PlainEmbedding, "trains worse"),
    Change("movie factors a bare tensor", P, BareFactors, "never trains"),
    Change("biases (n, 1), no keepdim, MSE by hand", P, Columns, "silently wrong", mse),
    Change("keepdim, biases (n,), MSE by hand", P, Keepdim, "silently wrong", mse),
    Change("only the loss: MSE by hand", P, Params, "silently wrong", mse),
    Change("biases (n, 1), no keepdim", P, Columns, "raises"),
    Change("keepdim, biases (n,)", P, Keepdim, "raises"),
    Change("biases (n, 1), no keepdim, added with +=", P, ColumnsInPlace, "raises"),
    Change("call a Parameter", P, Called, "raises"),
    Change("brackets on an Embedding", E, Bracketed, "raises"),
    Change("create_params given two ints", P, TwoInts, "raises"),
    Change("Embedding given one list", E, OneList, "raises"),
    Change("load the other model's state_dict", P, OtherKeys, "raises"),
)


def ablate(
    ratings: pd.DataFrame,
    changes: Iterable[Change] = CHANGES,
    seeds: Iterable[int] = range(3),
    epochs: int = 5,
    lr: float = 5e-3,
    wd: float = 0.2,
    bs: int = 512,
    n_factors: int = 50,
) -> pd.DataFrame:
    """Train every change over `seeds`, each on the split and batches of the unchanged model's run.

    A row for each model of `changes` as it is, then one a change. Columns: change, of (the model), outcome,
    detail (what was raised), loss (final validation loss as the run's own loss function gives it), mse
    and sd (validation MSE with every row asked on its own; sd over seeds). Losses are means over seeds,
    NaN where nothing was trained. Batches of 512 with `wd` .2 bring the
    unchanged models to where the chapter's 64 with .1 do, in an eighth of the steps.
    """
    settings = {"epochs": epochs, "lr": lr, "wd": wd, "bs": bs, "n_factors": n_factors}
    seeds, changes = list(seeds), list(changes)
    asis = {
        of: _runs(ratings, of, None, seeds, **settings) for of in (E, P) if any(c.of is of for c in changes)
    }
    found = [("as in the chapter", of.__name__, "", "", *_losses(runs)) for of, runs in asis.items()]
    for c in changes:
        try:
            runs = _runs(ratings, c.model, c.loss, seeds, **settings)
        except (RuntimeError, TypeError) as error:
            detail = shorten(f"{type(error).__name__}: {error}", 120, placeholder=" ...")
            found.append((c.change, c.of.__name__, "raises", detail, *[float("nan")] * 3))
        else:
            found.append((c.change, c.of.__name__, _outcome(runs, asis[c.of]), "", *_losses(runs)))
    return pd.DataFrame(found, columns=["change", "of", "outcome", "detail", "loss", "mse", "sd"])


@dataclass(frozen=True)
class _Run:
    learn: Learner
    initial: dict[str, Tensor]
    mixes: bool  # rows of a batch
    mse: float


def _runs(ratings, model, loss, seeds, epochs, lr, wd, bs, n_factors) -> list[_Run]:
    "The model trained from each of `seeds`."

    def build(dls):
        return model(*map(len, dls.classes.values()), n_factors)

    learns = [learner(ratings, build, seed, bs=bs) for seed in seeds]
    initial = [{n: t.detach().clone() for n, t in tables(learn.model).items()} for learn in learns]
    for learn in learns:
        learn.loss_func = loss or learn.loss_func
        x, y = learn.dls.valid.one_batch()
        with warnings.catch_warnings():  # torch warns of shapes that differ before it raises
            warnings.simplefilter("ignore")
            learn.loss_func(learn.model(x), y)  # what raises does so here, in its own words
    model = learns[0].model
    together = loss is None and len(tables(model)) == len(list(model.parameters()))
    for part in [learns] if together else [[learn] for learn in learns]:
        fit(part, epochs, lr, wd)
    return [_Run(ln, start, _mixes(ln), _mse(ln)) for ln, start in zip(learns, initial, strict=True)]


def _mixes(learn: Learner) -> bool:
    "Whether the loss of a batch is another than the mean of the losses of its rows, one by one."
    x, y = (part[:8] for part in learn.dls.valid.one_batch())
    with torch.no_grad():
        each = [learn.loss_func(learn.model(x[i : i + 1]), y[i : i + 1]) for i in range(len(x))]
        return not torch.allclose(learn.loss_func(learn.model(x), y), torch.stack(each).mean(), rtol=1e-4)


def _mse(learn: Learner) -> float:
    "Validation MSE of each row asked on its own: of (bs, bs) predictions row i's own is the i-th of row i."
    total = 0.0
    with torch.no_grad():
        for x, y in learn.dls.valid.batches():
            pred = learn.model(x)
            pred = pred.diagonal() if pred.shape == (len(x), len(x)) else pred.view(-1)
            total += float((pred - y.view(-1)).square().sum())
    return total / learn.dls.valid.n


def _losses(runs: list[_Run]) -> tuple[float, float, float]:
    each = pd.Series([run.mse for run in runs])
    return (
        float(pd.Series([run.learn.recorder.values[-1][1] for run in runs]).mean()),
        each.mean(),
        each.std(),
    )


def _outcome(runs: list[_Run], asis: list[_Run]) -> str:
    "The key of OUTCOMES that describes `runs` beside the unchanged model's on the same seeds."
    if any(run.mixes for run in runs):
        return "silently wrong"
    if any(torch.equal(t, run.initial[name]) for run in runs for name, t in tables(run.learn.model).items()):
        return "never trains"
    if all(_same(run, own) for run, own in zip(runs, asis, strict=True)):
        return "nothing changes"
    worse = _losses(runs)[1] - _losses(asis)[1] > 0.02
    return "trains worse" if worse else "trains from elsewhere"


def _same(run: _Run, own: _Run) -> bool:
    "Whether both runs have the same recorded losses and final tables, to the bit."
    theirs = tables(own.learn.model)
    ours = {name: table.reshape(theirs[name].shape) for name, table in tables(run.learn.model).items()}
    losses = zip(run.learn.recorder.losses, own.learn.recorder.losses, strict=True)
    return all(torch.equal(a, b) for a, b in losses) and all(
        torch.equal(t, theirs[n]) for n, t in ours.items()
    )
