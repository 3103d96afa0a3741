"""Which columns hold the users, the items and the ratings: by their names, or else by their place."""

import re
from difflib import get_close_matches
from numbers import Real

import pandas as pd

from .notes import BadRatings, note

ROLES = {  # names without case, blanks and signs; those in front are preferred, as the chapter's `title` is
    "user": [
        "user userid users uid reviewer reviewerid customer customerid member memberid rater reader viewer "
        "account accountid visitor visitorid",
        "username reviewername profilename membername nickname",
    ],
    "item": [
        "title movietitle filmtitle booktitle itemtitle producttitle gametitle songtitle",
        "item itemid items iid movie movieid movies film filmid films book bookid isbn product productid "
        "asin anime animeid game gameid song songid track trackid artist artistid "
        "joke jokeid recipe recipeid "
        "restaurant restaurantid business businessid beer beerid course courseid show showid app appid",
        "itemname moviename filmname productname animename",
    ],
    "rating": [
        "rating ratings stars star score scores rate starrating bookrating movierating userrating "
        "reviewscore reviewrating ratingvalue",
        "overall grade",
    ],
}
ROLES = {role: [rank.split() for rank in ranks] for role, ranks in ROLES.items()}
NEITHER = re.compile(r"(unnamed\d*|index|level\d|id|row|rowid|\w*(time|date)\w*)?")  # none of the three


def columns_of(
    ratings: pd.DataFrame, user: object = None, item: object = None, rating: object = None
) -> list:
    """The columns of users, items and ratings: those given, else those that are called so, else by place.

    `userId`, `movie_title` or `Book-Rating` say what they are; titles are preferred to ids. Without such a
    name a role takes the first column that is left, whose name says neither another role nor a time or an
    index of pandas. A warning tells which were taken where they aren't simply the first three, with `title`
    for the second. Raises `BadRatings` where a role has no column, or several that are called so.
    """
    columns, given = list(ratings.columns), dict(zip(ROLES, (user, item, rating), strict=True))
    if {*given.values()} == {None} and ratings.attrs.get("columns") == columns:
        return columns  # `check_ratings` made it
    plain = {name: _plain(name) for name in columns}
    taken = {role: name for role, name in given.items() if name is not None}
    roles = {word: role for role, ranks in ROLES.items() for rank in ranks for word in rank}
    for role in [role for role in ROLES if role not in taken]:
        left = [name for name in dict.fromkeys(columns) if name not in taken.values()]
        called = next(filter(None, ([n for n in left if plain[n] in rank] for rank in ROLES[role])), [])
        if len(called) > 1:
            both = " and ".join(map(repr, called))
            raise BadRatings(f"{both} may each be the {role}; pass {role}_name={called[0]!r} or another")
        if called:
            taken[role] = called[0]
    left = [name for name in columns if name not in taken.values() and plain[name] not in roles]
    left = [name for name in left if not NEITHER.fullmatch(plain[name])]
    for role in ROLES:
        if role not in taken:
            taken[role] = left.pop(0) if left else None
        if (count := columns.count(taken[role])) != 1:
            raise BadRatings(_missing(role, taken[role], count, ratings))
    names = [taken[role] for role in ROLES]
    if len(set(names)) < 3:
        problem = f"user, item and rating can't be {names}"
        raise BadRatings(f"{problem}; pass user_name=, item_name= and rating_name=")
    if odd := [name for name in names if not isinstance(name, str | Real)]:
        remedy = "ratings.columns = ratings.columns.map(str) makes it text"
        raise BadRatings(f"the column name {odd[0]!r} is neither text nor a number; {remedy}")
    first, second, third = columns[:3]
    usual = first, "title" if "title" in columns else second, third
    own = zip(given.values(), names, usual, strict=True)
    if any(one is None and name != place for one, name, place in own):
        told = ", ".join(f"{name!r} as the {role}" for role, name in zip(ROLES, names, strict=True))
        note(f"taking {told}; pass {'_name=, '.join(ROLES)}_name= if not so", stacklevel=4)
    return names


def is_named(column: object, role: str) -> bool:
    """Whether `column` is called what `role` ("user", "item" or "rating") usually is."""
    return any(_plain(column) in rank for rank in ROLES[role])


def _plain(name: object) -> str:
    return re.sub(r":\w+$|[\W_]", "", str(name).casefold())


def _missing(role: str, name: object, count: int, ratings: pd.DataFrame) -> str:
    """What is wrong with a role that has no column, or two."""
    columns = list(ratings.columns)
    close = [] if count or name is None else get_close_matches(str(name), map(str, columns), 1)
    remedy = f"did you mean {close[0]!r}? If not," if close else "rename one or"
    problem = f"{count or 'no'} columns{'' if name is None else f' called {name!r}'[:80]} for the {role}"
    index = [level for level in ratings.index.names if level is not None]
    remedy = f"{index[0]!r} is the index: call reset_index(), or" if index and not count else remedy
    return f"{problem}; the columns are {str(columns)[:300]}; {remedy} pass {role}_name="
