"""The user's own ratings, from a table in a file as it is found in the world."""

import bz2
import csv
import errno
import gzip
import lzma
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO, StringIO
from pathlib import Path

import pandas as pd
from pandas.api.types import infer_dtype

from .columns import is_named
from .movielens import RatingsUnavailable, reason
from .notes import note

MAX_BYTES = 1 << 31  # of a file once unpacked: some 80 million ratings
SUFFIXES = ".csv", ".tsv", ".txt", ".dat", ".data", ".inter", ".gz", ".bz2", ".xz", ".zip", ".parquet"
PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
DAMAGED = EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError, NotImplementedError
FOREIGN = {  # how other files begin
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"ARROW1": "a Feather file",
    b"SQLite format 3": "an SQLite database",
    b"\x89HDF": "an HDF5 file",
    b"%PDF": "a PDF",
    b"\x80": "a pickle",
    b"{": "JSON",
    b"[": "JSON",
    b"<": "a web page or XML",
}
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
        content = _unpacked(_content(file))
        if content.startswith(b"PAR1"):
            ratings = _parquet(content)
        else:
            ratings = _table(_text(content), file.suffix.lower())
    except _Problem as problem:
        raise RatingsUnavailable(f"{file}: {problem}") from problem
    except (OSError, ValueError) as error:
        raise RatingsUnavailable(f"{file}: {reason(error)}; correct the file or its path") from error
    ratings.attrs.update(name=file.name, source=f"{file.name}, {len(ratings):,} ratings")
    return ratings


class _Problem(Exception):
    """What is wrong with a file, and the remedy."""


def _content(file: Path) -> bytes:
    try:
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            raise _Problem("is a folder; give the file in it that holds the ratings")
        if not stat.S_ISREG(mode):
            raise _Problem("is a pipe or a device; save what it gives in a file, and give that")
        if file.stat().st_size > MAX_BYTES:
            raise _Problem(_too_large())
        return file.read_bytes()
    except PermissionError:
        raise _Problem("this user may not read it; give yourself the permission (chmod u+r)") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _Problem("is a link that leads back to itself; give the file itself") from None
        raise


def _too_large() -> str:
    return f"holds more than {MAX_BYTES >> 30} GB; give a part of it, or the DataFrame to learner"


def _unpacked(content: bytes) -> bytes:
    """The one file that `content` holds packed, or `content` itself."""
    try:
        if content.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(BytesIO(content)) as archive:
                members = [m.filename for m in archive.infolist() if not m.is_dir()]
                members = [name for name in members if not name.startswith("__MACOSX")]
                if "[Content_Types].xml" in members:
                    raise _Problem("seems to be an Excel workbook; save the sheet as .csv")
                if len(members) != 1 or members[0].endswith(".npy"):
                    raise _Problem(
                        f"holds {str(members)[:200]}; unpack it, and give the file with the ratings"
                    )
                with archive.open(members[0]) as packed:
                    content = packed.read(MAX_BYTES + 1)
        for begin, opener in PACKED.items():
            if content.startswith(begin):
                with opener(BytesIO(content)) as packed:
                    content = packed.read(MAX_BYTES + 1)
    except (*DAMAGED, OSError) as error:
        raise _Problem(f"can't be unpacked ({reason(error)}); get it again, or unpack it yourself") from error
    if len(content) > MAX_BYTES:
        raise _Problem(_too_large())
    return content


def _parquet(content: bytes) -> pd.DataFrame:
    try:
        ratings = pd.read_parquet(BytesIO(content))
    except ImportError:
        raise _Problem(
            "is a Parquet file; python -m pip install pyarrow reads it, or save it as .csv"
        ) from None
    except Exception as error:  # of pyarrow's own kind
        raise _Problem(f"is no whole Parquet file ({reason(error)}); get it again") from error
    return ratings.reset_index(drop=ratings.index.names == [None])


