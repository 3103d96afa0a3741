"""The notebooks in JupyterLab, in a real browser, as a reader opens them."""

import os
import shutil
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import nbformat
import pytest
from test_notebooks import (
    NOTEBOOKS,
    code_cells,
    faults_in_outputs,
    figures,
    read,
    readers_environment,
    small,
    with_parameters,
)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-quic",
    "--no-first-run",
]
SHEET = 8_000  # pixels of notebook in one screenshot
TOKEN = "only-for-this-test"
SETTINGS = {
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
    "notebook-extension/tracker": '{"windowingMode": "none"}',  # all cells on the page, for the screenshot
}
# Before its kernel is there, JupyterLab's indicator calls "No Kernel" idle, and would run nothing.
READY = """() => document.querySelector('dialog')
    || / \\| Idle/.test(document.querySelector('#jp-main-statusbar')?.textContent)
    && !/No Kernel/.test(document.querySelector('#jp-main-statusbar').textContent)"""
# What the page holds, asked of the page itself.
STATE = """() => {
    const all = (what) => [...document.querySelectorAll('.jp-Notebook ' + what)];
    const status = document.querySelector('.jp-Notebook-ExecutionIndicator');
    return {
        kernel: status && status.dataset.status,
        prompts: all('.jp-CodeCell .jp-InputPrompt').map(e => e.textContent.trim()),
        errors: all('[data-mime-type="application/vnd.jupyter.error"], [data-mime-type*="stderr"]')
            .map(e => e.textContent.slice(0, 1500)),
        figures: all('.jp-OutputArea img').map(e => e.complete && e.naturalWidth > 100),
        height: all('.jp-Cell').reduce((sum, e) => sum + e.offsetHeight, 0),
    }
}"""


@pytest.fixture(scope="module")
def tools():
    """Chromium, Playwright and JupyterLab: without them a skip, or a failure where a browser is required."""
    missing = [name for name in ("playwright", "jupyterlab") if find_spec(name) is None]
    missing += [] if CHROMIUM else ["chromium"]
    if missing:
        why = f"no {', '.join(missing)} here"
        (pytest.fail if os.environ.get("COLLAB_REPRO_REQUIRE_BROWSER") == "1" else pytest.skip)(why)


@pytest.fixture(scope="module")
def lab(tools, tmp_path_factory):
    """A JupyterLab of its own on a free port of this machine: its address and its folder of notebooks."""
    folder, home = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("jupyter")
    for name, setting in SETTINGS.items():
        file = home / f"settings/@jupyterlab/{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(setting)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = readers_environment()
    for what in ("CONFIG", "DATA", "RUNTIME"):
        env[f"JUPYTER_{what}_DIR"] = str(home / what.lower())
    env |= {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
    }
    options = [
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
    ]
    options += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}", "--LabApp.news_url="]
    log = home / "log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], cwd=folder, env=env, stdout=out, stderr=out
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert server.poll() is None, log.read_text()
            try:
                urlopen(f"{address}/api/status?token={TOKEN}", timeout=5).close()
                break
            except (URLError, OSError):
                time.sleep(0.5)
        else:
            pytest.fail(f"JupyterLab does not answer:\n{log.read_text()}")
        yield address, folder
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.fixture(scope="module")
def browser(tools):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def started(browser, address, name):
    """A page with a notebook open, where Run > Run All Cells was chosen."""
    page = browser.new_context(viewport={"width": 1300, "height": 900}).new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{address}/lab/workspaces/{Path(name).stem}/tree/{name}?token={TOKEN}", timeout=120_000)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
    page.wait_for_function(READY, timeout=120_000)
    assert page.query_selector("dialog") is None, page.inner_text("dialog")
    page.click('.lm-MenuBar-item:has-text("Run")')
    page.click('.lm-Menu-item[data-command="runmenu:run-all"]')
    return page


def finished(page, screenshot, limit=240):
    """What the page holds once the kernel is done; saved, and photographed to `screenshot`-N.png."""
    until = time.monotonic() + limit
    while time.monotonic() < until:
        page.wait_for_timeout(500)
        state = page.evaluate(STATE)
        if state["errors"] or all(prompt.strip("[]:").isdecimal() for prompt in state["prompts"]):
            break
    page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=60_000)
    page.wait_for_timeout(1000)  # the last figure is still on its way to the page
    state = page.evaluate(STATE)
    page.keyboard.press("Control+s")
    page.set_viewport_size({"width": 1300, "height": min(state["height"] + 200, SHEET)})
    for n, top in enumerate(range(0, state["height"] + 1, SHEET - 400)):
        page.evaluate(f"document.querySelector('.jp-WindowedPanel-outer').scrollTop = {top}")
        page.wait_for_timeout(300)
        page.screenshot(path=str(screenshot.with_stem(f"{screenshot.stem}-{n}")))
    page.context.close()
    return state


