"""Ratings as people have them: columns by name, files of many forms, ids without a training row."""

import bz2
import gzip
import io
import lzma
import re
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest
from fastai.learner import load_learner
from test_interpret import made
from tqdm import tqdm

from collab_repro import (
    BadRatings,
    Learned,
    RatingsUnavailable,
    big_batch,
    check_ratings,
    factor_pca,
    fit,
    learner,
    load_ratings,
    movie_bias,
    predict,
    recommend,
    similar_movies,
)
from collab_repro.__main__ import main, parser
from collab_repro.command import ratings as command_ratings
from collab_repro.command.newcomer import stars
from collab_repro.command.ratings import at_command_line, ratings_for
from collab_repro.evidence.eight_runs import run_learner
from collab_repro.interpret import UnknownId, UnknownTitle
from collab_repro.sources.notes import kept
from collab_repro.sources.roles import columns_of

USUAL = [
    "user,movie,rating,timestamp,title -> user,title,rating",
    "userId,movieId,rating,timestamp -> userId,movieId,rating",
    "user_id:token,item_id:token,rating:float -> user_id:token,item_id:token,rating:float",
    "User-ID,ISBN,Book-Rating -> User-ID,ISBN,Book-Rating",
    "a,b,c -> a,b,c",
    "candidate,who,what -> candidate,who,what",
]
TOLD = [
    "user,title,votes,rating -> user,title,rating",
    "user,title,timestamp,rating -> user,title,rating",
    "movieId,userId,rating -> userId,movieId,rating",
    "rating,item,user -> user,item,rating",
    "Unnamed: 0,user,title,rating -> user,title,rating",
    "Unnamed: 0,who,what,how -> who,what,how",
    "index,who,what,how -> who,what,how",
    "a,b,unix_time,c -> a,b,c",
    "who,updateDate,reviewdate,candidate,sentiment -> who,candidate,sentiment",
    "a,b,c,d -> a,b,c",
    "user,Alien,Heat,Fargo -> user,Alien,Heat",
    "user,item,num_ratings,value -> user,item,value",
    "user,title,average_rating,my_rating -> user,title,my_rating",
    "user,title,helpful,My Rating -> user,title,My Rating",
    "user,item,voteCount,mean-score,country -> user,item,country",
    "user,item,when,N,avgRating -> user,item,when",
    "stars,film,who -> who,film,stars",
    "reviewerID,asin,reviewerName,reviewText,overall -> reviewerID,asin,overall",
    "score,username,user_id,movieId,movie_title -> user_id,movie_title,score",
]
UNSURE = [
    ("user,title,rating,score", "'rating' and 'score' may each be the rating; pass rating_name='rating'"),
    ("user,userId,title,stars", "'user' and 'userId' may each be the user; pass user_name='user'"),
    ("user,movie,film,stars", "'movie' and 'film' may each be the item"),
    ("id,title,rating", "no columns for the user; .*pass user_name="),
    ("user,title,time", "no columns for the rating; .*pass rating_name="),
    ("Unnamed: 0,title,rating", "no columns for the user"),
]


@pytest.mark.parametrize("case", [*USUAL, *TOLD])
def test_columns_are_taken_by_their_names(case):
    columns, taken = (names.split(",") for names in case.split(" -> "))
    frame = pd.DataFrame([], columns=columns)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert columns_of(frame) == taken
    assert len(said) == (case in TOLD)
    assert all(f"{name!r} as the" in str(one.message) for name in taken for one in said)
    assert columns_of(frame, *taken) == taken, "given ones are taken in silence"


@pytest.mark.parametrize(("columns", "words"), UNSURE)
def test_columns_that_may_be_either_are_refused(columns, words):
    with pytest.raises(BadRatings, match=words):
        columns_of(pd.DataFrame([], columns=columns.split(",")))


def test_a_checked_frame_keeps_its_columns_whatever_they_are_called(planted):
    swapped = planted.rename(columns={"user": "movieId", "movie": "userId"})[["movieId", "userId", "rating"]]
    checked = check_ratings(swapped, "movieId", "userId", "rating")
    assert list(check_ratings(checked).columns) == ["movieId", "userId", "rating"]
    assert list(learner(checked, n_factors=2).dls.classes) == ["movieId", "userId"]


