"""Every training row once an epoch, in an order of its own seed, and all that fastai's loader does."""

import random

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.schedule import Learner
from fastai.collab import CollabDataLoaders
from fastai.data.block import CategoryBlock, RegressionBlock
from fastai.learner import load_learner
from fastai.losses import MSELossFlat
from fastai.tabular.core import Categorify, FillMissing, Normalize, TabDataLoader
from fastai.tabular.data import TabularDataLoaders
from fastai.tabular.learner import tabular_learner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from collab_repro.loader import RatingsDL, TensorDL, narrow, shuffled
from collab_repro.models import DotProductBias
from collab_repro.speed import FastLoop

# What fastai's own loader makes torch say of pandas' memory, once a process.
STOCK = pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")


def numbered(n: int, **kwargs) -> TensorDL:
    """A loader of `n` rows that carry their own number as user and as rating."""
    rows = torch.arange(n)
    return TensorDL(TensorDataset(torch.stack([rows, rows * 0], 1), rows[:, None].float()), **kwargs)


def served(dl) -> list[list[int]]:
    """The row numbers in each of an epoch's batches."""
    return [y.view(-1).int().tolist() for _, y in dl]


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def ratings_dls(ratings, dl_type=RatingsDL, **kwargs):
    return CollabDataLoaders.from_df(ratings, dl_type=dl_type, **{"seed": 1, "item_name": "title", **kwargs})


@pytest.fixture
def learn(few, tmp_path) -> Learner:
    """An untrained Learner of wide tables, so that no two predictions agree by chance."""
    torch.manual_seed(0)
    dls = ratings_dls(few, drop_last=False, path=tmp_path)
    model = DotProductBias(*map(len, dls.classes.values()), 5)
    for p in model.parameters():
        torch.nn.init.normal_(p)
    return Learner(dls, model, loss_func=MSELossFlat(), cbs=FastLoop)


def predictions(learn, **kwargs):
    with learn.no_bar():
        return learn.get_preds(**kwargs)


# --- every row once -------------------------------------------------------------------------------


@given(
    n=st.integers(0, 120),
    bs=st.integers(1, 40),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**40),
)
@settings(max_examples=150, deadline=None)
def test_every_row_is_served_once_an_epoch(n, bs, drop_last, shuffle, seed):
    dl = numbered(n, bs=bs, shuffle=shuffle, shuffle_seed=seed, drop_last=drop_last)
    full, rest = divmod(n, bs)
    for _ in range(2):
        batches = served(dl)
        assert [len(batch) for batch in batches] == [bs] * full + [rest] * (not drop_last and rest > 0)
        assert len(dl) == len(batches) and len(set(flat(batches))) == len(flat(batches))
        assert shuffle or flat(batches) == list(range(len(flat(batches))))


def test_an_epoch_of_a_frame_has_every_training_row_once_and_x_belongs_to_its_y(few):
    dls = ratings_dls(few, drop_last=False)
    columns = ["user", "title", "rating"]
    expected = dls.train.items[columns].sort_values(columns).to_numpy()
    for _ in range(2):
        x, y = (torch.cat(parts) for parts in zip(*dls.train, strict=True))
        got = pd.DataFrame(torch.cat([x, y.long()], 1).numpy(), columns=columns)
        assert (got.sort_values(columns).to_numpy() == expected).all()
    assert len(expected) == 1024 and not pd.DataFrame(expected).duplicated().any()
    y = torch.cat([y for _, y in dls.valid]).view(-1)
    assert y.tolist() == dls.valid.items["rating"].tolist(), "validation rows have their own order"


def test_rows_split_over_several_chunks_are_served_as_from_one(monkeypatch):
    whole = served(numbered(100, bs=7, shuffle=True, shuffle_seed=3))
    monkeypatch.setattr("collab_repro.loader.CHUNK", 20)
    assert served(numbered(100, bs=7, shuffle=True, shuffle_seed=3)) == whole


@STOCK
def test_fastais_own_loader_without_weights_meets_every_row_once(planted):
    """The cure that needs no package: `dl_type=TabDataLoader`."""
    numbered = planted.assign(rating=range(len(planted)))[["user", "title", "rating"]]
    dls = CollabDataLoaders.from_df(numbered, item_name="title", bs=50, seed=1, dl_type=TabDataLoader)
    for _ in range(2):
        rows = torch.cat([y for _, y in dls.train]).flatten().tolist()
        assert sorted(rows) == sorted(dls.train_ds.items["rating"]) and rows != sorted(rows)


def test_fastais_default_loader_still_meets_only_63_percent_of_the_rows(planted):
    dls = CollabDataLoaders.from_df(planted, item_name="title", bs=64, seed=1, drop_last=False)
    rows = [tuple(row) for x, y in dls.train for row in torch.cat([x, y.long()], 1).tolist()]
    share = len(set(rows)) / len(dls.train_ds)
    assert share < 0.7, (
        f"an epoch of fastai's default loader now meets {share:.0%} of its rows: if it is 100 %, fastai no "
        "longer draws with replacement, and RatingsDL is needed for its speed and seed only; say so in the "
        "README, the loader's docstring and this test"
    )
    assert share == pytest.approx(1 - np.exp(-1), abs=0.03)


