"""What a model learned, read by title: biases, factors, their PCA, neighbours, predictions.

Every function takes a fastai Learner or a `Learned` as `learn`, works alike on `DotProductBias`,
`DotProductBiasParams` and fastai's `EmbeddingDotBias`, and leaves the Learner as it was. Where the
numbers come from stands in `.attrs["source"]` of every table.
Source: fastbook chapter 8, "Interpreting Embeddings and Biases" and "Embedding Distance".
"""

from collections.abc import Sequence
from difflib import get_close_matches

import numpy as np
import pandas as pd
from fastai.learner import Learner
from scipy.special import expit
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances

from .learned import Learned

__all__ = [
    "MIN_RATINGS",
    "UnknownId",
    "UnknownTitle",
    "factor_pca",
    "movie_bias",
    "movie_factors",
    "n_ratings",
    "predict",
    "similar_movies",
    "suggest",
]

MIN_RATINGS = 50  # see similar_movies


class UnknownId(KeyError):
    """Users or titles that the model was not trained on."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would put it in quotes


class UnknownTitle(UnknownId):
    """Titles that the model was not trained on."""


def n_ratings(learn: Learner | Learned) -> pd.Series:
    """How many training rows each title has, int64 by title, most rated first (ties: by title)."""
    learned = Learned.of(learn)
    counts = _by_title(learned, learned.n_ratings).rename("n_ratings")
    return counts.sort_values(ascending=False, kind="stable")


def movie_bias(learn: Learner | Learned) -> pd.Series:
    """Each title's bias, float32 by title, lowest first: the chapter's lists are `head` and `tail`.

    The bias adds to the score under the sigmoid, so it has no unit. A title without training rows
    (see `n_ratings`) keeps about the small number it started from.
    Raises ValueError for a model without biases.
    """
    learned = Learned.of(learn)
    if learned.movie_bias is None:
        raise ValueError(f"{learned.note.get('model') or 'this model'} has no biases")
    bias = _by_title(learned, learned.movie_bias).rename("bias")
    return bias.sort_values(kind="stable")


def movie_factors(learn: Learner | Learned) -> pd.DataFrame:
    """Each title's factors, float32, title x factor (numbered from 0), by title."""
    learned = Learned.of(learn)
    return _by_title(learned, learned.movie_factors)


def factor_pca(learn: Learner | Learned, n_components: int = 3, top: int = 1000) -> pd.DataFrame:
    """Principal components of the factors of the `top` most rated titles, title x component.

    Rows stand in order of the number of training ratings, so that `.head(50)` are the 50 that the
    chapter draws. Each component's sign makes its largest loading positive: a rerun looks the same.
    `.attrs["explained_variance"]` lists each component's share of the variance, 0 to 1.
    Raises ValueError for more components than factors or titles.
    """
    factors = movie_factors(learn).loc[n_ratings(learn).index[:top]]
    pca = PCA(n_components, svd_solver="full").fit(factors.astype(float))
    largest = np.abs(pca.components_).argmax(axis=1)
    signs = np.sign(pca.components_[range(n_components), largest])
    components = pd.DataFrame(pca.transform(factors.astype(float)) * signs, factors.index)
    components.attrs = factors.attrs | {"explained_variance": pca.explained_variance_ratio_.tolist()}
    return components


def similar_movies(
    learn: Learner | Learned,
    title: str,
    n: int = 5,
    by: str = "cosine",
    min_ratings: int = MIN_RATINGS,
) -> pd.DataFrame:
    """The `n` titles whose factors are nearest to `title`'s, nearest first, without itself.

    `by` is "cosine" (a column of similarities, 1 at most) or "euclidean" (of distances); beside it
    stands n_ratings. Only titles with `min_ratings` training ratings or more are compared, because
    the vector of a rarely rated one is short and hangs on the split and the seed: of five cosine
    neighbours in MovieLens 100K, two seeds share .20 with no floor, .29 from 50 ratings on and .42
    from 150, where 120 titles are left (`neighbour_overlap` measures it). The chapter has no floor.

    Raises `UnknownTitle` for a title that isn't there or has no training row, ValueError for
    another `by` or a negative `n`.
    """
    if by not in ("cosine", "euclidean") or n < 0:
        raise ValueError(f"by={by!r}, n={n}: by is 'cosine' or 'euclidean', n is not negative")
    counts, factors = n_ratings(learn), movie_factors(learn).astype(float)
    if title not in counts.index:
        raise UnknownTitle(f"no title {title!r}{suggest(title, counts.index)}")
    if counts[title] == 0:
        raise UnknownTitle(f"{title!r} has no rating among the training rows: nothing was learned")
    others = counts.index[counts >= min_ratings].drop(title, errors="ignore")
    if not len(others):
        return pd.DataFrame({by: [], "n_ratings": []}, others)
    distance = pairwise_distances(factors.loc[[title]], factors.loc[others], metric=by)[0]
    near = pd.DataFrame({by: distance, "n_ratings": counts[others]})
    near = near.sort_values(by, kind="stable").head(n)
    near.attrs = dict(factors.attrs)
    return near.assign(cosine=1 - near["cosine"]) if by == "cosine" else near