def test_a_column_that_is_called_0_is_a_name_too():
    ratings = pd.DataFrame([], columns=range(3))
    assert columns_of(ratings, 1, 0) == [1, 0, 2]
    kept(ratings, columns=[0, 1, 2])
    with pytest.warns(UserWarning, match="taking 1 as the user, 2 as the item, 0 as the rating"):
        assert columns_of(ratings, rating=0) == [1, 2, 0]


def test_an_index_that_holds_a_column_is_named(planted):
    with pytest.raises(BadRatings, match=r"'user' is the index: call reset_index\(\)"):
        check_ratings(planted[["user", "title", "rating"]].set_index("user"))


ROWS = [(u, f"Film {i}", (u + i) % 5 + 1) for u in range(1, 31) for i in range(5)]
HEADER = ("user", "title", "rating")
FRAME = pd.DataFrame(ROWS, columns=HEADER)


def table(sep=",", header=True, film="Film"):
    rows = [HEADER, *ROWS] if header else ROWS
    return "".join(sep.join(map(str, row)).replace("Film", film) + "\n" for row in rows)


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


FORMS = {
    **{f"{sep!r}.csv": table(sep) for sep in (",", ";", "\t", "|", "::", " , ")},
    **{f"{sep!r}.tsv": table(sep) for sep in (",", "\t")},
    "blanks.txt": table("  ", film="Film-").replace("- ", "-"),
    "old Mac.csv": table().replace("\n", "\r"),
    "Windows.csv": table().replace("\n", "\r\n"),
    "blank lines.csv": table().replace("\n7,", "\n\n \n7,"),
    "comments.csv": f"# made by\n\n% us\n{table()}",
    "named by a comment.csv": f"# user,title,rating\n{table(header=False)}",
    "Excel.csv": f"sep=;\n{table(';')}",
    "quoted.csv": table().replace("Film 1", '"Film 1"'),
    "titles of two lines.csv": table().replace("Film 1", '"Film\n1, or so"'),
    "titles of two lines with commas.csv": table().replace("Film 1", '"Film, a, b\n1, or so"'),
    "blanks round quotes.csv": '"' + table('" , "').replace("\n", '" \n"')[:-1],
    "marks are letters.tsv": table("\t").replace("\tFilm 1\t", '\t"Film\t'),
    **{f"{code}.csv": table(film="Été").encode(code) for code in ("utf-16", "utf-32", "utf-8-sig")},
    "a.csv.gz": gzip.compress(table().encode()),
    "a.bz2": bz2.compress(table().encode()),
    "a.csv": lzma.compress(table().encode()),
    "a.zip": zipped(a=table()),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_that_are_certain_are_read_without_a_word(name, tmp_path):
    content = FORMS[name]
    file = tmp_path / name.replace("/", "")
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    ratings = load_ratings(str(tmp_path / name))
    assert list(ratings.columns) == list(HEADER) and len(ratings) == len(FRAME)
    assert ratings["user"].tolist() == FRAME["user"].tolist()
    assert ratings["rating"].tolist() == FRAME["rating"].tolist()
    assert ratings["title"].nunique() == 5


ACCENTS = {f"Été {n}" for n in range(5)}


@pytest.mark.parametrize(
    ("content", "words", "columns"),
    [
        (table(header=False), "is no header: the columns are user, item, rating", ["user", "item", "rating"]),
        ("1\t2\t3\t4\n" * 9, "no header", ["user", "item", "rating", "column 3"]),
        (table(film="Été").encode("latin-1"), r"byte 20, line 2, is not UTF-8: .*1252", list(HEADER)),
        (table(film="“Été”").encode("cp1252"), "Windows-1252", list(HEADER)),
    ],
)
def test_what_is_guessed_at_is_said(content, words, columns, tmp_path):
    file = tmp_path / "mine.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.warns(UserWarning, match=words) as said:
        ratings = load_ratings(str(file))
    assert list(ratings.columns) == columns and said[0].filename == __file__
    if "1252" in words:
        assert set(ratings["title"].str.replace("[“”]", "", regex=True)) == ACCENTS


def test_a_separator_has_equally_many_fields_in_all_lines(tmp_path):
    (tmp_path / "mine.csv").write_text("user;title, or, ids;rating\n1;a,b,c,d;3\n2;a,b,c;4\n")
    assert load_ratings(str(tmp_path / "mine.csv"))["title, or, ids"].tolist() == ["a,b,c,d", "a,b,c"]


@pytest.mark.filterwarnings("ignore:the first line .* is no header")
@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("ann,F1,5 \nbob,F2,3 \n", [("ann", "F1", 5), ("bob", "F2", 3)]),
        ("1;F1, The;3,5\n2;F2, A;4,0\n", [(1, "F1, The", 3.5), (2, "F2, A", 4)]),
        ("1;1;0,5;1231,0\n2;7;2,5;1232,0\n", [(1, 1, 0.5), (2, 7, 2.5)]),
        ("1\tA Film A\t3\t\n2\tThe Film B\t4\tx\n", [(1, "A Film A", 3), (2, "The Film B", 4)]),
        ("User ID;A Title;My Rating;A B C\n1;F1;3\n2;F2;4;x\n", [(1, "F1", 3), (2, "F2", 4)]),
        ("user;title;rating;votes\n1;9.5;3,5;1.234\n2;A;4,0;2.0\n", [(1, "9.5", 3.5), (2, "A", 4)]),
        ("who;what;how\n1;A;4,0\n2;B;4\n", [(1, "A", 4), (2, "B", 4)]),
        ("user;isbn;rating\n1;7,5;3,5\n2;8,5;4\n", [(1, "7,5", 3.5), (2, "8,5", 4)]),
        ("[UserID],[Title],[Rating]\n1,A,3\n2,B,4\n", [(1, "A", 3), (2, "B", 4)]),
        (f"user,title,rating,{'x' * 300_000}\n1,A,3\n2,B,4\n", [(1, "A", 3), (2, "B", 4)]),
        (
            'user_id,business_id,stars,text\n1,B1,5,"Nice, cosy, warm, good.\nWould go again"\n'
            '2,B2,4,"Go on 7, 8, 9, it\n\n3,or so, is,\nfine"\n'
            '3,B3,1,"so\nit, was, not, ok"\n',
            [(1, "B1", 5), (2, "B2", 4), (3, "B3", 1)],
        ),
    ],
)
def test_the_rows_are_those_of_the_file(content, rows, tmp_path):
    for name in ("mine.csv", "mine.txt"):
        (tmp_path / name).write_text(content)
        assert [*load_ratings(str(tmp_path / name)).iloc[:, :3].itertuples(index=False, name=None)] == rows


