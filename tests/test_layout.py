"""The rules of the layout: who may import whom, what nobody waits for, how much there is to read."""

import ast
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_interpret import made

import collab_repro
from collab_repro.command import folder

PACKAGE = Path(collab_repro.__file__).parent
MODULES = {  # by the dotted name inside the package; that of the package itself is ""
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."): file
    for file in PACKAGE.rglob("*.py")
}
ROAD = ["data", "loader", "models", "training", "chapter", "curves", "comparison", "interpret", "plots"]
DOORS = {"data": {"sources"}, "training": {"sources", "speed"}, "plots": {"looks"}}
PUBLIC = """BadRatings CollabNN DotProduct DotProductBias DotProductBiasParams FastLoop FusedAdam Learned RUNS
    RatingsDL RatingsUnavailable against_the_book big_batch check_ratings compare copy_weights curve
    diagnose difference factor_pca fit fold_in learner load_ratings movie_bias movie_factors
    planted_ratings plot_bias plot_curves plot_difference plot_factors plot_over_band predict
    published ranking recommend reproduce same_start similar_movies stars_learner summary
    with_columns"""
PUBLIC = PUBLIC.split()


def imports(module: str, source: str | None = None) -> set[str]:
    """The modules of the package that `module` imports, at its top or inside a function."""
    file, found = MODULES[module], set()
    here = ["collab_repro", *file.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text() if source is None else source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + 1] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            names = [f"{origin}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "collab_repro":
                name = name.removeprefix("collab_repro").lstrip(".")
                found.add(name if name in MODULES else name.rpartition(".")[0])
    return found


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("data", "from .sources import planted_ratings", {"sources"}),
        ("data", "from .sources import files", {"sources.files"}),
        ("data", "from . import sources", {"sources"}),
        ("plots", "def plot():\n    import collab_repro.speed.loop", {"speed.loop"}),
        ("plots", "def plot():\n    from collab_repro.speed.loop import FastLoop", {"speed.loop"}),
        ("plots", "from collab_repro import fit", {""}),
        ("speed.loop", "from ..loader import BS\nfrom . import batches", {"loader", "speed.batches"}),
        ("speed", "from . import loop\nimport os.path", {"speed.loop"}),
    ],
)  # fmt: skip
def test_every_form_of_import_is_seen(module, source, found):
    assert imports(module, source) == found


@pytest.mark.parametrize("module", ROAD)
def test_the_road_imports_upwards_and_through_its_doors_alone(module):
    above = set(ROAD[: ROAD.index(module)])
    assert imports(module) <= above | DOORS.get(module, set())


def test_speed_and_looks_know_nothing_of_what_uses_them():
    speed = {module for module in MODULES if module.split(".")[0] == "speed"}
    assert len(speed) > 3 and set().union(*map(imports, speed)) <= {"loader", "models", "processes"} | speed
    assert imports("looks") == imports("processes") == set()


def test_no_imports_go_in_a_circle():
    graph = {}
    for module in MODULES:
        parts = [imported.split(".") for imported in imports(module)]
        run = {".".join(part[:n]) for part in parts for n in range(1, len(part) + 1)}  # their packages too
        inside = module.split(".")
        graph[module] = run - {".".join(inside[:n]) for n in range(1, len(inside) + 1)}
    TopologicalSorter(graph).prepare()  # raises CycleError, naming the circle


def test_the_road_can_be_read_in_one_sitting():
    lines = {module: len(file.read_text().splitlines()) for module, file in MODULES.items()}
    road = {module: lines[module] for module in ROAD}
    assert max(road.values()) < 170, road
    assert sum(road.values()) < 1_000, road
    assert sum(lines.values()) < 7_340, "what is added displaces something: the aim is 3,700"


def test_public_names():
    assert sorted(collab_repro.__all__) == sorted(PUBLIC)
    assert set(PUBLIC) <= set(dir(collab_repro))
    for name in PUBLIC:
        assert getattr(collab_repro, name) is not None
    names = {part for module in MODULES for part in module.split(".")}
    assert names.isdisjoint(PUBLIC), "a module has the name of a public function"
    with pytest.raises(AttributeError, match="'collab_repro' has no attribute 'embedding'"):
        collab_repro.embedding  # noqa: B018


def test_every_module_says_what_it_holds():
    assert [
        name for name, file in MODULES.items() if not ast.get_docstring(ast.parse(file.read_text()))
    ] == []


STAGES = """
import json, sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from io import StringIO

out, loaded = sys.argv[1], {}

def stage(name):
    loaded[name] = [name for name in ("torch", "fastai", "sklearn", "scipy.stats") if name in sys.modules]

def run(*argv, out=out + "/empty"):
    code = 2  # argparse's
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()), suppress(SystemExit):
        code = main([*argv, "--out", out])
    stage(" ".join(argv))
    return code

import collab_repro
stage("import collab_repro")
from collab_repro.__main__ import main
run("--help")
assert run("--seeds", "0") == run("bench", "--parts", "x") == run("--data", "ml-1t") == 2
assert run("chapter", "--data", "nowhere.csv") == run("bench", "--data", "nowhere.csv") == 2
import collab_repro.curves, collab_repro.plots
stage("curves and plots")
collab_repro.Learned.load(out + "/learned-DotProductBias.npz")
stage("Learned.load")
assert run("plots", out=out) == run("recommend", "--rate", "A=5", "--rate", "B=3", out=out) == 0
print(json.dumps(loaded))
"""


@pytest.fixture
def results(tmp_path):
    """A folder with every kind of result that `plots` draws."""
    rng, models = np.random.default_rng(0), ("DotProductBias", "DotProductBiasParams")
    made(rng.normal(size=(8, 4)), bias=rng.normal(size=8)).save(tmp_path / "learned-DotProductBias.npz")
    losses = [(model, seed, epoch) for model in models for seed in (0, 1) for epoch in (0, 1)]
    losses = pd.DataFrame(losses, columns=["model", "seed", "epoch"])
    losses = losses.assign(
        data="mine", run=4, split=losses["seed"], train_loss=0.8, valid_loss=0.9, seconds=1
    )
    losses["run"] += losses["model"] == models[1]
    losses[folder.CURVES].to_csv(tmp_path / "curves.csv", index=False)
    losses[folder.CHAPTER].to_csv(tmp_path / "chapter.csv", index=False)
    sizes = pd.DataFrame({name: [1.0, 2.0] for name in folder.SCALE})
    sizes.to_csv(tmp_path / "bench-scale.csv", index=False)
    return tmp_path


def test_who_does_not_train_does_not_wait_for_fastai(results):
    command = [sys.executable, "-c", STAGES, str(results)]
    loaded = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for name in ("import collab_repro", "--help", "--seeds 0", "curves and plots"):
        assert loaded.pop(name) == [], name
    assert len(loaded) == 7
    assert not [name for name, heavy in loaded.items() if {"torch", "fastai"} & set(heavy)]
    assert len(list(results.glob("*.png"))) == 6, "plots drew something of everything"


def test_help_alone_takes_next_to_nothing():
    command = [sys.executable, "-X", "importtime", "-m", "collab_repro", "--help"]
    told = subprocess.run(command, check=True, capture_output=True, text=True)
    imported = set(re.findall(r"(?m)\| +(\S+)$", told.stderr))
    assert {"collab_repro", "argparse"} <= imported
    assert imported.isdisjoint({"torch", "fastai", "sklearn", "scipy.stats", "pandas", "matplotlib"})
