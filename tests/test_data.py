"""Each route to the ratings, and each way a route can fail; no network but this machine's own."""

import errno
import hashlib
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from fastai.data.external import URLs, fastai_cfg, untar_data
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collab_repro import RatingsUnavailable, load_ratings
from collab_repro.sources import archives, files, movielens
from collab_repro.sources.files import FileError, read_losses, write_table, write_whole
from collab_repro.sources.movielens import GENRES, NUMBERS, frame_sha256

FILMS = {
    1: ("Caf\u00e9, Le (1990)", ["Drama"]),
    2: ("Third One (1995) (V)", ["Children's", "Film-Noir"]),
    3: ('"Quoted" One (1991)', ["Drama", "Western"]),
    4: ("NA (1992)", ["Comedy"]),
    267: ("unknown", ["unknown"]),
}
KINDS = {movie: kinds for movie, (_, kinds) in FILMS.items()}
GROUPLENS, RECBOLE = movielens.SETS["ml-100k"]


def packed(members):
    """A zip archive of {name: bytes}."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def grouplens_files(ratings, kinds=KINDS):
    """u.data and u.item as GroupLens writes them: latin-1, a stray blank after one title, flags."""
    lines = ratings[NUMBERS].to_csv(sep="\t", header=False, index=False, lineterminator="\n")
    films = ratings.drop_duplicates("movie").set_index("movie")["title"].sort_index()
    flags = {m: "|".join(str(int(genre in kinds.get(m, ()))) for genre in GENRES) for m in films.index}
    items = [f"{m}|{t}{' ' * (m == 1)}|01-Jan-1990||http://x|{flags[m]}\n" for m, t in films.items()]
    return {"u.data": lines.encode(), "u.item": "".join(items).encode("latin-1")}


def recbole_wheel(lines):
    """A wheel with RecBole's .inter and .item, with its misspelling; `lines` are u.data."""
    items = "a\tb\tc\td\n267\tunkonwn\tunkonwn\tunknown\n"
    for movie, (title, kinds) in FILMS.items():
        if movie != 267:
            name, year = title[:-1].rsplit(" (", 1)
            items += f"{movie}\t{name}\t{year}\t{' '.join(kinds)}\n"
    inter, item, _ = (RECBOLE.folder + name for name, _ in RECBOLE.tables.values())
    info = "recbole-1.2.1.dist-info"
    about = {
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    return packed({inter: b"user_id:token\tb\tc\td\n" + lines, item: items, **about})


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A made-up MovieLens under the real code: a home of its own, hashes to match, no way out.

    `ratings` is the frame to come out, `files` GroupLens' two, `GROUPLENS` and `RECBOLE` the archives.
    """
    monkeypatch.setenv("FASTAI_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(movielens.VARIABLE, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(tempfile, "tempdir", str(unpack({}, tmp_path / "tmp")))
    rng = np.random.default_rng(0)
    ratings = pd.DataFrame({name: rng.integers(1, 6, 400) for name in NUMBERS})
    ratings["movie"] = rng.choice([*FILMS], 400)
    ratings["title"] = ratings["movie"].map({movie: title for movie, (title, _) in FILMS.items()})
    both = grouplens_files(ratings)
    contents = {"GROUPLENS": packed({f"ml-100k/{k}": v for k, v in both.items()})}
    contents["RECBOLE"] = recbole_wheel(both["u.data"])
    monkeypatch.setattr(movielens, "SHA256", frame_sha256(ratings))

    def routes(**changes):
        known = dict(zip(contents, movielens.SETS["ml-100k"], strict=True))
        for name, fetch in changes.items():
            content = contents[name]
            own = {"hash": hashlib.sha256(content).hexdigest(), "fetch": fetch or (lambda c=content: c)}
            known[name] = known[name]._replace(**own)
        monkeypatch.setitem(movielens.SETS, "ml-100k", [*known.values()])

    def nowhere():
        raise OSError("no way out")

    routes(GROUPLENS=nowhere, RECBOLE=nowhere)
    home, tmp = tmp_path / "home", tmp_path / "tmp"
    places = {"home": home, "archives": home / "archive", "tmp": tmp}
    return SimpleNamespace(ratings=ratings, files=both, routes=routes, **contents, **places)


def same(ratings, expected):
    """Equal in values, index and dtypes."""
    pd.testing.assert_frame_equal(ratings, expected, check_index_type=True)


def unpack(contents, folder):
    """Write {name: bytes} into a new folder."""
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def left(folder):
    """The names of all files under a folder."""
    return sorted(file.name for file in folder.rglob("*") if file.is_file())


class TestNames:
    def test_refused(self, tmp_path):
        file = tmp_path / "my.csv"
        file.write_text("u,i,r\n1,2,3\n")
        for name, options, words in (
            ("ml-1t", {}, r"no ratings called 'ml-1t': .*'ml-1m'.*'synthetic'"),
            ("synthetic", {"path": "somewhere"}, "only: leave it out for 'synthetic'"),
            ("synthetic", {"genres": True}, "'synthetic' has no column 'genres'; leave"),
            (str(file), {"genres": True}, "my.csv' has no column 'genres'; leave"),
        ):
            with pytest.raises(RatingsUnavailable, match=words):
                load_ratings(name, **options)

    def test_synthetic(self):
        ratings = load_ratings("synthetic")
        assert len(ratings) == 100_000
        assert ratings.attrs == {"name": "synthetic", "source": "synthetic ratings, planted_ratings(seed=0)"}

    def test_torch_and_fastai_are_not_imported(self):
        code = "import sys; from collab_repro import data, sources\n"
        code += "sources.check_ratings(data.load_ratings('synthetic'))\n"
        code += "sources.archives.fastai_path('data', 'ml-100k')\n"
        code += "assert not {'torch', 'fastai', 'scipy', 'sklearn'} & {*sys.modules}"
        subprocess.run([sys.executable, "-c", code], check=True)


class TestFolder:
    @pytest.mark.parametrize("given", ["parent", "itself", "zip", "variable", "path over variable"])
    def test_found(self, small, tmp_path, monkeypatch, given):
        folder = unpack(small.files, tmp_path / "my" / "ml-100k")
        small.routes(GROUPLENS=None)  # its hash is known
        archive = unpack({"ml-100k.zip": small.GROUPLENS}, tmp_path / "zips") / "ml-100k.zip"
        path = {"itself": folder, "zip": archive, "variable": None}.get(given, folder.parent)
        if "variable" in given:
            monkeypatch.setenv(movielens.VARIABLE, "/nowhere" if path else str(folder.parent))
        ratings = load_ratings(path=path)
        same(ratings, small.ratings)
        duplicates = small.ratings.duplicated(["user", "title"]).sum()
        source = f"MovieLens 100K, {'ml-100k.zip' if given == 'zip' else f'the folder {folder}'}"
        assert ratings.attrs == {
            "name": "ml-100k",
            "source": source,
            "duplicates": duplicates,
            "collab_repro": {"duplicates": duplicates},
        }
        assert duplicates > 0 and not small.home.exists()

    @pytest.mark.parametrize(
        ("file", "change", "words"),
        [
            ("u.data", None, "no file u.data"),
            ("u.item", None, "no file u.item"),
            ("u.data", lambda b: b[: len(b) // 2], r"not the published .* \(\d+ rows read\)|pars"),
            ("u.data", lambda b: b"", "not the published .* .0 rows"),
            ("u.data", lambda b: b"6" + b[1:], "not the published"),
            ("u.data", lambda b: b"x" + b[1:], "invalid literal|Unable|could not convert|integer"),
            ("u.data", lambda b: b + b.splitlines(True)[-1], "not the published.*401 rows"),
            ("u.data", lambda b: b"".join(reversed(b.splitlines(True))), "not the published"),
            ("u.item", lambda b: b[: len(b) // 2], "not the published"),
            ("u.item", lambda b: b.decode("latin-1").encode(), "not the published"),
            ("u.item", lambda b: b"", "not the published"),
            ("u.item", lambda b: b"1|2|3\n", "not the published"),
            ("u.item", lambda b: b.replace(b"http://x|0", b"http://x|x", 1), "not 0 or 1"),
            ("u.item", lambda b: b.replace(b"http://x|0", b"http://x|", 1), "not 0 or 1"),
            ("u.item", lambda b: b.replace(b"http://x|0", b"http://x|0.5", 1), "not 0 or 1"),
        ],
    )
    def test_bad_is_an_error_and_no_other_route_is_tried(
        self, small, tmp_path, monkeypatch, file, change, words
    ):
        small.routes(GROUPLENS=None, RECBOLE=None)
        contents = small.files | {file: change and change(small.files[file])}
        folder = unpack({k: v for k, v in contents.items() if v is not None}, tmp_path / "ml-100k")
        monkeypatch.setenv(movielens.VARIABLE, str(folder))
        for path in (folder, None):
            with pytest.raises(
                RatingsUnavailable, match=f"ml-100k: .*({words}).*; give ml-100k.zip, or a"
            ) as e:
                load_ratings(path=path)
            assert "\n" not in str(e.value)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(file=st.sampled_from(["u.data", "u.item"]), where=st.floats(0, 1), with_=st.binary(max_size=9))
    def test_no_damage_goes_unseen(self, small, tmp_path_factory, file, where, with_):
        """Whatever bytes are put into a file, the frame is the right one or there is an error."""
        old = small.files[file]
        place = int(where * len(old))
        new = old[:place] + with_ + old[place + 1 :]
        folder = unpack(small.files | {file: new}, tmp_path_factory.mktemp("any") / "ml-100k")
        try:
            same(load_ratings(path=folder), small.ratings)
        except RatingsUnavailable:
            assert new != old

    def test_no_folder_at_all(self, small, tmp_path):
        (tmp_path / "file").write_text("")
        for path in (f"{tmp_path}/nowhere", f"{tmp_path}/file", "~/nowhere"):
            with pytest.raises(
                RatingsUnavailable, match=f"{path}: (no file|0 bytes that are not).*give ml-100k.zip, or a"
            ):
                load_ratings(path=path)


class TestKept:
    @pytest.mark.parametrize("route", ["folder", "GROUPLENS", "RECBOLE"])
    def test_all_routes_give_one_frame_and_the_second_time_needs_no_network(self, small, tmp_path, route):
        calls = []
        if route != "folder":
            small.routes(**{route: lambda: calls.append(1) or getattr(small, route)})
        path = unpack(small.files, tmp_path / "ml-100k") if route == "folder" else None
        first, second = load_ratings(path=path), load_ratings(path=path, genres=True)
        same(first, small.ratings)
        kinds = ["|".join(KINDS[movie]) for movie in small.ratings["movie"]]
        pd.testing.assert_frame_equal(second, small.ratings.assign(genres=kinds))
        assert first.attrs == second.attrs and len(calls) == (route != "folder")
        assert not left(small.tmp)

    def test_grouplens_comes_before_recbole(self, small):
        small.routes(GROUPLENS=None, RECBOLE=None)
        assert "GroupLens" in load_ratings().attrs["source"]
        assert left(small.archives) == ["ml-100k.zip"]

    @pytest.mark.filterwarnings("ignore:unclosed file.*config.ini:ResourceWarning")  # fastcore's
    @pytest.mark.parametrize(("data", "kept"), [("data", "archive"), ("elsewhere", "kept")])
    def test_fastai_finds_the_archive_and_we_find_what_it_unpacked(self, small, monkeypatch, data, kept):
        if kept == "kept":
            text = f"[DEFAULT]\ndata = {data}\narchive = {kept}\nstorage = tmp\nmodel = models\n"
            unpack({"config.ini": text.encode()}, small.home)
        small.routes(GROUPLENS=None)
        load_ratings()
        assert URLs.ML_100k == f"{archives.SITE}/ml-100k.zip"
        monkeypatch.setattr(URLs, "ML_100k", "http://127.0.0.1:9/ml-100k.zip")
        fastai_cfg.cache_clear()
        folder = untar_data(URLs.ML_100k)
        fastai_cfg.cache_clear()
        assert folder == small.home / data / "ml-100k"
        assert (folder / "u.data").read_bytes() == small.files["u.data"]
        (small.home / kept / "ml-100k.zip").unlink()
        ratings = load_ratings()
        same(ratings, small.ratings)
        assert ratings.attrs["source"] == "MovieLens 100K, unpacked by fastai"

    @pytest.mark.parametrize("archive", ["GROUPLENS", "RECBOLE"])
    @pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b"?" + b[1:]])
    def test_damaged_copies_are_not_used_and_do_not_block(self, small, archive, damage):
        content, name = getattr(small, archive), {"GROUPLENS": GROUPLENS, "RECBOLE": RECBOLE}[archive].file
        unpack({"u.data": b"196\t242\t3\t881"}, small.home / "data" / "ml-100k")
        file = unpack({name: damage(content)}, small.archives) / name
        with pytest.raises(RatingsUnavailable, match="no intact copy"):
            load_ratings()
        small.routes(**{archive: None})
        same(load_ratings(), small.ratings)
        assert file.read_bytes() == content

    @pytest.mark.parametrize(
        "fault", ["archive a file", "home a file", "no sections", "other sections", "latin-1", "full disk"]
    )
    def test_an_archive_that_cannot_be_kept_is_a_warning(self, small, monkeypatch, fault):
        texts = {"no sections": b"data", "other sections": b"[DEFAULT]\nx = y\n", "latin-1": b"[D\xe9]"}
        if fault in texts:
            unpack({"config.ini": texts[fault]}, small.home)
        elif fault == "home a file":
            small.home.write_text("")
        elif fault == "archive a file":
            unpack({"archive": b""}, small.home)

        def full(self, content):
            with self.open("wb") as file:
                file.write(content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")

        if fault == "full disk":
            monkeypatch.setattr(Path, "write_bytes", full)
        small.routes(RECBOLE=None)
        words = "No space left" if fault == "full disk" else ""
        with pytest.warns(UserWarning, match=f"whl is not kept .*: .*{words}.*; set FASTAI_HOME") as said:
            same(load_ratings(), small.ratings)
        assert said[0].filename == __file__ and left(small.archives) == []

    def test_many_at_once(self, small):
        small.routes(GROUPLENS=lambda: time.sleep(0.1) or small.GROUPLENS)
        with ThreadPoolExecutor(8) as pool:
            for ratings in pool.map(lambda _: load_ratings(), range(8)):
                same(ratings, small.ratings)
        assert left(small.archives) == ["ml-100k.zip"]


@pytest.fixture
def server(small, monkeypatch):
    """A server on this machine in GroupLens' place; `serve(answer)` says how it answers."""
    running = []

    def serve(answer, tls=None):
        silent = {"do_GET": answer, "log_message": lambda *_: None}
        Handler = type("Handler", (BaseHTTPRequestHandler,), silent)
        here = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        here.daemon_threads, here.block_on_close = True, False
        here.handle_error = lambda *args: None
        if tls:
            here.socket = tls.wrap_socket(here.socket, server_side=True)
        threading.Thread(target=here.serve_forever, args=(0.01,), daemon=True).start()
        running.append(here)
        address = f"http{'s' * bool(tls)}://127.0.0.1:{here.server_port}"
        monkeypatch.setattr(archives, "SITE", address if answer else "http://127.0.0.1:1")

    small.routes(GROUPLENS=GROUPLENS.fetch)
    for name, limit in {"TIMEOUT": 0.3, "DEADLINE": 0.5, "MOST": 200_000}.items():
        monkeypatch.setattr(archives, name, limit)
    yield serve
    for here in running:
        here.shutdown()
        here.server_close()


def sends(body, status=200, **headers):
    """An answer with a body."""

    def answer(request):
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return answer


def drips(request):
    """A byte now and then, for ever."""
    sends(b"")(request)
    for _ in range(100):
        request.wfile.write(b"x")
        time.sleep(0.05)


def breaks_chunks(request):
    """A chunked body that stops in a chunk."""
    request.protocol_version, request.close_connection = "HTTP/1.1", True
    sends(b"ffff\r\nabc", Transfer_Encoding="chunked")(request)


EVIL = packed({"../../evil": b"x", "/evil": b"x", "ml-100k/u.data": b"0" * 5_000_000})


class TestServer:
    def test_a_fault_and_then_good(self, small, server, tmp_path, capfd):
        server(sends(b"busy", 503))
        small.routes(RECBOLE=None)
        ratings = load_ratings()
        same(ratings, small.ratings)
        assert ratings.attrs["source"] == RECBOLE.source
        assert left(tmp_path) == [RECBOLE.file]
        (small.archives / RECBOLE.file).unlink()
        server(sends(small.GROUPLENS))
        assert load_ratings().attrs["source"] == GROUPLENS.source
        assert (small.archives / "ml-100k.zip").read_bytes() == small.GROUPLENS
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize(
        ("answer", "words"),
        [
            (sends(b"gone", 404), "HTTP Error 404"),
            (sends(b"half", Content_Length="1000"), "4 bytes that are not the published ml-100k.zip"),
            (sends(b""), "0 bytes that are not the published"),
            (sends(EVIL), "bytes that are not the published ml-100k.zip"),
            (sends(b"0" * 300_000), "not finished after .* 200,000 bytes"),
            (lambda request: time.sleep(1), "timed out"),
            (drips, "not finished after 0.5 seconds"),
            (None, "Connection refused"),
            (lambda request: request.connection.close(), "closed connection|reset"),
            (breaks_chunks, "IncompleteRead"),
            (lambda request: sends(b"", 302, Location=request.path)(request), "HTTP Error 302"),
        ],
    )
    def test_faults(self, server, answer, words):
        server(answer)
        started = time.monotonic()
        with pytest.raises(RatingsUnavailable, match=f"GroupLens: .*({words}).*; RecBole") as error:
            load_ratings()
        assert time.monotonic() - started < 4  # the server that drips takes longer
        assert "path= and COLLAB_REPRO_DATA: not given" in str(error.value)
        assert "no way out. What to do: try again later, or give ml-100k.zip" in str(error.value)
        assert "\n" not in str(error.value)

    @pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate with openssl")
    def test_certificate(self, small, server, tmp_path):
        pem = tmp_path / "self-signed.pem"
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1"
        command = [*command.split(), "-subj", "/CN=localhost", "-keyout", pem, "-out", pem]
        subprocess.run(command, capture_output=True, check=True)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(pem)
        server(sends(small.GROUPLENS), tls)
        with pytest.raises(RatingsUnavailable, match=r"GroupLens: .*certificate verify failed"):
            load_ratings()


@pytest.fixture
def index(small, tmp_path, monkeypatch):
    """The user's pip settings: a folder with a wheel, no index, and the real pip to read them."""
    small.routes(RECBOLE=RECBOLE.fetch)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    folder = unpack({}, tmp_path / "wheels")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder / RECBOLE.file


class TestPip:
    def test_good(self, small, index, capfd):
        index.write_bytes(small.RECBOLE)
        same(load_ratings(), small.ratings)
        assert (small.archives / RECBOLE.file).read_bytes() == small.RECBOLE
        assert left(small.tmp) == [] and capfd.readouterr() == ("", "")

    def test_a_source_package_is_never_run(self, small, index, tmp_path):
        mark = tmp_path / "ran"
        build = b'[build-system]\nrequires = []\nbuild-backend = "run"\nbackend-path = ["."]\n'
        run = f"open({str(mark)!r}, 'w').close()".encode()
        unpack({"pyproject.toml": build, "run.py": run, "PKG-INFO": b""}, tmp_path / "recbole-1.2.1")
        shutil.make_archive(str(index.with_name("recbole-1.2.1")), "gztar", tmp_path, "recbole-1.2.1")
        with pytest.raises(RatingsUnavailable, match=r"pip: pip says ERROR: No matching .*recbole"):
            load_ratings()
        assert not mark.exists()

    @pytest.mark.parametrize(
        ("script", "words"),
        [
            ("import time; time.sleep(9)", "RecBole.*: not finished after 0.2 seconds"),
            ("import sys; sys.exit('first\\n last  \\n')", r"pip says  ?last\. What"),
            ("raise SystemExit(2)", "pip says nothing"),
            ("pass", "RecBole.*no file recbole-1.2.1"),
            (None, "RecBole 1.2.1 by pip: no file python"),
        ],
    )
    def test_other_faults(self, small, index, tmp_path, monkeypatch, script, words):
        fake = tmp_path / "python"
        if script:
            fake.write_text(f"#!{sys.executable} -S\n{script}\n")
            fake.chmod(0o755)
        monkeypatch.setattr(archives, "sys", SimpleNamespace(executable=str(fake)))
        monkeypatch.setattr(archives, "DEADLINE", 0.2 if "sleep" in (script or "") else 30)
        with pytest.raises(RatingsUnavailable, match=words):
            load_ratings()
        assert left(small.tmp) == []


class TestOwnFile:
    def test_read(self, tmp_path):
        text = "who,film,genres\n1,NA,4\n2,\u00c9t\u00e9,3.5\n3,,2\n"
        for name, encoding in (("my.csv", "utf-8"), ("my.CSV", "utf-8-sig"), ("my.tsv", "utf-8")):
            file = tmp_path / name
            file.write_text(text.replace(",", "\t") if ".tsv" in name else text, encoding)
            ratings = load_ratings(str(file), genres=name == "my.tsv")
            assert list(ratings.columns) == ["who", "film", "genres"]
            assert ratings["film"][:2].tolist() == ["NA", "\u00c9t\u00e9"]
            assert ratings["film"].isna().tolist() == [False, False, True]
            assert ratings.attrs == {
                "name": name,
                "source": f"{name}, 3 ratings",
                "collab_repro": {"lines": (2, ())},
            }

    def test_text_in_a_late_row_is_kept_as_text(self, tmp_path):
        """Read in chunks of 262,144 rows, pandas would make numbers of some rows and text of others."""
        file = tmp_path / "long.csv"
        file.write_text("u,i,r\n" + "1,1,1\n" * 265_000 + "x,1,1\n")
        assert {type(user) for user in load_ratings(str(file))["u"].iloc[[0, -1]]} == {str}

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (None, "no file my.csv"),
            (b"", "holds no rows; give"),
            (b"u,i,r\n1,2,3\n1,2,3,4\n", "Expected 3 fields in line 3, saw 4"),
            (b"u,i,r\n1,2,3,4\n1,2,3,4\n", "more fields than the header"),
            ("u,i,r\n1,\u00c9t\u00e9,3\n".encode() + b"2,\xe9,3", "byte 18, line 3, is not UTF-8; save"),
            (b'u,i,r\n1,"open,3\n', "line 2 has a quotation mark that nothing closes"),
        ],
    )
    def test_refused(self, tmp_path, content, words):
        file = tmp_path / "my.csv"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(RatingsUnavailable, match=f"my.csv: .*{words}") as error:
            load_ratings(str(file))
        assert "\n" not in str(error.value)


