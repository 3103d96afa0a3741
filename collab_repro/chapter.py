"""The chapter's eight training runs and what it printed for them, as data. Nothing is computed here.

Source: fastbook chapter 8, one table a run. All runs: MovieLens 100K, batches of 64, 50 factors,
`fit_one_cycle(5, 5e-3)`, MSE. A run "without weight decay" has fastai's default of .01.
"""

from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Run:
    """One table of the chapter.

    `losses`: (training, validation) MSE of each epoch as printed; `reprinted`: what the notebook
    repository's current version shows instead, where that differs.
    """

    number: int
    name: str
    model: str
    wd: float
    y_range: tuple[float, float] | None
    losses: tuple[tuple[float, float], ...]
    reprinted: tuple[tuple[float, float], ...] = ()


Y = (0, 5.5)
RUNS = {
    run.number: run
    for run in (
        Run(1, "dot product, no sigmoid", "DotProduct", 0.01, None,
            ((1.326261, 1.295701), (1.091352, 1.091475), (0.961574, 0.977690),
             (0.829995, 0.893122), (0.781661, 0.876511)),
            ((0.993168, 0.990168), (0.884821, 0.911269), (0.671865, 0.875679),
             (0.471727, 0.878200), (0.361314, 0.884209))),
        Run(2, "dot product", "DotProduct", 0.01, Y,
            ((0.973745, 0.993206), (0.869132, 0.914323), (0.676553, 0.870192),
             (0.485377, 0.873865), (0.377866, 0.877610))),
        Run(3, "bias", "DotProductBias", 0.01, Y,
            ((0.929161, 0.936303), (0.820444, 0.861306), (0.621612, 0.865306),
             (0.404648, 0.886448), (0.292948, 0.892580))),
        Run(4, "bias, weight decay", "DotProductBias", 0.1, Y,
            ((0.972090, 0.962366), (0.875591, 0.885106), (0.723798, 0.839880),
             (0.586002, 0.823225), (0.490980, 0.823060))),
        Run(5, "bias, weight decay, create_params", "DotProductBiasParams", 0.1, Y,
            ((0.962146, 0.936952), (0.858084, 0.884951), (0.740883, 0.838549),
             (0.592497, 0.823599), (0.473570, 0.824263))),
        Run(6, "collab_learner", "EmbeddingDotBias", 0.1, Y,
            ((0.931751, 0.953806), (0.851826, 0.878119), (0.715254, 0.834711),
             (0.583173, 0.821470), (0.496625, 0.821688))),
        Run(7, "CollabNN", "CollabNN", 0.01, Y,
            ((0.940104, 0.959786), (0.893943, 0.905222), (0.865591, 0.875238),
             (0.800177, 0.867468), (0.760255, 0.867455))),
        Run(8, "collab_learner, use_nn", "EmbeddingNN", 0.1, Y,
            ((1.002747, 0.972392), (0.926903, 0.922348), (0.877160, 0.893401),
             (0.838334, 0.865040), (0.781666, 0.864936))),
    )
}  # fmt: skip

# The titles that the chapter lists by movie bias: lowest first, highest first.
BIAS_LISTS = {
    "lowest": {
        "DotProductBias": (
            "Children of the Corn: The Gathering (1996)", "Lawnmower Man 2: Beyond Cyberspace (1996)",
            "Beautician and the Beast, The (1997)", "Crow: City of Angels, The (1996)",
            "Home Alone 3 (1997)"),
    },
    "highest": {
        "DotProductBias": (
            "L.A. Confidential (1997)", "Titanic (1997)", "Silence of the Lambs, The (1991)",
            "Shawshank Redemption, The (1994)", "Star Wars (1977)"),
        "collab_learner": (
            "Titanic (1997)", "Schindler's List (1993)", "Shawshank Redemption, The (1994)",
            "L.A. Confidential (1997)", "Silence of the Lambs, The (1991)"),
    },
}  # fmt: skip


def published(*numbers: int, reprinted: bool = False) -> pd.DataFrame:
    """What the chapter printed for the runs `numbers` (all when none is given), a row an epoch.

    Columns: run, name, model, epoch (from 0), train_loss, valid_loss. With `reprinted`, the values of
    the current notebook where they differ. Raises KeyError for a run the chapter does not have.
    """
    runs = [RUNS[n] for n in numbers or RUNS]
    return pd.DataFrame(
        [
            (run.number, run.name, run.model, epoch, *losses)
            for run in runs
            for epoch, losses in enumerate(run.reprinted if reprinted and run.reprinted else run.losses)
        ],
        columns=["run", "name", "model", "epoch", "train_loss", "valid_loss"],
    )
