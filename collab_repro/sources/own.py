"""The user's own ratings, from a table in a file as it is found in the world."""

import csv
import re
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO, StringIO
from pathlib import Path

import pandas as pd
from pandas.api.types import infer_dtype

from .content import MAX_BYTES, Problem, content_of, text_in, unpacked
from .movielens import RatingsUnavailable, reason
from .notes import note
from .roles import is_named

SUFFIXES = ".csv", ".tsv", ".txt", ".dat", ".data", ".inter", ".gz", ".bz2", ".xz", ".zip", ".parquet"
SEPARATORS = "\t", "::", ";", "|", ",", " "
HEAD = 1 << 18  # letters in which separator and header are looked for
NEWLINE = re.compile(r"\r\n|\r|\n")
NUMBER = re.compile(r"[-+]?(\d+[.,]?\d*|[.,]\d+)(e[-+]?\d+)?", re.IGNORECASE)


def load_own(path: str | Path) -> pd.DataFrame:
    """The table in a file: text with a separator, plain or packed (.gz, .bz2, .xz, .zip), or Parquet.

    What is certain is recognised: the separator (comma, semicolon, tab, |, :: or blanks) and a decimal
    comma beside another separator, UTF-8, UTF-16 and Western European text, comment lines (# or %) above
    the table, and a missing header row, after which the columns are called user, item, rating, column 3, ...
    Whatever else is guessed at stands in a warning or is refused. Only an empty field is a missing value: a
    film may be called NA. Ids with leading zeros stay text.

    `.attrs` holds the file's `name`, a sentence on its `source` and, for text, the `lines` that the rows
    stand on: that of the first, and the rows that another line comes before. Raises `RatingsUnavailable`.
    """
    file = Path(path).expanduser()
    try:
        content = unpacked(content_of(file))
        if content.startswith(b"PAR1"):
            ratings = _parquet(content)
        else:
            ratings = _table(text_in(content), file.suffix.lower())
    except Problem as problem:
        raise RatingsUnavailable(f"{file}: {problem}") from problem
    except (OSError, ValueError, csv.Error) as error:
        raise RatingsUnavailable(f"{file}: {reason(error)}; correct the file or its path") from error
    ratings.attrs.update(name=file.name, source=f"{file.name}, {len(ratings):,} ratings")
    return ratings


def _parquet(content: bytes) -> pd.DataFrame:
    try:
        ratings = pd.read_parquet(BytesIO(content))
    except ImportError:
        raise Problem(
            "is a Parquet file; python -m pip install pyarrow reads it, or save it as .csv"
        ) from None
    except Exception as error:  # of pyarrow's own kind
        raise Problem(f"is no whole Parquet file ({reason(error)}); get it again") from error
    return ratings.reset_index(drop=ratings.index.names == [None])


def _table(text: str, suffix: str) -> pd.DataFrame:
    """The DataFrame in `text`, whose file's name ends in `suffix`."""
    start, line, above = 0, 1, ""  # where the table begins, and the last comment above it
    while top := re.compile(r"([^\S\r\n]*|[#%].*|sep=.)(\r\n|\r|\n)").match(text, start):
        start, line, above = top.end(), line + 1, top[1] if top[1].strip() else above
    text = text[start:]
    head = [row for row in NEWLINE.split(text[:HEAD])[: -1 if len(text) > HEAD else None] if row.strip()]
    if not head:
        raise Problem("holds no rows; give the file with the ratings")
    sep = _separator(head, suffix)
    if sep == "::":
        head, text, sep = [row.replace("::", "\x1f") for row in head], text.replace("::", "\x1f"), "\x1f"
    form = {"sep": r"\s+" if sep == " " else sep, "skipinitialspace": sep != " "}
    first = next(_fields(head, sep))
    if first == [str(place) for place in range(len(first))]:
        raise Problem(
            f"the first line ({', '.join(first)[:60]}) may be header or row; put a header row above it"
        )
    if twice := [name for name in first if name and first.count(name) > 1 and not NUMBER.fullmatch(name)]:
        raise Problem(f"two columns are called {twice[0]!r}; rename one in the first line")
    if any(map(NUMBER.fullmatch, first)):  # a row, not a header
        names = next(_fields([above.lstrip("#% ")], sep), [])  # of the last comment
        if len(names) != len(first):
            names = ["user", "item", "rating", *(f"column {n}" for n in range(3, len(first)))][: len(first)]
            told = (
                f"the first line ({', '.join(first)[:60]}) is no header: the columns are {', '.join(names)}"
            )
            note(f"{told}; put a header row above it if they are others", stacklevel=5)
        form |= {"names": names, "header": None}
    cells = [cell for row in _fields([row for row in head[1:] if len(row) < 9_999], sep) for cell in row]
    comma, point = (any(re.fullmatch(rf"-?\d+{mark}\d+", cell) for cell in cells) for mark in (",", r"\."))
    if comma and not point:
        form["decimal"] = ","
    starts, form["quoting"] = None, csv.QUOTE_MINIMAL
    if '"' in text or re.search(r"\n[^\S\n]*\n", text):  # else every record is a line
        try:
            starts = _starts(text, sep, line)
        except Problem:
            if sep in ",;":
                raise
            form["quoting"] = csv.QUOTE_NONE  # marks are letters, as in MovieLens' own files
            starts = _starts(text, sep, line, csv.QUOTE_NONE)
    ratings = _read(text, form, line)
    ratings.columns = ratings.columns.str.strip()
    header = int("names" not in form)
    starts = range(line, line + len(ratings) + header) if starts is None else starts
    if len(starts) == len(ratings) + header > header:
        extra = zip(range(1, len(ratings)), starts[header:], starts[header + 1 :], strict=False)
        extra = () if isinstance(starts, range) else extra
        ratings.attrs["lines"] = starts[header], tuple(row for row, a, b in extra for _ in range(a + 1, b))
    return ratings


