"""What a model learned, by title: biases, factors, their principal components, neighbours.

Every function takes as `learn` a fastai Learner or the `Learned` tables of one. All work alike on
`DotProductBias`, `DotProductBiasParams` and fastai's `EmbeddingDotBias`, and leave the Learner as it was.
`.attrs["source"]` of every table says where its numbers come from.
Source: fastbook chapter 8, "Interpreting Embeddings and Biases" and "Embedding Distance".
"""

from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import pandas as pd

MIN_RATINGS = 50  # see similar_movies


class UnknownId(KeyError):
    """Users or titles that the model was not trained on."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would put it in quotes


class UnknownTitle(UnknownId):
    """Titles that the model was not trained on."""


@dataclass(frozen=True)
class Movies:
    """What a model knows of its movies; row 0 of each table is fastai's '#na#'.

    `titles` (n,), `n_ratings` (n,) int64: training rows, `factors` (n, k) float32, `bias` (n,) float32 or
    None; `column`: the ratings' column of titles; `source`: where the numbers come from, for a figure.
    """

    titles: list
    n_ratings: np.ndarray
    factors: np.ndarray
    bias: np.ndarray | None
    column: str
    source: str

    def by_title(self, table: np.ndarray) -> pd.Series | pd.DataFrame:
        make = pd.Series if table.ndim == 1 else pd.DataFrame
        by_title = make(table[1:], pd.Index(self.titles[1:], name=self.column))
        by_title.attrs["source"] = self.source
        return by_title


def movies(learn) -> Movies:
    """The movies of a Learner, copied, or those of a `Learned`. Raises TypeError for other models."""
    if hasattr(learn, "movies"):
        return learn.movies
    from .models import tables

    column, titles = list(learn.dls.classes.items())[1]
    rows = learn.dls.train_ds.items
    copied = {name: t.detach().cpu().float().clone().numpy() for name, t in tables(learn.model).items()}
    told = [text for key in ("source", "name") if (text := str(rows.attrs.get(key, ""))) not in ("", "None")]
    return Movies(
        titles=[getattr(title, "item", lambda title=title: title)() for title in titles],
        n_ratings=np.bincount(rows[column], minlength=len(titles)).astype(np.int64),
        factors=copied["movie_factors"],
        bias=copied["movie_bias"].reshape(-1) if "movie_bias" in copied else None,
        column=column,
        source=", ".join([*told[:1], type(learn.model).__name__]),
    )


def trained(counts: np.ndarray) -> np.ndarray:
    """Which titles have a training row, (n,) bool; all where none has, as an exported Learner can't know."""
    return (counts > 0) | (not (counts > 0).any())


def n_ratings(learn) -> pd.Series:
    """How many training rows each title has, int64 by title, most rated first (ties: by title)."""
    learned = movies(learn)
    counts = learned.by_title(learned.n_ratings).rename("n_ratings")
    return counts.sort_values(ascending=False, kind="stable")


def movie_bias(learn) -> pd.Series:
    """Each title's bias, float32 by title, lowest first: the chapter's lists are `head` and `tail`.

    The bias adds to the score under the sigmoid, so it has no unit. A title without training rows
    (see `n_ratings`) keeps about the small number it started from.
    Raises ValueError for a model without biases.
    """
    learned = movies(learn)
    if learned.bias is None:
        raise ValueError(f"this model has no biases ({learned.source})")
    return learned.by_title(learned.bias).rename("bias").sort_values(kind="stable")


def movie_factors(learn) -> pd.DataFrame:
    """Each title's factors, float32, title x factor (numbered from 0), by title."""
    learned = movies(learn)
    return learned.by_title(learned.factors)


def factor_pca(learn, n_components: int = 3, top: int = 1000) -> pd.DataFrame:
    """Principal components of the factors of the `top` most rated titles, title x component.

    Rows are in order of the number of training ratings, so that `.head(50)` are the 50 that the chapter
    draws; titles without a training row are left out. Each component's sign makes its largest loading
    positive: a rerun looks the same.
    `.attrs["explained_variance"]` lists each component's share of the variance, 0 to 1.
    Raises ValueError for more components than factors or titles.
    """
    counts = n_ratings(learn)
    factors = movie_factors(learn).loc[counts.index[trained(counts)][:top]].astype(float)
    if not 1 <= n_components <= min(factors.shape):
        raise ValueError(f"n_components={n_components} of (titles, factors) = {factors.shape}")
    centred = (factors - factors.mean()).to_numpy()
    _, scales, axes = np.linalg.svd(centred, full_matrices=False)  # axes: (min, n_factors)
    signs = np.sign(axes[range(len(axes)), np.abs(axes).argmax(axis=1)])
    components = pd.DataFrame(centred @ (axes.T * signs)[:, :n_components], factors.index)
    shares = (scales**2 / (scales**2).sum())[:n_components]
    components.attrs = factors.attrs | {"explained_variance": shares.tolist()}
    return components


def similar_movies(
    learn, title: str, n: int = 5, by: str = "cosine", min_ratings: int = MIN_RATINGS
) -> pd.DataFrame:
    """The `n` titles whose factors are nearest to `title`'s, nearest first, without itself.

    `by` is "cosine" (a column of similarities, 1 at most) or "euclidean" (of distances); beside it
    stands n_ratings. Only titles with `min_ratings` training ratings or more are compared, because
    the vector of a rarely rated one is short and depends on the split and the seed: of five cosine
    neighbours in MovieLens 100K, two seeds share .19 with no floor, .27 from 50 ratings on and .41
    from 150, where 131 titles are left (notebook 04 measures it). The chapter has no floor, nor has an
    exported Learner, which doesn't know how often a title was rated.

    Raises `UnknownTitle` for a title that isn't there or has no training row, ValueError for
    another `by` or a negative `n`.
    """
    from sklearn.metrics import pairwise_distances

    if by not in ("cosine", "euclidean") or n < 0:
        raise ValueError(f"by={by!r}, n={n}: by is 'cosine' or 'euclidean', n is not negative")
    counts, factors = n_ratings(learn), movie_factors(learn).astype(float)
    if title not in counts.index:
        raise UnknownTitle(f"no title {title!r}{suggest(title, counts.index)}")
    learned = pd.Series(trained(counts), counts.index)
    if not learned[title]:
        raise UnknownTitle(f"{title!r} has no rating among the training rows: nothing was learned")
    enough = counts >= min_ratings if counts.any() else learned  # an exported Learner has no counts
    others = counts.index[enough].drop(title, errors="ignore")
    if not len(others):
        return pd.DataFrame({by: [], "n_ratings": []}, others)
    distance = pairwise_distances(factors.loc[[title]], factors.loc[others], metric=by)[0]
    near = pd.DataFrame({by: distance, "n_ratings": counts[others]})
    near = near.sort_values(by, kind="stable").head(n)
    near.attrs = dict(factors.attrs)
    return near.assign(cosine=1 - near["cosine"]) if by == "cosine" else near


def suggest(title: object, known: pd.Index) -> str:
    """The titles, most rated first in `known`, that someone who wrote `title` may have meant."""
    wanted = str(title).casefold().strip()
    if not wanted:
        return ""
    meant = [one for one in known if wanted in str(one).casefold()]
    if not meant:  # misspelt, and perhaps cut short
        begins = {str(one).casefold()[: len(wanted) + 2]: one for one in reversed(known.tolist())}
        meant = [begins[text] for text in get_close_matches(wanted, begins)]
    return "; did you mean " + " or ".join(map(repr, meant[:3])) + "?" if meant else ""
