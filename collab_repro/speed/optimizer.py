"""fastai's Adam as one fused PyTorch kernel a step, instead of some forty small ones."""

from itertools import chain

import torch
from fastai.optimizer import Optimizer


class FusedAdam(Optimizer):
    """fastai's `Adam` (decoupled weight decay) with the kernel of `torch.optim.AdamW(fused=True)`.

    Pass it as `opt_func`. Hyper-parameters, names of the state, `do_wd` and freezing are those of `Adam`,
    and the results differ by rounding only, but for frozen tables: `Adam` goes on moving them by their
    momentum, this leaves them alone.
    """

    def __init__(self, params, lr, mom=0.9, sqr_mom=0.99, eps=1e-5, wd=0.01):
        super().__init__(params, [], lr=lr, mom=mom, sqr_mom=sqr_mom, eps=eps, wd=wd)

    @torch.no_grad()
    def step(self, closure=None):
        for group, hyper in zip(self.param_lists, self.hypers, strict=True):
            for decayed in (True, False):
                stepped = [
                    p for p in group if p.grad is not None and self.state[p].get("do_wd", True) == decayed
                ]
                if stepped:
                    self._step(stepped, hyper, hyper["wd"] if decayed else 0.0)

    def _step(self, stepped: list, hyper: dict, wd: float) -> None:
        counts = {}  # a tensor for each number of steps taken: one, unless tables were frozen for a while
        columns = zip(*(self._pieces(p, counts) for p in stepped), strict=True)
        params, averages, squares, grads, steps = (list(chain(*column)) for column in columns)
        settings = {"lr": hyper["lr"], "beta1": hyper["mom"], "beta2": hyper["sqr_mom"], "eps": hyper["eps"]}
        settings |= {"weight_decay": wd, "amsgrad": False, "maximize": False}
        # The kernel runs straight through memory: where a table has gaps, as a slice has, it gets a copy.
        dense = [p.contiguous() for p in params]
        grads = [grad if grad.is_sparse else grad.contiguous() for grad in grads]
        torch._fused_adamw_(dense, grads, averages, squares, [], steps, **settings)
        for p, stepped in zip(params, dense, strict=True):
            if stepped is not p:
                p.copy_(stepped)

    def _pieces(self, p, counts: dict) -> tuple:
        """Lists for the kernel: `p`, its averages, gradient and step count.

        One piece, or one for each of the `rows` in its state: the kernel rounds the last few numbers of
        a piece in its own way where they fill no cache line, and models side by side must not notice.
        """
        state = self.state[p]
        if "grad_avg" not in state:
            zeros = torch.zeros_like(p, memory_format=torch.contiguous_format)
            state |= {"grad_avg": zeros, "sqr_avg": zeros.clone(), "step": 0}
        state["step"] += 1
        key = state["step"], p.device
        if key not in counts:
            counts[key] = torch.tensor(float(state["step"]), device=p.device)
        if "rows" not in state:
            return [p], [state["grad_avg"]], [state["sqr_avg"]], [p.grad], [counts[key]]
        if "pieces" not in state:
            state["pieces"] = [t.split(state["rows"]) for t in (p, state["grad_avg"], state["sqr_avg"])]
        grads = p.grad.split(state["rows"])
        return *state["pieces"], grads, [counts[key]] * len(grads)

    def zero_grad(self):
        for group in self.param_lists:
            for p in group:
                p.grad = None
