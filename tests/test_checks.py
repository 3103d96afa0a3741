"""What check_ratings lets in comes through fastai unchanged; what it refuses, it says why."""

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from fastai.collab import CollabDataLoaders
from fastai.tabular.core import TabDataLoader
from hypothesis import given, settings
from hypothesis import strategies as st

from collab_repro.checks import BadRatings, check_ratings
from collab_repro.synthetic import planted_ratings

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
TITLES = "Film " + PLAIN["film"].astype(str)


def having(column, values):
    """PLAIN with other values in a column."""
    return PLAIN.assign(**{column: values})


def one(column, row, value, dtype=object):
    """PLAIN with one other value in a column."""
    values = PLAIN[column].astype(dtype).copy()
    values.iloc[row] = value
    return having(column, values)


def through_fastai(checked, users, items):
    """DataLoaders of `checked`, whose codes decode to the ids that went in.

    Rows of validation may hold `#na#` where ids are integers and the training rows lack one.
    """
    dls = CollabDataLoaders.from_df(checked, bs=16, seed=1, dl_type=TabDataLoader)
    x, y = dls.one_batch()
    assert x.shape == (16, 2) and y.float().isfinite().all()
    for name, ids in zip(checked.columns, (users, items), strict=False):
        for rows, whole in (
            (dls.train.items, True),
            (dls.valid.items, checked[name].dtype == object),
        ):
            decoded = [dls.classes[name][code] for code in rows[name]]
            true = [ids[row] for row in rows.index]
            assert all(d == t or (d == "#na#" and not whole) for d, t in zip(decoded, true, strict=True))
    return dls


class TestColumns:
    def test_first_three_and_numbered_from_zero(self):
        checked = check_ratings(PLAIN.assign(extra="x"))
        assert list(checked.columns) == ["who", "film", "stars"]
        assert list(checked.index) == list(range(N))
        assert checked["stars"].tolist() == PLAIN["stars"].tolist()

    def test_title_is_the_item_as_in_the_chapter(self):
        ratings, _ = planted_ratings(50, 60, 500)
        assert list(check_ratings(ratings).columns) == ["user", "title", "rating"]
        assert list(check_ratings(ratings, item_name="movie").columns) == [
            "user",
            "movie",
            "rating",
        ]

    def test_named_columns_in_any_place(self):
        mixed = PLAIN[["stars", "film", "who"]]
        checked = check_ratings(mixed, "who", "film", "stars")
        assert list(checked.columns) == ["who", "film", "stars"]

    @pytest.mark.parametrize(
        ("ratings", "names", "words"),
        [
            (PLAIN, {"user_name": "whom"}, "no columns called 'whom' for the user.*mean 'who'"),
            (PLAIN, {"item_name": "who"}, r"can't be \['who', 'who', 'stars'\]; pass user_name="),
            (PLAIN[["who", "film"]], {}, "no columns for the rating"),
            (PLAIN[[]], {}, "no columns for the user"),
            (pd.concat([PLAIN, PLAIN[["who"]]], axis=1), {}, "2 columns called 'who'"),
        ],
    )
    def test_missing(self, ratings, names, words):
        with pytest.raises(BadRatings, match=words):
            check_ratings(ratings, **names)

    @pytest.mark.parametrize("index", [RNG.permutation(N), np.zeros(N, int), [np.nan] * N])
    def test_any_index(self, index):
        checked = check_ratings(PLAIN.set_axis(index))
        pd.testing.assert_frame_equal(checked, check_ratings(PLAIN))

    def test_input_is_left_alone(self):
        ratings = having("film", TITLES.astype("category"))
        before = ratings.copy(deep=True)
        checked = check_ratings(ratings)
        checked.iloc[0, 2] = 4
        pd.testing.assert_frame_equal(ratings, before)


