"""Every reader of files is fed broken ones: one line, no hang, no file changed, and hints that work."""

import gzip
import io
import json
import os
import re
import shlex
import signal
import warnings
import zipfile
from contextlib import suppress
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from test_interpret import made

from collab_repro import BadRatings, Learned, RatingsUnavailable
from collab_repro.__main__ import main, parser
from collab_repro.command.folder import CHAPTER, CURVES, SCALE
from collab_repro.command.ratings import at_command_line, ratings_for
from collab_repro.recommending.learned import ARRAYS, LearnedFileError
from collab_repro.sources import content

FILM = "Film 7"
ROWS = [(u, f"Film {i}", (u * i) % 5 + 1) for u in range(1, 21) for i in range(1, 11)]
LINES = [",".join(map(str, row)) for row in ROWS]
CSV = "\n".join(["user,title,rating", *LINES, ""])
CELLS = [
    "", " ", "nan", "NaN", "NULL", "None", "<NA>", "inf", "-inf", "x", "é", '"', '"x', "0x10", "3;5", "1e400"
]  # fmt: skip


def row(n, text):
    """CSV with another row `n` (from 0), which stands on line n + 2."""
    return "\n".join(["user,title,rating", *LINES[:n], text, *LINES[n + 1 :], ""])


def rated(change, name="rating", between=","):
    """CSV with all ratings changed."""
    rows = [(user, title, change(rating)) for user, title, rating in ROWS]
    return "\n".join(between.join(map(str, one)) for one in [("user", "title", name), *rows]) + "\n"


