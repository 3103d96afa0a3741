"""Learned: what it takes from a Learner, and a file that can't be fooled."""

import os
import pickle
import zipfile
from contextlib import suppress
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from fastai.collab import EmbeddingDotBias
from hypothesis import given, settings
from hypothesis import strategies as st

from collab_repro.files import write_whole
from collab_repro.learned import Learned, LearnedFileError
from collab_repro.models import CollabNN, DotProduct, DotProductBias, DotProductBiasParams, tables
from collab_repro.training import learner

MODELS = [DotProduct, DotProductBias, DotProductBiasParams, EmbeddingDotBias]
ARRAYS = ["n_ratings", "user_factors", "user_bias", "movie_factors", "movie_bias"]


def make(n_users=5, n_titles=4, k=3, seed=0, **changes) -> Learned:
    rng = np.random.default_rng(seed)
    users, titles = ["#na#", *range(1, n_users)], ["#na#", *(f"Film {i}" for i in range(1, n_titles))]
    tables = {
        "user_factors": rng.normal(size=(n_users, k)).astype(np.float32),
        "user_bias": rng.normal(size=n_users).astype(np.float32),
        "movie_factors": rng.normal(size=(n_titles, k)).astype(np.float32),
        "movie_bias": rng.normal(size=n_titles).astype(np.float32),
    }
    return Learned(
        **{"users": users, "titles": titles, "n_ratings": np.arange(n_titles), **tables, **changes}
    )


def same(a: Learned, b: Learned) -> bool:
    arrays = all(
        np.array_equal(getattr(a, n), getattr(b, n)) and getattr(a, n).dtype == getattr(b, n).dtype
        for n in ARRAYS
        if getattr(a, n) is not None or getattr(b, n) is not None
    )
    texts = all(getattr(a, n) == getattr(b, n) for n in ("users", "titles", "y_range", "names", "note"))
    return arrays and texts and list(map(type, a.users)) == list(map(type, b.users))


@pytest.mark.parametrize("model", MODELS)
def test_of_takes_the_tables_and_leaves_the_learner_alone(planted, model):
    learn = learner(planted, model, seed=0)
    learn.model.train()
    before = {name: table.detach().clone() for name, table in tables(learn.model).items()}
    places = {
        name: (table.data_ptr(), table.device, table.requires_grad)
        for name, table in tables(learn.model).items()
    }
    learned = Learned.of(learn, seed=0)
    assert all(module.training for module in learn.model.modules())
    for name, table in tables(learn.model).items():
        assert torch.equal(table, before[name])
        assert places[name] == (table.data_ptr(), table.device, table.requires_grad)
        assert np.array_equal(
            getattr(learned, name), before[name].numpy().reshape(getattr(learned, name).shape)
        )
        table.data.add_(1)  # what was learned is a copy
        assert np.array_equal(getattr(learned, name).ravel(), before[name].numpy().ravel())
    if model is DotProduct:
        assert learned.user_bias is None and learned.movie_bias is None
    else:
        assert learned.movie_bias.shape == (len(learned.titles),)
    assert learned.y_range == (0.0, 5.5) and learned.names == ("user", "title")
    assert learned.note["model"] == model.__name__ and learned.note["seed"] == "0"
    assert learned.origin.startswith("planted ratings") and learned.origin.endswith("seed 0")


def test_eval_mode_and_no_sigmoid_stay(planted):
    learn = learner(planted, DotProduct, seed=0, y_range=None)
    learn.model.eval()
    assert Learned.of(learn).y_range is None
    assert not learn.model.training


def test_n_ratings_counts_training_rows_by_title(planted):
    learn = learner(planted, DotProductBias, seed=3)
    learned = Learned.of(learn)
    titles = learn.dls.train_ds.items["title"].map(dict(enumerate(learned.titles)))
    assert learned.n_ratings.sum() == len(learn.dls.train_ds) < len(planted)
    assert dict(zip(learned.titles, learned.n_ratings, strict=True)) == {
        title: int((titles == title).sum()) for title in learned.titles
    }