# --- the order ------------------------------------------------------------------------------------


def test_the_order_is_fixed_by_seed_and_epoch_alone():
    def epochs(seed, bs=8):
        torch.manual_seed(bs), np.random.seed(bs), random.seed(bs)
        dl = numbered(50, bs=bs, shuffle=True, shuffle_seed=seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        found = [flat(served(dl)) for _ in range(3)]
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all() and random.getstate() == before[2]
        return found

    first, other = epochs(5), epochs(6)
    assert first == epochs(5) == epochs(5, bs=50)
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert first[0] != first[1] != first[2] != first[0]
    assert first[1] == shuffled(50, seed=5, epoch=1).tolist()
    with pytest.raises(ValueError, match="non-negative"):
        numbered(50, shuffle_seed=-1)
    with pytest.raises(ValueError, match=r"seed 1\.5 "):
        numbered(50, shuffle_seed=1.5)


def test_neighbouring_seeds_and_epochs_are_unrelated():
    orders = {(s, e): shuffled(1000, s, e).numpy() for s in range(4) for e in range(4)}
    keys = list(orders)
    pairs = [(a, b) for i, a in enumerate(keys) for b in keys[i + 1 :]]
    assert max(abs(np.corrcoef(orders[a], orders[b])[0, 1]) for a, b in pairs) < 0.15
    assert all(sorted(order) == list(range(1000)) for order in orders.values())


@pytest.fixture
def shown(monkeypatch):
    """The frames that fastai displays, which outside a notebook it only names."""
    frames = []
    for module in ("core", "learner"):
        monkeypatch.setattr(f"fastai.tabular.{module}.display_df", frames.append)
    return frames


def test_looking_at_batches_shows_the_rows_as_they_went_in_and_leaves_the_order_alone(few, shown):
    untouched, looked_at = (ratings_dls(few, shuffle_seed=4) for _ in range(2))
    for dls in (untouched, looked_at):
        next(iter(dls.train))  # the first epoch
    looked_at.valid.show_batch(max_n=4)
    rows = few.loc[looked_at.valid.items.index[:4], ["user", "title", "rating"]]
    assert (shown[0].head(4).to_numpy() == rows.to_numpy()).all()
    looked_at.show_batch(max_n=4, unique=True)
    assert len(shown[1]) > 1 and len(shown[1].drop_duplicates()) == 1
    assert len({tuple(row) for row in looked_at.one_batch()[0].tolist()}) > 1, "the loader stayed that way"
    for (x, _), (same, _) in zip(untouched.train, looked_at.train, strict=True):
        assert torch.equal(x, same)


# --- all that fastai's loader does ----------------------------------------------------------------


@STOCK
def test_batches_are_those_of_fastais_own_loader(few):
    ours, fastais = (ratings_dls(few, dl_type, shuffle=False) for dl_type in (RatingsDL, TabDataLoader))
    for i in (0, 1):
        for (x, y), (their_x, their_y) in zip(ours[i], fastais[i], strict=True):
            assert x.dtype == their_x.dtype and torch.equal(x, their_x)
            assert torch.equal(y, their_y.float()) and y.shape == their_y.shape


def test_a_frame_is_held_narrow_and_served_in_the_chapters_shapes_and_types(few):
    dl = ratings_dls(few).train
    assert [t.dtype for t in dl.tensors] == [torch.int8, torch.float32]
    x, y = dl.one_batch()
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((64, 2), torch.int64, (64, 1), torch.float32)
    assert numbered(9, bs=2, num_workers=3).fake_l.num_workers == 0, "worker processes would be started"


def test_new_keeps_what_is_not_changed(few):
    dl = ratings_dls(few, shuffle_seed=9).train
    larger = dl.new(bs=100)
    assert (type(larger), larger.bs, larger.shuffle_seed, larger.shuffle) == (RatingsDL, 100, 9, True)
    order = shuffled(1024, 9, 0)[:100]
    assert torch.equal(larger.one_batch()[0], larger.tensors[0][order].long())
    assert (dl.new(shuffle_seed=1).shuffle_seed, dl.new().bs) == (1, 64)


@pytest.mark.parametrize("ds_idx", [0, 1])
def test_get_preds_come_in_the_rows_order(learn, ds_idx):
    items = learn.dls[ds_idx].items
    x = torch.tensor(items[["user", "title"]].to_numpy(np.int64))
    preds, targets = predictions(learn, ds_idx=ds_idx)
    assert targets.view(-1).tolist() == items["rating"].tolist()
    assert torch.equal(preds, learn.model(x).detach())
    # A shuffled loader's are put back in order.
    assert (torch.equal(predictions(learn, dl=learn.dls[ds_idx], reorder=False)[1], targets)) == (ds_idx == 1)
    assert torch.equal(predictions(learn, dl=learn.dls[ds_idx])[1], targets)


@pytest.mark.parametrize("rated", [True, False])
def test_test_dl_reads_a_frame_with_or_without_ratings(few, learn, rated):
    frame = few.loc[learn.dls.valid.items.index[:70]]
    dl = learn.dls.test_dl(frame if rated else frame.drop(columns="rating"))
    assert not dl.shuffle and {len(batch) for batch in dl} == {1 + rated}
    preds, targets = predictions(learn, dl=dl)
    assert (targets is None) != rated
    torch.testing.assert_close(preds, predictions(learn)[0][:70])


def test_show_results_shows_ratings_and_predictions(few, learn, shown):
    with learn.no_bar():
        learn.show_results(max_n=3, shuffle=False)
    rows, first = few.loc[learn.dls.valid.items.index[:3]], shown[0].head(3)
    assert [learn.dls.classes["title"][int(code)] for code in first["title"]] == rows["title"].tolist()
    assert first["rating"].tolist() == rows["rating"].tolist()
    assert first["rating_pred"].tolist() == pytest.approx(predictions(learn)[0][:3].view(-1).tolist())


def test_an_exported_learner_predicts_as_before(few, learn):
    frame = few[:70].drop(columns="rating")
    expected, _ = predictions(learn, dl=learn.dls.test_dl(frame))
    learn.export("m.pkl")
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)  # exporting did not empty the Learner itself
    loaded = load_learner(learn.path / "m.pkl")
    assert isinstance(loaded.dls.train, RatingsDL) and len(loaded.dls.train) == 0
    assert torch.equal(predictions(loaded, dl=loaded.dls.test_dl(frame))[0], expected)