def test_numbers_written_in_two_ways_are_not_merged_in_silence(tmp_path):
    file = tmp_path / "mine.csv"
    for ids in ("1e3 10e2 1000 7", "1 1.0 2 3", "1 +1 2 3", "76561197970900001  76561197970900002 3"):
        file.write_text("user,title,rating\n" + "".join(f"{user},A,4.0\n" for user in ids.split(" ")))
        one, other, *_ = filter(None, ids.split(" "))
        told = re.escape(f"column 'user' is kept as text, in which {one!r} and {other!r} are two ids")
        with pytest.warns(UserWarning, match=told) as said:
            users = load_ratings(str(file))["user"]
        assert users.fillna("").tolist() == ids.split(" ") and said[0].filename == __file__
    file.write_text("user,title,rating,seen\n1.0,+7,3,True\n2e0,+8,3.0,TRUE\n")
    assert load_ratings(str(file)).to_numpy().tolist() == [[1, 7, 3, True], [2, 8, 3, True]]


def test_stars_of_ones_own_are_read_by_their_names(tmp_path):
    read = {"Film 06 (1935)": 5, "Film 07 (1935)": 3}
    for name, content in {
        "a.csv": "Movie Title,My Stars\nFilm 06 (1935),5\nFilm 07 (1935),3\n",
        "b.tsv": "Movie Title\tMy Stars\nFilm 06 (1935)\t5\nFilm 07 (1935)\t3\n",
        "c.csv": "user,title,rating\n1,Film 06 (1935),5\n1,Film 07 (1935),3\n",
        "d.csv": "rating,timestamp,movieId,title\n5,1,1,Film 06 (1935)\n3,2,2,Film 07 (1935)\n",
        "e.csv": "stars,what\n5,Film 06 (1935)\n3,Film 07 (1935)\n",
    }.items():
        (tmp_path / name).write_text(content)
        assert stars([str(tmp_path / name), "Heat = 4"]) == read | {"Heat": "4"}
    for content, names in {
        "Film 06 (1935),5\nFilm 07 (1935),3\n": "title, stars",
        "1,Film 06 (1935),5,x\n1,Film 07 (1935),3,\n": "user, item, rating, column 3",
    }.items():
        (tmp_path / "a.csv").write_text(content)
        with pytest.warns(UserWarning, match=f"the columns are {names};"):
            assert stars([str(tmp_path / "a.csv")]) == read
    (tmp_path / "a.csv").write_text("user,item,rating\n1,7,5\n2,8,3\n")
    with pytest.raises(BadRatings, match="has the ratings of several users; give those of one"):
        stars([str(tmp_path / "a.csv")])
    (tmp_path / "a.csv").write_text("movieId,rating\n7,5\n8,3\n")
    kept = made(np.random.default_rng(0).normal(size=(6, 3)), bias=np.arange(6.0))
    with pytest.raises(UnknownTitle, match="no title 7"):
        recommend(kept, stars([str(tmp_path / "a.csv")]))


