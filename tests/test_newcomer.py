"""A newcomer's path: `pip install .` elsewhere, and Colab's way with nothing but a notebook."""

import json
import os
import re
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell
from test_notebooks import (
    NOTEBOOKS,
    ROOT,
    SMALL,
    code_cells,
    execute,
    faults_in_outputs,
    read,
    with_parameters,
)

import collab_repro

# Not `find_spec`: asked for pip, setuptools' hook steps back, and older PyTorch can't import setuptools then.
pytestmark = pytest.mark.skipif(PathFinder.find_spec("pip") is None, reason="this environment has no pip")
OFFLINE = re.compile("No matching distribution found for setuptools|NewConnectionError|NameResolutionError")


def bare(**more):
    "The environment variables of somebody who has not heard of this clone."
    gone = {"PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS", "VIRTUAL_ENV", "COLLAB_REPRO_REPOSITORY"}
    return {key: value for key, value in os.environ.items() if key not in gone} | more


def ran(*command, cwd, env=None):
    command = [str(part) for part in command]
    return subprocess.run(command, cwd=cwd, env=env or bare(), capture_output=True, text=True)


def offline(stderr):
    "Building the package fetches setuptools. Without a network the test is skipped, unless one is required."
    if OFFLINE.search(stderr) and os.environ.get("COLLAB_REPRO_REQUIRE_REAL") != "1":
        pytest.skip("no network to fetch setuptools from")


