"""`fit`: `fit_one_cycle` for many Learners, as many at once as the machine can serve."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from functools import partial
from itertools import chain, groupby
from numbers import Real

import torch
from fastai.callback.core import Callback, TrainEvalCallback
from fastai.callback.progress import ProgressCallback
from fastai.callback.schedule import Learner  # the Learner with `fit_one_cycle`
from fastai.collab import EmbeddingDotBias, EmbeddingNN
from fastai.layers import Embedding, LinBnDrop, SigmoidRange
from fastai.learner import CastToTensor, Recorder
from fastai.losses import MSELossFlat
from fastai.torch_core import trainable_params
from torch import nn

from ..loader import RatingsDL, ReadTensors, TensorDL
from ..models import FROM_SIZES, CollabNN
from ..processes import in_processes, usable_cores
from .loop import FastLoop, few_threads, work_of
from .optimizer import FusedAdam
from .sidebyside import fit_side_by_side
from .stopwatch import Stopwatch

EPOCHS, LR, WD = 5, 5e-3, 0.1  # the chapter's, from its section "Weight Decay" on
MAX_WORK = 32_768  # elements of a pass' largest tensor, ten of the chapter's models: more gain little
MIN_PASS = 3  # models in a pass below which splitting it over processes gains little
PLAIN_CALLBACKS = {TrainEvalCallback, Recorder, CastToTensor, ProgressCallback, FastLoop, Stopwatch}
TABLE_MODELS = {*FROM_SIZES, EmbeddingDotBias}
KNOWN_MODULES = {*TABLE_MODELS, CollabNN, EmbeddingNN, Embedding, nn.Embedding, nn.ModuleList, nn.Sequential}
KNOWN_MODULES |= {LinBnDrop, SigmoidRange, nn.Linear, nn.ReLU, nn.Dropout, nn.BatchNorm1d}
PLAIN_TABLE = {"padding_idx": None, "max_norm": None, "scale_grad_by_freq": False, "sparse": False}
LOADING = {"get_idxs", "batches", "rows", "sizes", "before_iter", "after_iter"}  # methods of a loader
RECORDED = "losses", "values", "lrs", "iters", "hps", "metric_names"

Progress = Callable[[int], None]


class Reporter(Callback):
    """Calls `report()` after each epoch."""

    def __init__(self, report: Callable[[], None]):
        self.report = report

    def after_epoch(self):
        self.report()


def fit(
    learns: Iterable[Learner],
    epochs: int = EPOCHS,
    lr: float = LR,
    wd: float | Iterable[float] = WD,
    progress: Progress = lambda trained: None,
    processes: int | None = None,
) -> None:
    """`learn.fit_one_cycle(epochs, lr, wd=wd)` for each of `learns`, many at once where that is possible.

    `wd` is one weight decay for all, or one for each.

    Weights, optimizer states, recorded losses and curves are those of each Learner fitted alone: to the
    bit where all batches are multiples of 32 rows (MovieLens 100K's are), else within rounding, for
    PyTorch computes the last few sigmoids of a batch in another way.

    Untrained Learners of one table-only model with equally many batches are trained side by side, and
    `processes` of such passes (all usable cores when None) run at a time. Learners with anything of your
    own (metrics, a loss, callbacks, hooks, an optimizer, ...) are fitted one by one, as is everything with a
    `slice` as `lr`. `progress` is called with the number of model-epochs whenever
    some are done. Raises ValueError for the same Learner twice, less than one epoch or another number of
    decays than of Learners, `DivergedError` when a loss is no longer a finite number, `WorkerDied` when a
    process was killed.
    """
    learns = list(learns)
    decays = [float(each) for each in wd] if isinstance(wd, Iterable) else [wd] * len(learns)
    parts = [[*learn.dls, *learn.model.parameters()] for learn in learns]
    owners = Counter(id(part) for own in parts for part in own)  # what two share, both change in turn
    if epochs < 1 or len({id(learn) for learn in learns}) < len(learns):
        raise ValueError(f"fit needs Learners that differ and one epoch at least, not {epochs}")
    if len(decays) != len(learns) or isinstance(wd, Mapping | Set):
        given = f"a {type(wd).__name__} of {len(decays)} weight decays for {len(learns)} Learners"
        raise ValueError(f"{given}: give one, or a list with one for each")
    plain = []
    for learn, decay, own in zip(learns, decays, parts, strict=True):
        if not hasattr(learn, "stopwatch"):
            learn.add_cb(Stopwatch())
        one_rate = isinstance(lr, Real) and isinstance(decay, Real)  # for all its parameters
        if one_rate and _is_usual(learn) and all(owners[id(part)] == 1 for part in own):
            plain.append((learn, decay))
        else:
            _fit_alone(learn, epochs, lr, decay, progress)

    cores, passes = usable_cores() if processes is None else max(1, processes), []
    for (*_, decay), alike in groupby(plain, key=lambda pair: (*_kind(pair[0]), pair[1])):
        alike = [learn for learn, _ in alike]
        most = min(max(1, MAX_WORK // max(1, work_of(alike[0]))), max(MIN_PASS, -(-len(plain) // cores)))
        passes += [(alike[at : at + most], decay) for at in range(0, len(alike), most)]
    forked = cores > 1 and len(passes) > 1

    def one_pass(part: list[Learner], decay: float, report: Progress) -> list[dict]:
        if len(part) == 1:
            _fit_alone(part[0], epochs, lr, decay, report)
        else:
            cbs = [FastLoop, Stopwatch, Reporter(lambda: report(len(part)))]
            wide = fit_side_by_side(part, epochs, lr, decay, cbs)
            for learn in part:
                learn.stopwatch.seconds = [s / len(part) for s in wide.stopwatch.seconds]
        return [_state(learn) for learn in part] if forked else []

    states = in_processes([partial(one_pass, *each) for each in passes], cores, progress)
    if forked:
        for learn, state in zip(chain(*(part for part, _ in passes)), chain(*states), strict=True):
            _restore(learn, state)


def _fit_alone(learn: Learner, epochs: int, lr: float, wd: float, report: Progress) -> None:
    with few_threads(work_of(learn)), learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, lr, wd=wd, cbs=Reporter(lambda: report(1)))


def _is_usual(learn: Learner) -> bool:
    """Whether `learn` is as `learner` makes it, without anything of the user's own that a pass or another
    process would not carry: methods, callbacks, metrics, a loss, an optimizer, groups of parameters, hooks,
    a loader, a device.
    """
    model, loss, usual_loss = learn.model, learn.loss_func, MSELossFlat()
    modules, dls = list(model.modules()), list(learn.dls)
    return (
        type(learn) is Learner
        and not any(hasattr(Learner, name) for name in vars(learn))
        and {type(cb) for cb in learn.cbs} <= PLAIN_CALLBACKS
        and not learn.metrics
        and type(loss) is type(usual_loss)
        and type(loss.func) is nn.MSELoss
        and loss.func.reduction == "mean"
        and (loss.flatten, loss.is_2d, loss.axis) == (usual_loss.flatten, usual_loss.is_2d, usual_loss.axis)
        and learn.opt_func is FusedAdam
        and learn.splitter is trainable_params
        and all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
        and all(type(module) in KNOWN_MODULES and "forward" not in vars(module) for module in modules)
        and not any(hooks for m in modules for name, hooks in vars(m).items() if name.endswith("_hooks"))
        and not any(type(m) is nn.Dropout and m.p for m in modules)  # which the random state of all decides
        and all(p.grad is None for p in model.parameters())
        and _told(learn.recorder) == _told(Recorder())
        and not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in model.parameters())
        and all(type(dl) in (TensorDL, RatingsDL) and not LOADING & set(vars(dl)) for dl in dls)
        and all([type(tfm) for tfm in dl.after_batch.fs] == [ReadTensors] for dl in dls)
        and all(dl.device is None or dl.device.type == "cpu" for dl in dls)
    )


def _told(recorder: Recorder) -> tuple:
    return recorder.add_time, recorder.train_metrics, recorder.valid_metrics, recorder.smooth_loss.beta


def _kind(learn: Learner) -> tuple:
    """Equal for Learners that can be trained as one: untrained, of plain tables, with as many batches."""
    dls, tables = list(learn.dls), [vars(m) for m in learn.model.modules() if isinstance(m, nn.Embedding)]
    plain = type(learn.model) in TABLE_MODELS and all(t.items() >= PLAIN_TABLE.items() for t in tables)
    if learn.opt is not None or not plain or not all(len(dl) for dl in dls):
        return (id(learn),)
    sizes = [(dl.n, dl.bs, dl.drop_last) for dl in dls]
    return type(learn.model), learn.model.y_range, learn.moms, work_of(learn), *sizes


def _state(learn: Learner) -> dict:
    """What fitting changed in `learn`, to be carried from one process to another."""
    recorded = {name: getattr(learn.recorder, name) for name in RECORDED}
    return {
        "model": learn.model.state_dict(),
        "opt": learn.opt.state_dict(),
        "recorder": recorded | {"losses": torch.stack(list(recorded["losses"]))},
        "seconds": learn.stopwatch.seconds,
        "epoch_no": [dl.epoch_no for dl in learn.dls],
    }


def _restore(learn: Learner, state: dict) -> None:
    learn.model.load_state_dict(state["model"])
    learn.model.eval()  # as validation leaves it
    learn.create_opt()
    learn.opt.load_state_dict(state["opt"])
    for name, value in state["recorder"].items():
        setattr(learn.recorder, name, list(value) if name == "losses" else value)
    learn.stopwatch.seconds = state["seconds"]
    for dl, epoch_no in zip(learn.dls, state["epoch_no"], strict=True):
        dl.epoch_no = epoch_no
