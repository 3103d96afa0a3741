"""The chapter's runs as data, trained again over many splits, saved on the way, compared with the book."""

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.collab import CollabDataLoaders, EmbeddingDotBias, EmbeddingNN

from collab_repro.chapter import BIAS_LISTS, RUNS, published
from collab_repro.command import folder
from collab_repro.command.report import chapter_report
from collab_repro.evidence import eight_runs
from collab_repro.evidence.eight_runs import (
    COLUMNS,
    against_the_book,
    data_name,
    reproduce,
    run_learner,
    with_replacement,
)
from collab_repro.models import CollabNN, DotProduct, DotProductBias, DotProductBiasParams
from collab_repro.sources import check_ratings
from collab_repro.training import fit

FINAL = [  # the last epoch of each published table
    (0.781661, 0.876511),
    (0.377866, 0.877610),
    (0.292948, 0.892580),
    (0.490980, 0.823060),
    (0.473570, 0.824263),
    (0.496625, 0.821688),
    (0.760255, 0.867455),
    (0.781666, 0.864936),
]
FIRST = [1.326261, 0.973745, 0.929161, 0.972090, 0.962146, 0.931751, 0.940104, 1.002747]
CLASSES = [DotProduct] * 2 + [DotProductBias] * 2
CLASSES += [DotProductBiasParams, EmbeddingDotBias, CollabNN, EmbeddingNN]


# --- the chapter as data --------------------------------------------------------------------------


def test_the_chapter_has_eight_runs_of_five_epochs():
    assert list(RUNS) == list(range(1, 9)) == [run.number for run in RUNS.values()]
    assert all(len(run.losses) == 5 and all(len(row) == 2 for row in run.losses) for run in RUNS.values())


def test_published_losses_are_the_books():
    assert [run.losses[-1] for run in RUNS.values()] == FINAL
    assert [run.losses[0][0] for run in RUNS.values()] == FIRST
    for run in RUNS.values():
        trains, _ = zip(*run.losses, strict=True)
        assert list(trains) == sorted(trains, reverse=True), "training losses fall in every table"
    total = sum(sum(sum(row) for row in run.losses) for run in RUNS.values())
    assert total == pytest.approx(67.034148, abs=1e-6)


def test_settings_are_the_books():
    assert [run.wd for run in RUNS.values()] == [0.01] * 3 + [0.1] * 3 + [0.01, 0.1]
    assert [run.y_range for run in RUNS.values()] == [None] + [(0, 5.5)] * 7


def test_only_run_1_was_reprinted_otherwise():
    assert [n for n, run in RUNS.items() if run.reprinted] == [1]
    assert RUNS[1].reprinted[0] == (0.993168, 0.990168) and RUNS[1].reprinted[4] == (0.361314, 0.884209)
    assert len(RUNS[1].reprinted) == 5


def test_bias_lists_are_the_books(ml100k):
    fives = {(end, model): five for end, lists in BIAS_LISTS.items() for model, five in lists.items()}
    assert {key: (five[0][:5], five[-1][:5]) for key, five in fives.items()} == {
        ("lowest", "DotProductBias"): ("Child", "Home "),
        ("highest", "DotProductBias"): ("L.A. ", "Star "),
        ("highest", "collab_learner"): ("Titan", "Silen"),
    }
    assert all(len(five) == len(set(five) & set(ml100k["title"])) == 5 for five in fives.values())


def test_published_is_a_row_for_each_run_and_epoch():
    table = published()
    assert list(table.columns) == ["run", "name", "model", "epoch", "train_loss", "valid_loss"]
    assert len(table) == 40 and table["epoch"].tolist() == list(range(5)) * 8
    assert published(5, 4)["run"].tolist() == [5] * 5 + [4] * 5
    assert published(1, reprinted=True)["valid_loss"].iloc[-1] == 0.884209
    assert published(4, reprinted=True).equals(published(4))
    with pytest.raises(KeyError):
        published(9)


# --- reproduce ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number, model", list(zip(RUNS, CLASSES, strict=True)))
def test_every_run_has_its_model_and_settings(planted, number, model):
    learn = run_learner(planted, number, split=2)
    assert type(learn.model) is model
    x, _ = learn.dls.one_batch()
    learn.model.eval()
    with torch.no_grad():
        for p in learn.model.parameters():
            p.mul_(1000)  # so large that only a sigmoid keeps predictions inside y_range
        preds = learn.model(x)
    bounded = bool(preds.min() >= 0 and preds.max() <= 5.5)
    assert bounded == (RUNS[number].y_range is not None)
    if number <= 6:
        assert {p.shape[1] for p in learn.model.parameters() if p.ndim > 1} <= {50, 1}
    assert learn.dls.train.bs == 64 and len(learn.dls.train_ds) == 3200


