"""`diagnose`: planted faults in plain fastai code, one and two at a time, and pasted tables of losses."""

import argparse
import copy
import random
import re
from io import StringIO
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.schedule import Learner
from fastai.collab import CollabDataLoaders, collab_learner
from fastai.layers import Embedding, Module, sigmoid_range
from fastai.losses import L1LossFlat, MSELossFlat
from fastai.optimizer import SGD
from fastai.tabular.core import TabDataLoader
from torch import nn
from tqdm import tqdm

from collab_repro import curve, published
from collab_repro.chapter import RUNS
from collab_repro.command import chapter8
from collab_repro.evidence import diagnosis, inspecting
from collab_repro.evidence.diagnosis import DRAWN, EFFECTS, DiagnosisError, diagnose, spread
from collab_repro.evidence.effects import CHANGES, finals, measure
from collab_repro.evidence.eight_runs import run_learner
from collab_repro.training import fit

pytestmark = [
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable"),  # all of these by fastai
    pytest.mark.filterwarnings("ignore:Constructing a Categorical with a dtype and values"),
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up <TemporaryDirectory:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:(?s).*numpy.core is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning"),
]


class Bias(Module):
    """A reader's own model, with the places where the faults go."""

    def __init__(self, n_users, n_movies, n_factors=50, y_range=(0, 5.5), bare=(), listed=(), flat=False):
        sizes = {"user_factors": (n_users, n_factors), "movie_factors": (n_movies, n_factors)}
        sizes |= {"user_bias": (n_users, 1), "movie_bias": (n_movies, 1)}
        self.y_range, self.flat = y_range, flat
        for name, size in sizes.items():
            table = Embedding(*size)
            if name in bare:
                table = torch.zeros(*size).normal_(0, 0.01).requires_grad_()
            setattr(self, name, [table] if name in listed else table)

    def look_up(self, name, rows):
        table = getattr(self, name)
        table = table[0] if isinstance(table, list) else table
        return table(rows) if isinstance(table, nn.Module) else table[rows]

    def forward(self, x):
        users, movies = x[:, 0], x[:, 1]
        dot = (self.look_up("user_factors", users) * self.look_up("movie_factors", movies)).sum(
            1, keepdim=True
        )
        scores = dot + self.look_up("user_bias", users) + self.look_up("movie_bias", movies)
        scores = scores.squeeze(1) if self.flat else scores
        return sigmoid_range(scores, *self.y_range) if self.y_range else scores


class Ignoring(Bias):
    """It keeps `y_range` and never uses it."""

    def forward(self, x):
        kept, self.y_range = self.y_range, None
        scores = super().forward(x)
        self.y_range = kept
        return scores


def mse(pred, y):
    return ((pred - y) ** 2).mean()


def freeze(learn):
    learn.model.movie_bias.weight.requires_grad_(False)


def all_but_factors(model):
    return [p for name, p in model.named_parameters() if "user_factors" not in name]


