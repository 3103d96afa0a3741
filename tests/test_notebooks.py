"""The notebooks: their form, a small run of each, and whether what they show is still what comes out."""

import ast
import asyncio
import copy
import html
import os
import re
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from collab_repro import movie_bias, planted_ratings, same_start
from collab_repro.comparison import curves_of, train

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
# Committed outputs against a full run on another machine: losses move in the third decimal.
RELATIVE, ABSOLUTE = 0.01, 0.005
VARIES = "varies"  # the tag of a cell whose numbers are times, or differ between two runs
DRAWING = {"bar", "barh", "boxplot", "contour", "errorbar", "fill_between", "hist", "imshow", "pcolormesh"}
DRAWING |= {"pie", "plot", "scatter", "stem", "violinplot"}
FIGURES = re.compile(r"collab_repro(\.plots|\.(evidence|further)\.\w+)?")  # the modules they come from
PATHS = re.compile(
    r"(?<![\w.:/-])/(?:Users|content|home|mnt|opt|private|root|srv|tmp|usr|var|work)/|[A-Z]:\\"
)
DEBRIS = re.compile(r"\r|\x1b\[|█|it/s|s/it|\d%\||<progress|FloatProgress|ProgressBar")
WARNING = re.compile(r"\b[A-Z]\w*Warning: |warnings\.warn\(")


def read(file):
    return nbformat.read(file, as_version=4)


def code_cells(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def parameters(nb):
    """The cell tagged `parameters`."""
    (cell,) = (cell for cell in code_cells(nb) if "parameters" in cell.metadata.get("tags", []))
    return cell


def setup_cell(nb):
    """The cell that makes the package importable."""
    (cell,) = (cell for cell in code_cells(nb) if "%pip install" in cell.source)
    return cell


def tree(cell):
    """The syntax tree of a code cell, without IPython's magics."""
    return ast.parse(re.sub(r"(?m)^%.*", "", cell.source))


def small(folder):
    """Parameters for a run that takes seconds, with a file of few ratings written into `folder`."""
    planted_ratings(n_users=200, n_movies=150, n_ratings=8_000)[0].to_csv(folder / "small.csv", index=False)
    few = {"table_rows": (1_000, 10_000), "batch_sizes": (64, 1_024)}
    return {"data": "small.csv", "seeds": 2, "splits": 2, "epochs": 1, **few}


def with_parameters(nb, **values):
    """A copy of the notebook with `values` for those of its parameters that it has; the others stay."""
    nb = copy.deepcopy(nb)
    cell = parameters(nb)
    lines = cell.source.splitlines()
    for node in reversed(ast.parse(cell.source).body):
        name = node.targets[0].id
        if name in values:
            assert type(ast.literal_eval(node.value)) is type(values[name]), f"{name} is of another kind"
            lines[node.lineno - 1 : node.end_lineno] = [f"{name} = {values[name]!r}"]
    cell.source = "\n".join(lines)
    return nb


async def execute(nb, folder):
    """A copy of the notebook, run by nbclient in `folder` as Jupyter would: figures inline."""
    nb = copy.deepcopy(nb)
    for cell in code_cells(nb):
        cell.outputs, cell.execution_count = [], None
    client = NotebookClient(nb, timeout=1800, resources={"metadata": {"path": str(folder)}})
    await client.async_execute(env=readers_environment())
    return nb


def readers_environment():
    """This environment without what a reader has not set, and with the clone in front of the path."""
    env = {key: value for key, value in os.environ.items() if key not in ("MPLBACKEND", "PYTHONWARNINGS")}
    return env | {"PYTHONPATH": os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])}


def texts(cell):
    """What a cell shows in words: printed text and results; of a styled table its cells."""
    for output in cell.outputs:
        if output.output_type == "stream":
            yield output.text
        elif "data" in output and "image/png" not in output.data:
            plain = output.data.get("text/plain", "")
            if re.fullmatch(r"<.* at 0x\w+>", plain):
                page = re.sub(r"(?s)<style.*?</style>", "", output.data.get("text/html", ""))
                plain = html.unescape(re.sub(r"<[^>]*>", " ", page))
            yield plain