def _fields(rows: list[str], sep: str, **kwargs) -> Iterator[list[str]]:
    """The fields of each row."""
    if sep == "::":
        return (row.split("::") for row in rows)
    return csv.reader(rows, delimiter=sep, skipinitialspace=True, **kwargs)


def _separator(head: list[str], suffix: str) -> str:
    """The separator by which all lines have equally many fields, three at least, else the likeliest one."""
    usual = {".tsv": "\t", ".csv": ","}.get(suffix, SEPARATORS[0])
    for sep in (usual, *SEPARATORS):
        with suppress(csv.Error):  # an open quotation mark
            counts = {len(fields) for fields in _fields([row.rstrip() for row in head], sep)}
            if len(counts) == 1 and min(counts) >= 3:
                return sep
    return max((usual, *SEPARATORS), key=head[0].count)


def _starts(text: str, sep: str, line: int, quoting: int = csv.QUOTE_MINIMAL) -> list[int]:
    """The line on which each record of `text` starts, whose first line is `line`.

    Raises `Problem` for a quotation mark that nothing closes or that swallows rows.
    """
    starts, end, width, problem = [], line, 0, "nothing closes"
    before = csv.field_size_limit(MAX_BYTES - 1)
    reader = _fields(StringIO(text, newline=""), sep, strict=True, quoting=quoting)
    try:
        for record in reader:
            starts += [end] * any(field.strip() for field in record)
            width = width or len(record)
            for field in record if reader.line_num - end + line > 1 else ():
                if 0 < len(NEWLINE.findall(field)) * (width - 1) <= field.count(sep):
                    problem = "swallows rows"
                    raise csv.Error
            end = line + reader.line_num
    except csv.Error:
        remedy = 'remove it, or write "" for it inside quotation marks'
        raise Problem(f"line {end:,} has a quotation mark that {problem}; {remedy}") from None
    finally:
        csv.field_size_limit(before)
    return starts


def _read(text: str, form: dict, line: int) -> pd.DataFrame:
    """The table by pandas; ids with leading zeros or of more than 64 bits as text."""
    form = form | {"low_memory": False, "keep_default_na": False, "na_values": [""]}
    try:
        ratings = pd.read_csv(StringIO(text), **form)
    except ValueError as error:  # pandas counts lines from the first of `text`
        told = reason(error).removeprefix("Error tokenizing data. C error: ")
        told = re.sub(r"(?<=line )\d+", lambda n: str(int(n[0]) + line - 1), told)
        raise Problem(f"{told}; correct the file, or put fields that hold a separator in quotes") from error
    if not isinstance(ratings.index, pd.RangeIndex):
        raise Problem("rows have more fields than the header; correct the file")
    whole = [name for name in ratings if ratings[name].dtype.kind in "iu" and not is_named(name, "rating")]
    odd = [n for n in ratings if ratings[n].dtype == object and infer_dtype(ratings[n]) == "integer"]
    if odd or (whole and re.search(rf'(?m)(^|"|{form["sep"]})\s*0\d', text)):
        written = pd.read_csv(StringIO(text), **form, dtype=str)
        for name in [*whole, *odd]:
            if name in odd or written[name].str.match(r"\s*0\d").any():
                ratings[name] = written[name].str.strip()
    return ratings