def chosen(number):
    """The notebook of that number; the last one there is where it is missing."""
    return next((file for file in NOTEBOOKS if file.name.startswith(number)), NOTEBOOKS[-1])


SHOWN = [chosen("01"), chosen("04")]


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory):
    """Where screenshots go: the folder in COLLAB_REPRO_ARTEFACTS, or pytest's."""
    folder = Path(os.environ.get("COLLAB_REPRO_ARTEFACTS") or tmp_path_factory.mktemp("artefacts"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def seen(lab, browser, artefacts):
    """Two notebooks and a broken one, run small side by side: what each page held, and its screenshot."""
    address, folder = lab
    notebooks = {file.stem: with_parameters(read(file), **small(folder)) for file in SHOWN}
    cells = [nbformat.v4.new_code_cell("1 / 0"), nbformat.v4.new_code_cell("2")]
    notebooks["broken"] = nbformat.v4.new_notebook(cells=cells, metadata=read(NOTEBOOKS[0]).metadata)
    pages = {}
    for name, nb in notebooks.items():
        for cell in code_cells(nb):
            cell.outputs, cell.execution_count = [], None
        nbformat.write(nb, folder / f"{name}.ipynb")
        pages[name] = started(browser, address, f"{name}.ipynb"), artefacts / f"jupyterlab-{name}.png"
    return {name: (finished(page, screenshot), screenshot) for name, (page, screenshot) in pages.items()}


@pytest.mark.parametrize("file", SHOWN, ids=lambda file: file.stem[:2])
def test_runs_in_jupyterlab(file, lab, seen):
    state, screenshot = seen[file.stem]
    saved = read(lab[1] / file.name)  # as Ctrl+S left it
    assert state["errors"] == [], screenshot
    assert state["prompts"] == [f"[{n}]:" for n in range(1, len(code_cells(saved)) + 1)], screenshot
    assert state["kernel"] == "idle" and state["figures"] and all(state["figures"]), screenshot
    assert screenshot.with_stem(f"{screenshot.stem}-0").stat().st_size > 20_000
    assert faults_in_outputs(saved) == []
    assert len(state["figures"]) >= len(figures(saved)) > 0


def test_the_list_of_notebook_06_follows_its_sliders(lab, browser, artefacts):
    """Somebody opens the notebook, runs it as far as the sliders, and moves one of them."""
    address, folder = lab
    nb = with_parameters(read(chosen("06")), **small(folder))
    (at,) = (n for n, cell in enumerate(nb.cells) if "rating_box(" in cell.source)
    nb.cells = nb.cells[: at + 1]
    for cell in code_cells(nb):
        cell.outputs, cell.execution_count = [], None
    nbformat.write(nb, folder / "sliders.ipynb")
    page = started(browser, address, "sliders.ipynb")
    handle, table = page.locator(".noUi-handle").first, page.locator(".jp-OutputArea .widget-output table")
    table.wait_for(timeout=120_000)
    before, stars = table.inner_text(), page.locator(".widget-readout").first.inner_text()
    handle.press("Home")
    page.wait_for_function(
        "old => document.querySelector('.widget-output table')?.innerText !== old", arg=before
    )
    assert stars != "0" == page.locator(".widget-readout").first.inner_text()
    assert len(table.inner_text().splitlines()) == len(before.splitlines()) > 5
    sliders = page.locator(".noUi-handle").count()  # before the film is added, which may be quick
    page.locator("input[placeholder='another film']").fill(before.splitlines()[1].split("\t")[1])
    page.keyboard.press("Enter")
    page.wait_for_function("n => document.querySelectorAll('.noUi-handle').length > n", arg=sliders)
    page.screenshot(path=str(artefacts / "jupyterlab-sliders.png"))
    page.context.close()


def test_an_error_is_seen(seen):
    """The check can fail: a notebook with an error in it."""
    state, _ = seen["broken"]
    assert "ZeroDivisionError" in state["errors"][0] and not state["figures"]