def test_the_network_runs_have_the_chapters_layers(planted):
    seven, eight = (run_learner(planted, n).model for n in (7, 8))
    assert seven.layers[0].out_features == 100
    assert [m.out_features for m in eight.layers.modules() if hasattr(m, "out_features")] == [100, 50, 1]


@pytest.fixture(scope="module")
def losses(planted):
    """All runs on two splits, two epochs each."""
    torch.set_num_threads(1)
    return reproduce(planted, splits=2, epochs=2)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # by fastai's loader
def test_rows_are_drawn_with_replacement_as_by_fastais_default_loader(planted):
    """How often a row comes in an epoch has the same distribution; seed and epoch fix the draw."""
    learn = run_learner(planted, 4, split=1, replacement=True)
    stock = CollabDataLoaders.from_df(planted, item_name="title", bs=64, seed=1).train
    assert type(stock).__name__ == "TabWeightedDL"
    n, loader = len(stock.dataset), learn.dls.train

    def times(get_idxs):
        counts = [np.bincount(np.asarray(get_idxs(epoch)), minlength=n) for epoch in range(8)]
        return np.bincount(np.concatenate(counts), minlength=6)[:6] / (8 * n)

    ours, theirs = times(lambda e: loader.draw(n, 0, e)), times(lambda e: stock.get_idxs())
    assert ours == pytest.approx(theirs, abs=0.012) and theirs[0] == pytest.approx(np.exp(-1), abs=0.01)
    epochs = [torch.cat([x for x, _ in loader]) for _ in range(2)]
    assert not torch.equal(*epochs) and len(epochs[0]) == n
    assert torch.equal(with_replacement(n, 3, 1), with_replacement(n, 3, 1))
    assert not torch.equal(with_replacement(n, 3, 1), with_replacement(n, 4, 1))
    assert len(torch.cat([x for x, _ in learn.dls.valid]).unique(dim=0)) > 1 and not learn.dls.valid.shuffle


def test_learners_that_draw_with_replacement_train_side_by_side_as_alone(few):
    def trained(together):
        learns = [run_learner(few, 4, split, replacement=True) for split in (0, 1)]
        for part in [learns] if together else [[learn] for learn in learns]:
            fit(part, epochs=2, processes=1)
        return [list(map(float, row)) for learn in learns for row in learn.recorder.values]

    assert trained(True) == trained(False)


def test_losses_with_replacement_are_kept_apart_and_lower_in_training(planted, tmp_path):
    path = tmp_path / "chapter.csv"
    once, drawn = (reproduce(planted, [3], 2, 3, path, replacement=way) for way in (False, True))
    assert set(drawn["data"]) == {data_name(planted) + ", drawn with replacement"} != set(once["data"])
    assert len(pd.read_csv(path)) == 12 and len(once) == len(drawn) == 6
    assert once["train_loss"].mean() > drawn["train_loss"].mean()


def test_every_run_learns_something(losses, planted):
    assert list(losses.columns) == COLUMNS and set(losses["data"]) == {data_name(planted)}
    assert losses[["run", "split", "epoch"]].to_numpy().tolist() == [
        [run, split, epoch] for run in RUNS for split in (0, 1) for epoch in (0, 1)
    ]
    first, last = (losses[losses["epoch"] == epoch].reset_index() for epoch in (0, 1))
    assert (last["valid_loss"] < first["valid_loss"] * 0.985).all()
    assert (last["train_loss"] < first["train_loss"]).all()
    assert first["valid_loss"].nunique() == 16, "splits do not differ"


def test_each_of_the_eight_may_be_trained_in_another_process(few, monkeypatch):
    passes = []
    monkeypatch.setattr("collab_repro.speed.fitting.in_processes", lambda jobs, *_: passes.extend(jobs) or [])
    learns = [run_learner(few, run, n_factors=2) for run in RUNS]
    fit(learns, 1, wd=[run.wd for run in RUNS.values()], processes=1)
    assert len(passes) == 8, "nothing of them is taken for a reader's own"


def test_a_run_is_its_learner_fitted_with_the_chapters_lr_and_the_runs_wd(planted, losses):
    for number in (3, 4):
        learn = run_learner(planted, number, split=1)
        fit([learn], epochs=2, lr=5e-3, wd={3: 0.01, 4: 0.1}[number])
        rows = losses[(losses["run"] == number) & (losses["split"] == 1)]
        assert rows[["train_loss", "valid_loss"]].to_numpy().tolist() == [*map(list, learn.recorder.values)]


@pytest.fixture
def trained(monkeypatch):
    """The (run, split)s for which a learner was made."""
    made = []

    def counting(ratings, number, split=0, **settings):
        made.append((number, split))
        return run_learner(ratings, number, split, **settings)

    monkeypatch.setattr(eight_runs, "run_learner", counting)
    return made