def test_batches_land_on_the_loaders_device_and_follow_it(few):
    dls = ratings_dls(few, device="meta")
    assert [t.device.type for t in (*dls.one_batch(), *dls.train.new(bs=8).one_batch())] == ["meta"] * 4
    dls.to("cpu")
    assert [t.device.type for t in dls.one_batch()] == ["cpu", "cpu"]


@pytest.mark.parametrize(
    "largest, bits", [(127, 8), (128, 16), (2**15, 32), (2**31 - 1, 32), (2**31, 64), (None, 8)]
)
def test_ids_are_kept_in_the_narrowest_type_that_holds_them(largest, bits):
    for ends in ([], []) if largest is None else ([0, largest], [-largest, 0]):
        column = torch.tensor(ends, dtype=torch.int64)
        assert torch.iinfo(narrow(column).dtype).bits == bits and torch.equal(narrow(column).long(), column)
        assert narrow(column.double()).dtype == torch.float32


@pytest.mark.parametrize("dtype", ["int64", "float64", "float32", "int8"])
def test_ratings_of_any_numeric_type_make_no_noise_and_share_no_memory_with_the_frame(few, dtype):
    torch.set_warn_always(True)  # else torch says once a process what pandas' memory makes it say
    try:
        dls = ratings_dls(few.astype({"rating": dtype}))
    finally:
        torch.set_warn_always(False)
    y = dls.valid.tensors[1]
    kept = y.clone()
    dls.valid.items["rating"] *= 2
    assert torch.equal(y, kept)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # fastai's own loader
@pytest.mark.parametrize("conts", [["age", "year"], []])
@pytest.mark.parametrize("target, block", [("liked", CategoryBlock), ("rating", RegressionBlock)])
def test_of_any_tabular_data_it_serves_what_fastais_loader_serves(target, block, conts):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"age": rng.normal(size=200), "year": rng.normal(size=200)})
    frame = frame.assign(genre=rng.choice(["a", "b", "c"], 200), rating=rng.normal(size=200))
    frame["liked"] = np.where(frame["rating"] > 0, "yes", "no")
    frame.loc[[3, 150], "age"] = np.nan
    columns = {"cat_names": ["genre"], "cont_names": conts, "y_names": target, "y_block": block()}
    columns |= {"procs": [Categorify, FillMissing, Normalize], "valid_idx": list(range(50)), "bs": 32}
    dls, stock = (TabularDataLoaders.from_df(frame, **columns, dl_type=t) for t in (RatingsDL, TabDataLoader))
    for ours, theirs in zip(
        *([*d.valid, d.test_dl(frame[:5]).one_batch()] for d in (dls, stock)), strict=True
    ):
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other.as_subclass(torch.Tensor).to(one.dtype))
    learn = tabular_learner(dls, layers=[4])
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1)
        assert len(learn.predict(frame.iloc[0])) == 3
    with pytest.raises(ValueError, match="wgts"):
        TabularDataLoaders.from_df(frame, **columns, dl_type=RatingsDL, wgts=np.ones(150))