def must(run):
    "The run, if it went well."
    if run.returncode:
        offline(run.stderr)
    assert run.returncode == 0, f"{run.args}\n{run.stdout}\n{run.stderr}"
    return run


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    "A git repository of this clone as it stands: HEAD and what is changed or new beside it."
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git clone")
    copy = tmp_path_factory.mktemp("git") / "a clone"
    listed = must(ran("git", "ls-files", "-coz", "--exclude-standard", cwd=ROOT)).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    me = ("-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "commit.gpgsign=false")
    must(ran("git", "init", "-q", cwd=copy))
    must(ran("git", "add", "-A", cwd=copy))
    must(ran("git", *me, "commit", "-qm", "as it stands", cwd=copy))
    return copy


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory):
    "The wheel built from a copy, so that nothing lying about in this folder can hide what is missing."
    out = tmp_path_factory.mktemp("wheel")
    must(ran(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", out, repository, cwd=out))
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    "A folder with nothing but the package in it."
    target = tmp_path_factory.mktemp("elsewhere")
    must(
        ran(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, wheel, cwd=target)
    )
    return target


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.endswith("/")}
        about = next(name for name in held if name.endswith("METADATA"))
        metadata = archive.read(about).decode()
    modules = {f"collab_repro/{file.name}" for file in (ROOT / "collab_repro").glob("*.py")}
    info = about.removesuffix("METADATA")
    assert modules and held == modules | {
        info + name for name in ("METADATA", "WHEEL", "RECORD", "top_level.txt", "licenses/LICENSE")
    }
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.search(rf"(?m)^Requires-Dist: {re.escape(line)}$", metadata), line
    assert "Requires-Python: >=3.10" in metadata and "License-Expression: Apache-2.0" in metadata
    assert "# collab_repro" in metadata, "the README is its description"


def test_it_works_from_an_empty_folder(installed, tmp_path):
    env = bare(PYTHONPATH=str(installed))
    where = must(
        ran(
            sys.executable,
            "-c",
            "import collab_repro as c; print(c.__file__)",
            cwd=tmp_path,
            env=env,
        )
    )
    assert Path(where.stdout.strip()).is_relative_to(installed) and where.stderr == ""
    told = must(ran(sys.executable, "-m", "collab_repro", "--help", cwd=tmp_path, env=env))
    assert told.stdout.startswith("usage: python -m collab_repro") and told.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_it_trains_from_an_empty_folder(installed, tmp_path):
    env = bare(PYTHONPATH=str(installed), MPLBACKEND="Agg")
    file = tmp_path / "mine.csv"
    collab_repro.planted_ratings(60, 40, 1200, n_factors=2, seed=1)[0].to_csv(file, index=False)
    command = ("-m", "collab_repro", "--data", "mine.csv", "--seeds", 1, "--epochs", 1)
    told = must(ran(sys.executable, *command, cwd=tmp_path, env=env))
    assert "4 of 4 final tables are equal to the bit" in told.stdout
    assert (tmp_path / "results/report.md").exists() and (tmp_path / "results/curves.png").exists()


def test_help_reads_as_a_tour(installed, tmp_path):
    "Every public name is there, told of in the opening, and documented."
    tour = collab_repro.__doc__
    for name in collab_repro.__all__:
        thing = getattr(collab_repro, name)
        own = thing.__doc__ if callable(thing) else True
        assert own and not str(own).startswith(f"{name}("), f"{name} has no docstring"
    untold = [n for n in collab_repro.__all__ if n not in tour and not n.startswith("plot_")]
    assert untold == [], "names that the tour leaves out"
    for module in re.findall(r"`collab_repro\.(\w+)`", tour):
        assert find_spec(f"collab_repro.{module}"), module
    told = must(
        ran(
            sys.executable,
            "-c",
            "import collab_repro, pydoc; print(pydoc.plain(pydoc.render_doc(collab_repro)))",
            cwd=tmp_path,
            env=bare(PYTHONPATH=str(installed)),
        )
    )
    assert "The tour, in the order the data flows:" in told.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    "This environment's packages, linked one by one into a folder, all but collab_repro."
    farm = tmp_path_factory.mktemp("packages")
    places = dict.fromkeys([*site.getsitepackages(), site.getusersitepackages(), *sys.path])
    for place in map(Path, places):
        if place.name in ("site-packages", "dist-packages") and place.is_dir():
            for entry in place.iterdir():
                ours = "collab_repro" in entry.name or entry.suffix in (".pth", ".egg-link")
                if not ours and not (farm / entry.name).exists():
                    (farm / entry.name).symlink_to(entry)
    return farm


@pytest.fixture
def colab(packages, tmp_path, monkeypatch):
    """An environment with fastai but without this package, as on Colab, and an empty folder to work in.

    Its kernel is named `colab`, as its interpreter is in the returned `python`.
    """
    home = tmp_path / "env"
    venv.EnvBuilder(symlinks=os.name != "nt").create(home)
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    (own,) = home.glob("lib/python*/site-packages") if os.name != "nt" else [home / "Lib/site-packages"]
    (own / "the_others.pth").write_text(f"{packages}\n")
    kernel = tmp_path / "jupyter/kernels/colab"
    kernel.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Colab", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    folder = tmp_path / "alone"
    folder.mkdir()
    missing = ran(python, "-c", "import fastai; import collab_repro", cwd=folder)
    assert "No module named 'collab_repro'" in missing.stderr, missing.stderr
    return python, folder, own


def setup_cell(address=""):
    "The set-up cell's own text, with the address filled in where it says so."
    text = code_cells(read(NOTEBOOKS[0]))[0].source
    assert text.count('REPOSITORY = ""') == 1
    return text.replace('REPOSITORY = ""', f"REPOSITORY = {address!r}")


WHERE = "\nimport collab_repro\nprint(collab_repro.__file__)"


@pytest.mark.parametrize("form", ["url", "git+url", "folder", "variable"])
def test_set_up_installs_from_an_address(colab, repository, form):
    python, folder, own = colab
    url = repository.as_uri()
    address = {"url": url, "git+url": "git+" + url, "folder": str(repository), "variable": ""}[form]
    env = bare(COLLAB_REPRO_REPOSITORY=url) if form == "variable" else bare()
    run = must(ran(python, "-c", setup_cell(address) + WHERE, cwd=folder, env=env))
    assert Path(run.stdout.strip()).is_relative_to(own), "installed in this environment"
    assert list(folder.iterdir()) == [], "and nothing is left in the reader's folder"
    if form == "url":  # run again: nothing to install
        again = must(ran(python, "-c", setup_cell("file:///nowhere") + WHERE, cwd=folder))
        assert again.stdout == run.stdout


def test_set_up_without_an_address_says_what_to_fill_in(colab):
    python, folder, _ = colab
    run = ran(python, "-c", setup_cell(), cwd=folder)
    assert run.returncode == 1 and "ModuleNotFoundError: collab_repro is not installed" in run.stderr
    assert "Fill in REPOSITORY at the top of this cell" in " ".join(run.stderr.split())


def test_set_up_with_a_wrong_address_passes_on_what_pip_says(colab):
    python, folder, _ = colab
    run = ran(python, "-c", setup_cell((folder / "nowhere.git").as_uri()), cwd=folder)
    assert run.returncode == 1 and "nowhere.git could not be installed; pip says:" in run.stderr
    assert "does not exist" in run.stderr or "not appear to be a git repository" in run.stderr


@pytest.mark.parametrize("inside", [".", "nbs"])
def test_set_up_in_a_clone_needs_no_address(colab, repository, inside):
    python, _, own = colab
    run = must(ran(python, "-c", setup_cell() + WHERE, cwd=repository / inside))
    assert Path(run.stdout.strip()) == repository / "collab_repro/__init__.py"
    assert not list(own.glob("collab_repro*"))


def test_a_notebook_alone_runs_on_colab(colab, repository):
    "The set-up cell with the address filled in, in the notebook itself, and then all of it, small."
    _, folder, own = colab
    nb = with_parameters(read(NOTEBOOKS[0]), **SMALL)
    code_cells(nb)[0].source = setup_cell(repository.as_uri())
    nb.cells.append(new_code_cell(WHERE))
    try:
        nb = execute(nb, folder, bare(), kernel="colab")
    except CellExecutionError as error:
        offline(str(error))
        raise
    assert Path(nb.cells.pop().outputs[0].text.strip()).is_relative_to(own)
    assert faults_in_outputs(nb) == []
