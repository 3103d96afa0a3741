"""What differs between a Learner and the chapter's run, read off the Learner: nothing is trained."""

import math
import random
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from itertools import islice

import numpy as np
import pandas as pd
import torch
from fastai.callback.schedule import combined_cos
from fastai.collab import EmbeddingDotBias
from fastai.learner import Learner
from fastai.optimizer import Adam
from fastai.tabular.core import Tabular
from fastai.tabular.model import TabularModel, get_emb_sz
from torch import Tensor, nn

from ..chapter import RUNS, Run
from ..models import N_FACTORS
from ..training import BS, EPOCHS, LR, RANDOM_STATE, FusedAdam

ROWS, USERS, TITLES, MEAN = 100_000, 943, 1_664, 3.52986  # of MovieLens 100K, as `load_ratings` gives it
ALIKE = 261  # of its rows repeat a user, title and rating: some titles have two movie ids
VALID_PCT = 0.2
MANY = 40  # rows from which a tensor is taken for a table
INTERNAL = set(vars(nn.Module()))
HIDDEN = {7: [100], 8: [100, 50]}  # units of the networks' hidden layers

Finding = tuple[str, str, str, str, object]  # setting, found, the chapter's, remedy, value for the effect


class Inspection:
    """A Learner's data, tables and optimizer as far as they can be seen, before or after fitting.

    Raises TypeError unless the Learner's data is what `CollabDataLoaders` makes.
    """

    def __init__(self, learn: Learner):
        self.learn, self.model, self.dl = learn, learn.model, learn.dls.train
        self.data = [getattr(dl, "dataset", None) for dl in (learn.dls.train, learn.dls.valid)]
        if not all(isinstance(to, Tabular) and len(to.cat_names) == 2 and len(to) for to in self.data):
            raise TypeError("the Learner's data are no CollabDataLoaders with rows of users and items")
        (self.user, self.item), (self.rating, *_) = self.data[0].cat_names, self.data[0].y_names
        classes = self.data[0].classes
        self.whose = {len(classes[self.user]): "user", len(classes[self.item]): "movie"}
        self.strays = dict(_strays(self.model))
        self.tables = dict(self.model.named_parameters()) | self.strays
        self.roles = {name: self._role(table) for name, table in self.tables.items()}
        opt = learn.opt
        self.steps = max((s.get("step", 0) for s in opt.state.values()), default=0) if opt else 0
        recorded = vars(learn.recorder) if hasattr(learn, "recorder") else {}
        columns = len(recorded.get("metric_names", [])) - 2  # without epoch and time
        self.epochs = sum(len(row) == columns for row in recorded.get("values", []))
        self.lrs = np.array(recorded.get("lrs", []) if self.epochs else [])

    def _role(self, table: Tensor) -> str:
        """Which of the chapter's tables this is by its shape, or ""."""
        whose = self.whose.get(len(table), "") if table.ndim else ""
        return whose and f"{whose}_{'factors' if table.ndim == 2 and table.shape[1] > 1 else 'bias'}"

    @property
    def wd(self) -> float | None:
        """The weight decay of the last fit, or before any fit the Learner's own; None if not known."""
        return self.learn.opt.hypers[-1].get("wd", 0) if self.steps or self.epochs else self.learn.wd

    def probe(self) -> tuple[Tensor, Tensor, Tensor]:
        """Predictions of 64 validation rows with large random weights, many times over, (n,); and as the loss
        gets them, random predictions in the shape that the model makes, and the rows' ratings, (bs, 1).
        """
        tables, drawn = list(self.tables.values()), torch.Generator().manual_seed(0)
        rows, device = self.data[1].items[:64], tables[0].device
        x = torch.tensor(rows[[self.user, self.item]].to_numpy(np.int64), device=device)
        y = torch.tensor(rows[[self.rating]].to_numpy(np.float32), device=device)
        preds = []
        with torch.no_grad(), ExitStack() as afterwards:
            for table in tables:
                afterwards.callback(table.copy_, table.clone())
            for module in self.model.modules():
                afterwards.callback(setattr, module, "training", module.training)
            self.model.eval()
            for _ in range(8):
                for table in tables:
                    table.copy_(1e4 * torch.randn(table.shape, generator=drawn))
                preds.append(self.model(x))
        pred = torch.rand(preds[0].shape, generator=drawn).to(device)
        return torch.cat([pred.reshape(-1) for pred in preds]).float(), pred, y

    def served(self) -> tuple[float, bool]:
        """The share of the training rows that an epoch meets, and whether it meets some of them twice.

        Whatever the loader draws from, its own generator or a global one, stands afterwards as before.
        """
        with RANDOM_STATE, torch.random.fork_rng(devices=[]), ExitStack() as afterwards:
            afterwards.callback(random.setstate, random.getstate())
            afterwards.callback(np.random.set_state, np.random.get_state())
            if own := getattr(self.dl, "rng", None):
                afterwards.callback(own.setstate, own.getstate())
            idxs = np.asarray(list(islice(self.dl.get_idxs(), self.dl.n)))
        met = len(np.unique(idxs))
        return met / len(self.data[0]), met < len(idxs)

    def run(self, y_range: tuple | None) -> Run:
        """The chapter's run that is most like this Learner, the later one of two equally like."""
        unregistered = [one for _, one in _attributes(self.model) if isinstance(one, nn.Module)]
        modules = [module for root in (self.model, *unregistered) for module in root.modules()]
        if any(isinstance(module, nn.Linear) for module in modules):
            like = [8 if isinstance(self.model, TabularModel) else 7]
        elif not {"user_bias", "movie_bias"} & set(self.roles.values()):
            like = [2, 1]
        elif any(isinstance(module, nn.Embedding) for module in modules):
            like = [6] if isinstance(self.model, EmbeddingDotBias) else [4, 3]
        else:
            like = [5]

        def unlike(run: Run) -> int:
            return (self.wd is not None and not close(self.wd, run.wd)) + (y_range != run.y_range)

        return min((RUNS[number] for number in like), key=unlike)