@pytest.fixture(scope="module")
def saved(planted, tmp_path_factory):
    """The CSV of runs 4 and 7 on two splits for one epoch: its bytes, and the table."""
    path = tmp_path_factory.mktemp("saved") / "chapter.csv"
    table = reproduce(planted, [4, 7], 2, 1, path)
    return path.read_bytes(), table


@pytest.fixture
def path(saved, tmp_path):
    """A CSV of one's own with these rows."""
    path = tmp_path / "chapter.csv"
    path.write_bytes(saved[0])
    return path


def test_what_the_csv_holds_is_not_trained_again_and_comes_back_to_the_bit(planted, saved, path, trained):
    again = reproduce(planted, [4, 7], 2, 1, path)
    assert trained == [] and path.read_bytes() == saved[0]
    for other in (again, reproduce(planted, [4, 7], 2, 1)):
        pd.testing.assert_frame_equal(saved[1], other, check_exact=True, check_dtype=False)


def test_an_interrupted_run_is_taken_up_and_ends_with_the_same_bytes(
    planted, saved, tmp_path, trained, monkeypatch
):
    broken = tmp_path / "broken.csv"

    def interrupted(ratings, number, split=0, replacement=False):
        if number == 7:
            raise KeyboardInterrupt
        trained.append((number, split))
        return run_learner(ratings, number, split)

    with monkeypatch.context() as patch:
        patch.setattr(eight_runs, "run_learner", interrupted)
        with pytest.raises(KeyboardInterrupt):
            reproduce(planted, [4, 7], 2, 1, broken)
    assert len(pd.read_csv(broken)) == 2, "what was trained before was lost"
    reproduce(planted, [4, 7], 2, 1, broken)
    assert trained == [(4, 0), (4, 1), (7, 0), (7, 1)]
    assert broken.read_bytes() == saved[0]
    assert list(tmp_path.iterdir()) == [broken], "temporary files were left"


def test_the_order_in_which_runs_were_asked_for_does_not_show_in_the_csv(planted, saved, tmp_path):
    path = tmp_path / "other.csv"
    reproduce(planted, [7], 1, 1, path)
    reproduce(planted, [4], 2, 1, path)
    table = reproduce(planted, [7], 2, 1, path)
    assert path.read_bytes() == saved[0]
    assert set(table["run"]) == {7} and len(table) == 2
    assert len(reproduce(planted, [7], 1, 1, path)) == 1, "more splits came back than were asked for"


def test_a_split_that_is_missing_in_the_middle_alone_is_trained(planted, saved, path, trained):
    rows = pd.read_csv(path, dtype=str)
    rows.drop(index=0).to_csv(path, index=False)
    reproduce(planted, [4], 2, 1, path)
    assert trained == [(4, 0)] and path.read_bytes() == saved[0]


@pytest.mark.parametrize("change", ["other data", "fewer epochs", "half a split"])
def test_rows_of_other_data_or_of_another_number_of_epochs_do_not_count(planted, tmp_path, trained, change):
    path = tmp_path / "chapter.csv"
    reproduce(planted, [4], 1, 2, path)
    if change == "half a split":
        path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    epochs, ratings = (1 if change == "fewer epochs" else 2), planted.copy()
    if change == "other data":  # of the same name
        ratings.loc[0, "rating"] = 2 if planted.loc[0, "rating"] != 2 else 4
    trained.clear()
    table = reproduce(ratings, [4], 1, epochs, path)
    assert trained == [(4, 0)]
    assert len(table) == epochs and set(table["data"]) == {data_name(ratings)}


@pytest.mark.filterwarnings("ignore:taking 'user' as the user, 'movie' as the item")
@pytest.mark.filterwarnings("ignore:.*rows repeat a pair of who and film")
def test_a_name_is_taken_for_movielens_by_its_content_alone(planted, ml100k):
    assert data_name(ml100k) == "ml-100k"
    wrong = ml100k.iloc[1:]
    assert wrong.attrs["name"] == "ml-100k" and data_name(wrong).startswith("ml-100k ")
    mine = ml100k[["user", "title", "rating", "movie"]].set_axis(["who", "film", "stars", "id"], axis=1)
    mine.attrs = {"name": "mine.csv"}
    assert data_name(mine[["who", "film", "stars"]], bs=64, lr=5e-3, y_range=(0.0, 5.5)) == "ml-100k"
    films = check_ratings(ml100k, item_name="movie")  # the same rows, with ids as items
    assert data_name(films).startswith("ml-100k ") and data_name(ml100k, bs=128) == "ml-100k bs=128"
    again = planted.copy()
    again.attrs = {**planted.attrs, "name": "other"}
    assert data_name(again).split()[1] == data_name(planted).split()[1]


