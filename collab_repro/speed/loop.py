"""fastai's training loop without its overhead: the same numbers in a fraction of the time.

    learn = Learner(dls, model, loss_func=MSELossFlat(), opt_func=FusedAdam, cbs=FastLoop)

A step of the chapter's model is half a millisecond of arithmetic. fastai spends several more on
calling every callback for every event of every batch.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from fastai.callback.core import (
    Callback,
    CancelTrainException,
    CancelValidException,
    GatherPredsCallback,
    TrainEvalCallback,
    event,
)
from fastai.callback.progress import ProgressCallback
from fastai.callback.schedule import ParamScheduler
from fastai.learner import CastToTensor, Learner, Recorder
from fastai.losses import BaseLoss
from fastai.torch_core import to_device
from torch import Tensor

EVENTS = [e for e in vars(event) if e.endswith(("_batch", "_pred", "_loss", "_backward", "_step"))]
EVENTS += ["after_cancel_train", "after_cancel_validate"]  # by which the loop itself takes fastai's place
STARTS = "before_train", "before_validate"
BAR = 25  # batches between two looks at the progress bar
UNDERSTOOD = (TrainEvalCallback, Recorder, CastToTensor, ProgressCallback, ParamScheduler)


class FastLoop(Callback):
    """Runs each epoch's batches in one tight loop instead of through fastai's events.

    The schedule, the optimizer, the Recorder (`recorder.plot_loss`, `plot_sched`) and the metrics go
    on as always, and with the same optimizer every loss is the ordinary Learner's to the bit. When
    another callback wants to see batches, it steps aside, says so, and fastai's own loop runs.
    """

    order = 100  # its loop starts when every other callback has prepared

    def onlookers(self) -> list[Callback]:
        """The learner's callbacks that fastai's own loop has to call and that are not understood here."""
        seen = {cb: None for e in EVENTS for cb in self.learn.ordered_cbs(e)}
        late = {cb: None for e in STARTS for cb in self.learn.ordered_cbs(e) if cb.order > self.order}
        others = [cb for cb in seen | late if cb.run and not isinstance(cb, FastLoop)]
        return [cb for cb in others if type(cb) not in UNDERSTOOD]

    def before_fit(self):
        self.ran = False
        others = [cb for cb in self.onlookers() if not isinstance(cb, GatherPredsCallback)]  # no training
        if others:
            warnings.warn(
                f"FastLoop steps aside: {', '.join(map(str, others))} must be called by fastai", stacklevel=2
            )

    def before_train(self):
        self._run_instead(self._train, CancelTrainException)

    def before_validate(self):
        self._run_instead(self._validate, CancelValidException)

    def _run_instead(self, loop: Callable[[], None], cancel: type[Exception]) -> None:
        self.ran = not self.onlookers()
        if self.ran:
            with few_threads(work_of(self.learn)), no_subnormals():
                loop()
            raise cancel

    # Only fastai's own loop was cut short, the epoch was not: let the Recorder log it.
    def after_cancel_train(self):
        self.recorder.cancel_train, self.ran = not self.ran, False

    def after_cancel_validate(self):
        self.recorder.cancel_valid, self.ran = not self.ran, False

    def _batches(self) -> Iterator:
        """The epoch's batches on the model's device, set on the learner one by one as fastai does."""
        learn, model, loss_func = self.learn, self.learn.model, unwrapped(self.learn.loss_func)
        device, n_inp = next(model.parameters()).device, getattr(learn.dls, "n_inp", 1)
        learn.n_iter, bar = len(learn.dl), getattr(learn, "progress", None)
        with torch._C.DisableTorchFunctionSubclass():  # TensorBase costs more than the arithmetic
            for learn.iter, b in enumerate(learn.dl):  # noqa: B020 as fastai counts
                b = b if getattr(b[0], "device", None) == device else to_device(b, device)
                learn.xb, learn.yb = b[:n_inp], b[n_inp:]
                learn.pred = model(*learn.xb)
                if learn.yb:  # rows to predict have none
                    learn.loss = loss_func(learn.pred, *learn.yb)
                    yield learn.loss
                if bar and learn.iter % BAR == BAR - 1:
                    bar.pbar.update(learn.iter + 1)  # which draws a few times a second at most
        if bar:
            bar.pbar.update(learn.n_iter)

    def _train(self):
        learn, opt, recorder = self.learn, self.opt, self.recorder
        scheds = [
            (name, f, cb.hps[name])
            for cb in learn.cbs
            if isinstance(cb, ParamScheduler)
            for name, f in cb.scheds.items()
        ]
        metrics = list(recorder._train_mets)
        smooth, step = recorder.smooth_loss, 1.0 / (len(learn.dl) * learn.n_epoch)
        # Losses go into one tensor: thousands of small ones between the gradients of large tables would
        # keep the heap from ever giving that memory back.
        losses, done = [], 0
        try:
            for loss in self._batches():
                for name, f, log in scheds:
                    opt.set_hyper(name, f(learn.pct_train))
                    log.append(opt.hypers[-1][name])
                loss.backward()
                opt.step()
                opt.zero_grad()
                for metric in metrics:
                    metric.accumulate(learn)
                recorder.lrs.append(opt.hypers[-1]["lr"])
                if not done:
                    losses = smooth.value.new_empty(learn.n_iter, *smooth.value.shape)
                losses[done] = smooth.value
                done += 1
                learn.pct_train += step
                learn.train_iter += 1
        finally:
            recorder.losses.extend(losses[:done])
        learn.smooth_loss = smooth.value

    def _validate(self):
        metrics = list(self.recorder._valid_mets)
        for _ in self._batches():
            for metric in metrics:
                metric.accumulate(self.learn)


def unwrapped(loss_func: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """`MSELossFlat` and its like without fastai's preparations, equal to the bit; any other as it is."""
    wraps = type(loss_func) is BaseLoss and loss_func.flatten and not loss_func.is_2d
    if not wraps or loss_func.axis != -1:
        return loss_func

    def flat(pred: Tensor, targ: Tensor) -> Tensor:
        if targ.dtype != torch.float32:
            return loss_func(pred, targ)
        return loss_func.func(pred.reshape(-1), targ.reshape(-1))

    return flat


ONE_THREAD = 131_072  # elements up to which one thread was faster than two, on two idle cores


def work_of(learn: Learner) -> int:
    """The number of elements of a training batch's largest tensor."""
    bs = getattr(learn.dls.train, "bs", None) or learn.dls.train.batch_size  # fastai's loader, or PyTorch's
    return bs * max((p.shape[1] for p in learn.model.parameters() if p.ndim > 1), default=1)


@contextmanager
def few_threads(work: int) -> Iterator[None]:
    """Use one thread where `work` (see `work_of`) is too small to share, then the caller's number again.

    A second thread would only wait, on a busy machine ten times longer than the work takes.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if work <= ONE_THREAD else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def no_subnormals() -> Iterator[None]:
    """Let the CPU take numbers nearer to zero than 1e-38 for zero, then as the caller had it.

    Adam's averages of titles seldom rated shrink to such numbers, with which a CPU reckons many times more
    slowly. A weight is the same to the bit: what they would add to it is far below its last.
    Each thread has a setting of its own, so nothing is changed where PyTorch uses several.
    """
    if torch.get_num_threads() > 1:
        yield
        return
    before = not torch.tensor(1e-40, dtype=torch.float32) * 1
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
