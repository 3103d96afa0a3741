"""Why a run's losses are not the book's: what differs in its Learner, or which run its table is."""

import math
import re
from ast import literal_eval
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..chapter import RUNS

EFFECTS = Path(__file__).with_name("effects.csv")  # what each difference does to the validation MSE
SPREAD = Path(__file__).with_name("spread.csv")  # how the eight runs' losses are spread over splits
LIMIT = 2.5  # standard deviations; of the trainings on held-out splits the farthest was 2.3 from its own run
LIKELY = 0.05  # probability below which a run is not named
DRAWN = (
    "every row served once an epoch",
    "its rows drawn with replacement, as fastai's default loader does; dl_type=TabDataLoader cures it",
)
LOADERS = "every row once", "with replacement"
LOSSES = ["train_loss", "valid_loss"]


class DiagnosisError(ValueError):
    """Something that is neither a Learner on CollabDataLoaders nor a table of five epochs' losses."""


@dataclass(frozen=True)
class Diagnosis:
    """A sentence and the table behind it."""

    verdict: str
    table: pd.DataFrame

    def __str__(self) -> str:
        return "\n\n".join([self.verdict, self.table.to_string()] if len(self.table) else [self.verdict])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<p>{self.verdict}</p>" + (self.table.to_html() if len(self.table) else "")


def diagnose(run: object, against: int | None = None) -> Diagnosis:
    """Why your numbers are not the book's: a verdict and a table. `run` is either of two.

    - A fastai Learner on CollabDataLoaders, before or after fitting. A row for each difference from the
      chapter's run that it is most like (or the run `against`): what was found, what the chapter has, its
      effect on the final validation MSE, and the remedy. The effect is that on run 4 (of the loader, on the
      run itself), a mean over paired seeds with its 95 % interval, at the measured value nearest to the one
      found. Nothing is trained or changed. What only a fit shows (epochs, learning rate, schedule) is left
      out before one, and after `validate()`.
    - A table of losses: what fastai printed, as text or HTML, a DataFrame with train_loss and valid_loss,
      or rows (train, valid) or (epoch, train, valid). A row for each run of the chapter with both loaders,
      nearest first: `distance`, in standard deviations between splits (root mean square over the ten losses,
      their correlation taken into account), and `probability`, that the table is that run if it is one.

    Raises `DiagnosisError` for anything else.
    """
    return _of_learner(run, against) if hasattr(run, "dls") else _of_losses(pasted(run))


def _of_learner(learn, against: int | None) -> Diagnosis:
    from .inspecting import inspect

    if against not in (None, *RUNS):
        raise DiagnosisError(f"the chapter has no run {against}; give one from 1 to {len(RUNS)}")
    try:
        run, findings, fitted = inspect(learn, against)
    except TypeError as error:
        raise DiagnosisError(f"{error}; make them with CollabDataLoaders.from_df") from None
    effects = pd.read_csv(EFFECTS, dtype={"value": str}, keep_default_na=False)
    rows = [
        (*shown, _effect(effects, setting, run.number if setting == "loader" else value), remedy)
        for setting, *shown, remedy, value in findings
    ]
    columns = ["found", "the chapter's", "effect on valid_loss", "remedy"]
    table = pd.DataFrame(rows, [setting for setting, *_ in findings], columns, dtype=str)
    count = f"{len(table)} difference{'s' * (len(table) != 1)}" if len(table) else "No difference"
    yet = "" if fitted else " Epochs, learning rate and schedule show after a fit."
    return Diagnosis(f"{count} from the chapter's run {run.number} ({run.name}).{yet}", table)


def _effect(effects: pd.DataFrame, setting: str, value: object) -> str:
    """The measured effect of `setting` at the value nearest to `value`, as text."""
    known = effects[effects["setting"] == setting]
    apart = [_apart(value, text) for text in known["value"]]
    if (value is None and setting != "y_range") or not len(known) or min(apart) == math.inf:
        return "not measured"
    row = known.iloc[int(np.argmin(apart))]
    at = "" if min(apart) < 1e-6 else f", measured at {row['value']}"
    return f"{row['mean']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}){at}"


def _apart(value: object, measured: str) -> float:
    """How far a setting's value is from one in effects.csv: numbers by their ratio, ranges by their ends."""
    if isinstance(value, tuple) and measured.startswith("("):
        return sum(abs(a - b) for a, b in zip(value, literal_eval(measured), strict=True))
    with suppress(TypeError, ValueError):
        return abs(math.log(max(float(value), 1e-3) / max(float(measured), 1e-3)))
    return 0 if str(value) == measured else math.inf