def predict(
    learn: Learner | Learned | Sequence[Learner | Learned], rows: pd.DataFrame, unknown: str = "error"
) -> pd.Series:
    """Predicted ratings of `rows`, which have the columns of users and titles that `learn` was
    trained on, as float64 on the index of `rows`; all lie inside y_range. Several models make an
    ensemble: the mean of their predictions.

    fastai sends whom it doesn't know to the row '#na#', silently. Here `unknown="error"` raises,
    and "average" predicts with the mean factors and bias of all users or of all rated titles
    ("Bootstrapping a Collaborative Filtering Model"). Ids are compared exactly: 7 is not "7".

    Raises `UnknownId` naming the first few (`UnknownTitle` when it is titles alone), ValueError
    for missing columns or another `unknown`.
    """
    if isinstance(learn, list | tuple):
        return sum(predict(one, rows, unknown) for one in learn) / len(learn)
    learned = Learned.of(learn)
    if unknown not in ("error", "average"):
        raise ValueError(f"unknown={unknown!r}: it is 'error' or 'average'")
    if missing := [name for name in learned.names if name not in rows]:
        raise ValueError(f"rows have no column {missing[0]!r}; they need {list(learned.names)}")
    user, title = (rows[name].astype(object) for name in learned.names)
    users, titles = _codes(learned.users, user), _codes(learned.titles, title)
    if unknown == "error" and not (users.all() and titles.all()):
        held = {"users": user[users == 0], "titles": title[titles == 0]}
        named = "; ".join(f"{what} {_few(ids)}" for what, ids in held.items() if len(ids))
        remedy = "unknown='average' predicts for the average one"
        error = UnknownTitle if users.all() else UnknownId
        raise error(f"not in the training data: {named} ({remedy})")
    rated = learned.n_ratings > 0
    rated[1:] |= not rated.any()  # an exported learner doesn't know
    score = np.einsum(
        "ij,ij->i",
        _averaged(learned.user_factors, np.arange(len(learned.users)) > 0)[users],
        _averaged(learned.movie_factors, rated)[titles],
    )
    if learned.movie_bias is not None:
        score += _averaged(learned.user_bias, np.arange(len(learned.users)) > 0)[users]
        score += _averaged(learned.movie_bias, rated)[titles]
    if learned.y_range is not None:
        low, high = learned.y_range
        score = np.clip(low + (high - low) * expit(score), low, high)
    return pd.Series(score, rows.index, name="prediction")


def _by_title(learned: Learned, table: np.ndarray) -> pd.Series | pd.DataFrame:
    """A table of titles without '#na#'; `.attrs` says where it comes from."""
    make = pd.Series if table.ndim == 1 else pd.DataFrame
    by_title = make(table[1:], pd.Index(learned.titles[1:], name=learned.names[1]))
    by_title.attrs["source"] = learned.origin
    return by_title


def _codes(vocabulary: list, ids: pd.Series) -> np.ndarray:
    """The row of each id, 0 for one that isn't there; '#na#' itself is nobody's id."""
    return pd.Index(vocabulary[1:], dtype=object).get_indexer(pd.Index(ids, dtype=object)) + 1


def _averaged(table: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """`table` as float64 with row 0 the mean of the `trained` rows."""
    table = table.astype(float)
    table[0] = table[trained].mean(axis=0)
    return table


def _few(ids: pd.Series, n: int = 3) -> str:
    """The first `n` different ids, and how many more there are."""
    ids = ids.unique()
    more = f" and {len(ids) - n:,} more" if len(ids) > n else ""
    return ", ".join(repr(getattr(one, "item", lambda one=one: one)()) for one in ids[:n]) + more


def suggest(title: object, known: pd.Index) -> str:
    """The titles, most rated first in `known`, that someone who wrote `title` may have meant."""
    wanted = str(title).casefold().strip()
    if not wanted:
        return ""
    meant = [one for one in known if wanted in str(one).casefold()]
    if not meant:  # misspelt, and perhaps cut short
        begins = {str(one).casefold()[: len(wanted) + 2]: one for one in reversed(known)}
        meant = [begins[text] for text in get_close_matches(wanted, begins)]
    return "; did you mean " + " or ".join(map(repr, meant[:3])) + "?" if meant else ""
