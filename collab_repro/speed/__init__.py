"""The same numbers sooner: what makes the chapter's training fast. The road can be read without it.

- loop: `FastLoop`, fastai's training loop without the calls it makes for every batch.
- optimizer: `FusedAdam`, fastai's Adam in one kernel a step.
- fitting: `fit`, `fit_one_cycle` for one or many Learners.
- sidebyside: many seeds of one model in one pass, of which several run in processes at a time.
- batches: `big_batch`, settings for large sets of ratings. It alone changes the numbers.
"""

from .batches import big_batch
from .fitting import EPOCHS, LR, WD, fit
from .loop import FastLoop, few_threads
from .optimizer import FusedAdam
from .stopwatch import DivergedError, Stopwatch