def test_own_column_names_and_text_ids(planted):
    own = planted.rename(columns={"user": "reader", "title": "book"}).assign(
        reader=lambda d: "r" + d.reader.astype(str)
    )
    learned = Learned.of(learner(own[["reader", "book", "rating"]], DotProductBias, seed=0))
    assert learned.names == ("reader", "book")
    assert learned.users[1].startswith("r")


def test_exported_learner_has_tables_but_no_counts(planted):
    learn = learner(planted, DotProductBias, seed=0)
    learn.dls = learn.dls.new_empty()
    assert Learned.of(learn).n_ratings.sum() == 0


def test_of_refuses_other_models_and_diverged_ones(planted):
    learn = learner(planted, DotProductBias, seed=0)
    learn.model.movie_bias.weight.data[3] = float("nan")
    with pytest.raises(ValueError, match=r"movie_bias isn't finite: training diverged"):
        Learned.of(learn)
    learn.model = CollabNN((10, 4), (10, 4))
    with pytest.raises(TypeError, match="CollabNN"):
        Learned.of(learn)


ids = st.one_of(st.integers(-(2**63), 2**64 - 1), st.text(), st.floats(allow_nan=False, allow_infinity=False))


@settings(max_examples=50, deadline=None)
@given(
    users=st.lists(ids.filter(lambda one: one != "#na#"), unique=True, max_size=8),
    titles=st.lists(st.text().filter(lambda one: one != "#na#"), unique=True, max_size=8),
    k=st.integers(1, 4),
    y_range=st.sampled_from([None, (0.0, 5.5), (-1.25, 10.0)]),
    biased=st.booleans(),
    note=st.dictionaries(st.text(), st.text(), max_size=3),
)
def test_load_gives_back_what_was_saved(tmp_path_factory, users, titles, k, y_range, biased, note):
    file = tmp_path_factory.mktemp("learned") / "model.npz"
    learned = make(len(users) + 1, len(titles) + 1, k, y_range=y_range, note=note)
    learned = replace(learned, users=["#na#", *users], titles=["#na#", *titles], names=("a", "ü"))
    if not biased:
        learned = replace(learned, user_bias=None, movie_bias=None)
    learned.save(file)
    assert same(Learned.load(file), learned)


def test_from_a_learner_to_a_file_and_back_to_the_byte(planted, tmp_path):
    learned = Learned.of(learner(planted, DotProductBiasParams, seed=1))
    learned.save(tmp_path / "a.npz")
    Learned.load(tmp_path / "a.npz").save(tmp_path / "b")
    assert same(Learned.load(tmp_path / "b"), learned)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "b"]


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


def held(file) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return dict(arrays)


def packed(**arrays) -> bytes:
    buffer = BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def retold(arrays: dict, old: bytes, new: bytes) -> bytes:
    text = arrays["text"].tobytes()
    assert old in text
    return packed(**arrays | {"text": np.frombuffer(text.replace(old, new), np.uint8)})