def figures(nb):
    return [o for cell in code_cells(nb) for o in cell.outputs if "image/png" in o.get("data", {})]


def faults_in_outputs(nb):
    """What committed outputs must not hold: a list of sentences, empty for a clean notebook."""
    found = []
    for n, cell in enumerate(code_cells(nb), 1):
        if cell.execution_count != n:
            found.append(f"cell {n} was run as number {cell.execution_count}")
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                found.append(f"cell {n} holds an error or stderr: {str(output)[:300]}")
            said = output.get("text", "") + "\n".join(
                str(shown)
                for kind, shown in output.get("data", {}).items()
                if not kind.startswith("image/png")
            )
            for what, pattern in (("a path", PATHS), ("a warning", WARNING), ("a progress bar", DEBRIS)):
                if match := pattern.search(said):
                    found.append(f"cell {n} holds {what}: {said[max(match.start() - 40, 0) :][:100]!r}")
    return found


NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d)\.?)(?:e[-+]?\d+)?(?!\w)")


def drift(committed, fresh):
    """Where the numbers in the text outputs of two runs of one notebook part: a list of sentences.

    Whole numbers have to be equal, others within `RELATIVE` or `ABSOLUTE`. Left out are cells tagged
    `varies` and the cell that prints the versions.
    """
    found = []
    pairs = zip(code_cells(committed), code_cells(fresh), strict=True)
    for n, (old, new) in enumerate(pairs, 1):
        if VARIES in old.metadata.get("tags", []) or "load_ratings(data)" in old.source:
            continue
        before, after = ("\n".join(texts(cell)) for cell in (old, new))
        stood, came = (NUMBER.findall(text) for text in (before, after))
        if len(stood) != len(came) or NUMBER.sub("#", before).split() != NUMBER.sub("#", after).split():
            found.append(f"cell {n} says other things:\n{before}\nnow:\n{after}")
            continue
        for a, b in zip(stood, came, strict=True):
            x, y = (float(number.replace(",", "")) for number in (a, b))
            whole = not set(".e") & set(a + b)
            if abs(x - y) > (0 if whole else max(ABSOLUTE, RELATIVE * abs(x))):
                found.append(f"cell {n}: {a} was committed, {b} comes out now")
    return found


each = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem[:2])


@each
def test_form(file):
    nb = read(file)
    assert nb.metadata.kernelspec.name == "python3" and nb.metadata.kernelspec.language == "python"
    setup = setup_cell(nb)
    opening = [cell for cell in nb.cells[: nb.cells.index(setup)] if cell.cell_type == "markdown"]
    assert opening[0] is nb.cells[0] and opening[0].source.startswith("# ")
    bullets = re.findall(r"(?m)^- ", "\n".join(cell.source for cell in opening))
    assert len(bullets) >= 3, "the opening lists what the notebook shows"

    code = code_cells(nb)
    first = code.index(setup)
    assert setup.source == setup_cell(read(NOTEBOOKS[0])).source, "the set-up cell is the same in all"
    assert len([line for line in setup.source.splitlines() if line]) <= 3 and first <= 1
    assert "# %pip install -q git+https://<" in setup.source, "no made-up address"
    assert code[first + 1] is parameters(nb)
    assigned = tree(parameters(nb)).body
    names = [node.targets[0].id for node in assigned]
    assert names[0] == "data" and ast.literal_eval(assigned[0].value) == "ml-100k"
    assert {"seeds", "splits", "epochs"} & set(names)


@each
def test_links(file):
    """The last cell leads to the next notebook, and no cell leads nowhere."""
    nb = read(file)
    last = nb.cells[-1]
    assert last.cell_type == "markdown"
    following = NOTEBOOKS[NOTEBOOKS.index(file) + 1 :]
    if following:
        assert "Next: " in last.source and f"]({following[0].name})" in last.source.split("Next: ")[1]
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            for link in re.findall(r"\]\(([^)#\s]+)", cell.source):
                assert "://" in link or (file.parent / link).exists(), link


