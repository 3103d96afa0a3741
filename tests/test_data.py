"""Each route to the ratings, and each way a route can fail; no network but this machine's own."""

import errno
import hashlib
import os
import random
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import warnings
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

from collab_repro import data
from collab_repro.data import RatingsUnavailable, frame_sha256, load_ratings

# fastcore leaves the settings file it makes to the garbage collector
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file.*config.ini:ResourceWarning")

FILMS = {
    1: "Caf\u00e9, Le (1990)",
    2: "Third One (1995) (V)",
    3: '"Quoted" One (1991)',
    4: "NA (1992)",
    267: "unknown",
}


KINDS = {
    1: ["Drama"],
    2: ["Children's", "Film-Noir"],
    3: ["Drama", "Western"],
    4: ["Comedy"],
    267: ["unknown"],
}


def packed(members):
    """A zip archive of {name: bytes}."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def grouplens_files(ratings, kinds=KINDS):
    """u.data and u.item as GroupLens writes them: latin-1, a stray blank behind one title, flags."""
    lines = ratings[data.NUMBERS].to_csv(sep="\t", header=False, index=False, lineterminator="\n")
    films = ratings.drop_duplicates("movie").set_index("movie")["title"].sort_index()
    flags = {m: "|".join(str(int(genre in kinds.get(m, ()))) for genre in data.GENRES) for m in films.index}
    items = [f"{m}|{t}{' ' * (m == 1)}|01-Jan-1990||http://x|{flags[m]}\n" for m, t in films.items()]
    return {"u.data": lines.encode(), "u.item": "".join(items).encode("latin-1")}


def recbole_files(ratings):
    """The .inter and .item of RecBole, with its misspelling."""
    lines = ratings[data.NUMBERS].to_csv(sep="\t", header=False, index=False, lineterminator="\n")
    items = ["267\tunkonwn\tunkonwn\tunknown\n"]
    for movie, title in FILMS.items():
        if movie != 267:
            name, year = title[:-1].rsplit(" (", 1)
            items.append(f"{movie}\t{name}\t{year}\t{' '.join(KINDS[movie])}\n")
    texts = ("a:token\tb:token\tc:float\td:float\n" + lines, "a\tb\tc\td\n" + "".join(items))
    info = "Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n"
    wheel = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    return dict(zip(data.RECBOLE.members, texts, strict=True)) | {
        "recbole-1.2.1.dist-info/METADATA": info,
        "recbole-1.2.1.dist-info/WHEEL": wheel,
        "recbole-1.2.1.dist-info/RECORD": "",
    }


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A made-up MovieLens under the real code: a home of its own, checksums to match, no way out.

    `ratings` is the frame to come out, `files` GroupLens' two, `zip` and `wheel` the archives.
    """
    monkeypatch.setenv("FASTAI_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(data.VARIABLE, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    fastai_cfg.cache_clear()
    rng = np.random.default_rng(0)
    ratings = pd.DataFrame({name: rng.integers(1, 6, 400) for name in data.NUMBERS})
    ratings["movie"] = rng.choice([*FILMS], 400)
    ratings["title"] = ratings["movie"].map(FILMS)
    files = grouplens_files(ratings)
    archive, wheel = (
        packed({f"ml-100k/{k}": v for k, v in files.items()}),
        packed(recbole_files(ratings)),
    )

    def nowhere():
        raise OSError("no way out")

    monkeypatch.setattr(data, "SHA256", frame_sha256(ratings))
    for name, content in (("GROUPLENS", archive), ("RECBOLE", wheel)):
        known = {"sha256": hashlib.sha256(content).hexdigest(), "fetch": nowhere}
        monkeypatch.setattr(data, name, getattr(data, name)._replace(**known))

    def routes(**fetch):
        for name, fetched in fetch.items():
            monkeypatch.setattr(data, name, getattr(data, name)._replace(fetch=fetched))

    yield SimpleNamespace(
        ratings=ratings, files=files, zip=archive, wheel=wheel, routes=routes, tmp=temporary,
        home=tmp_path / "home", archives=tmp_path / "home" / "archive",
    )  # fmt: skip
    fastai_cfg.cache_clear()


def same(ratings, expected):
    """Equal in values, index and dtypes."""
    assert list(ratings.columns) == ["user", "movie", "rating", "timestamp", "title"]
    assert [str(ratings[name].dtype) for name in data.NUMBERS] == ["int64"] * 4
    assert isinstance(ratings.index, pd.RangeIndex)
    pd.testing.assert_frame_equal(ratings, expected)


def unpack(files, folder):
    """Write {name: bytes} into a new folder."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def left(folder):
    """The names of all files under a folder."""
    return sorted(file.name for file in folder.rglob("*") if file.is_file())


class TestNames:
    def test_unknown(self):
        with pytest.raises(RatingsUnavailable, match=r"no ratings called 'ml-1m'.*'synthetic'"):
            load_ratings("ml-1m")

    def test_path_goes_with_ml100k(self):
        with pytest.raises(RatingsUnavailable, match="only: leave it out for 'synthetic'"):
            load_ratings("synthetic", path="somewhere")

    def test_synthetic(self):
        ratings = load_ratings("synthetic")
        assert len(ratings) == 100_000 and ratings.attrs["name"] == "synthetic"
        assert ratings.attrs["source"] == "synthetic ratings, planted_ratings(seed=0)"


class TestGenres:
    @pytest.mark.parametrize("route", ["folder", "GROUPLENS", "RECBOLE"])
    def test_all_routes_give_the_same(self, small, tmp_path, route):
        expected = small.ratings.assign(genres=["|".join(KINDS[movie]) for movie in small.ratings["movie"]])
        if route != "folder":
            small.routes(**{route: lambda: {"GROUPLENS": small.zip, "RECBOLE": small.wheel}[route]})
        path = unpack(small.files, tmp_path / "ml-100k") if route == "folder" else None
        ratings = load_ratings(path=path, genres=True)
        pd.testing.assert_frame_equal(ratings, expected)
        assert ratings.attrs == load_ratings(path=path).attrs
        same(load_ratings(path=path), small.ratings)
        flags = ratings["genres"].str.get_dummies()
        assert (flags["Children's"] == (ratings["movie"] == 2)).all()
        assert set(flags) == {kind for kinds in KINDS.values() for kind in kinds}

    @pytest.mark.parametrize("flag", ["x", "", "0.5"])
    def test_flags_that_are_none(self, small, tmp_path, flag):
        old = small.files["u.item"]
        bad = old.replace(b"http://x|0", b"http://x|" + flag.encode(), 1)
        folder = unpack(small.files | {"u.item": bad}, tmp_path / "ml-100k")
        assert bad != old
        with pytest.raises(RatingsUnavailable, match=r"ml-100k: .*; give the folder"):
            load_ratings(path=folder)

    def test_where_there_are_none(self, tmp_path):
        with pytest.raises(RatingsUnavailable, match="'synthetic' has no column 'genres'; leave"):
            load_ratings("synthetic", genres=True)
        file = tmp_path / "my.csv"
        file.write_text("u,i,r\n1,2,3\n")
        with pytest.raises(RatingsUnavailable, match=r"'my.csv' has no column 'genres'"):
            load_ratings(str(file), genres=True)
        file.write_text("u,i,r,genres\n1,2,3,Drama|War\n")
        for genres in (True, False):
            assert load_ratings(str(file), genres=genres)["genres"].tolist() == ["Drama|War"]


class TestFolder:
    @pytest.mark.parametrize("given", ["parent", "itself", "variable", "path over variable"])
    def test_found(self, small, tmp_path, monkeypatch, given):
        folder = unpack(small.files, tmp_path / "my" / "ml-100k")
        path = {"itself": folder, "variable": None}.get(given, folder.parent)
        if given == "variable":
            monkeypatch.setenv(data.VARIABLE, str(folder.parent))
        if given == "path over variable":
            monkeypatch.setenv(data.VARIABLE, "/nowhere")
        ratings = load_ratings(path=path)
        same(ratings, small.ratings)
        assert ratings.attrs["source"] == f"MovieLens 100K from the folder {path or folder.parent}"
        assert ratings.attrs["name"] == "ml-100k"
        assert ratings.attrs["duplicates"] == small.ratings.duplicated(["user", "title"]).sum() > 0
        assert not small.home.exists()

    @pytest.mark.parametrize("variable", [False, True])
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
        ],
    )
    def test_bad_is_an_error_and_no_other_route_is_tried(
        self, small, tmp_path, monkeypatch, file, change, words, variable
    ):
        small.routes(GROUPLENS=lambda: small.zip, RECBOLE=lambda: small.wheel)
        files = small.files | {file: change and change(small.files[file])}
        folder = unpack({k: v for k, v in files.items() if v is not None}, tmp_path / "ml-100k")
        if variable:
            monkeypatch.setenv(data.VARIABLE, str(folder))
        with pytest.raises(RatingsUnavailable, match=f"ml-100k: .*({words}).*; give the folder") as e:
            load_ratings(path=None if variable else folder)
        assert "\n" not in str(e.value)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        file=st.sampled_from(["u.data", "u.item"]),
        where=st.floats(0, 1),
        with_=st.binary(max_size=9),
    )
    def test_no_damage_goes_unseen(self, small, tmp_path_factory, file, where, with_):
        """Whatever bytes are put into a file, the frame is the right one or there is an error."""
        folder = unpack(small.files, tmp_path_factory.mktemp("any") / "ml-100k")
        old = small.files[file]
        place = int(where * len(old))
        (folder / file).write_bytes(old[:place] + with_ + old[place + 1 :])
        try:
            same(load_ratings(path=folder), small.ratings)
        except RatingsUnavailable:
            assert (folder / file).read_bytes() != old

    def test_no_folder_at_all(self, small, tmp_path):
        (tmp_path / "file").write_text("")
        for path in ("nowhere", "file", "~/nowhere"):
            with pytest.raises(RatingsUnavailable, match=f"{path}: (no file|Not a dir).*give the"):
                load_ratings(path=str(tmp_path / path) if path[0] != "~" else path)


class TestKept:
    def test_order_of_routes(self, small):
        small.routes(RECBOLE=lambda: small.wheel)
        assert "RecBole" in load_ratings().attrs["source"]
        assert left(small.archives) == [data.RECBOLE.file]
        small.routes(GROUPLENS=lambda: small.zip)
        (small.archives / data.RECBOLE.file).unlink()
        assert "GroupLens" in load_ratings().attrs["source"]
        assert left(small.archives) == ["ml-100k.zip"]

    @pytest.mark.parametrize("archive", ["GROUPLENS", "RECBOLE"])
    def test_all_routes_give_one_frame_and_the_second_time_needs_no_network(self, small, archive):
        content = {"GROUPLENS": small.zip, "RECBOLE": small.wheel}[archive]
        calls = []
        small.routes(**{archive: lambda: calls.append(1) or content})
        first, second = load_ratings(), load_ratings()
        same(first, small.ratings)
        same(second, small.ratings)
        assert first.attrs == second.attrs and len(calls) == 1
        assert not left(small.tmp)

    def test_fastai_finds_the_archive_and_we_find_what_it_unpacked(self, small, monkeypatch):
        small.routes(GROUPLENS=lambda: small.zip)
        load_ratings()
        monkeypatch.setattr(URLs, "ML_100k", "http://127.0.0.1:9/ml-100k.zip")
        folder = untar_data(URLs.ML_100k)
        assert (folder / "u.data").read_bytes() == small.files["u.data"]
        small.routes(GROUPLENS=lambda: pytest.fail("fetched anew"))
        (small.archives / "ml-100k.zip").unlink()
        ratings = load_ratings()
        same(ratings, small.ratings)
        assert ratings.attrs["source"] == "MovieLens 100K, unpacked by fastai"

    @pytest.mark.parametrize("archive", ["GROUPLENS", "RECBOLE"])
    @pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b"?" + b[1:]])
    def test_damaged_copies_are_not_used_and_do_not_block(self, small, archive, damage):
        content = {"GROUPLENS": small.zip, "RECBOLE": small.wheel}[archive]
        unpack({"u.data": b"196\t242\t3\t881"}, small.home / "data" / "ml-100k")
        file = unpack({getattr(data, archive).file: damage(content)}, small.archives)
        with pytest.raises(RatingsUnavailable, match="no good copy"):
            load_ratings()
        small.routes(**{archive: lambda: content})
        same(load_ratings(), small.ratings)
        assert (file / getattr(data, archive).file).read_bytes() == content

    def test_hash_is_checked_before_opening(self, small, monkeypatch):
        small.routes(GROUPLENS=lambda: small.zip + b" ", RECBOLE=lambda: small.wheel[:-1])
        opened = []
        monkeypatch.setattr(zipfile, "ZipFile", lambda *a: opened.append(a))
        with pytest.raises(RatingsUnavailable, match=r"not the published ml-100k.zip.*recbole-1.2.1"):
            load_ratings()
        assert not opened and not left(small.archives)

    def test_folder_that_cannot_be_written(self, small):
        small.routes(GROUPLENS=lambda: small.zip)
        load_ratings()
        shutil.rmtree(small.archives)
        small.archives.write_text("a file where the folder should be")
        with pytest.warns(UserWarning, match=r"ml-100k.zip isn't kept for next time: .*FASTAI_HOME"):
            same(load_ratings(), small.ratings)

    def test_full_disk(self, small, monkeypatch):
        small.routes(GROUPLENS=lambda: small.zip)

        def full(self, content):
            with self.open("wb") as file:
                file.write(content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.warns(UserWarning, match="isn't kept for next time: No space left on device"):
            same(load_ratings(), small.ratings)
        assert left(small.archives) == []

    @pytest.mark.parametrize("broken", ["file for folder", "no sections", "other sections"])
    def test_fastai_settings_broken(self, small, broken):
        if broken == "file for folder":
            small.home.write_text("")
        else:
            text = {"no sections": "data", "other sections": "[DEFAULT]\nx = y\n"}[broken]
            unpack({"config.ini": text.encode()}, small.home)
        small.routes(RECBOLE=lambda: small.wheel)
        with pytest.warns(UserWarning, match="isn't kept for next time"):
            same(load_ratings(), small.ratings)

    def test_many_at_once(self, small):
        small.routes(GROUPLENS=lambda: time.sleep(0.1) or small.zip)
        with ThreadPoolExecutor(8) as pool:
            for ratings in pool.map(lambda _: load_ratings(), range(8)):
                same(ratings, small.ratings)
        assert left(small.archives) == ["ml-100k.zip"]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
    def test_killed_at_any_moment(self, small):
        """Thirty writers killed: the archive is whole or absent, and what they left goes."""
        file, content = small.archives / "ml-100k.zip", os.urandom(3_000_000)
        fastai_cfg()
        chance = random.Random(0)
        for _ in range(30):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # fork beside threads: the child only writes files
                child = os.fork()
            if not child:
                while True:
                    data._keep("ml-100k.zip", content)
            time.sleep(chance.uniform(0, 0.02))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            assert not file.exists() or file.read_bytes() == content
        (small.archives / ".ml-100k.zip.fresh.part").write_bytes(b"another process at work")
        (small.archives / ".ml-100k.zip.dead.part").write_bytes(b"left by a killed one")
        for unfinished in small.archives.glob(".ml-100k.zip.*"):
            if "fresh" not in unfinished.name:
                os.utime(unfinished, (0, 0))
        data._keep("ml-100k.zip", small.zip)
        assert left(small.archives) == [".ml-100k.zip.fresh.part", "ml-100k.zip"]
        assert file.read_bytes() == small.zip


@pytest.fixture
def server(small, monkeypatch):
    """A server on this machine in GroupLens' place; `serve(answer)` says how it answers."""
    running = []

    def serve(answer, tls=None):
        class Handler(BaseHTTPRequestHandler):
            do_GET = answer

            def log_message(self, *args):
                pass

        here = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        here.daemon_threads, here.block_on_close = True, False
        here.handle_error = lambda *args: None
        if tls:
            here.socket = tls.wrap_socket(here.socket, server_side=True)
        threading.Thread(target=here.serve_forever, args=(0.01,), daemon=True).start()
        running.append(here)
        address = f"http{'s' * bool(tls)}://127.0.0.1:{here.server_port}/ml-100k.zip"
        monkeypatch.setattr(URLs, "ML_100k", address)

    small.routes(GROUPLENS=data._download)
    monkeypatch.setattr(data, "TIMEOUT", 0.5)
    yield serve
    for here in running:
        here.shutdown()
        here.server_close()


def sends(body, status=200, length=None):
    """An answer with a body, and a Content-Length that may be untrue."""

    def answer(request):
        request.send_response(status)
        request.send_header("Content-Length", str(len(body) if length is None else length))
        request.end_headers()
        request.wfile.write(body)

    return answer


def hangs(request):
    """No answer at all."""
    time.sleep(2)


def drips(request):
    """A byte now and then, for ever."""
    request.send_response(200)
    request.end_headers()
    for _ in range(40):
        request.wfile.write(b"x")
        time.sleep(0.05)


def drops(request):
    """The connection shut before an answer."""
    request.connection.close()


def breaks_chunks(request):
    """A chunked body that stops in a chunk."""
    request.protocol_version = "HTTP/1.1"
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()
    request.wfile.write(b"ffff\r\nabc")
    request.close_connection = True


def moves_on(request):
    """A redirection to itself."""
    request.send_response(302)
    request.send_header("Location", request.path)
    request.end_headers()


EVIL = packed({"../../evil": b"x", "/evil": b"x", "ml-100k/u.data": b"0" * 5_000_000})


class TestServer:
    def test_good(self, small, server, capfd):
        server(sends(small.zip))
        same(load_ratings(), small.ratings)
        assert (small.archives / "ml-100k.zip").read_bytes() == small.zip
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize(
        ("answer", "words"),
        [
            (sends(b"gone", 404), "HTTP Error 404"),
            (sends(b"busy", 503), "HTTP Error 503"),
            (sends(b"half", length=1000), "broke off after 4 of 1,000 bytes"),
            (
                sends(b"<html>Please log in</html>"),
                "26 bytes that are not the published ml-100k.zip",
            ),
            (sends(b""), "0 bytes that are not the published"),
            (sends(EVIL), "bytes that are not the published ml-100k.zip"),
            (sends(b"0" * 300_000), "more than 200,000 bytes"),
            (hangs, "no answer for 0.5 seconds"),
            (drips, "not done after 1 seconds"),
            (drops, "closed connection|reset"),
            (breaks_chunks, "IncompleteRead"),
            (moves_on, "HTTP Error 302"),
        ],
    )
    def test_faults(self, small, server, tmp_path, monkeypatch, capfd, answer, words):
        monkeypatch.setattr(data, "MAX_BYTES", 200_000)
        monkeypatch.setattr(data, "PATIENCE", 1)
        server(answer)
        started = time.monotonic()
        with pytest.raises(RatingsUnavailable, match=f"GroupLens: .*({words}).*; RecBole") as error:
            load_ratings()
        assert time.monotonic() - started < 60  # it does not hang; the server above drips for ever
        assert "path= and COLLAB_REPRO_DATA: not given" in str(error.value)
        assert "no way out. What to do: try again later, or unpack" in str(error.value)
        assert "\n" not in str(error.value)
        small.routes(RECBOLE=lambda: small.wheel)
        ratings = load_ratings()
        same(ratings, small.ratings)
        assert ratings.attrs["source"] == data.RECBOLE.source
        assert left(tmp_path) == ["config.ini", data.RECBOLE.file]
        assert capfd.readouterr() == ("", "")

    def test_refused(self, small, server, monkeypatch):
        server(hangs)
        monkeypatch.setattr(URLs, "ML_100k", "http://127.0.0.1:1/ml-100k.zip")
        with pytest.raises(RatingsUnavailable, match="GroupLens: Connection refused"):
            load_ratings()

    @pytest.mark.skipif(not shutil.which("openssl"), reason="makes a certificate with openssl")
    def test_certificate(self, small, server, tmp_path):
        pem = tmp_path / "self-signed.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
        command += ["-subj", "/CN=localhost", "-keyout", pem, "-out", pem]
        done = subprocess.run(command, capture_output=True)
        assert done.returncode == 0, done.stderr
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(pem)
        server(sends(small.zip), tls)
        with pytest.raises(RatingsUnavailable, match="GroupLens: the server's certificate is not"):
            load_ratings()

    def test_good_copy_survives(self, small, server):
        server(sends(small.zip))
        load_ratings()
        server(sends(b"nonsense"))
        same(load_ratings(), small.ratings)
        assert (small.archives / "ml-100k.zip").read_bytes() == small.zip


@pytest.fixture
def index(small, tmp_path, monkeypatch):
    """The user's pip settings: a folder with a wheel, no index, and the real pip to read them."""
    small.routes(RECBOLE=data._pip_download)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder / data.RECBOLE.file


class TestPip:
    def test_good(self, small, index, capfd):
        index.write_bytes(small.wheel)
        same(load_ratings(), small.ratings)
        assert (small.archives / data.RECBOLE.file).read_bytes() == small.wheel
        assert left(small.tmp) == [] and capfd.readouterr() == ("", "")

    def test_not_on_the_index(self, small, index):
        with pytest.raises(RatingsUnavailable, match=r"pip: pip says ERROR: No matching.*recbole"):
            load_ratings()

    def test_index_out_of_reach(self, small, index, monkeypatch):
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
        words = r"pip says ERROR: No matching.*\(.*Failed to establish .*Connection refused"
        with pytest.raises(RatingsUnavailable, match=words) as error:
            load_ratings()
        assert "<" not in str(error.value) and "\n" not in str(error.value)

    def test_wrong_hash(self, small, index):
        index.write_bytes(packed(recbole_files(small.ratings[1:])))
        words = "bytes that are not the published recbole-1.2.1-py3-none-any.whl"
        with pytest.raises(RatingsUnavailable, match=words):
            load_ratings()
        assert left(small.archives) == [] and left(small.tmp) == []

    def test_a_source_package_is_never_run(self, small, index, tmp_path):
        mark = tmp_path / "ran"
        source = tmp_path / "recbole-1.2.1"
        build = b'[build-system]\nrequires = []\nbuild-backend = "run"\nbackend-path = ["."]\n'
        run = f"open({str(mark)!r}, 'w').close()".encode()
        unpack({"pyproject.toml": build, "run.py": run, "PKG-INFO": b""}, source)
        archive = str(index.with_name("recbole-1.2.1"))
        shutil.make_archive(archive, "gztar", tmp_path, "recbole-1.2.1")
        with pytest.raises(RatingsUnavailable, match="pip says ERROR"):
            load_ratings()
        assert not mark.exists()

    @pytest.mark.parametrize(
        ("script", "words"),
        [
            ("import time; time.sleep(9)", "RecBole.*not done after 0.3 seconds"),
            (
                "import sys; sys.exit('python: No module named pip')",
                "pip says .*No module named pip",
            ),
            ("raise SystemExit(2)", "pip says nothing"),
            ("pass", "RecBole.*no file recbole-1.2.1"),
        ],
    )
    def test_other_faults(self, small, index, tmp_path, monkeypatch, script, words):
        fake = tmp_path / "python"
        fake.write_text(f"#!{sys.executable}\n{script}\n")
        fake.chmod(0o755)
        monkeypatch.setattr(data, "sys", SimpleNamespace(executable=str(fake)))
        monkeypatch.setattr(data, "PATIENCE", 0.3 if "sleep" in script else 30)
        with pytest.raises(RatingsUnavailable, match=words):
            load_ratings()
        assert left(small.tmp) == []

    def test_no_python_at_all(self, small, index, monkeypatch):
        monkeypatch.setattr(data, "sys", SimpleNamespace(executable="/no/such/python"))
        with pytest.raises(RatingsUnavailable, match=r"RecBole 1.2.1 by pip: no file python"):
            load_ratings()


class TestOwnFile:
    def test_read(self, tmp_path):
        text = "who,film,stars\n1,NA,4\n2,\u00c9t\u00e9,3.5\n3,,2\n"
        for name, encoding in (("my.csv", "utf-8"), ("my.CSV", "utf-8-sig"), ("my.tsv", "utf-8")):
            file = tmp_path / name
            file.write_text(text.replace(",", data.SEPARATORS[file.suffix.lower()]), encoding)
            ratings = load_ratings(str(file))
            assert list(ratings.columns) == ["who", "film", "stars"]
            assert ratings["film"][:2].tolist() == ["NA", "\u00c9t\u00e9"]
            assert ratings["film"].isna().tolist() == [False, False, True]
            assert ratings.attrs == {"name": name, "source": f"{name}, 3 ratings"}

    def test_text_in_a_late_row_is_kept_as_text(self, tmp_path):
        """Read by chunks, pandas would make numbers of some rows and text of others."""
        file = tmp_path / "long.csv"
        pd.DataFrame({"u": [*range(300_000), "x"], "i": 1, "r": 1}).to_csv(file, index=False)
        assert {type(user) for user in load_ratings(str(file))["u"]} == {str}

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (None, "no file my.csv"),
            (b"", "No columns to parse"),
            (b"u,i,r\n1,2,3\n1,2,3,4\n", "Expected 3 fields in line 3, saw 4"),
            (b"u,i,r\n1,2,3,4\n1,2,3,4\n", "more fields than the header"),
            (b"196,242,3\n186,302,3\n", "no header row; put one above the line 196, 242, 3"),
            ("u,i,r\n1,\u00c9t\u00e9,3\n".encode("latin-1"), "byte 8 isn't UTF-8; save"),
            (b'u,i,r\n1,"open,3\n', "EOF inside string"),
        ],
    )
    def test_refused(self, tmp_path, content, words):
        file = tmp_path / "my.csv"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(RatingsUnavailable, match=f"my.csv: .*{words}") as error:
            load_ratings(str(file))
        assert "\n" not in str(error.value)


