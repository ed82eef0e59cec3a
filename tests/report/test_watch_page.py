"""The page in a real browser: it grows while a run trains, and asks nobody but its own server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparrowlm.report import curves
from sparrowlm.report.watch import server as serving
from sparrowlm.report.watch.server import HOST, open_server
from sparrowlm.report.watch.track import Track
from sparrowlm.report.watch.watcher import Watcher

MakeRun = Callable[..., Path]
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PAGE = Path(serving.__file__).parent / "page"


def lacking(reason: str) -> None:
    """Skip here; fail where everything has to be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        lacking("playwright is not installed")
        return
    if not CHROMIUM.is_file():
        lacking(f"there is no {CHROMIUM}")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield opened
        opened.close()


class Visit:
    """A page of a watcher, with what went wrong in it."""

    def __init__(self, browser: Any, root: Path, width: int = 1280, **options: Any) -> None:
        self.server = open_server(Watcher([root]), 0)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.origin = f"http://{HOST}:{self.server.server_address[1]}"
        self.page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        self.faults: list[str] = []
        self.asked: set[str] = set()
        self.page.on(
            "console",
            lambda said: (
                self.faults.append(said.text) if said.type in ("error", "warning") else None
            ),
        )
        self.page.on("pageerror", lambda fault: self.faults.append(str(fault)))
        self.page.on("request", lambda request: self.asked.add(request.url))
        self.page.goto(self.origin)

    def close(self) -> None:
        self.page.close()
        self.server.shutdown()
        self.server.server_close()

    def check(self) -> None:
        assert self.faults == []
        assert self.asked
        assert all(url.startswith(self.origin + "/") for url in self.asked)


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    opened: list[Visit] = []

    def open_page(root: Path, **options: Any) -> Visit:
        opened.append(Visit(browser, root, **options))
        return opened[-1]

    yield open_page
    for one in opened:
        one.close()


@pytest.fixture
def runs(make_run: MakeRun, tmp_path: Path) -> Path:
    make_run(tmp_path / "runs" / "a")
    make_run(tmp_path / "runs" / "b", steps=200)
    return tmp_path / "runs"


RECIPE = """
[model]
d_model = 32
n_layers = 1
n_heads = 2
max_seq_len = 32
[tokenizer]
kind = "bytes"
[data]
path = ["text.txt"]
[train]
length = "1000000 steps"
batch_tokens = 256
compile = "off"
[eval]
every = "10 steps"
windows = 8
[samples]
every = "10 steps"
prompts = ["sparrow"]
max_tokens = 12
"""


