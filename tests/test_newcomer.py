"""A newcomer's path: the notebooks' own pip line, an empty folder, a clone that isn't installed."""

import os
import pydoc
import re
import shutil
import site
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from test_notebooks import NOTEBOOKS, ROOT, read, setup_cell

import collab_repro

# Not `find_spec`: asked for pip, setuptools' hook steps back, and older PyTorch can't import setuptools then.
pytestmark = pytest.mark.skipif(PathFinder.find_spec("pip") is None, reason="this environment has no pip")
OFFLINE = re.compile("No matching distribution found for setuptools|NewConnectionError|NameResolutionError")


def bare(**more):
    """The environment variables of somebody who has not heard of this clone."""
    gone = {"PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS", "VIRTUAL_ENV"}
    return {key: value for key, value in os.environ.items() if key not in gone} | more


def ran(*command, cwd, shell=False, **variables):
    """What the command said, if it went well. Without a network to fetch setuptools from, a skip."""
    command = command[0] if shell else [str(part) for part in command]
    env = bare(**variables)
    run = subprocess.run(command, cwd=cwd, env=env, shell=shell, capture_output=True, text=True)
    if run.returncode and OFFLINE.search(run.stderr) and os.environ.get("COLLAB_REPRO_REQUIRE_REAL") != "1":
        pytest.skip("no network to fetch setuptools from")
    assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"
    return run


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A git repository of this clone as it stands: HEAD and what is changed or new beside it."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git clone")
    copy = tmp_path_factory.mktemp("git") / "a clone"
    listed = ran("git", "ls-files", "-coz", "--exclude-standard", cwd=ROOT).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    me = ("-c", "user.name=tests", "-c", "user.email=tests@localhost", "-c", "commit.gpgsign=false")
    for command in (("init", "-q"), ("add", "-A"), (*me, "commit", "-qm", "as it stands")):
        ran("git", *command, cwd=copy)
    return copy


@pytest.fixture(scope="module")
def installed(clone, tmp_path_factory):
    """A folder with nothing but the package in it, put there by the line that the notebooks have for Colab.

    It is run as IPython runs it, by a shell, with a local address filled in.
    """
    target = tmp_path_factory.mktemp("elsewhere")
    ran("git", "clone", "-q", "--bare", clone, target / "bare.git", cwd=target)
    (line,) = re.findall(r"(?m)^# %(pip install -q git\+.*)$", setup_cell(read(NOTEBOOKS[0])).source)
    line, filled = re.subn(r"https://<[^>]*>", f"'{(target / 'bare.git').as_uri()}'", line)
    assert filled == 1
    line = line.replace("install", "install --no-deps --no-compile --target site", 1)
    ran(f"'{sys.executable}' -m {line}", cwd=target, shell=True)
    return target / "site"


def test_the_wheel_holds_the_package_and_nothing_else(installed):
    held = {str(file.relative_to(installed)) for file in installed.rglob("*") if file.is_file()}
    (about,) = installed.glob("*.dist-info/METADATA")
    kept = [file for kind in ("*.py", "*.csv") for file in (ROOT / "collab_repro").rglob(kind)]
    modules = {str(file.relative_to(ROOT)) for file in kept}
    assert {"collab_repro/evidence/effects.csv", "collab_repro/evidence/spread.csv"} <= modules
    by_pip = ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json")
    by_setuptools = ("METADATA", "WHEEL", "top_level.txt", "licenses/LICENSE")
    assert len({Path(module).parent for module in modules}) > 5, "sub-packages"
    assert held == modules | {f"{about.parent.name}/{name}" for name in by_pip + by_setuptools}
    metadata = about.read_text()
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.search(rf"(?m)^Requires-Dist: {re.escape(line)}$", metadata), line
    assert "Requires-Python: >=3.10" in metadata and "License-Expression: Apache-2.0" in metadata
    assert "# collab_repro" in metadata, "the README is its description"


def test_it_works_from_an_empty_folder(installed, tmp_path):
    env = {"PYTHONPATH": str(installed), "MPLBACKEND": "Agg"}
    code = "import collab_repro; print(collab_repro.__file__)"
    where = ran(sys.executable, "-c", code, cwd=tmp_path, **env)
    assert Path(where.stdout.strip()).is_relative_to(installed) and where.stderr == ""
    told = ran(sys.executable, "-m", "collab_repro", "--help", cwd=tmp_path, **env)
    assert told.stdout.startswith("usage: python -m collab_repro") and told.stderr == ""
    assert list(tmp_path.iterdir()) == []

    file = tmp_path / "mine.csv"
    collab_repro.planted_ratings(60, 40, 1200, n_factors=2, seed=1)[0].to_csv(file, index=False)
    command = ("-m", "collab_repro", "--data", "mine.csv", "--seeds", 1, "--epochs", 1)
    told = ran(sys.executable, *command, cwd=tmp_path, **env)
    assert "4 of 4 final tables are equal to the bit" in told.stdout
    assert (tmp_path / "results/report.md").exists() and (tmp_path / "results/curves.png").exists()


def test_help_reads_as_a_tour():
    """Every public name is there, told of in the opening, and documented."""
    tour = collab_repro.__doc__
    for name in collab_repro.__all__:
        thing = getattr(collab_repro, name)
        own = thing.__doc__ if callable(thing) else True
        assert own and not str(own).startswith(f"{name}("), f"{name} has no docstring"
        assert re.search(rf"`{name}\b", tour), f"the tour leaves out {name}"
    for module in re.findall(r"(?m)^- (\w+):", tour):
        assert (ROOT / f"collab_repro/{module}.py").exists(), module
    for room in (ROOT / "collab_repro").glob("*/__init__.py"):
        assert f"`{room.parent.name}`" in tour, f"the tour leaves out {room.parent.name}"
    assert "in reading order:" in pydoc.plain(pydoc.render_doc(collab_repro))


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """This environment's packages, linked one by one into a folder, all but collab_repro."""
    farm = tmp_path_factory.mktemp("packages")
    places = dict.fromkeys([*site.getsitepackages(), site.getusersitepackages(), *sys.path])
    for place in map(Path, places):
        if place.name in ("site-packages", "dist-packages") and place.is_dir():
            for entry in place.iterdir():
                ours = "collab_repro" in entry.name or entry.suffix in (".pth", ".egg-link")
                if not ours and not (farm / entry.name).exists():
                    (farm / entry.name).symlink_to(entry)
    return str(farm)


@pytest.mark.parametrize("inside", [".", "nbs"])
def test_in_a_clone_the_set_up_cell_finds_the_package(packages, clone, inside):
    """-S: without this environment's site-packages, where the package may be installed."""
    code = setup_cell(read(NOTEBOOKS[0])).source + "\nimport collab_repro as c"
    code += "\nprint(c.load_ratings('synthetic').shape, c.__file__)"
    run = ran(sys.executable, "-S", "-c", code, cwd=clone / inside, PYTHONPATH=packages)
    shape, file = run.stdout.rstrip().split(") ")
    assert shape == "(100000, 5" and Path(file).resolve() == clone / "collab_repro/__init__.py"
