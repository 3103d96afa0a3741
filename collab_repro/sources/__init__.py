"""Where ratings come from. The main modules can be read without this folder.

- movielens: MovieLens 100K and its larger sets, by name; archives: how they are fetched and kept.
- own: the user's own ratings, from a table in a file; content: the text in it.
- roles: which columns hold users, items and ratings.
- checks: whether a model can be trained on ratings, and what to change if not.
- notes: what these say, once, and their two errors.
- planted: made-up ratings, and the biases and factors they were drawn from.
- files: how this package writes its files, and reads its tables of losses again.

Nothing here imports torch or fastai.
"""

from .checks import check_ratings, check_reach, check_split, tell_untrained
from .movielens import SETS, load_movielens
from .notes import BadRatings, RatingsUnavailable
from .own import SUFFIXES, load_own
from .planted import planted_ratings
