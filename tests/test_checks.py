"""What check_ratings lets in comes through fastai unchanged; what it refuses, it says why."""

from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fastai.collab import CollabDataLoaders
from fastai.tabular.core import TabDataLoader
from hypothesis import given, settings
from hypothesis import strategies as st

from collab_repro.sources import BadRatings, check_ratings, planted_ratings
from collab_repro.sources.notes import kept

pytestmark = [  # both about fastai's own code
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable"),
    pytest.mark.filterwarnings("ignore:Constructing a Categorical with a dtype and values"),
]

N = 200
RNG = np.random.default_rng(0)
PAIRS = RNG.permutation(40 * 60)[:N]
PLAIN = pd.DataFrame(
    {"who": PAIRS // 60, "film": PAIRS % 60, "stars": RNG.integers(1, 6, N)}, index=range(7, N + 7)
)
WHO, TITLES = PLAIN["who"], "Film " + PLAIN["film"].astype(str)
LETTERS = pd.Series([*"aA", *(f"u{i}" for i in range(N - 2))], index=PLAIN.index)


def having(column, values):
    """PLAIN with other values in a column."""
    return PLAIN.assign(**{column: values})


def one(column, row, value, dtype=object):
    """PLAIN with one other value in a column."""
    values = PLAIN[column].astype(dtype).copy()
    values.iloc[row] = value
    return having(column, values)


def titled(*titles):
    """PLAIN with text titles, these in rows 3, 8, ..."""
    values = TITLES.astype(object).copy()
    for n, title in enumerate(titles):
        values.iloc[3 + 5 * n] = title
    return having("film", values)


def through_fastai(checked, users, items):
    """DataLoaders of `checked`, whose codes decode to the ids that went in.

    Rows of validation may hold `#na#` where ids are integers and the training rows lack one.
    """
    dls = CollabDataLoaders.from_df(checked, bs=16, seed=1, dl_type=TabDataLoader)
    x, y = dls.one_batch()
    assert x.shape == (16, 2) and y.float().isfinite().all()
    for name, ids in zip(checked.columns, (users, items), strict=False):
        whole_vocabulary = checked[name].dtype == object
        for rows, whole in ((dls.train.items, True), (dls.valid.items, whole_vocabulary)):
            decoded = [dls.classes[name][code] for code in rows[name]]
            true = [ids[row] for row in rows.index]
            assert all(d == t or (d == "#na#" and not whole) for d, t in zip(decoded, true, strict=True))
    return dls


def test_columns_and_index():
    with pytest.warns(UserWarning, match="taking 'who' as the user"):
        first_three = check_ratings(PLAIN.assign(extra="x"))
    assert first_three.to_dict("list") == PLAIN.to_dict("list") and list(first_three.index) == list(range(N))
    named = check_ratings(PLAIN[["stars", "film", "who"]], "who", "film", "stars")
    pd.testing.assert_frame_equal(named, first_three)
    for index in (RNG.permutation(N), np.zeros(N, int), [np.nan] * N):
        pd.testing.assert_frame_equal(check_ratings(PLAIN.set_axis(index)), first_three)
    for item in ("title", "movie"):  # title unless named, as in the chapter
        given = {"item_name": "movie"} if item == "movie" else {}
        assert list(check_ratings(planted_ratings(50, 60, 500)[0], **given)) == ["user", item, "rating"]


def test_the_input_is_left_alone():
    ratings = having("film", TITLES.astype("category"))
    before = ratings.copy(deep=True)
    checked = check_ratings(ratings)
    checked.iloc[0, 2] = 4
    pd.testing.assert_frame_equal(ratings, before)


def test_just_enough_rows():
    assert len(CollabDataLoaders.from_df(check_ratings(PLAIN[:79]), bs=64).train) == 1
    assert len(check_ratings(PLAIN[:70], valid_pct=0.05)) == 70


COLUMNS = [
    (PLAIN, {"user_name": "whom"}, "no columns called 'whom' for the user; the columns are .'who', "),
    (PLAIN.to_numpy(), {}, r"ratings of type ndarray: pd.DataFrame\(ratings\) makes a DataFrame"),
    (PLAIN.to_dict("list"), {}, "ratings of type dict"),
    (PLAIN.to_numpy().tolist(), {"user_name": "who"}, "ratings of type list"),
    (PLAIN["who"], {}, "ratings of type Series"),
    *((PLAIN, {"valid_pct": share}, f"valid_pct={share}: it is a share") for share in (-0.2, 1, 1.5, np.nan)),
    (PLAIN, {"item_name": "who"}, "no columns for the user; .* pass user_name="),
    (PLAIN[["who", "film"]], {}, "no columns for the rating; .* pass rating_name="),
    (PLAIN[[]], {}, "no columns for the user"),
    (
        pd.concat([PLAIN, PLAIN[["who"]]], axis=1),
        {},
        "2 columns called 'who' .* rename one or pass user_name=",
    ),
    *((PLAIN[:n], {"bs": bs}, f"{n} rows leave .* of {bs}; give") for n, bs in ((0, 64), (78, 64), (4, 5))),
]
STARS = [
    (one("stars", 9, value, dtype), {}, f"column 'stars', row 9 {words}")
    for value, dtype, words in [
        (np.nan, float, r"\(nan\): not a finite"),
        (-np.inf, float, r"\(-inf\): not a finite"),
        (pd.NA, "Int64", r"\(<NA>\): not a finite"),
        (None, object, ".*: not a finite number .*; correct it or drop such rows"),
        (Decimal("NaN"), object, r"\(NaN\): not a finite"),
        (Decimal("inf"), object, r"\(Infinity\): not a finite"),
        ("five", object, r"\('five'\): not a finite"),
        (10**400, object, r"\(1000+.*: not a finite"),
        (1 + 1j, object, ".*: not a finite"),
        (pd.Timestamp(0), object, r"\(1970.*: not a finite"),
        (
            0,
            int,
            r"\(0\): not strictly .*; if the 1 rows with 0, .*; otherwise y_range=\(-0.5, 5.5\) would",
        ),
        (5.5, float, r"\(5.5\): not strictly inside"),
        (5.499999999, float, r"\(5.499999999\): not strictly inside"),
        (6, "uint8", r"\(6\): not strictly inside"),
    ]
]
STARS += [
    (one("stars", 9, 1e39, float), {"y_range": None}, r"\(1e\+39\): not a finite number in float32"),
]
FULL = having("who", (WHO.astype(object) * 2 + 2**63 - 41).replace(2**63 - 41, -1))
IDS = [
    (having("who", 3), r"column 'who', row 0 \(3\): the only id"),
    (having("film", 3), r"column 'film', row 0 \(3\): the only id"),
    (one("who", 5, np.nan, float), r"'who', row 5 \(nan\): no id; drop"),
    (one("who", 5, pd.NA, "Int64"), r"'who', row 5 \(<NA>\): no id; drop"),
    (one("film", 5, None), "'film', row 5 .*: no id; drop"),
    (having("film", pd.Categorical(["a", "b", None, "a"] * 50)), "row 2 .*: no id"),
    (one("who", 5, "7"), rf"'who', row 5 \('7'\): one of mixed.* ids, the first of which is {WHO.iloc[0]};"),
    (one("who", 5, 7.5), r"'who', row 5 \(7.5\): one of mixed.* ids, the first of which is"),
    (one("who", 5, 7.5, float), r"row 5 \(7.5\): not a whole number.*int64 or as text"),
    (one("who", 5, np.inf, float), r"row 5 \(inf\): not a whole number"),
    (one("who", 5, 2.0**54, float), r"row 5 \(1.8.*\): not a whole number that floats"),
    (one("who", 5, 2.0**25, "float32"), r"row 5 \(3.3554432e.07\): not a whole number"),
    (one("who", 5, 2**64), r"row 5 \(18446744073709551616\): does not fit.*astype\(str\)"),
    (one("who", 5, -(2**63) - 1), r"row 5 \(-9223372036854775809\): does not fit"),
    (FULL, "does not fit"),
    (having("who", WHO > 20), "row 0 .*: one of boolean ids"),
    (having("who", [(int(i), 1) for i in WHO]), "one of mixed ids"),
    *(
        (
            having(column, [*PLAIN[column][:3], *[cell] * (N - 3)]),
            rf"'{column}', row 3 \(.*\): several values",
        )
        for column, cell in (("who", [1, 2]), ("film", {"a"}), ("film", {"a": 1}), ("who", (1, [2])))
    ),
    (having("film", pd.to_datetime(PLAIN["film"], unit="D")), "one of datetime64 ids"),
    (titled("  "), r"'film', row 3 \('  '\): a blank id"),
    (titled(""), "'film', row 3 .*: a blank id"),
    (titled("#na#"), r"row 3 \('#na#'\): fastai's unknown id"),
    (
        titled("Am\u00e9lie", "Ame\u0301lie"),
        "'film', row 8 .* the form of an accent .such ids: 1.; check_ratings\\(ratings, alike='fold'\\)",
    ),
    (having("who", LETTERS.replace("A", "a ")), r"row 1 \('a '\): differs from 'a' only in blanks"),
]
for near in ("OTHER film", "Other  Film", " Other Film", "Other\u00a0Film"):
    IDS.append((titled("Other Film", near), "row 8 .*: differs from 'Other Film' only in blanks, case"))


@pytest.mark.parametrize(
    ("ratings", "options", "words"), [*COLUMNS, *STARS, *((ratings, {}, words) for ratings, words in IDS)]
)
def test_refused(ratings, options, words):
    with pytest.raises(BadRatings, match=words) as refused:
        check_ratings(ratings, **options)
    assert "\n" not in str(refused.value)


def test_y_range():
    assert check_ratings(one("stars", 9, -1000, int), y_range=None)["stars"][9] == -1000
    ratings = having("stars", PLAIN["stars"] * 20)
    with pytest.raises(BadRatings) as refused:
        check_ratings(ratings)
    low, high = str(refused.value).split("y_range=(")[1].split(")")[0].split(", ")
    check_ratings(ratings, y_range=(float(low), float(high)))  # the suggested range holds all


@pytest.mark.parametrize(
    "dtype", ["int8", "uint64", "float16", "float32", np.longdouble, "Int64", "Float64", "category"]
)
def test_dtypes_of_ratings(dtype):
    checked = check_ratings(having("stars", PLAIN["stars"].astype(dtype)))
    assert checked["stars"].tolist() == PLAIN["stars"].tolist()
    through_fastai(checked, WHO.tolist(), PLAIN["film"].tolist())


def test_bool_decimal_and_half_stars():
    likes = check_ratings(having("stars", PLAIN["stars"] > 3), y_range=(-0.5, 1.5))
    decimal = check_ratings(having("stars", [Decimal(int(s)) / 2 for s in PLAIN["stars"]]))
    assert likes["stars"].dtype == decimal["stars"].dtype == np.float64
    assert likes["stars"].tolist() == (PLAIN["stars"] > 3).tolist()
    assert decimal["stars"].tolist() == (PLAIN["stars"] / 2).tolist()
    through_fastai(likes, WHO.tolist(), PLAIN["film"].tolist())


def test_arrow():
    pytest.importorskip("pyarrow")
    arrow = PLAIN.astype({"who": "int64[pyarrow]", "stars": "double[pyarrow]"})
    checked = check_ratings(arrow.assign(film=TITLES.astype("string[pyarrow]")))
    assert checked["stars"].tolist() == PLAIN["stars"].tolist()
    assert checked["film"].tolist() == TITLES.tolist() and checked["film"].dtype == object
    dls = through_fastai(checked, WHO.tolist(), TITLES.tolist())
    assert len(dls.classes["film"]) == TITLES.nunique() + 1


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (WHO, "int8"),
        (-WHO - 2**62, np.int64),
        (WHO.astype("uint64") + np.uint64(2**63), np.uint64),
        (WHO.astype(object) + 2**63 - 20, object),
        (WHO.astype(float) + 2**24, float),
        (WHO + 2**53 - WHO.max(), float),
        (WHO, object),
        (WHO.astype(float), object),
        (WHO, "Int64"),
        (WHO, "Float64"),
        (WHO, "category"),
        ("u" + WHO.astype(str), object),
        ("u" + WHO.astype(str), "string"),
        ("Ünï 用户 \U0001f3ac " + WHO.astype(str), "category"),
        (LETTERS, object),  # users may differ in case
    ],
)
def test_ids_come_through_fastai(values, dtype):
    checked = check_ratings(having("who", values.astype(dtype)))
    assert checked["who"].tolist() == values.tolist()
    through_fastai(checked, values.tolist(), PLAIN["film"].tolist())