def packed(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


OWN = {f"cut at {n}": CSV[:n] for n in (0, 1, 5, 17, 18, 19, 30, 31, 100)}
OWN |= {f"user {cell!r}": row(5, f"{cell},{FILM},3") for cell in CELLS}
OWN |= {f"title {cell!r}": row(5, f"1,{cell},3") for cell in CELLS}
OWN |= {f"rating {cell!r}": row(5, f"1,{FILM},{cell}") for cell in [*CELLS, "four", "3,5", "-1", "0", "99"]}
OWN |= {
    f"row {s[:20]!r}": row(5, s) for s in ("1", "1,2", "1,2,3,4", ",,", "\0", "\x1a", "user,title,rating")
}
OWN |= {f"header {h!r}": CSV.replace("user,title,rating", h) for h in (
    "", "a", "a,b", ",,", "0,1,2", "1,2,3", "user,user,rating", "title,title,title", "rating,rating,user",
    "id,title,rating", "user,item,title", "user,rating,score", "user,title,rating,more", '"user,title,rating',
    "# user,title,rating", "user;title;rating", "time,date,timestamp",
    "index,title,rating", "user,title,timestamp")}  # fmt: skip
OWN |= {f"begins {b[:8]!r}": b + CSV.encode() for b in (
    b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf\xef\xbb\xbf", b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh9",
    b"\xfd7zXZ\0", b"PAR1", b"ARROW1", b"\xd0\xcf\x11\xe0", b"SQLite format 3\0", b"\x89HDF", b"%PDF-1.7",
    b"\x80\x04", b"{", b"[", b"<html>", b"\0", b"\0" * 1000, b"\x89PNG\r\n", b"\x7fELF", b"%%%\n",
    b"#\n" * 9, b"sep=;\n", b"\n" * 9)}  # fmt: skip
ENDS = "\r", "\r\n", "\n\n", " ", ";", "\v", "\u2028"
OWN |= {f"{end!r} for line ends": CSV.replace("\n", end) for end in ENDS}
OWN |= {f"{sep!r} for commas": CSV.replace(",", sep) for sep in (";", "\t", "|", "::", " ", ":", "/", "")}
FILMS = dict.fromkeys(["latin-1", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-7"], "Été")
FILMS |= {"cp1251": "Иван", "shift_jis": "七人の侍", "gbk": "霸王别姬"}
OWN |= {f"in {code}": CSV.replace(FILM, film).encode(code) for code, film in FILMS.items()}
OWN |= {
    "UTF-8 with one other byte": CSV.replace(FILM, "Été").encode() + b"1,\xe9,3\n",
    "a quotation mark that swallows": row(3, '1,"Film 4,3').replace("\n9,Film 4", '\n9,Film 4"'),
    "a quotation mark that swallows one": row(3, '1,"Film 4,3').replace("\n1,Film 5", '\n1,Film 5"'),
    "two stray quotation marks": row(3, '1,"Film 4,3').replace("\n9,Film 4", '\n9,"Film 4'),
    "ids with zeros": CSV.replace("\n1,", "\n0012,").replace("\n2,", "\n012,"),
    "long ids": CSV.replace("\n1,", f"\n{2**70},").replace("\n2,", f"\n{2**70 + 1},"),
    "a title of a megabyte": row(5, f"1,{'x' * 10**6},3"),
    "a title of 200,000 letters": row(5, f'1,"{"x" * 200_000}",3'),
    "a header of 200,000 letters": CSV.replace("title", "x" * 200_000),
    "a line of a megabyte": "x" * 10**6,
    "a quoted megabyte": row(5, f'1,"{"x" * 10**6},3'),
    "a thousand columns": "\n".join([",".join(map(str, range(1000)))] * 3),
    "one user": "\n".join(["user,title,rating", *(f"1,Film {n},3" for n in range(100))]),
    "one title": "\n".join(["user,title,rating", *(f"{n},Film,3" for n in range(100))]),
    "titles alike": CSV.replace("\n1,Film", "\n1,FILM").replace("\n2,Film", "\n2,film "),
    "0 to 10": rated(lambda r: 2 * r),
    "0 to 100": rated(lambda r: 20 * r),
    "-10 to 10": rated(lambda r: 4 * r - 10 + 0.25),
    "0 to 1": rated(lambda r: r / 5),
    "unrated -1": rated(lambda r: r if r > 1 else -1),
    "unrated 0 of 10": rated(lambda r: 2 * r if r > 1 else 0),
    "decimal commas": rated(lambda r: f"{r - 1},5", between=";"),
    "timestamps": rated(lambda r: 978300760 + r, name="when"),
    "huge": rated(lambda r: 1e300 * r),
    "tiny": rated(lambda r: 1e-300 * r),
    "two rating columns": rated(lambda r: f"{r},{r}", name="stars,score"),
    "empty gzip": gzip.compress(b""),
    "JSON after a mark": b'\xef\xbb\xbf\n[ {"user": 1, "title": "A", "rating": 5},\n{"user": 2}]',
    "lists in JSON": '[["user", "title", "rating"],\n[1, "A", 5]]',
    "a quotation mark that swallows blanks": row(3, '1,"Film 4,3\n\n').replace("\n9,Film 4", '\n9,Film 4"'),
    "five thousand columns": "\n".join([",".join(f"film {n:050}" for n in range(5_000)), "1,2,3"]),
    "cut gzip": gzip.compress(CSV.encode())[:-9],
    "gzip in gzip": gzip.compress(gzip.compress(CSV.encode())),
    "an empty zip": packed(),
    "two files in a zip": packed(a=CSV, b=CSV),
    "a workbook": packed(**{"[Content_Types].xml": "", "xl": ""}),
    "a NumPy file": packed(**{"a.npy": ""}),
    "a broken zip": packed(a=CSV)[:-30],
    "a zip of nothing": packed(a=""),
}  # fmt: skip
FOLLOWED = {  # these become usable when the hints are followed
    "titles alike", "0 to 10", "0 to 100", "-10 to 10", "0 to 1", "unrated -1", "unrated 0 of 10",
    "two rating columns", "rating '-1'", "rating '0'",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_hang():
    """Ten seconds for each."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def read(file, *options):
    """The checked ratings of `file` at the command line, or the error as one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ratings_for(parser().parse_args(["--data", str(file), *options]))
        except (BadRatings, RatingsUnavailable) as error:
            return at_command_line(str(error))


def hinted(said):
    """The options in a message's remedy, which comes after the first semicolon."""
    remedy = said.partition(";")[2]
    options = re.findall(r"--(?:y-range \S+ \S+|alike fold|(?:user|item|rating) '.*?')", remedy)
    return shlex.split(" ".join(options))


@pytest.mark.parametrize("name", OWN)
def test_ones_own_file(name, tmp_path, capsys):
    file = tmp_path / "mine.csv"
    file.write_bytes(content := OWN[name] if isinstance(OWN[name], bytes) else OWN[name].encode())
    before, options = file.stat(), []
    for _ in range(4):
        result = read(file, *options)
        if not isinstance(result, str):
            break
        assert "\n" not in result and ";" in result and len(result) < 600, result
        assert not re.search(r"_name=|\bbs\b|y_range=|astype|dropna", result), "no option of the command"
        options += (more := hinted(result))
        if not more:
            break
    assert not isinstance(result, str) or name not in FOLLOWED, result
    assert (file.read_bytes(), file.stat().st_mtime_ns) == (content, before.st_mtime_ns)
    assert os.listdir(tmp_path) == ["mine.csv"]


def test_there_are_enough_of_them():
    assert len(OWN) + len(TABLES) + len(KEPT) >= 250 and set(OWN) >= FOLLOWED


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("user 'NULL'", r"row 5, line 7 \('NULL'\): no id as it seems"),
        ("rating 'four'", r"row 5, line 7 \('four'\): not a finite number"),
        ("rating '0'", "if the 1 rows with 0, .* drop them; otherwise --y-range -0.5 5.5"),
        ("row '1,2,3,4'", "Expected 3 fields in line 7, saw 4"),
        ("UTF-8 with one other byte", f"line {len(LINES) + 2}, is not UTF-8"),
        ("two stray quotation marks", "line 5 has a quotation mark that nothing closes"),
        ("a quotation mark that swallows one", "line 5 has a quotation mark that swallows rows"),
        ("a quotation mark that swallows", "line 5 has a quotation mark that swallows rows"),
        ("timestamps", "look like ids, counts or timestamps; .* --rating$"),
        ("titles alike", "such ids: 20.; --alike fold"),
        ("header 'id,title,rating'", "no columns for the user"),
        ("header 'user,user,rating'", "two columns are called 'user'; rename one"),
        ("a quotation mark that swallows blanks", "line 5 has a quotation mark that swallows rows"),
        ("JSON after a mark", "seems to be JSON; save the ratings as .csv"),
        ("lists in JSON", "seems to be JSON"),
        ("begins b'PAR1'", "Parquet"),
        ("begins b'ARROW1'", "a Feather file; save the ratings as .csv"),
        ("begins b'SQLite f'", "an SQLite database"),
        ("begins b'\\x89HDF'", "an HDF5 file"),
        ("begins b'%PDF-1.7'", "a PDF"),
        ("in utf-16-le", r"byte \d+ is 0, so it is no text, or UTF-16 without its mark"),
        ("a workbook", "Excel"),
        ("two files in a zip", r"is a zip of \['a', 'b'\]; give the file in it"),
    ],
)
def test_what_is_said_and_where(name, said, tmp_path):
    file = tmp_path / "mine.csv"
    file.write_bytes(OWN[name] if isinstance(OWN[name], bytes) else OWN[name].encode())
    result = read(file)
    assert isinstance(result, str) and re.search(said, result), result


def test_what_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "MOST", len(CSV) - 1)
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        archive.writestr("mine.csv", CSV)
    (tmp_path / "mine.csv.gz").write_bytes(gzip.compress(CSV.encode()))
    for name in ("mine.zip", "mine.csv.gz"):
        assert "holds more than 2 GB; give a part of it" in read(tmp_path / name)
        with monkeypatch.context() as patched:
            patched.setattr(content, "MOST", len(CSV))
            assert not isinstance(read(tmp_path / name), str)


def test_folders_links_pipes_and_devices(tmp_path):
    (tmp_path / "loop.csv").symlink_to(tmp_path / "loop.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with (tmp_path / "vast.csv").open("wb") as vast:
        vast.truncate(1 << 40)
    (tmp_path / "shut.csv").write_text(CSV)
    (tmp_path / "shut.csv").chmod(0)
    said = dict.fromkeys(["", "pipe.csv", "/dev/zero"], "is a folder, a pipe or a device; give the file")
    said |= {"loop.csv": "not a link that leads back", "gone.csv": "no file gone.csv; correct the path"}
    said["vast.csv"] = "holds more than 2 GB; give a part of it"
    said |= {"shut.csv/x.csv": "Not a directory"} | ({"shut.csv": "chmod u+r"} if os.getuid() else {})
    for name, words in said.items():
        assert words in read(tmp_path / name)


TWICE = [(n, e) for n in (0, 1) for e in (0, 1)]
GOOD = {  # name: columns, rows
    "curves.csv": (CURVES, [("d", m, *one, 1.0, 0.9, 0.1) for m in "ab" for one in TWICE]),
    "chapter.csv": (CHAPTER, [("d", 4, "DotProductBias", *one, 1.0, 0.9) for one in TWICE]),
    "bench-scale.csv": (SCALE, [(f"{n}", n, 9, 9, 64, 1, 1.0, 1.0, 1.0, 0.9) for n in (100, 200)]),
}
GOOD = {name: pd.DataFrame(rows, columns=columns) for name, (columns, rows) in GOOD.items()}
TABLES = {}
for table, frame in GOOD.items():
    text, last = frame.to_csv(index=False), frame.shape[1] - 1
    for cell in ("", "nan", "inf", "x", '"', "1e999"):
        broken = frame.astype(object)
        broken.loc[1, "valid_loss"] = cell
        TABLES[f"{table}: loss {cell!r}"] = table, broken.to_csv(index=False)
    for n in (0, 1, len(text) // 2, len(text) - 1):
        TABLES[f"{table}: cut at {n}"] = table, text[:n]
    TABLES |= {
        f"{table}: other columns": (table, text.replace("valid_loss", "loss")),
        f"{table}: a row more of fields": (table, text + "1," * 30 + "\n"),
        f"{table}: no text": (table, b"\xff\xfe\0"),
        f"{table}: zeros": (table, b"\0" * 5000),
        f"{table}: a megabyte": (table, "x" * 10**6),
    }
    broken = {"run", "seed", "split", "epoch"} & {*frame} or {*SCALE} - {"size", "valid_loss"}
    for column, cell in product(sorted(broken), ["9" * 20, "1e300", "x"][2 * ("size" in frame) :]):
        odd = frame.astype(object)
        odd.loc[1, column] = cell
        TABLES[f"{table}: {column} {cell}"] = table, odd.to_csv(index=False)
    if "epoch" in frame:
        TABLES[f"{table}: a row twice"] = table, text + text.splitlines()[-1] + "\n"
        TABLES[f"{table}: half an epoch"] = table, frame.assign(epoch=0.5).to_csv(index=False)


with TemporaryDirectory() as folder:
    made(np.random.default_rng(0).normal(size=(6, 3)), bias=np.arange(6.0)).save(Path(folder, "kept.npz"))
    MODEL = Path(folder, "kept.npz").read_bytes()


def changed(savez=np.savez, **arrays):
    """The kept model with other arrays, or with other entries of its text."""
    with np.load(io.BytesIO(MODEL)) as file:
        held = dict(file)
    text = json.loads(held.pop("text").tobytes())
    text |= {name: value for name, value in arrays.items() if name in (*text, "more")}
    held |= {name: value for name, value in arrays.items() if name not in text}
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(text).encode(), np.uint8)
    savez(buffer, text=text, **{name: array for name, array in held.items() if array is not None})
    return buffer.getvalue()


CUTS = 0, 1, 4, 30, 200, len(MODEL) // 2, len(MODEL) - 30, len(MODEL) - 1
KEPT = {f"cut at {n}": MODEL[:n] for n in CUTS}
for n in range(0, 1500, 150):
    KEPT[f"byte {n} changed"] = MODEL[:n] + bytes([MODEL[n] ^ 255]) + MODEL[n + 1 :]
WRONG = {
    "y_range": ([1], [1, 2, 3], [2, 1], [0, float("inf")], "05", 5, {}, [None, 1]),
    "titles": ([], ["#na#"], ["A"] * 7, [*"ABCDEFG"], [[]] * 7, None, 3, "abcdefg"),
    "names": ([], ["a"], [1, None], None, "ab c", [[], []]),
    "note": ({"a": 1}, [], None, 3),
    "format": ("", "collab_repro.learned/2", None, 1),
    "n_ratings": (np.ones(7), np.ones(3, int), -np.ones(7, int), np.ones((7, 1), int), np.array("x")),
    "movie_factors": (np.ones((7, 3)), np.ones((6, 3), "f4"), np.ones(7, "f4"), np.full((7, 3), np.nan, "f4"),
        np.array(1, "f4")),
}  # fmt: skip
for name, values in WRONG.items():
    KEPT |= {f"{name} {n}: {str(value)[:20]}": changed(**{name: value}) for n, value in enumerate(values)}
KEPT |= {
    "packed": changed(np.savez_compressed),
    "one bias": changed(movie_bias=None),
    "no factors": changed(user_factors=None),
    "one array more": changed(other=np.ones(3)),
    "a table": CSV.encode(),
    "a zip of text": packed(text="{}"),
    "deep JSON": packed(**{"text.npy": "[" * 10**5}),
}


def loads(file):
    """Whether `file` is read as the unbroken model, number for number."""
    with suppress(LearnedFileError):
        learned, unbroken = Learned.load(file), np.load(io.BytesIO(MODEL))
        return all(np.array_equal(getattr(learned, name), unbroken[name]) for name in ARRAYS)
    return False


def redrawn(folder, name, content, capsys):
    """`plots` on a folder with this file: one line and exit code 2, and the file as it was."""
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert main(["plots", "--out", str(folder)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and name in said and len(said) < 800, said
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before | {".lock": b""}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_losses(name, tmp_path, capsys):
    redrawn(tmp_path, *TABLES[name], capsys)


@pytest.mark.parametrize("name", KEPT)
def test_a_kept_model(name, tmp_path, capsys):
    file = tmp_path / "learned-DotProductBias.npz"
    file.write_bytes(KEPT[name])
    if not (name.startswith("byte") and loads(file)):  # some bytes of a zip archive mean nothing
        redrawn(tmp_path, "learned-DotProductBias.npz", KEPT[name], capsys)


@pytest.mark.parametrize("name", [*GOOD, "learned-DotProductBias.npz"])
def test_a_folder_or_a_pipe_in_its_place(name, tmp_path, capsys):
    for make in (os.mkfifo, os.mkdir):
        make(tmp_path / name)
        assert main(["plots", "--out", str(tmp_path)]) == 2
        assert "is not a regular file" in capsys.readouterr().err
        (tmp_path / name).unlink() if make is os.mkfifo else (tmp_path / name).rmdir()


def test_names_of_a_megabyte_are_drawn_cut(tmp_path, capsys):
    long = "x" * 10**6
    curves = GOOD["curves.csv"].assign(data=long, model=lambda one: one["model"] + long)
    curves.to_csv(tmp_path / "curves.csv", index=False)
    GOOD["chapter.csv"].assign(data=long).to_csv(tmp_path / "chapter.csv", index=False)
    content = changed(note={"source": long, "model": long})
    (tmp_path / "learned-DotProductBias.npz").write_bytes(content)
    assert main(["plots", "--out", str(tmp_path)]) == 0 and len(list(tmp_path.glob("*.png"))) == 5
    assert capsys.readouterr().err == ""


def test_sizes_with_all_columns_alone_are_not_drawn(tmp_path, capsys):
    cost = GOOD["bench-scale.csv"].astype({"size": str})
    cost.assign(size=cost["size"] + " + columns").to_csv(tmp_path / "bench-scale.csv", index=False)
    assert main(["plots", "--out", str(tmp_path)]) == 2
    assert "bench-scale.csv with anything to draw" in capsys.readouterr().err
    GOOD["curves.csv"].to_csv(tmp_path / "curves.csv", index=False)
    assert main(["plots", "--out", str(tmp_path)]) == 0


def test_the_unbroken_ones_are_read(tmp_path):
    for name, frame in GOOD.items():
        frame.to_csv(tmp_path / name, index=False)
    (tmp_path / "learned-DotProductBias.npz").write_bytes(changed())
    assert main(["plots", "--out", str(tmp_path)]) == 0 and len(list(tmp_path.glob("*.png"))) == 6
