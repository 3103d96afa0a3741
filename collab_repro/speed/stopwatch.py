"""The time that each epoch takes, and a clear end for a training that diverges."""

import time

import torch
from fastai.callback.core import Callback


class DivergedError(ArithmeticError):
    """A loss became NaN or infinite."""


class Stopwatch(Callback):
    """Records the seconds of each epoch in `seconds`; raises `DivergedError` when a loss isn't finite."""

    order = 55  # after the Recorder

    def before_fit(self):
        self.seconds = []

    def before_epoch(self):
        self.started = time.perf_counter()

    def after_train(self):
        losses = torch.stack(list(self.recorder.losses[-self.n_iter :]))  # (steps,), or (steps, models)
        bad = (~losses.isfinite()).view(len(losses), -1).any(dim=1).nonzero()
        if len(bad):
            self._diverged("training", f"epoch {self.epoch}, batch {int(bad[0])} on")

    def after_epoch(self):
        self.seconds.append(time.perf_counter() - self.started)
        loss = self.recorder.loss.value
        if loss is not None and not torch.as_tensor(loss).isfinite().all():
            self._diverged("validation", f"the end of epoch {self.epoch} on")

    def _diverged(self, which: str, since: str) -> None:
        raise DivergedError(
            f"the {which} loss is not a finite number from {since} (counted from 0; highest learning rate so "
            f"far {max(self.recorder.lrs):.2g}). The usual causes: a learning rate too high, or huge ratings"
        )