def test_floats_would_run_together_in_fastai():
    """Why whole floats become integers; goes red when fastai no longer needs it."""
    floats = having("who", WHO.astype(float) + 2**24)
    raw = CollabDataLoaders.from_df(floats, bs=16, seed=1, dl_type=TabDataLoader)
    assert len(raw.classes["who"]) - 1 < WHO.nunique()
    assert check_ratings(floats)["who"].dtype == np.int64


@pytest.mark.parametrize(("item", "all_rows"), [("title", True), ("movie", False)])
def test_text_has_all_rows_vocabulary_and_integers_the_training_rows(item, all_rows):
    ratings, _ = planted_ratings(60, 400, 900, seed=2)
    dls = through_fastai(
        check_ratings(ratings, item_name=item), ratings["user"].tolist(), ratings[item].tolist()
    )
    assert (len(dls.classes[item]) == ratings[item].nunique() + 1) is all_rows
    assert (0 not in set(dls.valid.items[item])) is all_rows


def test_unused_categories_go_and_the_order_stays():
    order = ["nobody", *sorted(set(TITLES), reverse=True), "no one"]
    checked = check_ratings(having("film", pd.Categorical(TITLES, categories=order, ordered=True)))
    dls = through_fastai(checked, WHO.tolist(), TITLES.tolist())
    assert list(checked["film"].cat.categories) == order[1:-1] and checked["film"].cat.ordered
    assert list(dls.classes["film"]) == ["#na#", *order[1:-1]]


