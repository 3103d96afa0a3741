"""The user's own ratings, from a table in a file as it is found in the world."""

import csv
import errno
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pandas as pd

from .content import MOST, TOO_LARGE, text_in, unpacked
from .notes import RatingsUnavailable, kept, note, reason
from .roles import is_named

SUFFIXES = ".csv", ".tsv", ".txt", ".dat", ".data", ".inter", ".gz", ".bz2", ".xz", ".zip", ".parquet"
SEPARATORS = "\t", "::", ";", "|", ",", " "  # the likelier ones first
HEAD = 1 << 18  # letters in which separator and header are looked for
NUMBER = re.compile(r"[-+]?(\d+[.,]?\d*|[.,]\d+)(e[-+]?\d+)?", re.IGNORECASE)
REMEDIES = {
    errno.ELOOP: "give the file itself, not a link that leads back to itself",
    errno.EACCES: "give yourself the permission (chmod u+r)",
}
csv.field_size_limit(1 << 30)  # letters: a title may be as long as it likes


def load_own(path: str | Path, least: int = 3) -> pd.DataFrame:
    """The table in a file: text with a separator, plain or packed (.gz, .bz2, .xz, .zip), or Parquet.

    What is certain is recognised: the separator (comma, semicolon, tab, |, :: or blanks) that makes `least`
    columns or more, columns with decimal commas, UTF-8, UTF-16, UTF-32 and Western European text, comment
    lines (# or %) above the table, and a missing header row, after which the columns are called user, item,
    rating, column 3, ... or, if there are two, title and stars. Whatever else is guessed at stands in a
    warning or is refused. Only an empty field is a missing value: a film may be called NA. Ids with leading
    zeros or of more than 18 digits stay text, as do whole numbers written in two ways (1 and 1.0).

    `.attrs` holds the file's `name` and a sentence on its `source`; `kept` has, for text, the `lines` of the
    rows: that of the first, and the rows that another line comes before. Raises `RatingsUnavailable`.
    """
    file = Path(path).expanduser()
    try:
        if file.exists() and not file.is_file():
            raise ValueError("is a folder, a pipe or a device; give the file that holds the ratings")
        if file.stat().st_size > MOST:
            raise ValueError(TOO_LARGE)
        content = unpacked(file.read_bytes())
        parquet = content.startswith(b"PAR1")
        ratings = _parquet(content) if parquet else _table(text_in(content), least)
    except OSError as error:
        remedy = REMEDIES.get(error.errno, "correct the path")
        raise RatingsUnavailable(f"{file}: {reason(error)}; {remedy}") from error
    except ValueError as problem:  # which says what to do
        raise RatingsUnavailable(f"{file}: {problem}") from problem
    ratings.attrs.update(name=file.name, source=f"{file.name}, {len(ratings):,} ratings")
    return ratings


def _parquet(content: bytes) -> pd.DataFrame:
    try:
        ratings = pd.read_parquet(BytesIO(content))
    except Exception as error:  # without pyarrow, or of pyarrow's own kind
        remedy = "python -m pip install pyarrow, get the file again, or save it as .csv"
        raise ValueError(f"is a Parquet file that can't be read ({reason(error)[:200]}); {remedy}") from error
    return ratings.reset_index(drop=ratings.index.names == [None])


def _table(text: str, least: int) -> pd.DataFrame:
    """The DataFrame in `text`, of `least` columns or more."""
    top = re.match(r"([^\S\n]*\n|[#%].*\n|sep=.\n)*", text)[0]
    text = "\n" * top.count("\n") + text[len(top) :]  # every line keeps its number
    end = text.find("\n", HEAD)
    head = [row for row in text[: end if end > 0 else None].split("\n") if row.strip()]
    if not head:
        raise ValueError("holds no rows; give the file with the ratings")
    sep = _separator(head, least)
    if sep == "::":  # pandas is fast with one letter
        head, text, sep = [row.replace("::", "\x1f") for row in head], text.replace("::", "\x1f"), "\x1f"
    text = re.sub(rf'(?m)" +(?={re.escape(sep)}|$)', '"', text)  # blanks that csv refuses
    first, *others = ([cell.strip() for cell in row] for row in _fields(head, sep))
    shown, comments = ", ".join(first)[:60], re.findall(r"(?m)^[#%]+ *(.*)", top)
    if first == [str(place) for place in range(len(first))]:
        raise ValueError(f"the first line ({shown}) may be header or row; put a header row above it")
    if no_header := any(map(NUMBER.fullmatch, first)):
        names = next(_fields(comments[-1:], sep), [])
        if len(names) != len(first):
            names = ["user", "item", "rating"] if len(first) > 2 else ["title", "stars"][: len(first)]
            names += (f"column {n}" for n in range(3, len(first)))
            told = f"the first line ({shown}) is no header: the columns are {', '.join(names)}"
            note(f"{told}; put a header row above it if they are others", stacklevel=5)
    else:
        names = [name or f"Unnamed: {place}" for place, name in enumerate(first)]
    if len({*names}) < len(names):
        raise ValueError(f"two columns are called {max(names, key=names.count)!r}; rename one of them")
    commas = any(re.fullmatch(r"-?\d+,\d+", cell) for row in others for cell in row)
    try:
        lines, quoting = _lines(text, sep), csv.QUOTE_MINIMAL
    except ValueError:
        if sep in ",;":
            raise
        lines, quoting = _lines(text.replace('"', ""), sep), csv.QUOTE_NONE  # letters, as in MovieLens' files
    form = {"sep": sep, "skipinitialspace": True} if sep != " " else {"sep": r"\s+"}
    form |= {"names": names, "header": None if no_header else 0, "quoting": quoting}
    ratings = _read(text, commas, **form)
    lines = lines[int(not no_header) :]
    if len(lines) == len(ratings) > 0:
        gaps = np.repeat(np.arange(1, len(lines)), np.diff(lines) - 1)
        kept(ratings, lines=(int(lines[0]), tuple(gaps.tolist())))
    return ratings


