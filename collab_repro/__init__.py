"""fastbook chapter 8 reproduced: nn.Embedding against a plain indexed nn.Parameter.

The road, in reading order:

- data: `load_ratings()`, the chapter's DataFrame (`RatingsUnavailable` when it can't be had).
- loader: `RatingsDL`, the `dl_type` that serves every training row once an epoch.
- models: `DotProduct`, `DotProductBias`, `DotProductBiasParams`, `CollabNN`; `copy_weights`.
- training: `learner(ratings, model, seed)` is the chapter's Learner, `curve(learn)` its table;
  `fit(learners)` trains one or many; `FastLoop` and `FusedAdam` speed up any Learner.
- chapter: `RUNS` and `published()`, what the chapter printed.
- curves: `summary` (mean and sd over seeds), `difference` (paired).
- comparison: `compare`, both models over many seeds; `same_start`, bit by bit.
- interpret: `movie_bias`, `movie_factors`, `factor_pca`, `similar_movies`.
- plots: `plot_curves`, `plot_difference`, `plot_bias`, `plot_factors`.

Off the road: `sources` (where ratings come from; `check_ratings`, `BadRatings`, `planted_ratings`),
`speed` (the same numbers sooner; `big_batch`), `evidence` (why it works and how sure one can be;
`reproduce`, `against_the_book`, `diagnose`, why your numbers are not the book's, `plot_over_band`),
`recommending` (`Learned`, `predict`, `fold_in`, `recommend`, `ranking`), `further` (the chapter's
Further Research; `with_columns`, `stars_learner`), `bench` (what training costs) and `command` (the
command line). Names load on first use: whoever does not train does not wait for fastai.
"""

import warnings
from importlib import import_module

_MODULE_OF = {
    "data": ["load_ratings"],
    "loader": ["RatingsDL"],
    "models": ["CollabNN", "DotProduct", "DotProductBias", "DotProductBiasParams", "copy_weights"],
    "training": ["FastLoop", "FusedAdam", "curve", "fit", "learner"],
    "chapter": ["RUNS", "published"],
    "curves": ["difference", "summary"],
    "comparison": ["compare", "same_start"],
    "interpret": ["factor_pca", "movie_bias", "movie_factors", "similar_movies"],
    "plots": ["plot_bias", "plot_curves", "plot_difference", "plot_factors"],
    "sources": ["BadRatings", "RatingsUnavailable", "check_ratings", "planted_ratings"],
    "evidence.diagnosis": ["diagnose"],
    "evidence.eight_runs": ["against_the_book", "reproduce"],
    "evidence.figures": ["plot_over_band"],
    "speed.batches": ["big_batch"],
    "recommending.learned": ["Learned"],
    "recommending.predicting": ["predict"],
    "recommending.folding": ["fold_in"],
    "recommending.unseen": ["recommend"],
    "recommending.ranked": ["ranking"],
    "further.classes": ["stars_learner"],
    "further.columns": ["with_columns"],
}
_MODULE_OF = {name: module for module, names in _MODULE_OF.items() for name in names}
__all__ = list(_MODULE_OF)

# What importing fastai sets off in today's torch and pandas, and what its loaders do.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
warnings.filterwarnings("ignore", ".*mode.chained_assignment")
warnings.filterwarnings("ignore", "Constructing a Categorical with a dtype and values")


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