FOREIGN = {
    "empty": lambda good, a: b"",
    "pickle": lambda good, a: pickle.dumps(Bomb()),
    "torch.save": lambda good, a: _torch(Bomb()),
    "npy of objects": lambda good, a: _npy(np.array([Bomb()], dtype=object)),
    "npz of objects": lambda good, a: packed(**a | {"movie_bias": np.array([Bomb()], dtype=object)}),
    "text of objects": lambda good, a: packed(**a | {"text": np.array([Bomb()], dtype=object)}),
    "half": lambda good, a: good[: len(good) // 2],
    "other zip": lambda good, a: _zip(),
    "one array": lambda good, a: _npy(np.zeros(3)),
    "no text": lambda good, a: packed(**{n: v for n, v in a.items() if n != "text"}),
    "not JSON": lambda good, a: packed(**a | {"text": np.frombuffer(b"{", np.uint8)}),
    "other version": lambda good, a: retold(a, b"learned/1", b"learned/2"),
    "one more array": lambda good, a: packed(**a, more=np.zeros(2)),
    "one array less": lambda good, a: packed(**{n: v for n, v in a.items() if n != "user_bias"}),
    "shape": lambda good, a: packed(**a | {"movie_factors": a["movie_factors"][:-1]}),
    "factors of one side": lambda good, a: packed(**a | {"user_factors": a["user_factors"][:, :-1]}),
    "bias shape": lambda good, a: packed(**a | {"movie_bias": a["movie_bias"][:, None]}),
    "dtype": lambda good, a: packed(**a | {"movie_factors": a["movie_factors"].astype(float)}),
    "byte order": lambda good, a: packed(**a | {"movie_bias": a["movie_bias"].astype(">f4")}),
    "infinite": lambda good, a: packed(**a | {"user_bias": a["user_bias"] / 0}),
    "counts below 0": lambda good, a: packed(**a | {"n_ratings": a["n_ratings"] - 1}),
    "counts as floats": lambda good, a: packed(**a | {"n_ratings": a["n_ratings"] / 1}),
    "too few counts": lambda good, a: packed(**a | {"n_ratings": a["n_ratings"][:2]}),
    "row 0": lambda good, a: retold(a, b"#na#", b"none"),
    "a title twice": lambda good, a: retold(a, b"Film 1", b"Film 2"),
    "titles no list": lambda good, a: retold(a, b'["#na#", "Film 1", "Film 2", "Film 3"]', b'"#na#"'),
    "an id of no kind": lambda good, a: retold(a, b"[\"#na#\", 1,", b'["#na#", null,'),
    "an id no id": lambda good, a: retold(a, b"[\"#na#\", 1,", b'["#na#", [1],'),
    "y_range": lambda good, a: retold(a, b"[0.0, 5.5]", b"[5.5, 0.0]"),
    "y_range without end": lambda good, a: retold(a, b"[0.0, 5.5]", b"[0.0, Infinity]"),
    "names": lambda good, a: retold(a, b'["user", "title"]', b'["user"]'),
    "note": lambda good, a: retold(a, b'"note": {}', b'"note": {"a": 1}'),
    "unknown field": lambda good, a: retold(a, b'"note": {}', b'"note": {}, "more": 1'),
}  # fmt: skip


def _torch(thing) -> bytes:
    buffer = BytesIO()
    torch.save(thing, buffer)
    return buffer.getvalue()


def _npy(array) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def _zip() -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../text.npy", "not an array")
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
@pytest.mark.parametrize("fault", FOREIGN)
def test_a_foreign_or_tampered_file_is_an_error_and_runs_nothing(tmp_path, monkeypatch, fault):
    monkeypatch.setenv("BOMB", str(tmp_path / "boom"))
    file = tmp_path / "model.npz"
    make().save(file)
    file.write_bytes(FOREIGN[fault](file.read_bytes(), held(file)))
    with pytest.raises(LearnedFileError) as error:
        Learned.load(file)
    assert isinstance(error.value, ValueError)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["model.npz"]
    if "pickle" in fault:  # the bomb is a real one
        pickle.loads(file.read_bytes())
        assert (tmp_path / "boom").is_dir()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_an_error_or_no_damage(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("damaged") / "model.npz"
    good = make()
    good.save(file)
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    with suppress(LearnedFileError):
        assert same(Learned.load(file), good)  # a byte that means nothing, such as a time


def test_no_file_is_an_ordinary_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Learned.load(tmp_path / "none.npz")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "model.npz"
    write_whole(file, b"old")
    for call in ("replace", "write_bytes"):
        with monkeypatch.context() as patch:

            def fail(self, *args):
                self.touch()
                raise OSError("No space left on device")

            patch.setattr(type(file), call, fail)
            with pytest.raises(OSError, match="No space"):
                write_whole(file, b"new")
        assert file.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["model.npz"]


def test_leftovers_of_killed_writers_go_after_an_hour(tmp_path):
    file = tmp_path / "[1].png"
    old, new, other = (tmp_path / name for name in (".[1].png.a.part", ".[1].png.b.part", ".1.png.c.part"))
    for part in (old, new, other):
        part.touch()
    for part in (old, other):
        os.utime(part, (0, 0))
    write_whole(file, b"it")
    assert file.read_bytes() == b"it"
    assert sorted(os.listdir(tmp_path)) == sorted([new.name, other.name, file.name])
