"""The text in a file of the user's own: unpacked, decoded, and told from files that hold no table."""

import bz2
import errno
import gzip
import lzma
import re
import stat
import zipfile
import zlib
from io import BytesIO
from pathlib import Path

from .movielens import reason
from .notes import note

MAX_BYTES = 1 << 31  # of a file once unpacked: some 80 million ratings
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


class Problem(Exception):
    """What is wrong with a file, and the remedy."""


def content_of(file: Path) -> bytes:
    """The bytes of a regular file. Raises `Problem` or OSError."""
    try:
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            raise Problem("is a folder; give the file in it that holds the ratings")
        if not stat.S_ISREG(mode):
            raise Problem("is a pipe or a device; save what it gives in a file, and give that")
        if file.stat().st_size > MAX_BYTES:
            raise Problem(_too_large())
        return file.read_bytes()
    except PermissionError:
        raise Problem("this user may not read it; give yourself the permission (chmod u+r)") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Problem("is a link that leads back to itself; give the file itself") from None
        raise


def _too_large() -> str:
    return f"holds more than {MAX_BYTES >> 30} GB; give a part of it, or the DataFrame to learner"


def unpacked(content: bytes) -> bytes:
    """The one file that `content` holds packed, or `content` itself."""
    try:
        if content.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(BytesIO(content)) as archive:
                members = [m.filename for m in archive.infolist() if not m.is_dir()]
                members = [name for name in members if not name.startswith("__MACOSX")]
                if "[Content_Types].xml" in members:
                    raise Problem("seems to be an Excel workbook; save the sheet as .csv")
                if len(members) != 1 or members[0].endswith(".npy"):
                    raise Problem(
                        f"holds {str(members)[:200]}; unpack it, and give the file with the ratings"
                    )
                with archive.open(members[0]) as packed:
                    content = packed.read(MAX_BYTES + 1)
        for begin, opener in PACKED.items():
            if content.startswith(begin):
                with opener(BytesIO(content)) as packed:
                    content = packed.read(MAX_BYTES + 1)
    except (*DAMAGED, OSError) as error:
        raise Problem(f"can't be unpacked ({reason(error)}); get it again, or unpack it yourself") from error
    if len(content) > MAX_BYTES:
        raise Problem(_too_large())
    return content


def text_in(content: bytes) -> str:
    """`content` as text, without a byte order mark."""
    for begin, kind in FOREIGN.items():
        if content.lstrip().startswith(begin):
            raise Problem(f"seems to be {kind}; save the ratings as .csv, or give learner the DataFrame")
    even, odd = content[:2000:2], content[1:2000:2]
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in content:  # most text is ASCII, whose other byte is 0
        most = {"utf-16-le": odd.count(0), "utf-16-be": even.count(0)}
        encoding = max(most, key=most.get)
        if most[encoding] < 0.8 * len(odd):
            where = content.index(b"\0")
            raise Problem(f"byte {where:,} is 0, so it is no text; save the ratings as .csv in UTF-8")
    else:
        encoding = "utf-8"
    try:
        return content.decode(encoding).lstrip("\ufeff")
    except UnicodeDecodeError as error:
        where = f"byte {error.start:,}, line {content[: error.start].count(10) + 1:,},"
        mixed = re.search(rb"[\xc2-\xdf][\x80-\xbf]|[\x80-\xff]{3}", content)  # UTF-8, or another alphabet
        if encoding != "utf-8" or mixed:
            name = encoding.upper()
            raise Problem(f"{where} is not {name}; save the file as UTF-8, or correct that byte") from None
        told = f"{where} is not UTF-8: reading it as Western European (Windows-1252)"
        note(f"{told}; save the file as UTF-8 if titles look wrong", stacklevel=5)
        return content.decode("cp1252")  # a ValueError for the few bytes that it lacks