def _text(content: bytes) -> str:
    """`content` as text, without a byte order mark."""
    for begin, kind in FOREIGN.items():
        if content.lstrip().startswith(begin):
            raise _Problem(f"seems to be {kind}; save the ratings as .csv, or give learner the DataFrame")
    even, odd = content[:2000:2], content[1:2000:2]
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in content:  # most text is ASCII, whose other byte is 0
        most = {"utf-16-le": odd.count(0), "utf-16-be": even.count(0)}
        encoding = max(most, key=most.get)
        if most[encoding] < 0.8 * len(odd):
            where = content.index(b"\0")
            raise _Problem(f"byte {where:,} is 0, so it is no text; save the ratings as .csv in UTF-8")
    else:
        encoding = "utf-8"
    try:
        return content.decode(encoding).lstrip("\ufeff")
    except UnicodeDecodeError as error:
        where = f"byte {error.start:,}, line {content[: error.start].count(10) + 1:,},"
        mixed = re.search(rb"[\xc2-\xdf][\x80-\xbf]|[\x80-\xff]{3}", content)  # UTF-8, or another alphabet
        if encoding != "utf-8" or mixed:
            name = encoding.upper()
            raise _Problem(f"{where} is not {name}; save the file as UTF-8, or correct that byte") from None
        told = f"{where} is not UTF-8: reading it as Western European (Windows-1252)"
        note(f"{told}; save the file as UTF-8 if titles look wrong", stacklevel=5)
        return content.decode("cp1252")  # a ValueError for the few bytes that it lacks


def _table(text: str, suffix: str) -> pd.DataFrame:
    """The DataFrame in `text`, whose file's name ends in `suffix`."""
    start, line, above = 0, 1, ""  # where the table begins, and the last comment above it
    while top := re.compile(r"([^\S\r\n]*|[#%].*|sep=.)(\r\n|\r|\n)").match(text, start):
        start, line, above = top.end(), line + 1, top[1] if top[1].strip() else above
    text = text[start:]
    head = [row for row in NEWLINE.split(text[:HEAD])[: -1 if len(text) > HEAD else None] if row.strip()]
    if not head:
        raise _Problem("holds no rows; give the file with the ratings")
    sep = _separator(head, suffix)
    if sep == "::":
        head, text, sep = [row.replace("::", "\x1f") for row in head], text.replace("::", "\x1f"), "\x1f"
    form = {"sep": r"\s+" if sep == " " else sep, "skipinitialspace": sep != " "}
    first = next(_fields(head, sep))
    if first == [str(place) for place in range(len(first))]:
        raise _Problem(
            f"the first line ({', '.join(first)[:60]}) may be header or row; put a header row above it"
        )
    if twice := [name for name in first if name and first.count(name) > 1 and not NUMBER.fullmatch(name)]:
        raise _Problem(f"two columns are called {twice[0]!r}; rename one in the first line")
    if any(map(NUMBER.fullmatch, first)):  # a row, not a header
        names = next(_fields([above.lstrip("#% ")], sep), [])  # of the last comment
        if len(names) != len(first):
            names = ["user", "item", "rating", *(f"column {n}" for n in range(3, len(first)))][: len(first)]
            told = (
                f"the first line ({', '.join(first)[:60]}) is no header: the columns are {', '.join(names)}"
            )
            note(f"{told}; put a header row above it if they are others", stacklevel=5)
        form |= {"names": names, "header": None}
    if sep != "," and any(re.search(r"(^|\W)\d+,\d+(\W|$)", row) for row in head[1:]):
        form["decimal"] = ","
    starts, form["quoting"] = None, csv.QUOTE_MINIMAL
    if '"' in text or re.search(r"\n[^\S\n]*\n", text):  # else every record is a line
        try:
            starts = _starts(text, sep, line)
        except _Problem:
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

    Raises `_Problem` for a quotation mark that nothing closes or that swallows rows.
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
        raise _Problem(f"line {end:,} has a quotation mark that {problem}; {remedy}") from None
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
        raise _Problem(f"{told}; correct the file, or put fields that hold a separator in quotes") from error
    if not isinstance(ratings.index, pd.RangeIndex):
        raise _Problem("rows have more fields than the header; correct the file")
    whole = [name for name in ratings if ratings[name].dtype.kind in "iu" and not is_named(name, "rating")]
    odd = [n for n in ratings if ratings[n].dtype == object and infer_dtype(ratings[n]) == "integer"]
    if odd or (whole and re.search(rf'(?m)(^|"|{form["sep"]})\s*0\d', text)):
        written = pd.read_csv(StringIO(text), **form, dtype=str)
        for name in [*whole, *odd]:
            if name in odd or written[name].str.match(r"\s*0\d").any():
                ratings[name] = written[name].str.strip()
    return ratings
