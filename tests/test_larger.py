"""The larger MovieLens sets in each of their formats, small; the users and folds of MovieLens 100K."""

import hashlib
import tracemalloc
import zipfile
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from test_data import grouplens_files, packed, unpack

from collab_repro import RatingsUnavailable, load_ratings
from collab_repro.sources import archives, check_ratings, movielens

FILMS = {
    1: ("Toy, The: A Story (1995)", "Animation|Comedy"),
    2: ('Caf\u00e9 "Quoted", Le (1990)', "Drama"),
    30: ("War of the Worlds (2005)", "Action|Sci-Fi"),
    31: ("War of the Worlds (2005)", "(no genres listed)"),
    400: ("NA (1992)", "Comedy"),
}
DAT = ("ml-1m", "ml-10m")
WHEEL = movielens.SETS["ml-100k"][1]
SETS = {name: archive for name, (archive, *_) in movielens.SETS.items() if name != "ml-100k"}


def frame(half: bool) -> pd.DataFrame:
    """60 ratings by 12 users of the films, each pair once."""
    rng = np.random.default_rng(0)
    pairs = pd.MultiIndex.from_product([range(1, 13), FILMS], names=["user", "movie"]).to_frame(index=False)
    stars = rng.integers(1, 11, 60) / 2 if half else rng.integers(1, 6, 60)
    return pairs.assign(rating=stars, timestamp=rng.integers(789_652_009, 1_574_327_703, 60))


def written(name: str) -> dict[str, bytes]:
    """The files of the set `name` in its own format, under its own folder."""
    ratings = frame(half=name != "ml-1m")
    if name in DAT:
        code = "latin-1" if name == "ml-1m" else "utf-8"
        rows = ratings.astype({"rating": int}) if name == "ml-1m" else ratings
        lines = [
            "::".join(f"{v:g}" if i == 2 else str(int(v)) for i, v in enumerate(row))
            for row in rows.to_numpy()
        ]
        movies = [f"{movie}::{title}::{genres}" for movie, (title, genres) in FILMS.items()]
        people = [f"{user}::{'FM'[user % 2]}::{18 + user}::{user % 4}::55{user:03}" for user in range(1, 13)]
        files = {"ratings.dat": lines, "movies.dat": movies} | (
            {"users.dat": people} if name == "ml-1m" else {}
        )
        files = {file: ("\n".join(rows) + "\n").encode(code) for file, rows in files.items()}
    else:
        header = {"user": "userId", "movie": "movieId"}
        movies = pd.DataFrame(
            [(m, *rest) for m, rest in FILMS.items()], columns=["movieId", "title", "genres"]
        )
        text = "This contains 60 ratings and 3 tag applications. They were created by 12 users.\n"
        files = {
            "ratings.csv": ratings.rename(columns=header).to_csv(index=False).encode(),
            "movies.csv": movies.to_csv(index=False).encode(),
            "README.txt": text.encode(),
        }
    return {SETS[name].folder + file: content for file, content in files.items()}