def test_duplicates_are_counted_and_reported_once():
    ratings = pd.concat([PLAIN, PLAIN[:3], PLAIN[:1]])
    ratings.attrs["source"] = "somewhere"
    with pytest.warns(UserWarning, match=r"4 of 204 rows repeat a pair of who and film") as said:
        checked = check_ratings(ratings)
    assert said[0].filename == __file__
    noted = {"duplicates": 4, "collab_repro": kept(checked)}
    assert checked.attrs == {"source": "somewhere", **noted} and len(checked) == 204
    assert ratings.attrs == {"source": "somewhere"}
    check_ratings(checked)  # a warning would be an error here
    assert checked.attrs["duplicates"] == 4 and check_ratings(PLAIN).attrs["duplicates"] == 0


@pytest.mark.filterwarnings("ignore:taking 'who' as the user")
@pytest.mark.parametrize(
    "value", [[*PLAIN], 4, "keep", {"a": 1}, None, Path("a.csv"), np.arange(3), PLAIN], ids=lambda v: type(v)
)
def test_the_users_own_attrs_change_nothing(value):
    ratings = titled("Other", "OTHER")[["film", "who", "stars"]]
    ratings.attrs = dict.fromkeys(["columns", "lines", "alike", "duplicates", "name", "source"], value)
    with pytest.raises(BadRatings, match=r"row 8 \('OTHER'\): differs from"):
        check_ratings(ratings)
    checked = check_ratings(ratings, alike="fold")
    assert list(checked) == ["who", "film", "stars"] and ratings.attrs["columns"] is value
    told = {} if value is None else dict.fromkeys(["name", "source"], str(value))
    assert checked.attrs == told | {"duplicates": 0, "collab_repro": kept(checked)}
    through_fastai(checked, checked["who"].tolist(), checked["film"].tolist())