def test_decimal_commas_zeros_and_long_ids(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("user;title;rating\n00012;1;3,5\n012;2;4,0\n12;3;1,5\n")
    ratings = load_ratings(str(file))
    assert ratings["rating"].tolist() == [3.5, 4, 1.5] and ratings["user"].tolist() == ["00012", "012", "12"]
    file.write_text("user;title;rating\n1;7,5;3.5\n2;a;4.0\n")
    ratings = load_ratings(str(file))
    assert ratings["rating"].tolist() == [3.5, 4] and ratings["title"].tolist() == ["7,5", "a"], "not certain"
    file.write_text(f"user,title,rating\n{2**70},01,05\n{2**70 + 1},1,04\n")
    ratings = load_ratings(str(file))
    assert ratings["user"].nunique() == 2 and ratings["title"].tolist() == ["01", "1"]
    assert ratings["rating"].tolist() == [5, 4], "a rating has no such zeros"
    file.write_text("007,a,5\n8,b,4\n")
    with pytest.warns(UserWarning, match="no header"):
        assert load_ratings(str(file))["user"].tolist() == ["007", "8"]


@pytest.mark.parametrize(
    ("broken", "line"),
    [
        (table().replace("\n7,", "\nNULL,", 1), 32),
        ("# one\n\n" + table().replace("\n7,", "\nNULL,", 1), 34),
        (table().replace("\n3,", "\n\n\n3,", 1).replace("\n7,", "\nNULL,", 1), 34),
        (table().replace("2,Film 1", '2,"Film\n1"').replace("\n7,", "\nNULL,", 1), 33),
        (table("\t", header=False).replace("\n7\t", "\nNULL\t", 1), 31),
        (table().replace("\n7,Film 0,3", "\n7,Film 0,three", 1), 32),
    ],
)
@pytest.mark.filterwarnings("ignore:the first line")
def test_a_bad_row_is_where_it_is_in_the_file(broken, line, tmp_path):
    (tmp_path / "mine.csv").write_text(broken)
    ratings = load_ratings(str(tmp_path / "mine.csv"))
    for rows, at in ((ratings, 30), (ratings[9:], 21), (ratings[::-1], len(ratings) - 31)):
        with pytest.raises(BadRatings, match=rf"row {at}, line {line} \('(NULL|three)'\)"):
            check_ratings(rows)


def test_other_movielens_folders_and_files_are_pointed_to(tmp_path):
    (tmp_path / "ratings.csv").write_text(table())
    for path in (tmp_path, tmp_path / "ratings.csv"):
        with pytest.raises(RatingsUnavailable, match=r"are read by load_ratings\('.*csv'\)$") as error:
            load_ratings(path=path)
        name = re.search(r"load_ratings\('(.*)'\)", str(error.value))[1]
        assert len(load_ratings(name)) == len(FRAME)


def test_big_batches_are_chosen_by_the_training_rows(monkeypatch):
    monkeypatch.setattr("collab_repro.speed.big_batch", lambda n: {"bs": n, "wd": 0.3})
    args = parser().parse_args(["--batch", "big"])
    assert command_ratings.settings_for(args, FRAME) == ({"bs": 120}, {"wd": 0.3})


def having(column, values):
    return FRAME.assign(**{column: values})


def test_ids_that_stand_for_nothing_and_those_alike():
    users = ("u" + FRAME["user"].astype(str)).replace
    words = ["NULL", "nan", "NA", "None", "<NA>", "n/a", r"\N", "(null)", "nil", "?", "-", "#VALUE!", "#N/A"]
    for text in words:
        with pytest.raises(BadRatings, match=r"row 30 .*: no id as it seems"):
            check_ratings(having("user", users("u7", text)))
    for text in words:
        named, numbered = FRAME["title"].replace("Film 1", text), FRAME["title"].str.removeprefix("Film ")
        if text in ("NA", "nil", "?", "-"):
            assert text in set(check_ratings(having("title", named))["title"])
        else:
            with pytest.raises(BadRatings, match="no id as it seems"):
                check_ratings(having("title", named))
        with pytest.raises(BadRatings, match="no id as it seems"):
            check_ratings(having("title", numbered.replace({"1": text, "2": "-"})))
    title = FRAME["title"]
    spelt = having("title", title.where(FRAME.index % 3 > 0, title.str.upper()))  # each both ways
    spelt, title = (mixed.take(np.random.default_rng(0).permutation(150)) for mixed in (spelt, title))
    with pytest.raises(BadRatings, match=r"only in blanks, case .* .*such ids: 5.; check_ratings"):
        check_ratings(spelt)
    folded, kept = (check_ratings(spelt, alike=alike) for alike in ("fold", "keep"))
    first = spelt["title"].groupby(title).first()
    assert folded["title"].tolist() == title.map(first).tolist() and len(set(first)) == 5
    assert kept["title"].tolist() == spelt["title"].tolist()
    assert learner(kept, n_factors=2).dls.classes["title"].__len__() == 11, "and so it stays"


@pytest.mark.parametrize(
    "scale", [(0, 10), (0, 2), (-10, 10), (0, 1), (0, 100), (1, 10), (-1, 5), (0.1, 0.7)]
)
def test_a_range_that_is_hinted_at_holds_the_ratings(scale):
    stars = np.random.default_rng(0).integers(0, 3, len(FRAME)) / 2 * np.ptp(scale) + scale[0]
    ratings = having("rating", stars)
    with pytest.raises(BadRatings) as error:
        check_ratings(ratings, y_range=(90, 91))
    low, high = re.search(r"y_range=\((.*), (.*)\)", str(error.value)).groups()
    assert learner(ratings, y_range=(float(low), float(high)), n_factors=2).model.y_range[0] < scale[0]
    assert (" mean unrated, drop them" in str(error.value)) == (scale[0] in (0, -1))


@pytest.mark.parametrize(
    "values", [np.arange(150), 978300760 + np.arange(150), 9e8 + 1e6 * np.arange(150), np.arange(150) * 1e30]
)
def test_no_range_is_hinted_at_for_ids_and_timestamps(values):
    columns = {"x", "rating"} if values[-1] > 1e8 else {"x"}  # 150 ratings may have 150 values
    for name in columns:
        with pytest.raises(BadRatings) as error:
            check_ratings(having("rating", values).set_axis(["who", "what", name], axis=1))
        assert "y_range=(" not in str(error.value)


def test_numbers_as_text_are_numbers_and_other_text_is_named():
    text = FRAME["rating"].astype(str)
    assert check_ratings(having("rating", text))["rating"].tolist() == FRAME["rating"].tolist()
    with pytest.raises(BadRatings, match=r"row 3 \('five'\): not a finite number .*; correct it"):
        check_ratings(having("rating", text.replace("5", "five")))


@pytest.mark.parametrize(("unrated", "asked"), [(-1, True), (0, True), (1, False), (-2, False)])
def test_unrated_ones_are_asked_about_without_a_range_too(unrated, asked):
    stars = FRAME["rating"].mask(FRAME["user"] == 5, unrated)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        check_ratings(having("rating", stars), y_range=None)
        check_ratings(having("rating", stars > 3), y_range=None)
        check_ratings(having("rating", stars), y_range=(-3, 5.5))  # an answer
    assert [f"if the 5 rows with {unrated}, " in str(one.message) for one in said] == [True] * asked


def test_timestamps_are_no_ratings_without_a_range_either():
    times = having("rating", 978300760 + np.arange(150)).set_axis(["who", "what", "x"], axis=1)
    with pytest.raises(BadRatings, match="a timestamp or an id"):
        check_ratings(times, y_range=None)
    assert len(check_ratings(times, y_range=None, rating_name="x")) == 150


def test_a_range_on_the_bounds_is_allowed_by_asking_for_it():
    for y_range in ((1, 5), (0, 5), (1, 5.5)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            check_ratings(FRAME, y_range=y_range)
        on = FRAME["rating"].isin(y_range).sum()
        assert f"{on} of 150 ratings lie on the bounds of y_range {y_range}" in str(said[0].message)
    for y_range in ((2, 5), (1, 4.5)):
        with pytest.raises(BadRatings, match="not strictly inside"):
            check_ratings(FRAME, y_range=y_range)
    for wrong in ((5, 1), (1, 2, 3), (0, np.inf), (np.nan, 5)):
        with pytest.raises(BadRatings, match="two finite numbers"):
            check_ratings(FRAME, y_range=wrong)


@pytest.mark.filterwarnings("ignore:Constructing a Categorical with a dtype and values")  # fastai's own
@pytest.mark.parametrize("text", [False, True])
def test_ids_without_a_training_row_are_told_of_once_and_never_predicted_as_trained(planted, text):
    mine = planted[["user", "movie", "rating"]]
    mine = mine.astype({"user": str, "movie": str}).astype(object) if text else mine
    mine["rating"] = planted["rating"]
    held = np.flatnonzero((planted["user"] <= 3) | (planted["movie"] <= 2))
    rows = f"{len(held)} of {len(held)} validation rows have a user or item"
    with pytest.warns(UserWarning, match=rows) as said:
        learns = [learner(mine, seed=s, split=held, n_factors=3) for s in (0, 1)]
    (told,) = [one for one in map(str, (one.message for one in said)) if "validation rows" in one]
    assert ("'#na#'" in told) is not text
    fit(learns, 1)
    learn, kept = learns[0], Learned.of(learns[0])
    rows = mine.iloc[held]
    with pytest.raises(UnknownId):
        predict(learn, rows)
    new = rows.assign(user="nobody" if text else -5)
    average = predict(learn, new[planted["user"].iloc[held] <= 3], unknown="average")
    assert predict(kept, rows[planted["user"].iloc[held] <= 3], unknown="average").equals(average)
    if text:
        title = rows["movie"][planted["movie"] == 1].iloc[0]
        with pytest.raises(UnknownTitle):
            predict(kept, mine.iloc[[0]].assign(movie=title, user=kept.users[1]))
        assert title not in factor_pca(kept).index and title in movie_bias(kept).index


def test_few_untrained_text_ids_are_passed_over(planted):
    mine = planted[["user", "title", "rating"]].copy()
    held = learner(mine, seed=0, n_factors=2).dls.valid_ds.items.index
    mine.loc[held[0], "title"] = "Only once"
    learner(mine, seed=0, n_factors=2)  # a warning would be an error here


U, M, T = (lambda r: r["user"]), (lambda r: r["movie"]), (lambda r: r["title"])
TAKEN = {
    "integer columns": (0, 1, 2, U, T),
    "NumPy integer columns": (*np.arange(3, 6), U, T),
    "float columns": (0.5, 1.5, 2.5, U, T),
    "integer items": ("u", "i", "r", U, M),
    "negative ids": ("u", "i", "r", lambda r: -r["user"], M),
    "64 bits": ("u", "i", "r", U, lambda r: r["movie"].astype("uint64") + np.uint64(2**63)),
    "floats": ("u", "i", "r", *(lambda r, c=c: r[c].astype(float) for c in ("user", "movie"))),
    "nullable": ("u", "i", "r", lambda r: r["user"].astype("Int64"), lambda r: r["title"].astype("string")),
    "categories": ("u", "i", "r", *(lambda r, c=c: r[c].astype("category") for c in ("user", "title"))),
    "objects": ("u", "i", "r", *(lambda r, c=c: r[c].astype(object) for c in ("user", "movie"))),
    "text users": ("u", "i", "r", lambda r: "u" + r["user"].astype(str), T),
}


@pytest.mark.parametrize("name", TAKEN)
def test_everything_takes_what_learner_takes(name, few, tmp_path):
    *columns, user, item = TAKEN[name]
    mine = pd.DataFrame(dict(zip(columns, (user(few), item(few), few["rating"]), strict=True)))
    learn = learner(mine, seed=0, n_factors=3)
    fit([learn], 1)
    Learned.of(learn).save(tmp_path / "kept.npz")
    learn.export(tmp_path / "exported.pkl")
    exported = load_learner(tmp_path / "exported.pkl")
    Learned.of(exported).save(tmp_path / "exported.npz")
    rows, one = mine.head(20), mine[columns[1]].iloc[0]
    predicted, near = predict(learn, rows), similar_movies(learn, one, min_ratings=1)
    for other in (Learned.load(tmp_path / "kept.npz"), exported, Learned.load(tmp_path / "exported.npz")):
        assert predict(other, rows).equals(predicted) and movie_bias(other).equals(movie_bias(learn))
        assert similar_movies(other, one, min_ratings=1)["cosine"].equals(near["cosine"])
        assert len(factor_pca(other)) == len(factor_pca(learn))


def test_columns_that_are_no_text_are_renamed_as_the_message_says(few):
    ratings = few[["user", "title", "rating"]].set_axis([("a", 1), ("a", 2), ("a", 3)], axis=1)
    with pytest.raises(BadRatings, match=r"; ratings.columns = ratings.columns.map\(str\) makes it text"):
        check_ratings(ratings)
    ratings.columns = ratings.columns.map(str)
    assert len(check_ratings(ratings)) == len(few)


# --- at the command line ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ten(tmp_path_factory, planted):
    """Ratings of 0 to 10 whose columns need naming."""
    file = tmp_path_factory.mktemp("ten") / "ten.csv"
    mine = pd.DataFrame({"what": planted["movie"], "who": planted["user"], "how": planted["rating"] * 2})
    mine.to_csv(file, index=False)
    return ["--data", str(file), "--user", "who", "--item", "what", "--rating", "how", "--epochs", "1"]


@pytest.mark.parametrize("command", [["--seeds", "1"], ["chapter", "--runs", "1,4,7,8", "--splits", "1"]])
def test_the_options_are_those_of_every_command_that_trains(command, ten, tmp_path, monkeypatch, capsys):
    ended = []

    class Bar(tqdm):
        def __init__(self, **settings):
            super().__init__(**{**settings, "disable": False, "file": io.StringIO()})

        def close(self):
            ended.append((self.n, self.total, self.desc))
            super().close()

    monkeypatch.setattr("tqdm.tqdm", Bar)
    *some, out = *ten, str(tmp_path)
    assert main([*command, *some, "--out", out]) == 2
    said = capsys.readouterr().err
    low, high = re.search(r"--y-range (\S+) (\S+) would hold all", said).groups()
    assert main([*command, *some, "--y-range", low, high, "--batch", "big", "--out", out]) == 0
    losses = pd.read_csv(tmp_path / ("chapter.csv" if "chapter" in command else "curves.csv"))
    assert losses["data"].str.contains(rf"bs=\d+.*|y_range=\({low}, {high}\)").all()
    assert losses["valid_loss"].between(0.1, 100).all()
    said = capsys.readouterr()
    assert said.err.count("repeat a pair") <= 1
    trained = len(losses) + ("chapter" not in command)  # the model of the check by bits has no curve
    assert ended[0] == (trained, trained, "training: "), "the bar is full when the training is done"
    assert re.search("(?m)^## Run 8: " if "chapter" in command else "(?m)^## The same derivative", said.out)


@pytest.mark.parametrize(
    ("module", "command", "wd"),
    [("command.chapter8", [], 0.2), ("evidence.eight_runs", ["chapter", "--runs", "2"], 0.02)],
)
def test_big_batches_come_with_their_rate_and_decay(module, command, wd, ten, tmp_path, monkeypatch):
    trained = []

    def fit(learns, epochs, lr, wd, progress):
        trained.extend((learn.dls.bs, learn.model.y_range, lr, wd) for learn in learns)
        raise KeyboardInterrupt

    monkeypatch.setattr(f"collab_repro.{module}.fit", fit)
    options = [*ten, "--y-range", "0", "11", "--batch", "big", "--out", str(tmp_path)]
    assert main([*command, *options]) == 130
    assert set(trained) == {(big_batch(3_200)["bs"], (0, 11), 8e-3, wd)} and trained[0][0] > 64


def test_the_networks_of_the_chapter_get_the_range_too(planted):
    ranges = {n: run_learner(planted, n, y_range=(-1, 7), n_factors=2).model for n in (1, 2, 7, 8)}
    assert ranges[1].y_range is None and ranges[2].y_range == ranges[7].y_range == (-1, 7)
    assert (ranges[8].layers[-1].low, ranges[8].layers[-1].high) == (-1, 7)


def test_a_batch_changes_the_training_and_bs_is_its_alias(planted, tmp_path, capsys):
    planted[["user", "title", "rating"]].to_csv(tmp_path / "mine.csv", index=False)
    command = ["--data", str(tmp_path / "mine.csv"), "--seeds", "1", "--epochs", "1"]
    for name, option in {"a": ["--batch", "128"], "b": ["--bs", "128"], "c": []}.items():
        assert main([*command, *option, "--out", str(tmp_path / name)]) == 0
    a, b, c = (pd.read_csv(tmp_path / name / "curves.csv")["valid_loss"].tolist() for name in "abc")
    assert a == b != c and "batches of 128" in (tmp_path / "a/report.md").read_text()
    assert big_batch(80_000) == {"bs": 1024, "lr": 8e-3, "wd": 0.2}


def test_many_ratings_are_worth_a_line(planted, tmp_path, monkeypatch, capsys):
    planted[["user", "title", "rating"]].to_csv(tmp_path / "mine.csv", index=False)
    monkeypatch.setattr(command_ratings, "MANY", 3_999)
    for option, lines in (([], 1), (["--batch", "big"], 0), (["--batch", "64"], 0)):
        ratings_for(parser().parse_args(["--data", str(tmp_path / "mine.csv"), *option]))
        assert capsys.readouterr().out.count("4,000 ratings: with --batch big") == lines
    with pytest.raises(BadRatings, match="4000 rows leave 3200 to train on, fewer than a batch of 4000"):
        ratings_for(parser().parse_args(["--data", str(tmp_path / "mine.csv"), "--batch", "4000"]))


def test_hints_name_what_there_is_where_the_reader_is():
    known = {word for action in parser()._actions for word in action.option_strings}
    for python in command_ratings.OPTIONS.values():
        assert set(re.findall(r"--[a-z][a-z-]*", python)) <= known
    said = "it; pass user_name='a', item_name= or rating_name=; y_range=(-0.5, 10.5) would hold all ratings"
    told = "it; pass --user 'a', --item or --rating; --y-range -0.5 10.5 would hold all ratings"
    assert at_command_line(said) == told


@pytest.mark.filterwarnings("default")
def test_a_note_is_said_once(planted, tmp_path, capsys):
    mine = planted[["movie", "user", "rating"]].rename(columns={"user": "userId", "movie": "movieId"})
    pd.concat([mine, mine.head(9)]).to_csv(tmp_path / "mine.csv", index=False)
    command = ["--data", str(tmp_path / "mine.csv"), "--seeds", "2", "--epochs", "1", "--out", str(tmp_path)]
    assert main(command) == 0
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(set(said)) == 2, said
    assert "taking 'userId' as the user" in said[0] and "9 of 4,009 rows repeat a pair" in said[1]


def test_proc_self_and_too_little_memory_are_a_line_each(tmp_path, monkeypatch, capsys):
    assert main(["plots", "--out", "/proc/self"]) == 2
    assert "nothing can be written in /proc/self" in capsys.readouterr().err
    for error in (MemoryError(), ImportError("libtorch_cpu.so: failed to map segment from shared object")):

        def fails(*_, error=error):
            raise error

        monkeypatch.setattr("collab_repro.command.ratings.ratings_for", fails)
        assert main(["--out", str(tmp_path)]) == 2
        assert capsys.readouterr().err == (
            "collab_repro: too little memory; end other programs, or raise the limit that `ulimit -v` shows\n"
        )