@pytest.mark.slow
def test_curves_grow_while_a_run_trains(visit: Callable[..., Visit], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("A sparrow is small, and no organ is missing.\n" * 2000)
    (tmp_path / "tiny.toml").write_text(RECIPE)
    opened = visit(tmp_path / "runs")
    page = opened.page
    page.wait_for_selector("#runs-note:not([hidden])")  # no run yet
    command = [sys.executable, "-m", "sparrowlm", "train", "tiny.toml", "--out", "runs/live"]
    environment = os.environ | {"SPARROW_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "said.txt").open("w") as said:
        training = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=said, stderr=said
        )
        try:
            page.wait_for_selector(".run[data-state=running] .bar:not([hidden])", timeout=60_000)
            page.wait_for_selector(".chart canvas")
            before = page.evaluate(STEP)
            picture = page.locator(".chart canvas").first.screenshot()
            page.wait_for_function(f"from => {STEP} > from + 20", arg=before, timeout=60_000)
            assert page.locator(".chart canvas").first.screenshot() != picture
            training.terminate()  # it finishes its step, and saves
            assert training.wait(60) == 0, (tmp_path / "said.txt").read_text()
        finally:
            training.kill()
            training.wait()
    page.wait_for_selector(".run[data-state=stopped]")
    page.wait_for_function("document.querySelector('.sample b')?.textContent === 'sparrow'")
    assert page.locator(".chart").count() >= 6
    assert len([url for url in opened.asked if "main.js" in url]) == 1, "it was not loaded again"
    opened.check()


STEP = "Number(document.querySelector('.where').textContent.replaceAll(',', '').match(/\\d+/))"


@pytest.mark.slow
def test_a_person_without_a_mouse_reads_a_curve(visit: Callable[..., Visit], runs: Path) -> None:
    opened = visit(runs)
    page = opened.page
    page.wait_for_selector(".chart canvas")
    page.locator(".plot").first.focus()
    page.keyboard.press("ArrowLeft")
    told = page.locator(".told").first
    told.wait_for()
    losses = [json.loads(line) for line in (runs / "a/metrics.jsonl").read_text().splitlines()]
    held = [row["val_loss"] for row in losses if row["kind"] == "eval"][-1]
    assert f"a, held out{held:.3f}" in told.inner_text().replace("\n", "")
    page.keyboard.press("Escape")
    told.wait_for(state="hidden")
    page.click("#axis label >> nth=1")
    page.check("#log")
    page.locator(".plot").first.focus()
    page.keyboard.press("ArrowLeft")
    assert re.match(r"3\.\d+M tokens", told.inner_text())
    # The settings of the two runs, beside each other and beside the defaults.
    page.select_option("#b", "b")
    page.wait_for_selector("#difference .note")
    page.select_option("#b", "")
    page.wait_for_selector("#difference table")
    assert page.locator("#difference tbody tr").count() > 5
    # Samples by arrow keys: the slider stands at the newest.
    newest = page.locator("#samples").inner_text()
    page.locator("#moment").focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(
        "newest => document.getElementById('samples').innerText !== newest", arg=newest
    )
    opened.check()


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
def test_a_phone_is_wide_enough(visit: Callable[..., Visit], runs: Path, language: str) -> None:
    opened = visit(runs, width=360, locale=language, color_scheme="dark")
    page = opened.page
    page.wait_for_selector(".chart canvas")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.documentElement.lang") == language.replace("en-US", "en")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert ("损失" in page.inner_text("#curves")) == (language == "zh-CN")
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    opened.check()


@pytest.mark.slow
def test_the_pages_arithmetic_is_the_reports(visit: Callable[..., Visit], tmp_path: Path) -> None:
    page = visit(tmp_path).page
    ranges = [(0, 612), (1.31, 1.92), (-3, 4), (0, 3e-3), (5e8, 7e9), (2.0, 2.001), (0, 1)]
    for low, high in ranges:
        expected = curves.ticks(float(low), float(high))
        found = call(page, "scale", "ticks", low, high)
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
        named = [curves.label(tick, expected) for tick in expected]
        assert [call(page, "scale", "label", tick, expected) for tick in expected] == named
    values = [((7 * place) % 11) / 3 for place in range(50)]
    for width in (0.0, 0.02, 0.1):
        expected = [value for _, value in curves.smooth(list(enumerate(values)), width)]
        assert call(page, "scale", "smooth", values, width) == pytest.approx(expected)
    assert call(page, "scale", "frame", [2.0, 3.0], {}) == pytest.approx(
        list(curves.frame([2.0, 3.0]))
    )
    assert call(page, "words", "missing") == []
    # What comes piece by piece is joined to the whole.
    track, held = Track(8), None
    for step in range(1, 40):
        track.add({"step": step, "x": float(step % 5), **({"late": 1.0} if step > 6 else {})})
        if step % 3:
            same = held is not None and held["width"] == track.width
            held = call(
                page,
                "store",
                "joined",
                held,
                track.part(len(held["axes"]["step"]) - 1 if same else 0),
            )
            assert held == track.part()


def call(page: Any, module: str, name: str, *values: Any) -> Any:
    """What a function of the page's modules gives."""
    told = "([module, name, values]) => import(`/${module}.js`).then((all) => all[name](...values))"
    return page.evaluate(told, [module, name, list(values)])


def run_colors() -> dict[str, list[tuple[float, float, float]]]:
    """{theme: the colors of runs} of the style sheet."""
    style = (PAGE / "watch.css").read_text(encoding="utf-8")
    light, dark = style.split(':root[data-theme="dark"]')[:2]
    found = {}
    for theme, part in (("light", light), ("dark", dark)):
        values = re.findall(r"--run-\d: #(\w{6});", part)
        found[theme] = [
            (int(value[:2], 16) / 255, int(value[2:4], 16) / 255, int(value[4:], 16) / 255)
            for value in values
        ]
    return found


# Machado, Oliveira and Fernandes (2009): what people without one kind of cone see, on linear RGB.
SEEN = {
    "all cones": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": (
        (0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}  # fmt: skip


def lab(color: tuple[float, float, float], seen: Any) -> list[float]:
    """CIELAB of an sRGB color as somebody sees it."""
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in color
    ]
    linear = [
        min(max(sum(a * b for a, b in zip(row, linear, strict=True)), 0.0), 1.0) for row in seen
    ]
    to_xyz = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    white = (0.9505, 1.0, 1.089)
    x, y, z = (
        sum(a * b for a, b in zip(row, linear, strict=True)) / most
        for row, most in zip(to_xyz, white, strict=True)
    )
    f = [t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z)]
    return [116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("vision", SEEN)
def test_no_two_runs_look_alike_to_anybody(theme: str, vision: str) -> None:
    """A difference of 2.3 in CIELAB is just noticed; thin lines need several times that."""
    colors = [lab(color, SEEN[vision]) for color in run_colors()[theme]]
    assert len(colors) == 6
    for place, a in enumerate(colors):
        for b in colors[place + 1 :]:
            assert sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) ** 0.5 > 12


@pytest.mark.slow
def test_a_server_that_ends_is_missed_and_found_again(
    visit: Callable[..., Visit], runs: Path
) -> None:
    opened = visit(runs)
    opened.page.wait_for_selector(".chart canvas")
    opened.page.route("**/api/**", lambda route: route.abort())
    opened.page.wait_for_selector("#lost:not([hidden])", timeout=5000)
    assert opened.page.locator(".chart canvas").count() > 0, "what is known stays"
    opened.page.unroute("**/api/**")
    opened.page.wait_for_selector("#lost", state="hidden", timeout=5000)