class TestSize:
    @pytest.mark.parametrize(("rows", "bs"), [(0, 64), (1, 64), (78, 64), (4, 5)])
    def test_too_few_rows(self, rows, bs):
        with pytest.raises(BadRatings, match=f"{rows} rows leave .* batch of {bs}; give more"):
            check_ratings(PLAIN[:rows], bs=bs)

    def test_just_enough(self):
        dls = CollabDataLoaders.from_df(check_ratings(PLAIN[:79]), bs=64)
        assert len(dls.train) == 1

    def test_valid_pct(self):
        assert len(check_ratings(PLAIN[:70], valid_pct=0.05)) == 70

    @pytest.mark.parametrize("column", ["who", "film"])
    def test_single_id(self, column):
        with pytest.raises(BadRatings, match=f"column '{column}', row 0: 3 is the only id"):
            check_ratings(having(column, 3))


class TestRatings:
    @pytest.mark.parametrize(
        ("value", "dtype", "words"),
        [
            (np.nan, float, "row 9: nan is no finite"),
            (-np.inf, float, "row 9: -inf is no finite"),
            (pd.NA, "Int64", "row 9: <NA> is no rating"),
            (None, object, "row 9: .* is no rating; drop"),
            (Decimal("NaN"), object, "row 9: NaN is no rating"),
            (Decimal("inf"), object, "row 9: Infinity is no finite"),
            (10**400, object, "row 9: 1000+ is no finite"),
            ("five", object, "row 9: 'five' is no finite number.*to_numeric"),
            ("5", object, "row 9: '5' is no finite number.*to_numeric"),
            (pd.Timestamp(0), object, "row 9: 1970.* is no finite number"),
            (1 + 1j, object, "row 9: .* is no finite number"),
            (0, int, r"row 9: 0 can't be reached .*\(0, 5.5\); y_range=\(-0.5, 5.5\) would"),
            (5.5, float, "row 9: 5.5 can't be reached"),
            (5.499999999, float, "row 9: 5.499999999 can't be reached"),
            (6, "uint8", "row 9: 6 can't be reached"),
        ],
    )
    def test_refused(self, value, dtype, words):
        with pytest.raises(BadRatings, match="column 'stars', " + words):
            check_ratings(one("stars", 9, value, dtype))

    def test_the_first_bad_row_is_named(self):
        with pytest.raises(BadRatings, match="row 0: '"):
            check_ratings(having("stars", PLAIN["stars"].astype(str)))

    def test_no_bounds(self):
        checked = check_ratings(one("stars", 9, -1000, int), y_range=None)
        assert checked["stars"][9] == -1000
        with pytest.raises(BadRatings, match=r"1e\+39 is no finite rating in float32"):
            check_ratings(one("stars", 9, 1e39, float), y_range=None)

    def test_suggested_range_holds_all(self):
        with pytest.raises(BadRatings) as refused:
            check_ratings(having("stars", PLAIN["stars"] * 20))
        low, high = str(refused.value).split("y_range=(")[1].split(")")[0].split(", ")
        check_ratings(having("stars", PLAIN["stars"] * 20), y_range=(float(low), float(high)))

    @pytest.mark.parametrize(
        "dtype",
        ["int8", "uint64", "float16", "float32", np.longdouble, "Int64", "Float64", "category"],
    )
    def test_dtypes(self, dtype):
        checked = check_ratings(having("stars", PLAIN["stars"].astype(dtype)))
        assert checked["stars"].tolist() == PLAIN["stars"].tolist()
        through_fastai(checked, PLAIN["who"].tolist(), PLAIN["film"].tolist())

    def test_bool_decimal_and_half_stars(self):
        likes = check_ratings(having("stars", PLAIN["stars"] > 3), y_range=(-0.5, 1.5))
        assert set(likes["stars"]) == {0.0, 1.0} and likes["stars"].dtype == np.float64
        decimal = check_ratings(having("stars", [Decimal(int(s)) / 2 for s in PLAIN["stars"]]))
        assert decimal["stars"].tolist() == (PLAIN["stars"] / 2).tolist()
        through_fastai(likes, PLAIN["who"].tolist(), PLAIN["film"].tolist())
        through_fastai(decimal, PLAIN["who"].tolist(), PLAIN["film"].tolist())

    def test_arrow(self):
        pytest.importorskip("pyarrow")
        arrow = PLAIN.astype({"who": "int64[pyarrow]", "stars": "double[pyarrow]"})
        arrow = arrow.assign(film=TITLES.astype("string[pyarrow]"))
        checked = check_ratings(arrow)
        assert checked["stars"].tolist() == PLAIN["stars"].tolist()
        assert checked["film"].tolist() == TITLES.tolist() and checked["film"].dtype == object
        dls = through_fastai(checked, PLAIN["who"].tolist(), TITLES.tolist())
        assert len(dls.classes["film"]) == TITLES.nunique() + 1


