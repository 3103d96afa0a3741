"""fastbook chapter 8 reproduced: nn.Embedding against a plain indexed nn.Parameter.

The tour, in the order the data flows:

- data: `load_ratings()` gives the chapter's DataFrame (`RatingsUnavailable` when it cannot be had),
  `planted_ratings()` made-up ratings with the truth behind them; `check_ratings` says what is wrong
  with one's own (`BadRatings`).
- loaders: `RatingsDL`, the `dl_type` that serves every training row once an epoch.
- models: `DotProduct`, `DotProductBias`, `DotProductBiasParams`, `CollabNN`.
- training: `learner(ratings, model, seed)` is the chapter's Learner, `fit(learners)` trains one or many,
  `curve(learn)` is its table; `FastLoop` and `FusedAdam` make any Learner quick.
- comparing: `compare` (curves over seeds), `summary` (mean and sd per epoch), `difference` (paired),
  `same_start` (bit by bit), `copy_weights`.
- the chapter: `RUNS` and `published()` are what it printed, `reproduce()` trains it again,
  `against_the_book()` sets both side by side.
- looking: `movie_bias`, `movie_factors`, `factor_pca`, `similar_movies`, `predict`; `Learned` keeps a
  model's tables in a plain file.
- drawing: `plot_curves`, `plot_difference`, `plot_bias`, `plot_factors`, and more in `collab_repro.plots`.

`collab_repro.stability` tells how sure one can be of what was learned, `collab_repro.lookups` and
`collab_repro.ablations` why it works, `collab_repro.bench` what it costs, `collab_repro.distributed`
how several processes share the work.
"""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what importing fastai sets off in today's torch and pandas
    import fastai.collab  # noqa: F401

from .chapter import RUNS, published
from .checks import BadRatings, check_ratings
from .compare import compare, copy_weights, difference, same_start, summary
from .data import RatingsUnavailable, load_ratings
from .fast import FastLoop, FusedAdam
from .interpret import factor_pca, movie_bias, movie_factors, predict, similar_movies
from .learned import Learned
from .loaders import RatingsDL
from .models import CollabNN, DotProduct, DotProductBias, DotProductBiasParams
from .plots import plot_bias, plot_curves, plot_difference, plot_factors
from .reproduce import against_the_book, reproduce
from .synthetic import planted_ratings
from .training import curve, fit, learner

__all__ = [
    "RUNS",
    "BadRatings",
    "CollabNN",
    "DotProduct",
    "DotProductBias",
    "DotProductBiasParams",
    "FastLoop",
    "FusedAdam",
    "Learned",
    "RatingsDL",
    "RatingsUnavailable",
    "against_the_book",
    "check_ratings",
    "compare",
    "copy_weights",
    "curve",
    "difference",
    "factor_pca",
    "fit",
    "learner",
    "load_ratings",
    "movie_bias",
    "movie_factors",
    "planted_ratings",
    "plot_bias",
    "plot_curves",
    "plot_difference",
    "plot_factors",
    "predict",
    "published",
    "reproduce",
    "same_start",
    "similar_movies",
    "summary",
]