class TestReal:
    """Held to the real ratings, wherever they came from."""

    def test_the_well_known_numbers(self, ml100k):
        assert len(ml100k) == 100_000 and ml100k["rating"].mean() == 3.52986
        counts = ml100k.nunique()
        assert (counts["user"], counts["movie"], counts["title"]) == (943, 1682, 1664)
        assert set(ml100k.loc[ml100k["movie"] == 267, "title"]) == {"unknown"}
        assert (ml100k["title"] == ml100k["title"].str.strip()).all()
        assert ml100k.attrs["duplicates"] == 307 and ml100k.attrs["source"]
        assert frame_sha256(ml100k) == data.SHA256

    def test_u_data_byte_for_byte(self, ml100k):
        """The rows and their order are those of the u.data whose hash others publish."""
        digest = hashlib.sha256(grouplens_files(ml100k)["u.data"]).hexdigest()
        assert digest == "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490"

    def test_from_a_folder(self, ml100k, tmp_path):
        folder = unpack(grouplens_files(ml100k), tmp_path / "ml-100k")
        same(load_ratings(path=folder), ml100k)
        changed = ml100k.copy()
        changed.loc[99_999, "rating"] = 1 + changed.loc[99_999, "rating"] % 5
        (folder / "u.data").write_bytes(grouplens_files(changed)["u.data"])
        with pytest.raises(RatingsUnavailable, match="not the published 100,000 ratings"):
            load_ratings(path=folder)

    def test_genres(self, ml100k, tmp_path):
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
        files = grouplens_files(ml100k, films.str.split("|").to_dict())
        folder = unpack(files, tmp_path / "ml-100k")
        pd.testing.assert_frame_equal(load_ratings(path=folder, genres=True), ratings)
