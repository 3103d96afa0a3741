"""Which columns hold the users, the items and the ratings: by their names, or else by their place."""

import re
from numbers import Real

import pandas as pd

from .notes import BadRatings, kept, note

ITEM = "(movie|film|book|item|product|anime|game|song|track|artist|joke|recipe|restaurant|business|beer|show)"
ROLES = {  # names without case, blanks and signs; the first kind is preferred, as the chapter's `title` is
    "user": [
        "(user|reviewer|customer|member|account|visitor)s?(id)?|uid|rater|reader|viewer",
        "(user|reviewer|profile|member)name|nickname",
    ],
    "item": [f"{ITEM}?title", f"({ITEM}|course|app)s?(id)?|iid|isbn|asin", f"{ITEM}name"],
    "rating": ["(book|movie|user|star|review|my)?(rating|score)s?|stars?|rate|ratingvalue", "overall|grade"],
}
NEITHER = r"(unnamed\d*|index|level\d|id|row|rowid)?"  # none of the three
WORD = r"(?:^|[\W\d_]|(?<=[a-z])(?=[A-Z]))"  # begins here, also in camelCase
TIME = re.compile(WORD + "(?i:unix|review|rating|release|up)?(?i:date|time)")
OF_MANY = re.compile(WORD + "(?i:average|avg|mean|num|number|n|count|total)(?![a-z])")


def columns_of(
    ratings: pd.DataFrame, user: object = None, item: object = None, rating: object = None
) -> list:
    """The columns of users, items and ratings: those given, else those that are called so, else by place.

    `userId`, `movie_title` or `Book-Rating` say what they are; titles are preferred to ids. Without such a
    name a role takes the first column that is left, whose name says neither another role nor a time or an
    index of pandas; averages and counts come last. A warning tells which were taken where they aren't simply
    the first three, with `title` for the second, or there are more and a name doesn't say it. Raises
    `BadRatings` where a role has no column, or several that are called so.
    """
    if not isinstance(ratings, pd.DataFrame):
        raise BadRatings(f"ratings of type {type(ratings).__name__}: pd.DataFrame(ratings) makes a DataFrame")
    columns, given = list(ratings.columns), dict(zip(ROLES, (user, item, rating), strict=True))
    if {*given.values()} == {None} and kept(ratings).get("columns") == columns:
        return columns  # `check_ratings` made it
    taken = {role: name for role, name in given.items() if name is not None}
    for role, kinds in ROLES.items():
        left = [name for name in dict.fromkeys(columns) if name not in taken.values() and role not in taken]
        called = next(filter(None, ([n for n in left if _is(n, kind)] for kind in kinds)), [])
        if len(called) > 1:
            both = " and ".join(map(repr, called))
            raise BadRatings(f"{both} may each be the {role}; pass {role}_name={called[0]!r} or another")
        if called:
            taken[role] = called[0]
    left = [name for name in columns if name not in taken.values() and not _is(name, NEITHER)]
    left = [n for n in left if not TIME.search(str(n)) and not any(is_named(n, role) for role in ROLES)]
    left = iter(sorted(left, key=lambda name: bool(OF_MANY.search(str(name)))))
    names = [taken[role] if role in taken else next(left, None) for role in ROLES]
    for role, name in zip(ROLES, names, strict=True):
        if (count := columns.count(name)) != 1:
            index = [level for level in ratings.index.names if level is not None and not count]
            remedy = f"{index[0]!r} is the index: call reset_index(), or" if index else "rename one or"
            called = "" if name is None else f" called {name!r}"[:80]
            told = f"{count or 'no'} columns{called} for the {role}; the columns are {str(columns)[:300]}"
            raise BadRatings(f"{told}; {remedy} pass {role}_name=")
    if len(set(names)) < 3:
        problem = f"user, item and rating can't be {names}"
        raise BadRatings(f"{problem}; pass user_name=, item_name= and rating_name=")
    if odd := [name for name in names if not isinstance(name, str | Real)]:
        remedy = "ratings.columns = ratings.columns.map(str) makes it text"
        raise BadRatings(f"the column name {odd[0]!r} is neither text nor a number; {remedy}")
    usual = columns[0], "title" if "title" in columns else columns[1], columns[2]
    own = [(role, *two) for role, *two in zip(ROLES, names, usual, strict=True) if given[role] is None]
    if any(name != place or (len(columns) > 3 and not is_named(name, role)) for role, name, place in own):
        told = ", ".join(f"{name!r} as the {role}" for role, name in zip(ROLES, names, strict=True))
        note(f"taking {told}; pass {'_name=, '.join(ROLES)}_name= if not so", stacklevel=4)
    return names


def is_named(column: object, role: str) -> bool:
    """Whether `column` is called what `role` ("user", "item" or "rating") usually is."""
    return any(_is(column, kind) for kind in ROLES[role])


def _is(column: object, words: str) -> bool:
    return bool(re.fullmatch(words, re.sub(r":\w+$|[\W_]", "", str(column).casefold())))