def test_what_was_trained_last_stands_last_and_is_drawn(planted, few, tmp_path, trained, monkeypatch):
    drawn, path = [], tmp_path / "chapter.csv"
    monkeypatch.setattr(folder, "usable_cores", lambda: 1)  # a process of its own would keep the list
    monkeypatch.setattr(folder.figures, "plot_chapter", lambda losses, book: drawn.append((losses, book)))
    monkeypatch.setattr(folder, "_draw_one", lambda plot, file, _: plot() or ("", []))
    pd.concat([last_epoch(4, [0.8, 0.9])]).to_csv(path, index=False)  # of the book's ratings
    folder.draw(tmp_path)
    for ratings in (planted, few, planted):
        reproduce(ratings, [4], 1, 1, path)
        folder.draw(tmp_path)
    assert trained == [(4, 0)] * 2 and len(pd.read_csv(path)) == 4, "kept rows move below"
    names = ["ml-100k", *map(data_name, (planted, few, planted))]
    assert [losses["data"].unique().tolist() for losses, _ in drawn] == [[name] for name in names]
    assert [book["valid_loss"].notna().all() for _, book in drawn] == [True, False, False, False]


def test_ratings_without_a_name_are_taken_up_too(planted, tmp_path, trained):
    unnamed = planted.copy()
    unnamed.attrs = {}
    path = tmp_path / "chapter.csv"
    for _ in range(2):
        reproduce(unnamed, [4], 1, 1, path)
    assert trained == [(4, 0)]


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "", "\0\1\2", "run,data\n"])
def test_a_foreign_csv_is_refused_and_left_alone(planted, tmp_path, content, trained):
    path = tmp_path / "mine.csv"
    path.write_text(content)
    with pytest.raises(ValueError):
        reproduce(planted, [4], 1, 1, path)
    assert path.read_text() == content and trained == []


def test_progress_adds_up_to_all_model_epochs_kept_ones_too(planted, path):
    told = []
    reproduce(planted, [4, 5], 3, 1, path, told.append)
    assert sum(told) == 6 and told[0] == 2


# --- against_the_book -----------------------------------------------------------------------------


def last_epoch(run, valid, train=0.5) -> pd.DataFrame:
    """The last epoch of `run` over splits."""
    rows = [("ml-100k", run, "m", s, 4, train + 0.01 * s, v) for s, v in enumerate(valid)]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_z_is_the_books_distance_from_our_mean_in_sds_by_hand():
    table = against_the_book(last_epoch(4, [0.81, 0.82, 0.83]))
    row = table.loc[(4, 4)]
    assert row["valid_loss", "book"] == 0.823060
    assert row["valid_loss", "mean"] == pytest.approx(0.82) and row["valid_loss", "sd"] == pytest.approx(0.01)
    assert row["valid_loss", "z"] == pytest.approx(0.306)
    assert row["train_loss", "z"] == pytest.approx((0.490980 - 0.51) / 0.01)
    assert len(table) == 1
    train, valid = ["0.491", "0.510 ± 0.010", "-1.9"], ["0.823", "0.820 ± 0.010", "+0.3"]
    for book, cells in ((True, [*train, *valid, "inside the spread"]), (False, [train[1], valid[1]])):
        *_, printed = chapter_report(table, {4: "bias"}, 3, "mine", book).splitlines()
        assert [cell.strip() for cell in printed.strip("|").split("|")] == ["4", *cells]


@pytest.mark.parametrize(
    "valid, train, verdict",
    [
        ([0.81, 0.82, 0.83], 0.48, "inside the spread"),
        ([0.71, 0.72, 0.73], 0.48, "valid outside the spread"),
        ([0.81, 0.82, 0.83], 0.38, "train outside the spread"),
        ([0.91, 0.92, 0.93], 0.58, "train and valid outside the spread"),
        ([0.792, 0.802, 0.812], 0.48, "valid outside the spread"),  # by 2.1 sd
        ([0.794, 0.804, 0.814], 0.48, "inside the spread"),  # by 1.9 sd
        ([0.82], 0.48, "no spread from one split"),
    ],
)
def test_the_verdict_names_what_is_more_than_two_sds_away(valid, train, verdict):
    assert against_the_book(last_epoch(4, valid, train))["verdict"].tolist() == [verdict]


def test_reprinted_values_are_compared_where_asked_for():
    for reprinted, book in ((False, 0.876511), (True, 0.884209)):
        table = against_the_book(last_epoch(1, [0.87, 0.88]), reprinted)
        assert table.loc[(1, 4), ("valid_loss", "book")] == book


def test_runs_are_compared_each_with_their_own_table():
    table = against_the_book(pd.concat([last_epoch(5, [0.8, 0.9]), last_epoch(2, [0.8, 0.9])]))
    assert table["valid_loss", "book"].to_dict() == {(2, 4): 0.877610, (5, 4): 0.824263}