class TestFiles:
    """Files are written whole, and what killed writers left is swept; test_kills.py has the kills."""

    def test_only_abandoned_files_of_this_package_are_swept(self, tmp_path):
        code = "import os, sys; from collab_repro.sources import files\n"
        code += "files.Path.replace = lambda *_: os._exit(1); files.write_whole(sys.argv[1], b'half')"
        killed = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "[a].csv")])
        killed.wait()
        (dead,) = left(tmp_path)
        pid, end = f".{killed.pid}.", ".collab_repro.part"
        assert dead.startswith(".[a].csv.") and dead.endswith(f".{files.HOST}{pid[:-1]}{end}")
        mine, elsewhere = dead.replace(pid, f".{os.getpid()}."), dead.replace(files.HOST, "elsewhere")
        old, young = 3601, 3590
        table = [(mine, old, False), (elsewhere, old, False), (mine, young, True), (elsewhere, young, True)]
        table += [(dead.replace(pid, f".{other}."), young, True) for other in (1, "9" * 30, "x")]
        table += [(dead.replace(end, ".part"), old, True), (end, young, True)]
        for n, (name, age, _) in enumerate(table):
            (tmp_path / f".{n}{name}").touch()
            os.utime(tmp_path / f".{n}{name}", (time.time() - age,) * 2)
        write_whole(tmp_path / "[a].csv", b"it")
        kept = sorted(f".{n}{name}" for n, (name, _, stays) in enumerate(table) if stays)
        assert left(tmp_path) == [*kept, "[a].csv"]
        assert (tmp_path / "[a].csv").read_bytes() == b"it"

    def test_losses_come_back_to_the_last_bit(self, tmp_path):
        file = tmp_path / "losses.csv"
        losses = {"train_loss": np.random.default_rng(0).random(500) ** 9, "valid_loss": 0.5}
        for rows in (pd.DataFrame({"seed": range(500), **losses}), pd.DataFrame([[0, 2.0, 1.0]])):
            table = rows.set_axis(["seed", *losses], axis=1)
            write_table(file, table)
            pd.testing.assert_frame_equal(read_losses(file, list(table)), table, check_exact=True)
        with file.open("wb") as vast:
            vast.truncate(1 << 27)
        with pytest.raises(FileError, match=r"losses\.csv is not a regular file of at most 67,108,864 bytes"):
            read_losses(file, list(table))
        for content in (b"", b"seed,train_loss,valid_loss\n1,x,2\n", b"\xff\xfe\x00", b"seed\n1\n"):
            file.write_bytes(content)
            with pytest.raises(FileError, match=r"losses.csv is not a table of losses: .*; delete it"):
                read_losses(file, list(table))


