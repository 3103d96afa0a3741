"""The text in a file of the user's own: unpacked, decoded, and told from files that hold no table."""

import bz2
import gzip
import lzma
import re
import zipfile
from io import BytesIO

from .notes import note, reason

PACKED = {b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ": lzma.decompress}
FOREIGN = {  # how other files begin
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"\x80": "a pickle",
    b"{": "JSON",
    b"[": "JSON",
    b"<": "a web page or XML",
}


def unpacked(content: bytes) -> bytes:
    """The one file that `content` holds packed, or `content` itself. Raises ValueError."""
    members = []
    try:
        if content.startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(BytesIO(content)) as archive:
                members = [name for name in archive.namelist() if not re.search("/$|^__MACOSX", name)]
                content = archive.read(members[0]) if len(members) == 1 else content
        for begin, unpack in PACKED.items():
            if content.startswith(begin):
                content = unpack(content)
    except Exception as error:  # each library has its own
        raise ValueError(f"can't be unpacked ({reason(error)}); get it again or unpack it") from error
    if len(members) > 1:
        remedy = "give the file in it that holds the ratings, or save an Excel sheet as .csv"
        raise ValueError(f"is a zip of {str(members)[:200]}; {remedy}")
    return content


def text_in(content: bytes) -> str:
    """`content` as text without a byte order mark, whose lines end in line feeds. Raises ValueError."""
    for begin, kind in FOREIGN.items():
        if content.lstrip().startswith(begin):
            raise ValueError(f"seems to be {kind}; save the ratings as .csv, or give learner the DataFrame")
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8"
    if encoding == "utf-8" and b"\0" in content:
        told = f"byte {content.index(0):,} is 0, so it is no text, or UTF-16 without its mark"
        raise ValueError(f"{told}; save the ratings as .csv in UTF-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        told = f"byte {error.start:,}, line {line:,}, is not {encoding.upper()}"
        others = re.search(rb"[\xc2-\xdf][\x80-\xbf]|[\x80-\xff]{3}", content)  # UTF-8, or another alphabet
        if others or encoding == "utf-16":
            raise ValueError(f"{told}; save the file as UTF-8, or correct that byte") from None
        told += ": reading it as Western European (Windows-1252)"
        note(f"{told}; save the file as UTF-8 if titles look wrong", stacklevel=5)
        text = content.decode("cp1252", "replace")
    return text.lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
