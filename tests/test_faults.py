"""Faults once reported: numbers that were quietly wrong, work that was lost, tracebacks without a line."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch

from collab_repro import BadRatings, Learned, curve, fit, learner, predict
from collab_repro.__main__ import main
from collab_repro.command.chapter8 import constant_mse
from collab_repro.command.folder import CURVES
from collab_repro.processes import usable_cores
from collab_repro.recommending.learned import LearnedFileError
from collab_repro.sources.files import FileError, read_losses, write_table


@pytest.fixture(scope="module")
def pair(planted):
    learns = [learner(planted, seed=s, n_factors=4) for s in (0, 1)]
    fit(learns, 1)
    return learns


def test_skipped_epochs_are_left_out_of_the_curve(planted):
    learn = learner(planted, n_factors=4)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(3, 5e-3, start_epoch=1)
    table = curve(learn)
    assert table["epoch"].tolist() == [1, 2] and table.notna().all(axis=None)


def test_a_training_without_validation_rows_has_a_curve(planted):
    learns = [learner(planted, seed=s, n_factors=4, valid_pct=0) for s in (0, 1)]
    fit(learns, 2)
    for learn in learns:
        assert curve(learn)["train_loss"].notna().all() and curve(learn)["valid_loss"].isna().all()


def test_learners_made_in_several_threads_start_as_in_one(planted):
    state, together = torch.get_rng_state(), threading.Barrier(2)

    def start(seed):
        together.wait()
        return [p.detach().clone() for p in learner(planted, seed=seed, n_factors=4).model.parameters()]

    for _ in range(3):
        with ThreadPoolExecutor(2) as pool:
            each = list(pool.map(start, (0, 1)))
        for seed, weights in enumerate(each):
            alone = learner(planted, seed=seed, n_factors=4).model.parameters()
            assert all(torch.equal(a, b) for a, b in zip(weights, alone, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_predict_takes_any_collection_of_models_and_no_doubled_column(pair, planted):
    rows = planted.iloc[pair[0].dls.train_ds.items.index[:50]]
    mean = (predict(pair[0], rows, "average") + predict(pair[1], rows, "average")) / 2
    for models in (pair, tuple(pair), dict(enumerate(pair)).values(), iter(pair)):
        assert np.allclose(predict(models, rows, "average"), mean)
    with pytest.raises(ValueError, match="one model at least"):
        predict([], rows)
    with pytest.raises(ValueError, match="2 columns 'title'"):
        predict(pair[0], pd.concat([rows, rows[["title"]]], axis=1))


def test_chunks_make_no_difference(pair, planted, monkeypatch):
    whole = predict(pair[0], planted, "average")
    monkeypatch.setattr("collab_repro.recommending.predicting.CHUNK", 7)
    assert predict(pair[0], planted, "average").equals(whole)


@pytest.mark.parametrize("bs", [0, -1])
def test_a_batch_of_nothing_is_refused(planted, bs):
    with pytest.raises(BadRatings, match="batch"):
        learner(planted, bs=bs)


def test_a_packed_or_odd_kept_model_is_refused_before_it_is_unpacked(pair, tmp_path):
    kept = tmp_path / "kept.npz"
    Learned.of(pair[0]).save(kept)
    with np.load(kept) as file:
        np.savez_compressed(tmp_path / "packed.npz", **file)
    with pytest.raises(LearnedFileError, match="compressed"):
        Learned.load(tmp_path / "packed.npz")
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(FileError, match="not a regular file"):
        Learned.load(tmp_path / "pipe.npz")


ROWS = [("d", "a", seed, epoch, 1.0, 0.9, 0.1) for seed in (0, 1) for epoch in (0, 1)]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda text: text.splitlines()[0] + "\n", "cut off"),
        (lambda text: text[:-3], "cut off"),
        (lambda text: text + text.splitlines()[-1] + "\n", "row 4"),
        (lambda text: text.replace("0.9", "inf", 1), "row 0"),
        (lambda text: text.replace("0.9", "", 1), "row 0"),
        (lambda text: text.replace("a,1,1", "a,1,x"), "row 3|not a table"),
        (lambda text: text.replace("a,1,1", "a,1.5,1"), "row 3|not a table"),
        (lambda text: text.replace("a,1,1", "a,1,99999999999999999999"), "row 3"),
        (lambda text: text.replace("a,1,1", "a,1,1e300"), "row 3"),
        (lambda text: text.replace("0.9,0.1", "0.9,soon", 1), "not a table"),
        (lambda text: text.replace("0.9", "nine", 1), "not a table"),
        (lambda text: "", "not a table"),
    ],
)
def test_an_edited_or_cut_table_is_named_with_its_row(tmp_path, capsys, spoil, said):
    file = tmp_path / "curves.csv"
    write_table(file, pd.DataFrame(ROWS, columns=CURVES))
    assert len(read_losses(file, CURVES)) == 4
    file.write_text(spoil(file.read_text()))
    with pytest.raises(FileError, match=said):
        read_losses(file, CURVES)
    assert main(["plots", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_plots_makes_no_folder(tmp_path, capsys):
    assert main(["plots", "--out", str(tmp_path / "nowhere")]) == 2
    assert "there is no folder" in capsys.readouterr().err and not (tmp_path / "nowhere").exists()


def test_the_constant_is_the_mean_of_the_training_rows(pair):
    train, valid = (dl.tensors[1].numpy().ravel() for dl in pair[0].dls)
    assert constant_mse(pair[0]) == pytest.approx(np.mean((valid - train.mean()) ** 2), rel=1e-5)


def test_what_a_finished_run_found_is_saved_before_it_is_printed(planted, tmp_path, monkeypatch):
    class Closed:
        def write(self, text):
            if "fastbook chapter 8" in text:
                raise BrokenPipeError

        def flush(self):
            pass

    planted[["user", "title", "rating"]].to_csv(tmp_path / "mine.csv", index=False)
    monkeypatch.setattr("sys.stdout", Closed())
    out = tmp_path / "out"
    command = ["--data", str(tmp_path / "mine.csv"), "--seeds", "1", "--epochs", "1", "--out", str(out)]
    assert main(command) == 141
    assert {"curves.csv", "report.md", "curves.png"} <= {file.name for file in out.iterdir()}


def test_a_title_without_training_rows_costs_its_section_alone(planted, tmp_path, capsys):
    held = learner(planted, seed=0, n_factors=4).dls.valid_ds.items.index
    mine = planted[["user", "title", "rating"]].copy()
    mine.loc[held[0], "title"] = "Only held out"
    mine.to_csv(tmp_path / "mine.csv", index=False)
    command = ["--data", str(tmp_path / "mine.csv"), "--seeds", "1", "--epochs", "1", "--out", str(tmp_path)]
    assert main([*command, "--title", "Only held out"]) == 0
    assert "nothing was learned" in capsys.readouterr().out and (tmp_path / "report.md").exists()


def test_a_daemonic_process_trains_in_itself(monkeypatch):
    class Daemon:
        daemon = True

    monkeypatch.setattr("multiprocessing.current_process", Daemon)
    assert usable_cores() == 1