# What a reader changed: the ratings, the loaders, the model, the Learner, something afterwards, the fit.
# Each fault may change one of these, so two go together unless both change the same one.
FAULTS = {
    "default loader": ("loader", {"dls": {"dl_type": None}}),
    "batches of 512": ("bs", {"dls": {"bs": 512}}),
    "a tenth to validate on": ("valid_pct", {"dls": {"valid_pct": 0.1}}),
    "film ids as items": ("items", {"dls": {"item_name": "movie"}}),
    "rows lost": ("rows missing", {"rows": lambda r: r.sample(frac=0.8, random_state=1)}),
    "rows twice": ("rows doubled", {"rows": lambda r: pd.concat([r, r[:200]], ignore_index=True)}),
    "other data": ("data", {"rows": lambda r: r.assign(rating=1 + r["rating"] / 2)}),
    "more users": ("data", {"rows": lambda r: r.assign(user=np.arange(len(r)) // 10)}),
    "no y_range": ("y_range", {"model": {"y_range": None}}),
    "y_range to 5": ("y_range", {"model": {"y_range": (0, 5)}}),
    "y_range not used": ("y_range", {"class": Ignoring}),
    "five factors": ("factors", {"model": {"n_factors": 5}}),
    "a bare table": ("untrained", {"model": {"bare": ["movie_factors"]}}),
    "a table in a list": ("untrained", {"model": {"listed": ["user_bias"]}}),
    "a frozen table": ("untrained", {"after": freeze}),
    "a table left out": ("untrained", {"learner": {"splitter": all_but_factors}}),
    "mean absolute error": ("loss", {"learner": {"loss_func": L1LossFlat()}}),
    "shapes that broadcast": ("shape", {"learner": {"loss_func": mse}, "model": {"flat": True}}),
    "SGD": ("optimizer", {"learner": {"opt_func": SGD}}),
    "decay by default, known": ("wd", {"learner": {"wd": 0.05}}),
    "one epoch": ("epochs", {"fit": {"epochs": 1}}),
    "rate of .02": ("lr", {"fit": {"lr": 2e-2}}),
    "no decay": ("wd", {"fit": {"wd": 0.0}}),
    "a constant rate": ("schedule", {"fit": {"method": "fit"}}),
    "fitted twice": ("fits", {"fit": {"times": 2}}),
}
FITTED = [name for name, (_, change) in FAULTS.items() if "fit" in change]
UNFITTED = [name for name in FAULTS if name not in FITTED]


def together(*names):
    """The faults' changes in one, or None where two change the same thing."""
    merged = {}
    for name in names:
        for part, change in FAULTS[name][1].items():
            if not isinstance(change, dict):
                change = {part: change}
            if set(merged.setdefault(part, {})) & set(change):
                return None
            merged[part] |= change
    return merged


def plain(ratings, changes):
    """The Learner that a reader with these changes makes, by fastai alone."""
    changes = {part: dict(change) for part, change in changes.items()}
    ratings = changes.get("rows", {}).get("rows", lambda r: r)(ratings)
    settings = {"item_name": "title", "bs": 64, "seed": 1, "dl_type": TabDataLoader, **changes.get("dls", {})}
    settings = {name: value for name, value in settings.items() if value is not None}
    dls = CollabDataLoaders.from_df(ratings, rating_name="rating", **settings)
    build = changes.get("class", {}).get("class", Bias)
    model = build(*map(len, dls.classes.values()), **changes.get("model", {}))
    learn = Learner(dls, model, **{"loss_func": MSELossFlat(), **changes.get("learner", {})})
    changes.get("after", {}).get("after", lambda _: None)(learn)
    return learn


def fitted(learn, epochs=5, lr=5e-3, wd=0.1, method="fit_one_cycle", times=1):
    with learn.no_bar(), learn.no_logging():
        for _ in range(times):
            getattr(learn, method)(epochs, lr, wd=wd)
    return learn


@pytest.fixture
def book(few, monkeypatch):
    """`few` as if it were MovieLens 100K, with text for titles and 16 batches to train on."""
    facts = {"ROWS": len(few), "USERS": few["user"].nunique(), "TITLES": few["title"].nunique()}
    facts |= {"MEAN": few["rating"].mean(), "ALIKE": int(few.duplicated(["user", "title", "rating"]).sum())}
    for name, value in facts.items():
        monkeypatch.setattr(inspecting, name, value)
    return few


# --- a Learner ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNFITTED)
def test_a_planted_fault_is_found_before_a_fit(book, name):
    found = diagnose(plain(book, together(name)))
    assert list(found.table.index) == [FAULTS[name][0]]
    assert "1 difference from the chapter's run 4" in found.verdict and "after a fit" in found.verdict


PAIRS = [pair for pair in combinations(UNFITTED, 2) if together(*pair)]
PAIRS = [pair for pair in PAIRS if "y_range not used" not in pair or FAULTS[pair[0]][0] != "y_range"]


def test_two_planted_faults_are_both_found(book):
    wrong = {}
    for pair in PAIRS:
        expected = sorted(FAULTS[name][0] for name in pair)
        found = sorted(diagnose(plain(book, together(*pair))).table.index)
        if found != expected:
            wrong[pair] = found
    assert len(PAIRS) > 100 and wrong == {}


@pytest.mark.parametrize("name", FITTED)
def test_a_planted_fault_is_found_after_a_fit_alone_and_beside_another(book, name):
    setting, change = FAULTS[name]
    for other in ([], ["default loader"], ["five factors"]):
        found = diagnose(fitted(plain(book, together(*other)), **change["fit"]), against=4)
        assert sorted(found.table.index) == sorted([setting, *(FAULTS[one][0] for one in other)])
        assert "after a fit" not in found.verdict


def test_two_faults_of_the_fit_are_both_found(book):
    for first, second in combinations(FITTED, 2):
        change = {**FAULTS[first][1]["fit"], **FAULTS[second][1]["fit"]}
        table = diagnose(fitted(plain(book, {}), **change), against=4).table
        assert sorted(table.index) == sorted({FAULTS[first][0], FAULTS[second][0]}), (first, second)


@pytest.mark.parametrize("number", RUNS)
def test_nothing_is_found_in_the_chapters_own_runs_before_or_after_a_fit(book, number):
    learn = run_learner(book, number)
    for fitted in (False, True):
        if fitted:
            fit([learn], wd=RUNS[number].wd)
        found = diagnose(learn)
        assert not len(found.table) and found.verdict.startswith("No difference")
        expected = 4 if number == 3 and not fitted else number  # before a fit nothing tells them apart
        assert f"run {expected} (" in str(found) and ("after a fit" in found.verdict) != fitted
    assert list(diagnose(learn, against=3 if number > 3 else 4).table.index)


def test_nothing_is_found_in_the_chapters_runs_on_the_real_ratings(ml100k):
    dls = CollabDataLoaders.from_df(ml100k, item_name="title", bs=64, dl_type=TabDataLoader)
    network = {"use_nn": True, "layers": [100, 50]}
    learns = [run_learner(ml100k, 4), collab_learner(dls, n_factors=50, y_range=(0, 5.5))]
    learns.append(collab_learner(dls, y_range=(0, 5.5), **network))
    assert ["run 4" in str(diagnose(learns[0])), *(len(diagnose(ln).table) for ln in learns)] == [
        True,
        0,
        0,
        0,
    ]
    lost = ml100k.drop(index=range(1000))
    ids = CollabDataLoaders.from_df(lost, item_name="movie", bs=64, seed=1, dl_type=TabDataLoader)
    table = diagnose(collab_learner(ids, y_range=(0, 5.5))).table
    assert table["found"].to_dict().keys() == {"items", "rows missing"}
    assert table["found"]["rows missing"] == "1,000 rows missing"
    merged = pd.concat([ml100k, ml100k[:50].assign(rating=6 - ml100k["rating"][:50])], ignore_index=True)
    learn = collab_learner(CollabDataLoaders.from_df(merged, item_name="title", dl_type=TabDataLoader, bs=64))
    assert diagnose(learn, against=6).table["found"].to_dict().keys() == {"rows doubled", "y_range"}


def test_looking_changes_nothing(book):
    """Weights, modes, gradients, and whatever the next epoch is drawn from."""
    for dl_type in (None, TabDataLoader):
        learn = fitted(plain(book, {"dls": {"dl_type": dl_type}}), epochs=1)
        learn.model.train()
        learn.model.user_bias.eval()
        state = copy.deepcopy((learn.model.state_dict(), learn.opt.state_dict()["hypers"]))

        def drawn(learn=learn):
            rng = learn.dls.train.rng.getstate()
            return rng, random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

        before, modes = drawn(), [m.training for m in learn.model.modules()]
        diagnose(learn)
        assert before == drawn() and modes == [m.training for m in learn.model.modules()]
        for name, table in learn.model.state_dict().items():
            assert torch.equal(table, state[0][name]), name
        assert learn.opt.state_dict()["hypers"] == state[1] and len(learn.recorder.values) == 1


def test_weights_come_back_when_the_model_raises(book):
    learn = plain(book, {})
    before = learn.model.user_bias.weight.detach().clone()
    learn.model.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        diagnose(learn)
    assert torch.equal(learn.model.user_bias.weight, before)


def test_what_only_a_fit_shows_is_left_out_after_lr_find_and_validate(book):
    learn = plain(book, {})
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(show_plot=False)
        assert "after a fit" in diagnose(learn).verdict and not len(diagnose(learn).table)
    fitted(learn, wd=0.02)
    assert list(diagnose(learn).table.index) == ["wd"]
    with learn.no_bar():
        learn.validate()
    assert list(diagnose(learn).table.index) == ["wd"], "the optimizer still knows its decay"


def test_fastais_default_decay_is_run_3_for_ones_own_model_and_a_difference_for_collab_learner(book):
    learn = fitted(plain(book, {}), wd=None)
    assert "run 3" in diagnose(learn).verdict and not len(diagnose(learn).table)
    (line,) = diagnose(learn, against=4).table.itertuples()
    assert (line.found, line.remedy) == ("0.01", "fit_one_cycle(..., wd=0.1)")
    theirs = fitted(collab_learner(plain(book, {}).dls, n_factors=50, y_range=(0, 5.5)), wd=None)
    assert diagnose(theirs).table["found"].to_dict() == {"wd": "0.01"} and "run 6" in diagnose(theirs).verdict


def test_a_networks_layers_and_embeddings_are_looked_at(book):
    learn = collab_learner(
        plain(book, {}).dls, use_nn=True, y_range=(0, 5.5), layers=[20], emb_szs={"user": 7}
    )
    assert diagnose(learn).table.loc[["factors", "layers"], "found"].str.contains(r"\[7|\[20\]").all()


def test_what_is_no_learner_on_collab_data_is_refused(book):
    learn = plain(book, {})
    learn.dls = [torch.utils.data.DataLoader([1])] * 2
    learn.dls = type("Dls", (), {"train": learn.dls[0], "valid": learn.dls[1]})()
    for thing, message in (
        (learn, "CollabDataLoaders"),
        (3, "no losses"),
        ([], "no losses"),
        (None, "no losses"),
    ):
        with pytest.raises(DiagnosisError, match=message):
            diagnose(thing)
    with pytest.raises(DiagnosisError, match="no run 9"):
        diagnose(plain(book, {}), against=9)


# --- what a difference does -----------------------------------------------------------------------


def test_an_effect_is_the_one_measured_nearest_to_what_was_found(book):
    def effect(**change):
        return diagnose(fitted(plain(book, {}), **change), against=4).table["effect on valid_loss"].iloc[0]

    known = pd.read_csv(EFFECTS, dtype={"value": str}, keep_default_na=False)
    row = known[(known["setting"] == "wd") & (known["value"] == "0.01")].iloc[0]
    assert effect(wd=0.01) == f"{row['mean']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
    assert effect(wd=0.012) == effect(wd=0.01) + ", measured at 0.01"
    assert effect(epochs=8).endswith("measured at 10")
    assert diagnose(plain(book, together("other data"))).table["effect on valid_loss"].tolist() == [
        "not measured"
    ]


def test_every_change_is_measured_and_kept_and_its_interval_holds_its_mean():
    known = pd.read_csv(EFFECTS, dtype={"value": str}, keep_default_na=False)
    kept = set(zip(known["setting"], known["value"], strict=True))
    assert kept == {(setting, str(value)) for setting, value in CHANGES} | {
        ("loader", str(run)) for run in RUNS
    }
    assert ((known["low"] <= known["mean"]) & (known["mean"] <= known["high"])).all() and (
        known["n"] >= 10
    ).all()


def test_measuring_compares_seed_by_seed_with_the_unchanged_model(few):
    told = []
    (row,) = measure(few, [("factors", 5)], range(3), told.append).itertuples()
    apart = finals(few, range(3), "factors", 5) - finals(few, range(3))
    assert (row.mean, row.sd, row.n) == pytest.approx((apart.mean(), apart.std(ddof=1), 3))
    assert row.low < row.mean < row.high and told == [15]


def test_every_setting_is_really_changed(few):
    few = few.assign(title=few["title"].str[::-1])  # in another order than the ids
    ends = {"": finals(few, [0]).item()}
    for setting, value in dict(reversed(CHANGES)).items():
        ends[setting] = finals(few, [0], setting, value).item()
    assert len(ends) == 17 == len(set(ends.values())), ends


def test_the_command_measures_what_diagnose_reads(few, tmp_path, monkeypatch, capsys):
    args = argparse.Namespace(splits=3, out=tmp_path, effects=True)
    monkeypatch.setattr(chapter8, "CHANGES", CHANGES[:1])
    monkeypatch.setattr(chapter8, "EFFECT_SEEDS", 2)
    bar = tqdm(file=StringIO())
    chapter8.chapter_command(args, few, bar)
    assert bar.n == bar.total == 5 * (2 * len(RUNS) * 3 + 2) and bar.disable, "closed at the end"
    kept = pd.read_csv(tmp_path / "effects.csv", dtype={"value": str}, keep_default_na=False)
    assert list(kept.columns) == list(pd.read_csv(EFFECTS).columns) and len(kept) == len(RUNS) + 1
    assert set(kept["n"]) == {2} and kept["value"].tolist() == [*map(str, RUNS), str(CHANGES[0][1])]
    monkeypatch.setattr(diagnosis, "SPREAD", tmp_path / "spread.csv")
    means, covariance = spread()
    losses = pd.read_csv(tmp_path / "chapter.csv")
    drawn = losses["data"].str.contains("replacement")
    own = losses[(losses["run"] == 4) & (losses["split"] < 2) & drawn & (losses["epoch"] == 4)]
    assert means.loc[(4, 1), "valid 4"] == pytest.approx(own["valid_loss"].mean(), abs=1e-6)
    apart = (
        losses[losses["split"] < 2]
        .groupby(["run", "data"])["valid_loss"]
        .apply(lambda v: v.iloc[4] - v.iloc[9])
    )
    assert covariance[9, 9] == pytest.approx((apart**2).sum() / 2 / 16, abs=1e-6)
    table = capsys.readouterr().out.split("nearest to:")[1]
    assert len(re.findall(r"(?m)^\dr? .*\b1\b", table)) == 16, "a held-out training of each kind"


# --- pasted losses --------------------------------------------------------------------------------

GROUPS = {1: "1", 2: "2", 3: "3", 4: "4, 5 or 6", 5: "4, 5 or 6", 6: "4, 5 or 6", 7: "7", 8: "8"}


@pytest.mark.parametrize("number", RUNS)
def test_all_published_tables_are_named(number):
    verdict = diagnose(published(number)).verdict
    assert verdict == f"These losses fit run {GROUPS[number]} of the chapter, with {DRAWN[0]}."


def test_the_reprinted_table_1_is_named_a_run_with_y_range():
    assert "fit run 2 of the chapter" in diagnose(published(1, reprinted=True)).verdict


ROWS = [(0.972090, 0.962366), (0.875591, 0.885106), (0.723798, 0.839880), (0.586002, 0.823225)]
ROWS += [(0.490980, 0.823060)]


def printed(sep="\t", head="epoch train_loss valid_loss time", row="{} {:.6f} {:.6f} 00:07"):
    lines = [head, *(row.format(epoch, *losses) for epoch, losses in enumerate(ROWS))]
    return "\n".join(sep.join(line.split()) for line in lines)


CELLS = re.sub(r"(\S+)", r"<td>\1</td>", printed(" "))
FORMS = {
    "copied from a notebook": printed(),
    "printed by a console": "epoch     train_loss  valid_loss  time    \n"
    + printed("      ").split("\n", 1)[1],
    "with a metric and words around": "Better:\n"
    + printed(" ", "epoch train_loss valid_loss mae time", "{} {} {} 0.7 01:02")
    + "\nthat was all 1 2",
    "HTML": f"<table border='1'>\n<thead><tr>{CELLS}".replace("\n", "</tr>\n<tr>") + "</tr></table>",
    "HTML in one line": f"<table><tr>{CELLS}".replace("\n", "</tr><tr>") + "</tr></table>",
    "Markdown": "|" + printed(" | ").replace("\n", " |\n|---|---|---|---|\n|", 1).replace("\n0", "\n| 0"),
    "rows": ROWS,
    "recorder.values": [[*row, 0.9] for row in ROWS],
    "an array": np.array(ROWS),
    "a frame": pd.DataFrame(ROWS, columns=["train_loss", "valid_loss"]),
    "a frame in another order": pd.DataFrame(ROWS, columns=diagnosis.LOSSES)
    .rename_axis("epoch")
    .reset_index()[::-1],
    "rows that count the epochs": [(epoch, *row) for epoch, row in enumerate(ROWS)],
    "from 1, and the time": [[epoch, *row, "00:07"] for epoch, row in enumerate(ROWS, 1)],
    "an array with the epochs, in another order": np.column_stack([range(5), ROWS])[[3, 1, 0, 4, 2]],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_table_is_read_in_every_form(form):
    pd.testing.assert_frame_equal(diagnose(FORMS[form]).table, diagnose(published(4)).table)


@pytest.mark.parametrize(
    "losses, message",
    [
        ("no table at all", "no line 'epoch train_loss"),
        (printed() + "\n" + printed(), "2 tables"),
        (printed().replace("0.972090", "nan"), "no losses"),
        (printed().replace("0.972090", "None"), "no losses"),
        (ROWS[:3], "has 3 epochs"),
        (pd.DataFrame({"train_loss": [1.0]}), "columns train_loss and valid_loss"),
        (published(4, 5), "one row an epoch"),
        ([(1, 2), (3,)], "no losses"),
        ([(epoch, row[1]) for epoch, row in enumerate(ROWS)], "no losses"),
    ],
)
def test_what_is_no_table_of_five_epochs_is_refused_in_one_line(losses, message):
    with pytest.raises(DiagnosisError, match=message) as error:
        diagnose(losses)
    assert "\n" not in str(error.value)


def test_losses_of_none_of_the_runs_are_said_to_be_none():
    for shift in (0.1, -0.1):
        assert (
            "fit none of the chapter's runs"
            in diagnose([(train, valid + shift) for train, valid in ROWS]).verdict
        )
    assert "none" in diagnose(np.ones((5, 2))).verdict


def test_distance_and_probability_by_hand():
    means, covariance = spread()
    table = diagnose(ROWS).table
    apart = np.array(ROWS).T.ravel() - means.loc[(4, 0)].to_numpy()
    (row,) = table[(table["run"] == RUNS[4].name) & (table["loader"] == "every row once")].itertuples()
    square = apart @ np.linalg.inv(covariance) @ apart
    assert row.distance == pytest.approx(np.sqrt(square / 10), abs=0.006)
    assert table["probability"].sum() == pytest.approx(1, abs=0.01) and len(table) == 16
    assert table["distance"].is_monotonic_increasing


def test_the_kept_spread_is_that_of_sixteen_distributions():
    means, covariance = spread()
    assert means.index.tolist() == [(run, way) for run in RUNS for way in (0, 1)]
    assert np.allclose(covariance, covariance.T) and (np.linalg.eigvalsh(covariance) > 0).all()
    by_loader = means.xs(0, level=1) - means.xs(1, level=1)
    assert (by_loader["train 1"] > 0.03).all(), "the fingerprint"
    assert (by_loader["valid 4"] < 0).all(), "drawing with replacement ends higher"


def test_fresh_runs_with_either_loader_are_recognised(ml100k):
    """A split that the kept distributions have not seen."""
    learns = [run_learner(ml100k, 4, split=100, replacement=way) for way in (False, True)]
    fit(learns)
    for learn, words in zip(learns, DRAWN, strict=True):
        verdict = diagnose(curve(learn)).verdict
        assert re.match(
            rf"These losses fit run [456, or]+ of the chapter, with {re.escape(words)}\.", verdict
        )


# --- how it is shown ------------------------------------------------------------------------------


def test_it_shows_the_verdict_and_then_the_table(book):
    nothing, something = diagnose(run_learner(book, 4)), diagnose(plain(book, together("five factors")))
    assert str(nothing) == repr(nothing) == nothing.verdict and "<table" not in nothing._repr_html_()
    assert repr(something).startswith(something.verdict + "\n\n") and "factors" in repr(something)
    assert something._repr_html_().count("<table") == 1 and something.verdict in something._repr_html_()