@pytest.fixture(params=list(SETS))
def small(request, tmp_path, monkeypatch):
    """A small set under a larger one's name: (name, its files, its zip), with counts and hash to match."""
    monkeypatch.setenv("FASTAI_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(movielens.VARIABLE, raising=False)
    name = request.param
    files = written(name)
    content = packed(files)
    digest = (hashlib.md5 if name == "ml-10m" else hashlib.sha256)(content).hexdigest()
    assert len(digest) == len(SETS[name].hash)
    monkeypatch.setitem(movielens.SETS, name, [SETS[name]._replace(counts=(60, 12, 5), hash=digest)])
    return name, files, content


def in_folder(files, folder):
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    return folder


def test_every_place_gives_the_same_frame(small, tmp_path, monkeypatch):
    name, files, content = small
    folder = in_folder(files, tmp_path / "folder")
    (zips := tmp_path / "zips").mkdir()
    (zips / f"{name}.zip").write_bytes(content)
    places = [folder, folder / SETS[name].folder, zips, zips / f"{name}.zip"]
    first, *others = [load_ratings(name, path=place, genres=True) for place in places]
    for other in others:
        pd.testing.assert_frame_equal(first, other)
    expected = frame(half=name != "ml-1m")
    np.testing.assert_array_equal(first[movielens.NUMBERS].to_numpy(float), expected.to_numpy(float))
    assert list(first["title"].astype(str)) == [FILMS[movie][0] for movie in expected["movie"]]
    assert list(first["genres"].astype(str)) == [FILMS[movie][1] for movie in expected["movie"]]
    assert first.attrs["name"] == name and first.attrs["duplicates"] == 12  # two films of one title
    assert first["title"].nunique() == 4 and name in first.attrs["source"]
    assert list(check_ratings(load_ratings(name, path=zips), bs=8).columns) == ["user", "title", "rating"]
    monkeypatch.setenv(movielens.VARIABLE, str(folder))
    assert "genres" not in load_ratings(name)


def test_downloaded_kept_and_found_again(small, tmp_path, monkeypatch):
    name, _, content = small
    asked = []
    (archive,) = movielens.SETS[name]
    monkeypatch.setitem(
        movielens.SETS, name, [archive._replace(fetch=lambda: asked.append(archive.fetch) or content)]
    )
    first = load_ratings(name)
    pd.testing.assert_frame_equal(load_ratings(name), first)
    assert len(asked) == 1 and asked[0].func is archives.download and asked[0].args == (f"{name}.zip",)
    assert (tmp_path / "home" / "archive" / f"{name}.zip").read_bytes() == content
    (tmp_path / "home" / "archive" / f"{name}.zip").write_bytes(content[:-9])
    if name != "ml-latest-small":
        load_ratings(name)
        assert len(asked) == 2, "a damaged copy is fetched again"


@pytest.mark.filterwarnings("ignore:.*that are not the published ml-latest-small.zip:UserWarning")
def test_bad_files_are_one_clear_line(small, tmp_path):
    name, files, content = small
    ratings, movies, *_ = files
    lines = files[ratings].splitlines(True)
    for change, words in (
        ({ratings: b"".join(lines[:-1])}, "59 ratings, 12 users and 5 rated movies are not the published"),
        ({movies: b"".join(files[movies].splitlines(True)[:-1])}, "no title for movie 400"),
        ({ratings: files[ratings].replace(b"1", b"x", 1)}, "x|pars|invalid"),
        ({movies: None}, "no file movies"),
    ):
        (folder := tmp_path / str(len(list(tmp_path.iterdir())))).mkdir()
        in_folder({k: v for k, v in (files | change).items() if v is not None}, folder)
        with pytest.raises(RatingsUnavailable, match=f"{folder}: .*({words}).*; give {name}.zip") as said:
            load_ratings(name, path=folder)
        assert "\n" not in str(said.value)
    (file := tmp_path / f"{name}.zip").write_bytes(content[: len(content) // 2])
    words = "zip file" if name == "ml-latest-small" else f"bytes that are not the published {name}.zip"
    with pytest.raises(RatingsUnavailable, match=words):
        load_ratings(name, path=file)


@pytest.mark.parametrize("small", ["ml-latest-small"], indirect=True)
def test_another_edition_is_a_warning_and_held_to_its_own_readme(small, tmp_path):
    name, files, _ = small
    rows = files[f"{name}/ratings.csv"].splitlines(True)
    other = files | {f"{name}/ratings.csv": b"".join(rows[:-5])}
    (tmp_path / "other.zip").write_bytes(packed(other))
    with (
        pytest.warns(UserWarning, match="GroupLens has changed it"),
        pytest.raises(RatingsUnavailable, match="55 ratings"),
    ):
        load_ratings(name, path=tmp_path / "other.zip")
    (tmp_path / "other.zip").write_bytes(packed(other | {f"{name}/README.txt": b"It holds 55 ratings."}))
    with pytest.warns(UserWarning), pytest.raises(RatingsUnavailable, match=r"README.txt does not say how"):
        load_ratings(name, path=tmp_path / "other.zip")
    other[f"{name}/README.txt"] = b"It holds 55 ratings by 11 users."
    (tmp_path / "other.zip").write_bytes(packed(other))
    with pytest.warns(UserWarning, match="GroupLens has changed it"):
        assert len(load_ratings(name, path=tmp_path / "other.zip")) == 55


@pytest.mark.parametrize("small", ["ml-1m"], indirect=True)
def test_users_of_the_million(small, tmp_path):
    ratings = load_ratings("ml-1m", path=in_folder(small[1], tmp_path), users=True)
    assert list(ratings.columns[-3:]) == ["age", "sex", "occupation"]
    user = ratings["user"]
    assert (ratings["age"] == 18 + user).all() and (ratings["sex"] == np.where(user % 2, "M", "F")).all()


def test_half_a_million_lines_take_little_memory(tmp_path, monkeypatch):
    """The numbers of a row take 20 bytes, its title's code 4: no text a row, no loop over lines."""
    n = 500_000
    rows = pd.DataFrame(
        {"userId": np.arange(n) // 50, "movieId": np.arange(n) % 50, "rating": 3.5, "timestamp": 1}
    )
    folder = tmp_path / "ml-25m"
    folder.mkdir()
    rows.to_csv(folder / "ratings.csv", index=False)
    titles = [f"{m},A film called {m} (1999),Drama\n" for m in range(50)]
    (folder / "movies.csv").write_text("movieId,title,genres\n" + "".join(titles))
    monkeypatch.setitem(movielens.SETS, "ml-25m", [SETS["ml-25m"]._replace(counts=(n, n // 50, 50))])
    tracemalloc.start()
    ratings = load_ratings("ml-25m", path=folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ratings.memory_usage(deep=True).sum() < 30 * n and peak < 120 * n  # 25 million: under 3 GB


class TestHundredThousand:
    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        rng = np.random.default_rng(0)
        pairs = pd.MultiIndex.from_product([range(1, 21), range(1, 11)]).to_frame(index=False)
        ratings = pairs.set_axis(["user", "movie"], axis=1).assign(
            rating=rng.integers(1, 6, 200), timestamp=9
        )
        ratings["title"] = "Film " + ratings["movie"].astype(str) + " (1990)"
        people = [f"{user}|{20 + user}|{'FM'[user % 2]}|lawyer|1\n" for user in range(1, 21)]
        files = grouplens_files(ratings) | {"u.user": "".join(people).encode()}
        for fold in range(1, 6):
            held = ratings.iloc[fold - 1 :: 5][movielens.NUMBERS]
            files[f"u{fold}.test"] = held.to_csv(sep="\t", header=False, index=False).encode()
        monkeypatch.setattr(movielens, "SHA256", movielens.frame_sha256(ratings))
        return unpack(files, tmp_path / "ml-100k")

    def test_users_and_folds(self, folder):
        held = []
        for fold in range(1, 6):
            ratings = load_ratings(path=folder, users=True, fold=fold)
            held.append(ratings["held_out"])
        assert (sum(map(np.asarray, held)) == 1).all() and held[1].to_numpy()[1::5].all()
        assert (ratings["age"] == 20 + ratings["user"]).all() and set(ratings["occupation"]) == {"lawyer"}
        assert ratings.attrs["name"] == "ml-100k" and "age" not in load_ratings(path=folder)

    def test_what_is_missing_or_damaged_is_said(self, folder):
        (folder / "u2.test").unlink()
        (folder / "u3.test").write_bytes((folder / "u3.test").read_bytes()[: -len("20\t8\t1\t9\n")])
        (folder / "u.user").write_text("1|21|F|lawyer|1\n")
        for options, words in (
            ({"fold": 2}, "no file u2.test"),
            ({"fold": 3}, r"not the published u3.test \(39 rows read\)"),
            ({"fold": 6}, "only 'ml-100k' has folds, 1 to 5"),
            ({"users": True}, "not the published u.user: 1 users"),
        ):
            with pytest.raises(RatingsUnavailable, match=words):
                load_ratings(path=folder, **options)
        for name, options, words in (
            ("ml-20m", {"users": True}, "tell of users, not 'ml-20m'"),
            ("ml-1m", {"fold": 1}, "only 'ml-100k' has folds"),
        ):
            with pytest.raises(RatingsUnavailable, match=words):
                load_ratings(name, **options)

    def test_the_wheel_has_users_and_no_folds(self, ml100k):
        ratings = load_ratings(users=True)
        if "RecBole" not in ratings.attrs["source"]:
            pytest.skip("these ratings came from another place")
        people = ratings.drop_duplicates("user")
        assert people["age"].between(7, 73).all() and people["occupation"].nunique() == 21
        assert (people["sex"] == "M").sum() == 670
        content = archives.fastai_path("archive", WHEEL.file).read_bytes()
        with pytest.raises(KeyError, match=r"no item named '.*u1.test'"):
            movielens._read("ml-100k", WHEEL, WHEEL.opener(content), "", users=False, fold=1)
        assert zipfile.is_zipfile(BytesIO(content))