@settings(max_examples=15, deadline=None)
@given(
    ids=st.lists(
        st.integers(-(2**63), 2**63 - 1) | st.just(2**63 - 1), min_size=2, max_size=8, unique=True
    ),
    titles=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6),
        min_size=2, max_size=8, unique_by=lambda title: " ".join(title.casefold().split()),
    ),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_any_ids_come_through(ids, titles, seed):
    """Whatever is let in, fastai decodes to itself."""
    rng = np.random.default_rng(seed)
    users = [ids[k] for k in rng.permutation(np.arange(60) % len(ids))]
    items = [titles[k] for k in rng.integers(0, len(titles), 60)]
    ratings = pd.DataFrame({"u": users, "i": pd.Series(items, dtype=object), "r": rng.uniform(1, 5, 60)})
    kept(ratings, duplicates=(repeated := int(ratings.duplicated(["u", "i"]).sum())))
    try:
        checked = check_ratings(ratings, bs=16)
    except BadRatings as refused:
        assert "column 'i'" in str(refused)
        return
    assert checked.attrs["duplicates"] == repeated
    assert checked["i"].tolist() == items
    assert set(through_fastai(checked, users, items).classes["u"][1:]) <= set(ids)


def test_the_chapters_ratings_pass(ml100k):
    checked = check_ratings(ml100k)
    assert list(checked.columns) == ["user", "title", "rating"] and len(checked) == 100_000
    assert checked.attrs["duplicates"] == 307
    pd.testing.assert_series_equal(checked["title"], ml100k["title"], check_dtype=False)