@each
def test_committed_outputs_are_clean(file):
    nb = read(file)
    assert faults_in_outputs(nb) == []
    opening = "\n".join(text for cell in code_cells(nb)[:4] for text in texts(cell))
    assert re.search(r"fastai \d", opening) and re.search(r"torch \d", opening), "versions are printed"
    assert "data: MovieLens 100K" in opening, "the outputs come from the real ratings"


@each
def test_figures_are_the_packages(file):
    nb = read(file)
    assert figures(nb)
    imported = False
    for cell in code_cells(nb):
        nodes = list(ast.walk(tree(cell)))
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and FIGURES.fullmatch(node.module):
                imported |= any(alias.name.startswith("plot_") for alias in node.names)
        calls = [node.func for node in nodes if isinstance(node, ast.Call)]
        by_hand = [f for f in calls if isinstance(f, ast.Attribute) and f.attr in DRAWING]
        assert not by_hand or any(isinstance(f, ast.Name) and f.id.startswith("plot_") for f in calls), (
            "a mark may be added to a figure of the package, not a figure made: " + ast.unparse(by_hand[0])
        )
        assert not [f for f in by_hand if ast.unparse(f.value) == "plt"]
    assert imported, "imports its figures from the package"


@pytest.fixture(scope="module")
def small_runs(request, tmp_path_factory):
    """The notebooks whose tests were chosen, run small, two at a time; or the error that one ended with."""
    tests = (item for item in request.session.items if item.originalname == "test_runs_small")
    files = [test.callspec.params["file"] for test in tests]

    async def run(file, at_once):
        folder = tmp_path_factory.mktemp(file.stem)
        async with at_once:
            return await execute(with_parameters(read(file), **small(folder)), folder)

    async def run_all():
        at_once = asyncio.Semaphore(2)
        return await asyncio.gather(*(run(file, at_once) for file in files), return_exceptions=True)

    return dict(zip(files, asyncio.run(run_all()), strict=True))


@each
@pytest.mark.filterwarnings("ignore")  # of the Jupyter machinery; the kernels have their own filters
def test_runs_small(file, small_runs):
    nb = small_runs[file]
    if isinstance(nb, Exception):
        raise nb
    assert faults_in_outputs(nb) == []
    assert "small.csv, 8,000 ratings" in "\n".join(
        text for cell in code_cells(nb)[:4] for text in texts(cell)
    )
    assert figures(nb) or file.stem.startswith("02"), "02 draws beside the book alone"


@pytest.fixture(scope="module")
def headlines(ml100k):
    """What the package computes today: three seeds of both models, and both from copied weights."""
    learns = train(ml100k, seeds=range(3))
    bias = {name: movie_bias(learn) for (name, seed), learn in learns.items() if seed == 0}
    return curves_of(learns), same_start(ml100k), bias


def shown(number, part):
    """The text outputs of the cells of one notebook whose source holds `part`."""
    (file,) = (file for file in NOTEBOOKS if file.stem.startswith(number))
    cells = [cell for cell in code_cells(read(file)) if part in cell.source]
    assert cells, f"{file.name} has no cell with {part}"
    return "\n".join(text for cell in cells for text in texts(cell))


def numbers(pattern, text):
    match = re.search(pattern, text)
    assert match, f"{pattern} not in\n{text}"
    return [float(group) for group in match.groups()]


def near(values):
    return pytest.approx(values, rel=RELATIVE, abs=ABSOLUTE)


N = r"\s+(-?\d*\.\d+)"


