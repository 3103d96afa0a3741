"""Settings for sets of ratings that are too large for the chapter's batches of 64."""

import math


def big_batch(n_train: int) -> dict[str, float]:
    """Batch size, learning rate and weight decay for `n_train` training rows: bs, lr, wd.

    Batches of 1,024 at MovieLens 100K's 80,000 training rows, growing with the 3/4th power of the rows
    (a power of two from 64 on, or all rows), so that ten times the rows are 1.8 times the steps. With
    decoupled decay a table shrinks by lr x wd each step, so fewer steps need more than the chapter's .1.
    `python -m collab_repro bench --parts accuracy` sets five such epochs beside the chapter's.
    """
    bs = 2 ** max(6, round(math.log2(1024 * (n_train / 80_000) ** 0.75)))
    return {"bs": min(bs, n_train), "lr": 8e-3, "wd": 0.2}
