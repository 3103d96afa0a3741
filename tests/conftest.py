"""Ratings for the tests: planted ones always, MovieLens 100K where it can be had."""

import os
import signal

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from collab_repro import RatingsUnavailable, load_ratings
from collab_repro.sources.notes import SAID
from collab_repro.sources.planted import Truth, planted_ratings


@pytest.fixture(autouse=True)
def one_thread():
    """Batches this small only lose by a second thread."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def nothing_said():
    """Each test may hear every note."""
    SAID.clear()


@pytest.fixture
def interruptible():
    """Commands started by the test heed Ctrl-C, also where a shell started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def no_figures_left():
    """Figures are closed after each test."""
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def planted() -> pd.DataFrame:
    """A few thousand planted ratings: enough to train on in a second."""
    return planted_ratings(n_users=120, n_movies=90, n_ratings=4000, n_factors=3, seed=1)[0]


@pytest.fixture(scope="session")
def few() -> pd.DataFrame:
    """Fewer still: 16 batches of 64 to train on and 4 to validate on."""
    return planted_ratings(n_users=60, n_movies=45, n_ratings=1280, n_factors=3, seed=1)[0]


@pytest.fixture(scope="session")
def planted_full() -> tuple[pd.DataFrame, Truth]:
    """Planted ratings of MovieLens 100K's size, and the truth behind them."""
    return planted_ratings()


@pytest.fixture(scope="session")
def ml100k() -> pd.DataFrame:
    """The real ratings. Without them the test is skipped, or fails where COLLAB_REPRO_REQUIRE_REAL=1."""
    try:
        return load_ratings()
    except RatingsUnavailable as why:
        if os.environ.get("COLLAB_REPRO_REQUIRE_REAL") == "1":
            raise
        pytest.skip(f"MovieLens 100K could not be had: {why}")