def inspect(learn: Learner, number: int | None = None) -> tuple[Run, list[Finding], bool]:
    """The run that `learn` is held against (`number`, or the one it is most like), all differences, and
    whether a fit is recorded."""
    seen = Inspection(learn)
    preds, pred, y = seen.probe()
    y_range = _bounds(preds)
    run = RUNS[number] if number else seen.run(y_range)
    parts = _data(seen), _loader(seen), _model(seen, run, y_range), _loss(seen, pred, y), _training(seen, run)
    return run, [finding for part in parts for finding in part], bool(seen.epochs)


def _data(seen: Inspection) -> Iterator[Finding]:
    train, valid = (to.items for to in seen.data)
    both = pd.concat([train, valid])
    numbers = not isinstance(seen.data[0].classes[seen.item][-1], str)
    unknown = int((valid[[seen.user, seen.item]] == 0).any(axis=1).sum())
    if unknown or numbers:
        found = f"{'numbers' if numbers else 'text'}; {unknown:,} validation rows are read as #na#"
        remedy = "item_name='title': a vocabulary of numbers holds training rows only, one of text all rows"
        yield "items", found, "titles", remedy, "ids"
    n, users, known = len(both), both[seen.user].nunique(), both[both[seen.item] > 0]
    alike = int(known.duplicated([seen.user, seen.item, seen.rating]).sum())
    mean, items = both[seen.rating].mean(), both[seen.item].nunique()
    remedy = "ratings = load_ratings(), or compare nothing with the book"
    if users > USERS or users < 0.8 * USERS or abs(mean - MEAN) > 0.05 or (items > TITLES and not numbers):
        found = f"{n:,} ratings of {items:,} items by {users:,} users, mean {mean:.3f}"
        yield "data", found, f"{ROWS:,} of {TITLES:,} titles by {USERS} users, mean {MEAN:.3f}", remedy, None
    else:
        doubled = max(0, alike - ALIKE * (not numbers), n - ROWS)
        missing = ROWS - n + doubled
        for setting, rows in (("rows doubled", doubled), ("rows missing", missing)):
            if rows:
                yield setting, f"{rows:,} {setting}", f"{ROWS:,} rows", remedy, rows / ROWS
    share = len(valid) / n
    if abs(share - VALID_PCT) > 0.005:
        yield "valid_pct", f"{share:.2f}", f"{VALID_PCT}", "leave valid_pct at its default", share


def _loader(seen: Inspection) -> Iterator[Finding]:
    share, twice = seen.served()
    if share < 0.999:
        how = "drawn with replacement" if twice else "the others never"
        found = f"{share:.0%} of the rows an epoch, {how} ({type(seen.dl).__name__})"
        remedy = "from_df(..., dl_type=TabDataLoader), from fastai.tabular.core; or dl_type=RatingsDL"
        yield "loader", found, "every row once an epoch", remedy, "run"
    if seen.dl.bs != BS:
        yield "bs", f"{seen.dl.bs}", f"{BS}", f"from_df(..., bs={BS})", seen.dl.bs


def _model(seen: Inspection, run: Run, y_range: tuple | None) -> Iterator[Finding]:
    if y_range != run.y_range:
        remedy = f"give the model y_range={run.y_range}" if run.y_range else "give the model no y_range"
        found = f"({y_range[0]:g}, {y_range[1]:g})" if y_range else "None"
        yield "y_range", found, f"{run.y_range}", remedy, y_range
    widths = {
        seen.roles[name]: t.shape[1] for name, t in seen.tables.items() if "factors" in seen.roles[name]
    }
    if run.number not in HIDDEN:
        for width in set(widths.values()) - {N_FACTORS}:
            yield "factors", f"{width}", f"{N_FACTORS}", f"give the model {N_FACTORS} factors", width
    else:
        sizes = [width for _, width in get_emb_sz(seen.learn.dls)]
        wide = [widths.get(role) for role in ("user_factors", "movie_factors")]
        if wide != sizes:
            yield "factors", f"{wide}", f"{sizes}", "take the sizes from get_emb_sz(dls)", None
        units = [layer.out_features for layer in seen.model.modules() if isinstance(layer, nn.Linear)][:-1]
        if units != (chapters := HIDDEN[run.number]):
            yield "layers", f"{units}", f"{chapters}", f"give the network hidden layers of {chapters}", None
    learn = seen.learn
    groups = learn.opt.param_lists if learn.opt else [learn.splitter(learn.model)]
    stepped = {id(p) for group in groups for p in (group if not isinstance(group, Tensor) else [group])}
    for name, table in seen.tables.items():
        if name in seen.strays:
            why, remedy = "is no parameter of the model", "make it an nn.Parameter in a registered module"
        elif not table.requires_grad:
            why, remedy = "is frozen", "learn.unfreeze(), or requires_grad_(True)"
        elif id(table) not in stepped:
            why, remedy = "is unknown to the optimizer", "learn.create_opt(), or leave splitter out"
        else:
            continue
        yield "untrained", f"{name} {why}", "all tables train", remedy, seen.roles[name]


