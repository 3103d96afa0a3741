"""The text in a file of the user's own: unpacked, decoded, and told from files that hold no table."""

import bz2
import gzip
import lzma
import re
import zipfile
from io import BytesIO

from .notes import note, reason

MOST = 1 << 31  # bytes of a file once unpacked: some 80 million ratings
TOO_LARGE = f"holds more than {MOST >> 30} GB; give a part of it, or the DataFrame to learner"
PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
FOREIGN = {  # how other files begin, without blanks
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"ARROW1": "a Feather file",
    b"SQLiteformat3": "an SQLite database",
    b"\x89HDF": "an HDF5 file",
    b"%PDF": "a PDF",
    b"\x80": "a pickle",
    b"{": "JSON",
    b"[{": "JSON",
    b"[[": "JSON",
    b"<": "a web page or XML",
}


def unpacked(content: bytes) -> bytes:
    """The one file that `content` holds packed, or `content` itself. Raises ValueError."""
    members = []
    try:
        if content.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(BytesIO(content)) as archive:
                members = [name for name in archive.namelist() if not re.search("/$|^__MACOSX", name)]
                if len(members) == 1:
                    with archive.open(members[0]) as stream:
                        content = stream.read(MOST + 1)
        for begin, opened in PACKED.items():
            if content.startswith(begin):
                with opened(BytesIO(content)) as stream:
                    content = stream.read(MOST + 1)
    except Exception as error:  # each library has its own
        raise ValueError(f"can't be unpacked ({reason(error)}); get it again or unpack it") from error
    if len(content) > MOST:
        raise ValueError(TOO_LARGE)
    if len(members) > 1:
        remedy = "give the file in it that holds the ratings, or save an Excel sheet as .csv"
        raise ValueError(f"is a zip of {str(members)[:200]}; {remedy}")
    return content


def text_in(content: bytes) -> str:
    """`content` as text without a byte order mark, whose lines end in line feeds. Raises ValueError."""
    top = b"".join(content[:1000].removeprefix(b"\xef\xbb\xbf").split())
    for begin, kind in FOREIGN.items():
        if top.startswith(begin):
            raise ValueError(f"seems to be {kind}; save the ratings as .csv, or give learner the DataFrame")
    marks = {"utf-32": (b"\xff\xfe\0\0", b"\0\0\xfe\xff"), "utf-16": (b"\xff\xfe", b"\xfe\xff")}
    encoding = next((name for name, begins in marks.items() if content.startswith(begins)), "utf-8")
    if encoding == "utf-8" and b"\0" in content:
        told = f"byte {content.index(0):,} is 0, so it is no text, or UTF-16 without its mark"
        raise ValueError(f"{told}; save the ratings as .csv in UTF-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        told = f"byte {error.start:,}, line {line:,}, is not {encoding.upper()}"
        others = re.search(rb"[\xc2-\xdf][\x80-\xbf]|[\x80-\xff]{3}", content)  # UTF-8, or another alphabet
        if others or encoding != "utf-8":
            raise ValueError(f"{told}; save the file as UTF-8, or correct that byte") from None
        told += ": reading it as Western European (Windows-1252)"
        note(f"{told}; save the file as UTF-8 if titles look wrong", stacklevel=5)
        text = content.decode("cp1252", "replace")
    return text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
