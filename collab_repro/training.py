"""The chapter's Learner from explicit seeds, and its training as a table.

`fit`, `FastLoop` and `FusedAdam` come from `speed`: they give fastai's numbers sooner.
"""

import threading
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from fastai.callback.schedule import Learner  # the Learner with `fit_one_cycle`
from fastai.collab import CollabDataLoaders, EmbeddingDotBias, TabularCollab
from fastai.data.block import TransformBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import IndexSplitter
from fastai.layers import SigmoidRange
from fastai.losses import MSELossFlat
from fastai.tabular.core import Categorify
from torch import nn

from .loader import BS, RatingsDL
from .models import FROM_SIZES, N_FACTORS, Y_RANGE, DotProductBias, YRange
from .sources import check_ratings, check_reach, check_split, tell_untrained
from .speed import EPOCHS, LR, WD, FastLoop, FusedAdam, Stopwatch, fit  # noqa: F401

RANDOM_STATE = threading.RLock()  # PyTorch's random state is one for all threads


def learner(
    ratings: pd.DataFrame,
    model: Callable[..., nn.Module] = DotProductBias,
    seed: int = 0,
    *,
    split: int | Sequence[int] | None = None,
    init: int | None = None,
    order: int | None = None,
    n_factors: int = N_FACTORS,
    y_range: YRange = Y_RANGE,
    bs: int = BS,
    valid_pct: float = 0.2,
    user_name: str | None = None,
    item_name: str | None = None,
    rating_name: str | None = None,
) -> Learner:
    """A Learner as chapter 8 makes it, ready for `fit_one_cycle(5, 5e-3, wd=0.1)` or for `fit`.

    `model` is one of `DotProduct`, `DotProductBias`, `DotProductBiasParams`, fastai's `EmbeddingDotBias`, or
    a function from the DataLoaders to a module with factors and a `y_range` of its own. `seed` fixes the
    split into training and validation rows, the initial weights and the batch order; `split`, `init` and
    `order` fix one of them apart; `split` may also be a mask of the validation rows, or positions as in iloc.
    PyTorch's global random state on the CPU stays as it was. Columns not given: see `check_ratings`. A
    warning counts validation rows whose user or item has no training row. Raises `BadRatings`.
    """
    split, init, order = (seed if own is None else own for own in (split, init, order))
    if isinstance(split, bool | np.bool_) or not isinstance(split, int | np.integer):
        split = check_split(split, ratings, bs)
    ratings = check_ratings(ratings, user_name, item_name, rating_name, y_range, bs, valid_pct)
    with RANDOM_STATE, torch.random.fork_rng(devices=[]):
        dls = _dls(ratings, split, valid_pct, bs=bs, dl_type=RatingsDL, shuffle_seed=order, drop_last=False)
        tell_untrained(dls.train_ds.items, dls.valid_ds.items, list(dls.classes))
        torch.manual_seed(init)
        if model in FROM_SIZES:
            module = model(*map(len, dls.classes.values()), n_factors, y_range)
        elif model is EmbeddingDotBias:
            module = model.from_classes(n_factors, dls.classes, y_range=y_range)
        else:
            module = model(dls)
            ends = [(part.low, part.high) for part in module.modules() if isinstance(part, SigmoidRange)]
            check_reach(ratings, getattr(module, "y_range", next(iter(ends), None)))
    return Learner(dls, module, loss_func=MSELossFlat(), opt_func=FusedAdam, cbs=[FastLoop, Stopwatch])


def _dls(ratings: pd.DataFrame, split: int | list[int], valid_pct: float, **kwargs) -> DataLoaders:
    """`CollabDataLoaders.from_df` of checked ratings; with validation rows given, what it does inside."""
    if isinstance(split, int | np.integer):
        return CollabDataLoaders.from_df(ratings, valid_pct=valid_pct, seed=int(split), **kwargs)
    user, item, rating = ratings.columns
    splits = tuple(map(list, IndexSplitter(split)(ratings)))
    columns = {"cat_names": [user, item], "y_names": [rating], "y_block": TransformBlock()}
    return TabularCollab(ratings, [Categorify], **columns, splits=splits).dataloaders(**kwargs)


def curve(learn: Learner, **labels) -> pd.DataFrame:
    """What a fitted Learner recorded: `labels`, then epoch (from 0), train_loss, valid_loss, seconds.

    Losses are MSE; train_loss is fastai's smoothed one (beta .98) at the epoch's end. Epochs that were
    skipped or cut short by a callback are left out; seconds are NaN without the Learner's `Stopwatch`.
    Raises ValueError for labels of these names, or without a fit: `validate` and `get_preds` clear it.
    """
    own, recorded = ["epoch", "train_loss", "valid_loss", "seconds"], vars(learn.recorder)
    if {*own} & {*labels}:
        raise ValueError(f"labels {[*labels]}: {', '.join(own)} are the curve's own columns")
    names = [name for name in recorded.get("metric_names", []) if name not in ("epoch", "time")]
    values = (row if len(row) == len(names) else () for row in recorded.get("values", []))
    rows = [dict(zip(names, row, strict=False)) for row in values]
    if not {*own[1:3]} <= {*names} or not any(rows):
        raise ValueError("no fit is recorded: take the curve before validate() or get_preds() clear it")
    seconds = getattr(getattr(learn, "stopwatch", None), "seconds", np.nan)
    losses = pd.DataFrame(rows, columns=own[1:3], dtype=float).assign(seconds=seconds, **labels)
    return losses[[bool(row) for row in rows]].rename_axis("epoch").reset_index()[[*labels, *own]]