class TestIds:
    @pytest.mark.parametrize(
        ("values", "dtype"),
        [
            (PLAIN["who"], "int8"),
            (-PLAIN["who"] - 2**62, np.int64),
            (PLAIN["who"].astype("uint64") + np.uint64(2**63), np.uint64),
            (PLAIN["who"].astype(object) + 2**63 - 20, object),
            (PLAIN["who"].astype(float) + 2**24, float),
            (PLAIN["who"], object),
            (PLAIN["who"].astype(float), object),
            (PLAIN["who"], "Int64"),
            (PLAIN["who"], "Float64"),
            (PLAIN["who"], "category"),
            ("u" + PLAIN["who"].astype(str), object),
            ("u" + PLAIN["who"].astype(str), "string"),
            ("Ünï 用户 \U0001f3ac " + PLAIN["who"].astype(str), "category"),
        ],
    )
    def test_come_through_fastai(self, values, dtype):
        checked = check_ratings(having("who", values.astype(dtype)))
        assert checked["who"].tolist() == values.tolist()
        through_fastai(checked, values.tolist(), PLAIN["film"].tolist())

    def test_floats_would_run_together_in_fastai(self):
        """Why whole floats become integers; goes red when fastai no longer needs it."""
        floats = having("who", PLAIN["who"].astype(float) + 2**24)
        raw = CollabDataLoaders.from_df(floats, bs=16, seed=1, dl_type=TabDataLoader)
        assert len(raw.classes["who"]) - 1 < PLAIN["who"].nunique()
        assert check_ratings(floats)["who"].dtype == np.int64

    def test_text_has_all_rows_vocabulary_and_integers_the_training_rows(self):
        for item, all_rows in (("title", True), ("movie", False)):
            ratings, _ = planted_ratings(60, 400, 900, seed=2)
            checked = check_ratings(ratings, item_name=item)
            dls = through_fastai(checked, ratings["user"].tolist(), ratings[item].tolist())
            assert (len(dls.classes[item]) == ratings[item].nunique() + 1) is all_rows
            assert (0 not in set(dls.valid.items[item])) is all_rows

    def test_unused_categories_go_and_the_order_stays(self):
        order = ["nobody", *sorted(set(TITLES), reverse=True), "no one"]
        film = pd.Categorical(TITLES, categories=order, ordered=True)
        checked = check_ratings(having("film", film))
        dls = through_fastai(checked, PLAIN["who"].tolist(), TITLES.tolist())
        assert list(checked["film"].cat.categories) == order[1:-1] and checked["film"].cat.ordered
        assert list(dls.classes["film"]) == ["#na#", *order[1:-1]]

    @pytest.mark.parametrize(
        ("ratings", "words"),
        [
            (one("who", 5, np.nan, float), "'who', row 5: no id; drop"),
            (one("who", 5, pd.NA, "Int64"), "'who', row 5: no id; drop"),
            (one("film", 5, None), "'film', row 5: no id; drop"),
            (having("film", pd.Categorical(["a", "b", None, "a"] * 50)), "row 2: no id"),
            (one("who", 5, "7"), "'who', row 5: '7' in a column of mixed.* ids that starts"),
            (one("who", 5, 7.5), "'who', row 5: 7.5 in a column of mixed.* ids that starts"),
            (one("who", 5, 7.5, float), "row 5: id 7.5 isn't a whole number.*int64 or as text"),
            (one("who", 5, np.inf, float), "row 5: id inf isn't a whole number"),
            (one("who", 5, 2.0**54, float), "row 5: id 1.8.* isn't a whole number that floats"),
            (one("who", 5, 2.0**25, "float32"), "row 5: id 33554432.0 isn't a whole number"),
            (one("who", 5, 2**64), r"row 5: id 18446744073709551616 does not fit.*astype\(str\)"),
            (one("who", 5, -(2**63) - 1), "row 5: id -9223372036854775809 does not fit"),
            (
                having("who", (PLAIN["who"].astype(object) * 2 + 2**63 - 41).replace(2**63 - 41, -1)),
                "fit",
            ),
            (having("who", PLAIN["who"] > 20), "row 0: .* in a column of boolean ids"),
            (having("who", [(int(i), 1) for i in PLAIN["who"]]), "column of mixed ids"),
            (having("film", pd.to_datetime(PLAIN["film"], unit="D")), "column of datetime64 ids"),
        ],
    )
    def test_refused(self, ratings, words):
        with pytest.raises(BadRatings, match=words):
            check_ratings(ratings)

    @pytest.mark.parametrize(
        ("title", "words"),
        [
            ("  ", "row 11: a blank id"),
            ("", "row 11: a blank id"),
            ("#na#", "row 11: '#na#' is fastai's"),
            ("OTHER film", "'OTHER film' and 'Other Film' differ only in blanks, case"),
            ("Other  Film", "'Other  Film' and 'Other Film' differ only in blanks"),
            (" Other Film", "' Other Film' and 'Other Film' differ only in blanks"),
            ("Other\u00a0Film", "and 'Other Film' differ only in blanks"),
        ],
    )
    def test_titles_nearly_alike(self, title, words):
        titles = TITLES.astype(object).copy()
        titles.iloc[30], titles.iloc[11] = "Other Film", title
        with pytest.raises(BadRatings, match=words):
            check_ratings(having("film", titles))

    def test_accents_composed_and_decomposed(self):
        titles = TITLES.astype(object).copy()
        titles.iloc[3], titles.iloc[8] = "Am\u00e9lie", "Ame\u0301lie"
        with pytest.raises(BadRatings, match=r"'film', row 8: .* the form of an accent; write"):
            check_ratings(having("film", titles))

    def test_users_may_differ_in_case_but_not_in_blanks(self):
        who = pd.Series([*"aA", *(f"u{i}" for i in range(N - 2))], index=PLAIN.index)
        assert check_ratings(having("who", who))["who"].nunique() == N
        with pytest.raises(BadRatings, match="row 1: 'a' and 'a ' differ only in blanks"):
            check_ratings(having("who", who.replace("A", "a ")))


