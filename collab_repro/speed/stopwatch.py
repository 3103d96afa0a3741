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
        self.started, self.first = time.perf_counter(), len(self.recorder.losses)

    def after_train(self):
        losses = list(self.recorder.losses[self.first :])
        if losses:
            finite = torch.stack(losses).view(len(losses), -1).isfinite().all(dim=1)  # of all models
            if not finite.all():
                self._diverged("training", f"epoch {self.epoch}, batch {int(finite.int().argmin())} on")

    def after_epoch(self):
        self.seconds.append(time.perf_counter() - self.started)
        loss = self.recorder.loss
        if getattr(loss, "count", 0) and not torch.as_tensor(loss.value).isfinite().all():
            self._diverged("validation", f"the end of epoch {self.epoch} on")

    def _diverged(self, which: str, since: str) -> None:
        raise DivergedError(
            f"the {which} loss is not a finite number from {since} (counted from 0; highest learning rate so "
            f"far {max(self.recorder.lrs):.2g}). The usual causes: a learning rate too high, or huge ratings"
        )
