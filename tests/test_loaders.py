"Every training row once an epoch, in an order of its own seed, and all that fastai's loader does."

import random

import numpy as np
import pandas as pd
import pytest
import torch
from collab_repro.loaders import RatingsDL, TensorDL, narrow, shuffled
from fastai.callback.schedule import Learner
from fastai.collab import CollabDataLoaders
from fastai.learner import load_learner
from fastai.losses import MSELossFlat
from fastai.tabular.core import TabDataLoader
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from collab_repro.models import DotProductBias

# What fastai's own loader makes torch say of pandas' memory, once a process.
STOCK = pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")


def numbered(n: int, **kwargs) -> TensorDL:
    "A loader of `n` rows that carry their own number as user and as rating."
    rows = torch.arange(n)
    return TensorDL(TensorDataset(torch.stack([rows, rows * 0], 1), rows[:, None].float()), **kwargs)


def served(dl) -> list[list[int]]:
    "The row numbers in each of an epoch's batches."
    return [y.view(-1).int().tolist() for _, y in dl]


def flat(batches: list[list[int]]) -> list[int]:
    return [row for batch in batches for row in batch]


def ratings_dls(ratings, dl_type=RatingsDL, **kwargs):
    kwargs = {"bs": 64, "seed": 1, "item_name": "title", **kwargs}
    return CollabDataLoaders.from_df(ratings, dl_type=dl_type, **kwargs)


def small_learner(dls) -> Learner:
    torch.manual_seed(0)
    model = DotProductBias(*map(len, dls.classes.values()), 5)
    for p in model.parameters():
        torch.nn.init.normal_(p)  # wide, so that no two predictions agree by chance
    return Learner(dls, model, loss_func=MSELossFlat())


# --- every row once -------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(0, 120),
    bs=st.integers(1, 40),
    world=st.integers(1, 5),
    drop_last=st.booleans(),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**40),
)
def test_all_ranks_together_serve_every_row_once_in_the_steps_of_one_process(
    n, bs, world, drop_last, shuffle, seed
):
    common = {"shuffle": shuffle, "shuffle_seed": seed, "drop_last": drop_last}
    ranks = [numbered(n, bs=bs, rank=r, world_size=world, **common) for r in range(world)]
    one = numbered(n, bs=bs * world, **common)
    for _ in range(2):
        each = [served(dl) for dl in ranks]
        alone = served(one)
        rows = [row for batches in each for row in flat(batches)]
        assert len(set(rows)) == len(rows), "a row came twice"
        missing = n - len(rows)
        assert missing <= (bs * world - 1 if drop_last else 0), "rows were left out"
        assert [len(dl) for dl in ranks] == [len(batches) for batches in each]
        if n >= world:  # fewer rows than ranks cannot be shared out
            assert len({len(batches) for batches in each}) == 1, "a rank would wait for another for ever"
        # A last rest of fewer rows than ranks joins the step before it; all other steps are the same.
        steps = [sorted(flat(step)) for step in zip(*each, strict=n >= world)]
        whole = len(steps) if drop_last else max(0, len(steps) - 1)
        assert steps[:whole] == [sorted(batch) for batch in alone][:whole]
        if n >= world and not drop_last and n % (bs * world) not in range(1, world):
            assert steps == [sorted(batch) for batch in alone]