class TestReal:
    """Held to the real ratings, wherever they came from."""

    def test_the_well_known_numbers(self, ml100k):
        assert len(ml100k) == 100_000 and ml100k["rating"].mean() == 3.52986
        counts = ml100k.nunique()
        assert (counts["user"], counts["movie"], counts["title"]) == (943, 1682, 1664)
        assert set(ml100k.loc[ml100k["movie"] == 267, "title"]) == {"unknown"}
        assert (ml100k["title"] == ml100k["title"].str.strip()).all()
        assert ml100k.attrs["duplicates"] == 307 and ml100k.attrs["source"]
        assert frame_sha256(ml100k) == movielens.SHA256

    def test_genres_and_from_a_folder(self, ml100k, tmp_path):
        """As many films of each kind as GroupLens' u.item is known for; written so, read the same."""
        ratings = load_ratings(genres=True)
        same(ratings.drop(columns="genres"), ml100k)
        films = ratings.drop_duplicates("movie").set_index("movie")["genres"]
        assert films.str.get_dummies().sum().to_dict() == {
            "Action": 251, "Adventure": 135, "Animation": 42, "Children's": 122, "Comedy": 505,
            "Crime": 109, "Documentary": 50, "Drama": 725, "Fantasy": 22, "Film-Noir": 24,
            "Horror": 92, "Musical": 56, "Mystery": 61, "Romance": 247, "Sci-Fi": 101,
            "Thriller": 251, "War": 71, "Western": 27, "unknown": 2,
        }  # fmt: skip
        written = grouplens_files(ml100k, films.str.split("|").to_dict())
        published = "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490"  # of u.data
        assert hashlib.sha256(written["u.data"]).hexdigest() == published
        folder = unpack(written, tmp_path / "ml-100k")
        pd.testing.assert_frame_equal(load_ratings(path=folder, genres=True), ratings)
        (folder / "u.data").write_bytes(written["u.data"][:-1] + b"1\n")
        with pytest.raises(RatingsUnavailable, match="not the published 100,000 ratings"):
            load_ratings(path=folder)
