"""fastbook chapter 8 reproduced: nn.Embedding against a plain indexed nn.Parameter."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what importing fastai sets off in today's torch and pandas
    import fastai.collab  # noqa: F401

from .chapter import RUNS, published
from .compare import compare, copy_weights, difference, same_start, summary
from .fast import FastLoop, FusedAdam
from .loaders import RatingsDL
from .models import CollabNN, DotProduct, DotProductBias, DotProductBiasParams
from .synthetic import planted_ratings
from .training import curve, fit, learner
