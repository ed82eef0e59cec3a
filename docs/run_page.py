"""Run a page of this folder as its reader would: its commands and snippets, in their order.

    python docs/run_page.py docs/first-model.md FOLDER --pictures docs/pictures

What stands in a page's fenced blocks means:

- `sh`, or no language: lines that begin with `sparrow` are commands, as are those after `$ ` in a
  transcript; all else is output. `sparrow serve` and `sparrow watch` go on in the background, from
  when they have told an address, until the page ends.
- `python`: a program of its own, run in FOLDER.
- `toml` whose first line is `# NAME.toml`: saved in FOLDER under that name.
- A comment `<!-- not run: why -->` on the line before a block leaves it out.

`tests/test_docs.py` reads and runs the pages through this.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(
    r"^(?:<!-- not run: (?P<why>[^\n]*?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    flags=re.S | re.M,
)


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str
    not_run: str
    """Why it is left out; empty where it is run."""

    @property
    def commands(self) -> list[str]:
        """Its `sparrow …` lines, without comments; a line that ends with \\ goes on."""
        if self.language not in ("", "sh"):
            return []
        found = []
        for line in re.sub(r"\\\n\s*", "", self.text).splitlines():
            line = line.removeprefix("$ ").partition("  #")[0].strip().removeprefix("uv run ")
            if line.startswith("sparrow "):
                found.append(line)
        return found

    @property
    def file_name(self) -> str:
        """The name a recipe is to be saved under, or nothing."""
        named = re.match(r"# (\S+\.toml)\n", self.text) if self.language == "toml" else None
        return named.group(1) if named else ""


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page's text."""
    return [
        Block(found["language"], found["text"], found["why"] or "")
        for found in FENCE.finditer(page)
    ]


def run_page(
    page: Path,
    folder: Path,
    *,
    arguments: Callable[[str], list[str]] = lambda command: shlex.split(command)[1:],
    environment: dict[str, str] | None = None,
    start: Callable[[list[str]], subprocess.CompletedProcess[str]] | None = None,
) -> str:
    """Run a page in a folder.

    Args:
        page: a Markdown file.
        folder: where its commands are typed.
        arguments: of a command line; tests make them shorter here.
        environment: of the processes.
        start: runs `sparrow` with these arguments in FOLDER, to its end; by default as a process of
            its own. What goes on in the background and programs always are.

    Returns:
        What was run and what came out, in order.

    Raises:
        RuntimeError: something failed; says what, and shows its output.
    """
    shown: list[str] = []
    going: list[Background] = []

    def process(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            check=False,
        )

    def show(title: str, done: subprocess.CompletedProcess[str]) -> None:
        shown.append(f"$ {title}\n{done.stdout}")
        if done.returncode or "Traceback" in done.stdout:
            raise RuntimeError(f"{page}: {title}\n{done.stdout}")

    try:
        for block in blocks(page.read_text(encoding="utf-8")):
            if block.not_run:
                continue
            if block.file_name:
                (folder / block.file_name).write_text(block.text, encoding="utf-8")
            for command in block.commands:
                words = arguments(command)
                if words[0] in ("serve", "watch"):
                    going.append(Background(["-m", "sparrowlm", *words], folder, environment))
                    shown.append(f"$ {command}\n{going[-1].told()}")
                else:
                    show(command, start(words) if start else process("-m", "sparrowlm", *words))
            if block.language == "python":
                show("python", process("-X", "utf8", "-c", block.text))
    finally:
        for process in going:
            process.stop()
    return "\n".join(shown)


class Background:
    """A command that goes on while the next ones run, such as a server.

    Raises:
        RuntimeError: it ended, or told no address within a minute; shows its output.
    """

    def __init__(self, words: list[str], folder: Path, environment: dict[str, str] | None) -> None:
        self._output = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - until stop()
        self._process = subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env=environment,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        began = time.monotonic()
        while "http://" not in self.told():
            if self._process.poll() is not None or time.monotonic() - began > 60:
                told = self.told()
                self.stop()
                raise RuntimeError(f"{shlex.join(words)}\n{told}")
            time.sleep(0.1)

    def told(self) -> str:
        """Its output so far."""
        self._output.seek(0)
        return self._output.read()

    def stop(self) -> None:
        """End it as a terminal would, and wait."""
        self._process.terminate()
        self._process.wait(timeout=60)
        self._output.close()


def small_copy(picture: Path, to: Path) -> None:
    """A picture at most 1,200 pixels wide in 48 colors: what a page has room for."""
    from PIL import Image  # matplotlib brings it

    with Image.open(picture) as image:
        small = image.convert("RGB")
        small.thumbnail((1200, 1200))
        small.quantize(48).save(to, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=Path, help="where to copy the pictures of the runs")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(run_page(options.page, options.folder))
    for picture in sorted(options.folder.glob("runs/*/*.png")) if options.pictures else ():
        small_copy(picture, options.pictures / f"{options.page.stem}-{picture.name}")


if __name__ == "__main__":
    main()