def check_headlines(number, headlines, shown=shown):
    """The committed outputs of one notebook against what `headlines` found."""
    losses, same, bias = headlines
    last = losses[losses["epoch"] == 4].groupby("model")[["train_loss", "valid_loss"]].agg(["mean", "std"])
    means = last.loc["DotProductBias"].xs("mean", level=1).tolist()
    if number in ("01", "03"):
        assert str(same) in shown(number, "same_start(ratings")
    if number == "01":
        end = same.curves[same.curves["epoch"] == 4]
        ends = [*end["train_loss"], *end["valid_loss"]]
        assert numbers(rf"(?m)^4{N * 4}", shown(number, "run = same_start(")) == near(ends)
    if number == "02":
        rows = re.findall(rf"(?m)^\s+4{N * 6}", shown(number, "against_the_book("))
        for row, model in zip(rows, ("DotProductBias", "DotProductBiasParams"), strict=True):
            found = [float(value) for value in row]  # book, mean, sd of both losses
            assert [*found[1:3], *found[4:]] == near(last.loc[model].tolist()), model
    if number == "04":
        lists = shown(number, "BIAS_LISTS[end]")
        for name, values in bias.items():
            ranked = values.sort_values().index
            for where, five in (("lowest", ranked[:5]), ("highest", ranked[-5:])):
                assert sum(title in lists for title in five) >= 4, f"{where} biases of {name}"
    if number == "05":
        assert numbers(rf"wd 0\.1{N}{N}", shown(number, 'at_end["gap"]')) == near(means)
        assert numbers(rf"\(run 4\)\s+[\d,]+{N}{N}", shown(number, "(run 4)")) == near(means)


with_headlines = pytest.mark.parametrize("number", ["01", "02", "03", "04", "05"])


@with_headlines
def test_committed_headlines_are_what_the_package_computes(number, headlines):
    check_headlines(number, headlines)


@with_headlines
def test_the_headline_check_can_fail(number, headlines):
    """With other findings, and with a doctored notebook."""
    losses, same, bias = headlines
    others = (
        losses.assign(train_loss=losses["train_loss"] * 1.02, valid_loss=losses["valid_loss"] * 1.02),
        replace(same, steps=same.steps + 1),
        {name: values.sample(frac=1, random_state=0).set_axis(values.index) for name, values in bias.items()},
    )
    with pytest.raises(AssertionError):
        check_headlines(number, others)

    def doctored(number, part):
        return re.sub(r"0\.82|\bThe\b|6,250", "0.86", shown(number, part))

    with pytest.raises(AssertionError):
        check_headlines(number, headlines, doctored)


WHOLE = NOTEBOOKS if os.environ.get("COLLAB_REPRO_ALL_NOTEBOOKS") else []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", WHOLE, ids=lambda file: file.stem[:2])
def test_committed_outputs_are_what_comes_out(file, tmp_path, ml100k):
    """Every notebook run in full, where COLLAB_REPRO_ALL_NOTEBOOKS is set: it takes a quarter of an hour."""
    committed = read(file)
    fresh = asyncio.run(execute(committed, tmp_path))
    assert faults_in_outputs(fresh) == []
    assert drift(committed, fresh) == []
    assert len(figures(committed)) == len(figures(fresh))


@pytest.mark.parametrize(
    "was, now, said",
    [
        ("0.8250", "0.8451", "0.8250 was committed, 0.8451 comes out now"),
        ("0.8250", "0.8257", None),
        ("6,250 of 6,250 losses", "6,249 of 6,250 losses", "6,250 was committed, 6,249 comes out now"),
        ("the same .8231", "another .8231", "says other things"),
        ("-0.04 to 6.61", "0.04 to 6.61", "-0.04 was committed"),
        ("7e-08", "1e-07", None),
    ],
)
def test_the_drift_check_can_fail(was, now, said):
    def notebook(text):
        output = nbformat.v4.new_output("stream", text=text)
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=[output])])

    found = drift(notebook(was), notebook(now))
    assert (found == []) if said is None else (said in found[0])


@pytest.mark.parametrize(
    "text, said",
    [
        ("saved in /home/ada/results", "a path"),
        ("x.py:3: UserWarning: Using a target size", "a warning"),
        ("50%|█████     | 5/10 [00:01<00:01,  5.0it/s]", "a progress bar"),
        ("and/or 1/2, https://example.org/home/ada, with a warning", None),
    ],
)
def test_the_output_check_can_fail(text, said):
    output = nbformat.v4.new_output("stream", text=text)
    cell = nbformat.v4.new_code_cell("", outputs=[output], execution_count=1)
    found = faults_in_outputs(nbformat.v4.new_notebook(cells=[cell]))
    assert (found == []) if said is None else (said in found[0])