def pasted(losses: object) -> np.ndarray:
    """The losses of a fitted Learner, in text that fastai printed, in a DataFrame or in rows: (epochs, 2).

    Raises `DiagnosisError` where no such table, or more than one, is found.
    """
    losses = losses.recorder.values if hasattr(losses, "recorder") else losses
    if isinstance(losses, str):
        losses = _printed(losses)
    if isinstance(losses, pd.DataFrame):
        if not set(LOSSES) <= set(losses) or losses.get("epoch", pd.Series(dtype=int)).duplicated().any():
            raise DiagnosisError(f"the table needs columns {' and '.join(LOSSES)}, and one row an epoch")
        losses = (losses.sort_values("epoch") if "epoch" in losses else losses)[LOSSES]
    try:
        rows = [list(row) for row in np.asarray(losses, dtype=object)]
        first = [float(row[0]) for row in rows]
        if sorted(first) in ([*range(len(rows))], [*range(1, len(rows) + 1)]):  # it counts the epochs
            rows = [rows[at][1:] for at in np.argsort(first)]
        rows = np.array([row[:2] for row in rows], dtype=float)
    except (IndexError, TypeError, ValueError):
        rows = np.zeros(0)
    if rows.ndim != 2 or rows.shape[1] != 2 or not np.isfinite(rows).all():
        raise DiagnosisError(
            f"no losses in {str(losses)[:60]!r}: give the table that fastai printed, with its first line "
            "(epoch, train_loss, valid_loss, time), or rows of a training and a validation loss"
        )
    return rows


def _printed(text: str) -> pd.DataFrame:
    """The table in what fastai printed: its columns, as they stand there."""
    text = re.sub(r"</tr\s*>", "\n", text, flags=re.IGNORECASE) if "<t" in text else text
    text = re.sub(r"(?s)<[^>]*>", lambda tag: "\n" if tag[0].lower() == "<tr>" else " ", text)
    lines = [line.replace("|", " ").split() for line in text.splitlines()]
    heads = [at for at, words in enumerate(lines) if {"epoch", *LOSSES} <= set(words)]
    if len(heads) != 1:
        problem = f"{len(heads)} tables" if heads else "no line 'epoch train_loss valid_loss time'"
        raise DiagnosisError(f"the text has {problem}; paste one table that fastai printed, with that line")
    names = lines[heads[0]]
    rows = [words for words in lines[heads[0] + 1 :] if len(words) == len(names) and words[0].isdecimal()]
    return pd.DataFrame(rows, columns=names)


def spread() -> tuple[pd.DataFrame, np.ndarray]:
    """How the chapter's runs' losses are spread over splits, as spread.csv has it.

    Mean losses, (16, 10): a row for each run and loader (0: every row once, 1: with replacement), training
    losses of epochs 0 to 4, then validation losses; and the covariance that all share, (10, 10).
    """
    table = pd.read_csv(SPREAD, index_col=["run", "replacement"])
    means = table[table.index.get_level_values("run") > 0]
    return means, table.drop(means.index).to_numpy()


def distances(losses: np.ndarray, means: pd.DataFrame, covariance: np.ndarray) -> pd.Series:
    """How far `losses` (5, 2) are from each of `means`, in standard deviations, root mean square."""
    apart = losses.T.ravel() - means.to_numpy()
    square = np.einsum("ij,ij->i", apart, np.linalg.solve(covariance, apart.T).T)
    return pd.Series(np.sqrt(square / apart.shape[1]), means.index)


def _of_losses(losses: np.ndarray) -> Diagnosis:
    if len(losses) != 5:
        raise DiagnosisError(f"the table has {len(losses)} epochs, and all of the chapter's runs have 5")
    apart = distances(losses, *spread())
    likely = np.exp(losses.size * (apart.min() ** 2 - apart**2) / 2)
    table = pd.DataFrame({"distance": apart.round(2), "probability": (likely / likely.sum()).round(3)})
    table.insert(0, "run", [RUNS[run].name for run, _ in apart.index])
    table.insert(1, "loader", [LOADERS[replacement] for _, replacement in apart.index])
    table = table.droplevel("replacement").rename_axis(None).iloc[np.argsort(apart)]
    named = table[table["probability"] >= LIKELY]
    *first, last = sorted(set(named.index))
    runs = f"run {', '.join(map(str, first))} or {last}" if first else f"run {last}"
    how = " or ".join(dict.fromkeys(named["loader"]))
    if (away := table["distance"].iloc[0]) > LIMIT:
        nearest = f"nearest is {runs} ({how}), {away:.1f} standard deviations away"
        return Diagnosis(f"These losses fit none of the chapter's runs: {nearest}.", table)
    told = DRAWN[LOADERS.index(how)] if how in LOADERS else f"rows served {how}"
    return Diagnosis(f"These losses fit {runs} of the chapter, with {told}.", table)