@given(n=st.integers(0, 300), bs=st.integers(1, 40), drop_last=st.booleans())
@settings(max_examples=60, deadline=None)
def test_batches_are_cut_as_fastai_cuts_them(n, bs, drop_last):
    mine = numbered(n, bs=bs, drop_last=drop_last)
    sizes = [len(batch) for batch in served(mine)]
    assert sizes == [bs] * (n // bs) + [n % bs] * (not drop_last and n % bs > 0)
    assert len(mine) == len(sizes)


def test_an_epoch_of_a_frame_has_every_training_row_once_and_x_belongs_to_its_y(planted):
    dls = ratings_dls(planted, drop_last=False)
    columns = ["user", "title", "rating"]
    expected = dls.train.items[columns].sort_values(columns).to_numpy()
    for _ in range(2):
        x, y = (torch.cat(parts) for parts in zip(*dls.train, strict=True))
        got = pd.DataFrame(torch.cat([x, y.long()], 1).numpy(), columns=columns)
        assert (got.sort_values(columns).to_numpy() == expected).all()
    assert len(expected) == 3200 and not pd.DataFrame(expected).duplicated().any()


def test_rows_split_over_several_chunks_are_served_as_from_one(monkeypatch):
    whole = served(numbered(100, bs=7, shuffle=True, shuffle_seed=3))
    monkeypatch.setattr("collab_repro.loaders.CHUNK", 20)
    assert served(numbered(100, bs=7, shuffle=True, shuffle_seed=3)) == whole


@STOCK
def test_fastais_default_loader_still_meets_only_63_percent_of_the_rows(planted):
    dls = CollabDataLoaders.from_df(planted, item_name="title", bs=64, seed=1, drop_last=False)
    rows = [tuple(row) for x, y in dls.train for row in torch.cat([x, y.long()], 1).tolist()]
    share = len(set(rows)) / len(dls.train_ds)
    assert share < 0.7, (
        f"an epoch of fastai's default loader now meets {share:.0%} of its rows: if it is 100 %, fastai no "
        "longer draws with replacement, and RatingsDL is needed for its speed and seed only; say so in the "
        "README, the loaders' docstring and this test"
    )
    assert share == pytest.approx(1 - np.exp(-1), abs=0.03)


# --- the order ------------------------------------------------------------------------------------


def test_the_order_is_fixed_by_seed_and_epoch():
    def epochs(seed):
        dl = numbered(50, bs=8, shuffle=True, shuffle_seed=seed)
        return [flat(served(dl)) for _ in range(3)]

    first, again, other = epochs(5), epochs(5), epochs(6)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert first[0] != first[1] != first[2] != first[0]
    assert first[1] == shuffled(50, seed=5, epoch=1).tolist()


def test_order_does_not_depend_on_and_does_not_move_global_random_states():
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    dl = numbered(50, bs=8, shuffle=True)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = served(dl)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all() and random.getstate() == before[2]
    torch.manual_seed(2), np.random.seed(2), random.seed(2)
    assert served(numbered(50, bs=8, shuffle=True)) == first


def test_neighbouring_seeds_and_epochs_are_unrelated():
    orders = {(s, e): shuffled(1000, s, e).numpy() for s in range(4) for e in range(4)}
    keys = list(orders)
    pairs = [(a, b) for i, a in enumerate(keys) for b in keys[i + 1 :]]
    assert max(abs(np.corrcoef(orders[a], orders[b])[0, 1]) for a, b in pairs) < 0.15
    assert all(sorted(order) == list(range(1000)) for order in orders.values())


def test_the_order_does_not_depend_on_batch_size_or_device():
    small, large = (flat(served(numbered(50, bs=bs, shuffle=True, shuffle_seed=2))) for bs in (3, 50))
    assert small == large


def test_validation_rows_come_in_their_own_order(planted):
    dls = ratings_dls(planted)
    y = torch.cat([y for _, y in dls.valid]).view(-1)
    assert y.tolist() == dls.valid.items["rating"].tolist()


@pytest.mark.parametrize("look", ["one_batch", "show_batch", "show_batch unique"])
def test_looking_at_a_batch_leaves_the_order_alone(planted, look, shown):
    untouched, looked_at = (ratings_dls(planted, shuffle_seed=4) for _ in range(2))
    for dls in (untouched, looked_at):
        next(iter(dls.train))  # the first epoch
    if look == "one_batch":
        looked_at.one_batch()
    else:
        looked_at.show_batch(unique=look.endswith("unique"))
    for (x, _), (same, _) in zip(untouched.train, looked_at.train, strict=True):
        assert torch.equal(x, same)


# --- all that fastai's loader does ----------------------------------------------------------------


@pytest.fixture
def shown(monkeypatch):
    "The frames that fastai displays, which outside a notebook it only names."
    frames = []
    for module in ("core", "learner"):
        monkeypatch.setattr(f"fastai.tabular.{module}.display_df", frames.append)
    return frames


@STOCK
def test_batches_are_those_of_fastais_own_loader(planted):
    ours, fastais = (ratings_dls(planted, dl_type, shuffle=False) for dl_type in (RatingsDL, TabDataLoader))
    for i in (0, 1):
        for (x, y), (their_x, their_y) in zip(ours[i], fastais[i], strict=True):
            assert x.dtype == their_x.dtype and torch.equal(x, their_x)
            assert torch.equal(y, their_y.float()) and y.shape == their_y.shape


def test_one_batch_has_the_chapters_shapes_and_types(planted):
    x, y = ratings_dls(planted).one_batch()
    assert x.shape == (64, 2) and x.dtype == torch.int64
    assert y.shape == (64, 1) and y.dtype == torch.float32


def test_show_batch_shows_the_rows_as_they_went_in(planted, shown):
    dls = ratings_dls(planted)
    dls.valid.show_batch(max_n=4)
    rows = planted.loc[dls.valid.items.index[:4], ["user", "title", "rating"]]
    assert len(shown) == 1 and (shown[0].head(4).to_numpy() == rows.to_numpy()).all()


def test_show_batch_unique_shows_one_row_again_and_again(planted, shown):
    dls = ratings_dls(planted)
    dls.show_batch(max_n=4, unique=True)
    assert len(shown[0]) > 1 and len(shown[0].drop_duplicates()) == 1
    assert len({tuple(row) for row in dls.one_batch()[0].tolist()}) > 1, "the loader stayed that way"


def test_new_keeps_what_is_not_changed(planted):
    dls = ratings_dls(planted, shuffle_seed=9)
    larger = dls.train.new(bs=100)
    assert larger.bs == 100 and larger.shuffle_seed == 9 and larger.shuffle
    assert type(larger) is RatingsDL
    assert larger.one_batch()[0].shape == (100, 2)
    order = shuffled(3200, 9, 0)[:100]
    assert torch.equal(larger.one_batch()[0], larger.tensors[0][order].long())
    moved = dls.train.new(rank=1, world_size=2, shuffle_seed=1)
    assert (moved.rank, moved.world_size, moved.shuffle_seed, moved.bs) == (1, 2, 1, 64)


@pytest.mark.parametrize("with_ratings", [True, False])
def test_test_dl_reads_a_frame_with_or_without_ratings(planted, with_ratings):
    dls = ratings_dls(planted)
    frame = planted.loc[dls.valid.items.index[:70]]
    expected = torch.cat([x for x, _ in dls.valid])[:70]
    dl = dls.test_dl(frame if with_ratings else frame.drop(columns="rating"))
    assert not dl.shuffle
    batches = list(dl)
    assert {len(b) for b in batches} == {2 if with_ratings else 1}
    assert torch.equal(torch.cat([b[0] for b in batches]), expected)


@pytest.mark.parametrize("ds_idx", [0, 1])
def test_get_preds_come_in_the_rows_order(planted, ds_idx):
    dls = ratings_dls(planted)
    learn = small_learner(dls)
    with learn.no_bar():
        preds, targets = learn.get_preds(ds_idx=ds_idx)
    items = dls[ds_idx].items
    x = torch.tensor(items[["user", "title"]].to_numpy(np.int64))
    assert targets.view(-1).tolist() == items["rating"].tolist()
    assert torch.equal(preds, learn.model(x).detach())


def test_get_preds_of_a_shuffled_loader_are_put_back_in_order(planted):
    dls = ratings_dls(planted, drop_last=False)
    learn = small_learner(dls)
    with learn.no_bar():
        _, targets = learn.get_preds(dl=dls.train)
        _, unordered = learn.get_preds(dl=dls.train, reorder=False)
    assert targets.view(-1).tolist() == dls.train.items["rating"].tolist()
    assert not torch.equal(unordered, targets)


def test_get_preds_of_unrated_rows(planted):
    dls = ratings_dls(planted)
    learn = small_learner(dls)
    frame = planted.loc[dls.valid.items.index[:70]]
    with learn.no_bar():
        preds, none = learn.get_preds(dl=dls.test_dl(frame.drop(columns="rating")))
        expected, _ = learn.get_preds()
    assert none is None
    torch.testing.assert_close(preds, expected[:70])


def test_show_results_shows_ratings_and_predictions(planted, shown):
    learn = small_learner(ratings_dls(planted))
    with learn.no_bar():
        learn.show_results(max_n=3, shuffle=False)
        preds, _ = learn.get_preds()
    rows = planted.loc[learn.dls.valid.items.index[:3]]
    first = shown[0].head(3)
    assert [learn.dls.classes["title"][int(code)] for code in first["title"]] == rows["title"].tolist()
    assert first["rating"].tolist() == rows["rating"].tolist()
    assert first["rating_pred"].tolist() == pytest.approx(preds[:3].view(-1).tolist())


def test_an_exported_learner_predicts_as_before(planted, tmp_path):
    learn = small_learner(ratings_dls(planted, path=tmp_path))
    frame = planted[:70].drop(columns="rating")
    with learn.no_bar():
        expected, _ = learn.get_preds(dl=learn.dls.test_dl(frame))
    learn.export("m.pkl")
    assert len(learn.dls.train_ds) == 3200, "exporting emptied the learner itself"
    loaded = load_learner(tmp_path / "m.pkl")
    assert isinstance(loaded.dls.train, RatingsDL) and len(loaded.dls.train) == 0
    with loaded.no_bar():
        preds, _ = loaded.get_preds(dl=loaded.dls.test_dl(frame))
    assert torch.equal(preds, expected)


def test_an_empty_data_set_has_no_batches():
    dl = numbered(0, bs=8, shuffle=True)
    assert len(dl) == 0 and list(dl) == []
    with pytest.raises(ValueError, match="does not contain any batches"):
        dl.one_batch()


def test_batches_land_on_the_loaders_device_and_follow_it(planted):
    dls = ratings_dls(planted, device="meta")
    assert [t.device.type for t in dls.one_batch()] == ["meta", "meta"]
    assert [t.device.type for t in dls.train.new(bs=8).one_batch()] == ["meta", "meta"]
    dls.to("cpu")
    assert [t.device.type for t in dls.one_batch()] == ["cpu", "cpu"]


def test_no_worker_processes_are_started_whatever_is_asked_for():
    assert numbered(9, bs=2, num_workers=3).fake_l.num_workers == 0


@pytest.mark.parametrize(
    "largest, dtype",
    [
        (127, torch.int8),
        (128, torch.int16),
        (2**15, torch.int32),
        (2**31 - 1, torch.int32),
        (2**31, torch.int64),
    ],
)
def test_ids_are_kept_in_the_narrowest_type_that_holds_them(largest, dtype):
    for column in (torch.tensor([0, largest]), torch.tensor([-largest - 1, 0])):
        assert narrow(column).dtype == dtype
        assert torch.equal(narrow(column).long(), column)


def test_an_empty_column_and_a_float64_one_are_kept_narrow_too():
    assert narrow(torch.tensor([], dtype=torch.int64)).dtype == torch.int8
    assert narrow(torch.tensor([0.5], dtype=torch.float64)).dtype == torch.float32


def test_a_frame_is_held_narrow_and_served_wide(planted):
    dl = ratings_dls(planted).train
    assert [t.dtype for t in dl.tensors] == [torch.int8, torch.float32]
    assert [t.dtype for t in dl.one_batch()] == [torch.int64, torch.float32]


@pytest.mark.parametrize("dtype", ["int64", "float64", "float32", "int8"])
def test_ratings_of_any_numeric_type_make_no_noise_and_share_no_memory_with_the_frame(planted, dtype):
    torch.set_warn_always(True)  # else torch says once a process what pandas' memory makes it say
    try:
        dls = ratings_dls(planted.astype({"rating": dtype}))
    finally:
        torch.set_warn_always(False)
    y = dls.valid.tensors[1]
    kept = y.clone()
    dls.valid.items["rating"] *= 2
    assert torch.equal(y, kept)