def _loss(seen: Inspection, pred: Tensor, y: Tensor) -> Iterator[Finding]:
    loss = seen.learn.loss_func
    flat, target = pred.reshape(-1), y.reshape(-1)
    by_row = len(flat) == len(target)
    whole = alone = math.nan
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of shapes that differ
        alone = float(loss(flat, target)) if by_row else math.nan
        whole = float(loss(pred, y))
    if not by_row or (not close(whole, alone) and not math.isnan(alone)):
        found = f"predictions {tuple(pred.shape)}, targets {tuple(y.shape)}: the loss mixes rows"
        remedy = "predict one number a row, (bs,) or (bs, 1), and take loss_func=MSELossFlat()"
        yield "shape", found, "one prediction a row", remedy, "broadcast"
    if by_row and not close(alone, float((flat - target).square().mean())):
        name = getattr(loss, "__name__", None) or str(loss).removeprefix("FlattenedLoss of ")
        value = "L1" if "l1" in name.lower() else None
        yield "loss", name, "MSELossFlat()", "Learner(..., loss_func=MSELossFlat())", value


def _training(seen: Inspection, run: Run) -> Iterator[Finding]:
    opt = seen.learn.opt_func
    if (opt.func if isinstance(opt, partial) else opt) not in (Adam, FusedAdam):
        name = getattr(opt, "__name__", str(opt))
        yield "optimizer", name, "Adam", "leave opt_func out", name
    if seen.wd is not None and not close(seen.wd, run.wd):
        yield "wd", f"{seen.wd:g}", f"{run.wd:g}", f"fit_one_cycle(..., wd={run.wd:g})", seen.wd
    if not len(seen.lrs):
        return
    if seen.epochs != EPOCHS:
        yield "epochs", f"{seen.epochs}", f"{EPOCHS}", f"fit_one_cycle({EPOCHS}, ...)", seen.epochs
    top, done = seen.lrs.max(), np.arange(len(seen.lrs)) / len(seen.lrs)
    if not close(top, LR, 0.02):
        yield "lr", f"{top:.3g}", f"{LR:g}", f"fit_one_cycle(..., {LR:g})", top
    one_cycle = combined_cos(0.25, top / 25, top, top / 1e5)
    if max(abs(seen.lrs - [one_cycle(pct) for pct in done])) > 0.05 * top:
        found = "a constant rate" if close(seen.lrs.min(), top) else "another schedule"
        remedy = "learn.fit_one_cycle with its own div and pct_start"
        yield "schedule", found, "one cycle", remedy, "flat" if "constant" in found else None
    fits = seen.steps / len(seen.lrs)
    if fits > 1.01:
        remedy = "make the Learner anew before each fit"
        yield "fits", f"{seen.steps:,} steps, {len(seen.lrs):,} in the last fit", "one fit", remedy, 2


def close(a: float, b: float, relative: float = 1e-3) -> bool:
    return math.isclose(a, b, rel_tol=relative, abs_tol=1e-9)


def _attributes(model: nn.Module) -> Iterator[tuple[str, object]]:
    """What stands on the model's modules beside parameters, buffers and modules; lists are looked into."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in INTERNAL:
                each = list(value.values()) if isinstance(value, dict) else value
                for one in each if isinstance(each, list | tuple) else [each]:
                    yield f"{path}.{name}".lstrip("."), one


def _strays(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors that seem meant to be trained but are no parameters of `model`, with their names."""
    registered = {id(p) for p in model.parameters()}
    for name, value in _attributes(model):
        inside = value.named_parameters() if isinstance(value, nn.Module) else [("", value)]
        for path, tensor in inside:
            if not isinstance(tensor, Tensor) or id(tensor) in registered or not tensor.is_floating_point():
                continue
            if tensor.ndim and len(tensor) > MANY:
                registered.add(id(tensor))
                yield f"{name}.{path}".rstrip("."), tensor


def _bounds(preds: Tensor) -> tuple[float, float] | None:
    """The bounds that many of `preds` (n,) have reached, or None where they have none."""
    ends = preds.min(), preds.max()
    reached = [float(torch.isclose(preds, end, atol=1e-4).float().mean()) > 0.02 for end in ends]
    return tuple(round(float(end), 3) for end in ends) if all(reached) else None
