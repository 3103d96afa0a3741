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

from collab_repro import CollabNN, DotProduct, DotProductBias, DotProductBiasParams, Learned, learner
from collab_repro.models import tables
from collab_repro.recommending.learned import ARRAYS, TEXTS, LearnedFileError


def make(n_users=5, n_titles=4, k=3, **changes) -> Learned:
    rng = np.random.default_rng(0)
    sizes = {"user_factors": (n_users, k), "user_bias": n_users}
    sizes |= {"movie_factors": (n_titles, k), "movie_bias": n_titles}
    fields = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
    fields |= {"users": ["#na#", *range(1, n_users)], "n_ratings": np.arange(n_titles)}
    return Learned(**{**fields, "titles": ["#na#", *(f"Film {i}" for i in range(1, n_titles))], **changes})


def same(a: Learned, b: Learned) -> bool:
    def arrays(one):
        return [x if x is None else (x.dtype, x.tolist()) for x in (getattr(one, name) for name in ARRAYS)]

    def texts(one):
        return [getattr(one, name) for name in TEXTS], list(map(type, one.users))

    return arrays(a) == arrays(b) and texts(a) == texts(b)


@pytest.mark.parametrize("model", [DotProduct, DotProductBias, DotProductBiasParams, EmbeddingDotBias])
def test_of_copies_the_tables_and_leaves_the_learner_alone(planted, model):
    learn = learner(planted, model, seed=0)
    learn.model.train()
    before = {name: (t.detach().clone(), t.data_ptr()) for name, t in tables(learn.model).items()}
    learned = Learned.of(learn, seed=0)
    assert all(module.training for module in learn.model.modules())
    for name, table in tables(learn.model).items():
        was, place = before[name]
        assert torch.equal(table, was) and table.data_ptr() == place and table.requires_grad
        table.data.add_(1)  # what was learned is a copy
        rows = len(learned.users if name.startswith("user") else learned.titles)
        taken = getattr(learned, name)
        assert taken.shape == ((rows, 50) if name.endswith("factors") else (rows,))
        assert np.array_equal(taken.ravel(), was.numpy().ravel())
    if model is DotProduct:
        assert learned.user_bias is None and learned.movie_bias is None
    counts = learn.dls.train_ds.items["title"].map(dict(enumerate(learned.titles))).value_counts()
    assert counts.sum() < len(planted)
    assert learned.n_ratings.tolist() == [counts.get(title, 0) for title in learned.titles]
    assert learned.y_range == (0.0, 5.5) and learned.names == ("user", "title")
    assert learned.note["model"] == model.__name__ and learned.note["seed"] == "0"
    assert learned.movies.source == f"{planted.attrs['source']}, {model.__name__}, seed 0"
    assert Learned.of(learned) is learned


def test_own_columns_text_ids_no_sigmoid_and_no_training_rows(planted):
    own = planted.rename(columns={"user": "reader", "title": "book"})
    own = own.assign(reader="r" + own["reader"].astype(str))[["reader", "book", "rating"]]
    learn = learner(own, DotProduct, seed=0, y_range=None)
    learn.model.eval()
    learn.dls = learn.dls.new_empty()  # as in an exported Learner
    learned = Learned.of(learn)
    assert learned.names == ("reader", "book") and learned.users[1].startswith("r")
    assert learned.y_range is None and not learn.model.training and learned.n_ratings.sum() == 0


def test_of_refuses_other_models_and_diverged_ones(planted):
    learn = learner(planted, DotProductBias, seed=0)
    for name, table in tables(learn.model).items():
        table.data[3] = float("nan")
        with pytest.raises(ValueError, match=f"{name} isn't finite: training diverged"):
            Learned.of(learn)
        table.data[3] = 0
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
    learned = make(len(users) + 1, len(titles) + 1, k, y_range=y_range, note=note, names=("a", "ü"))
    learned = replace(learned, users=["#na#", *users], titles=["#na#", *titles])
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


def written(write, *args, **kwargs) -> bytes:
    buffer = BytesIO()
    write(buffer, *args, **kwargs)
    return buffer.getvalue()


def packed(**arrays) -> bytes:
    return written(np.savez, **arrays)


def retold(arrays: dict, old: bytes, new: bytes) -> bytes:
    text = arrays["text"].tobytes()
    assert old in text
    return packed(**arrays | {"text": np.frombuffer(text.replace(old, new), np.uint8)})


def zipped(buffer):
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../text.npy", "not an array")


BOMBS = np.array([Bomb()], dtype=object)
FOREIGN = {  # of a good file's bytes and its arrays
    "empty": lambda good, a: b"",
    "pickle": lambda good, a: pickle.dumps(Bomb()),
    "torch.save": lambda good, a: written(lambda buffer: torch.save(Bomb(), buffer)),
    "npy of objects": lambda good, a: written(np.save, BOMBS, allow_pickle=True),
    "npz of objects": lambda good, a: packed(**a | {"movie_bias": BOMBS}),
    "text of objects": lambda good, a: packed(**a | {"text": BOMBS}),
    "half": lambda good, a: good[: len(good) // 2],
    "other zip": lambda good, a: written(zipped),
    "one array": lambda good, a: written(np.save, np.zeros(3)),
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
    "infinite": lambda good, a: packed(**a | {"user_bias": a["user_bias"] * np.float32(np.inf)}),
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


@pytest.mark.parametrize("fault", FOREIGN)
def test_a_foreign_or_tampered_file_is_an_error_and_runs_nothing(tmp_path, monkeypatch, fault):
    monkeypatch.setenv("BOMB", str(tmp_path / "boom"))
    file = tmp_path / "model.npz"
    make().save(file)
    with np.load(file) as arrays:
        file.write_bytes(FOREIGN[fault](file.read_bytes(), dict(arrays)))
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