class TestDuplicates:
    def test_counted_and_said_once(self):
        twice = pd.concat([PLAIN, PLAIN[:3], PLAIN[:1]])
        with pytest.warns(UserWarning, match=r"4 of 204 rows repeat a pair of who and film"):
            checked = check_ratings(twice)
        assert checked.attrs["duplicates"] == 4 and len(checked) == 204
        check_ratings(checked)  # warnings are errors here, and this one has been said

    def test_none(self):
        assert check_ratings(PLAIN).attrs["duplicates"] == 0

    def test_attrs_are_handed_on(self):
        ratings = PLAIN.copy()
        ratings.attrs["source"] = "somewhere"
        assert check_ratings(ratings).attrs == {"source": "somewhere", "duplicates": 0}
        assert ratings.attrs == {"source": "somewhere"}


@settings(max_examples=15, deadline=None)
@given(
    ids=st.lists(
        st.integers(-(2**63), 2**63 - 1) | st.just(2**63 - 1), min_size=2, max_size=8, unique=True
    ),
    titles=st.lists(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=6),
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
    ratings.attrs["duplicates"] = int(ratings.duplicated(["u", "i"]).sum())
    try:
        checked = check_ratings(ratings, bs=16)
    except BadRatings as refused:
        assert "column 'i'" in str(refused)
        return
    assert checked.attrs["duplicates"] == ratings.attrs["duplicates"]
    assert checked["i"].tolist() == items
    dls = through_fastai(checked, users, items)
    assert set(dls.classes["u"][1:]) <= set(ids)


def test_the_chapters_ratings_pass(ml100k):
    checked = check_ratings(ml100k)
    assert list(checked.columns) == ["user", "title", "rating"] and len(checked) == 100_000
    assert checked.attrs["duplicates"] == 307
    pd.testing.assert_series_equal(checked["title"], ml100k["title"], check_dtype=False)