def _fields(rows: Iterable[str], sep: str, **kwargs) -> Iterator[list[str]]:
    """The fields of each row."""
    if sep == "::":
        return (row.split("::") for row in rows)
    return csv.reader(rows, delimiter=sep, skipinitialspace=True, **kwargs)


def _separator(head: list[str], least: int) -> str:
    """The one that makes equally many fields of each line and most numbers, else the first line's."""

    def rank(sep: str) -> tuple[bool, bool, int]:
        rows = list(_fields([row.rstrip(" ") for row in head], sep))
        if least <= len(rows[0]) and len({*map(len, rows)}) == 1:
            return True, sep != " ", sum(bool(NUMBER.fullmatch(cell.strip())) for row in rows for cell in row)
        return False, sep != " " and sep in head[0], head[0].count(sep)

    return max(SEPARATORS, key=rank)


def _lines(text: str, sep: str) -> Sequence[int]:
    """The line, from 1, on which each record of `text` starts.

    Raises ValueError for a quotation mark that nothing closes or that swallows rows.
    """
    above, inner = len(text) - len(text.lstrip("\n")), text.strip("\n")
    if '"' not in text and not re.search(r"\n[^\S\n]*\n", inner):  # every line is a record
        return range(above + 1, above + inner.count("\n") + 2)
    lines, next_line, width, problem, rows = [], 1, 0, "nothing closes", text.split("\n")
    reader = _fields(rows, sep, strict=True)
    try:
        for record in reader:
            lines += [next_line] * any(field.strip() for field in record)
            width = width or len(record)
            if reader.line_num > next_line and _are_rows(rows[next_line - 1 : reader.line_num], width, sep):
                problem = "swallows rows"
                raise csv.Error
            next_line = reader.line_num + 1
    except csv.Error:
        remedy = 'remove it, or write "" for it inside quotation marks'
        raise ValueError(f"line {next_line:,} has a quotation mark that {problem}; {remedy}") from None
    return lines


def _are_rows(lines: list[str], width: int, sep: str) -> bool:
    """Whether all lines that aren't blank have `width` fields, one of which is a number in all of them."""
    rows = [line.replace('"', "").split(sep) for line in lines if line.strip()]
    numbers = [{at for at, cell in enumerate(row) if NUMBER.fullmatch(cell.strip())} for row in rows]
    return {*map(len, rows)} == {width} and bool(set.intersection(*numbers))


def _read(text: str, commas: bool, **form) -> pd.DataFrame:
    """The table by pandas: ids that change as numbers as text; `commas`: some may be decimal ones."""
    form |= {"low_memory": False, "keep_default_na": False, "na_values": [""]}
    try:
        ratings = pd.read_csv(StringIO(text), **form)
    except ValueError as error:
        told = reason(error).removeprefix("Error tokenizing data. C error: ")
        raise ValueError(f"{told}; correct it, or put fields that hold a separator in quotes") from error
    if not isinstance(ratings.index, pd.RangeIndex):
        raise ValueError("rows have more fields than the header; correct the file")
    for name in ratings if commas else ():
        if not is_named(name, "user") and not is_named(name, "item"):
            with suppress(ValueError, AttributeError):  # text that holds no numbers, and what is no text
                ratings[name] = pd.to_numeric(ratings[name].str.replace(",", "."))
    zeros = re.search(rf'[-\s"{form["sep"]}]([0+]\d|\d{{19}})', f"\n{text}")
    floats = ratings.select_dtypes("float")
    odd = ratings.columns if zeros else floats.columns[~(floats % 1 > 0).any()]
    odd = [name for name in odd if not is_named(name, "rating")]
    for name, ids in pd.read_csv(StringIO(text), **form, dtype=str, usecols=odd).items() if odd else ():
        ids, column = ids.str.strip(), ratings[name]
        if ids.str.contains(",").any():
            continue
        if ids.str.match(r"0\d|-?\d{19}").any():
            ratings[name] = ids
        elif column.dtype.kind in "iuf" and ids.nunique() > column.nunique():
            one, other, *_ = max(ids.groupby(column).unique(), key=len)
            told = f"column {name!r} is kept as text, in which {one!r} and {other!r} are two ids"
            note(f"{told}; write each number in one way if they are one", stacklevel=6)
            ratings[name] = ids
    return ratings
