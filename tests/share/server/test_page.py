"""What docs/serving.md tells to run runs, against a real server."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from server_support import Running, running, served

DOCS = Path(__file__).parents[3] / "docs"
_spec = importlib.util.spec_from_file_location("run_page", DOCS / "run_page.py")
assert _spec is not None
assert _spec.loader is not None
pages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pages)

TEXT = (DOCS / "serving.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def sft() -> Iterator[Running]:
    with running([served("sft")]) as found:
        yield found


def test_the_programs_of_the_page_run(sft: Running, capsys: pytest.CaptureFixture[str]) -> None:
    programs = [block.text for block in pages.blocks(TEXT) if block.language == "python"]
    assert len(programs) >= 2
    for program in programs:
        assert ADDRESS in program
        exec(compile(program.replace(ADDRESS, sft.url), "serving.md", "exec"), {})
        assert capsys.readouterr().out.strip()


def test_the_requests_of_the_page_are_answered(sft: Running) -> None:
    """Curl's options, asked by another client: curl need not be there."""
    commands = [block.text for block in pages.blocks(TEXT) if block.language == "bash"]
    assert commands
    for command in commands:
        words = shlex.split(re.sub(r"\\\n", " ", command))
        assert words[0] == "curl"
        name, _, value = words[words.index("-H") + 1].partition(": ")
        with sft.http() as http:
            path = words[1].removeprefix(ADDRESS)
            body = words[words.index("-d") + 1].encode()
            answer = http.post(path, content=body, headers={name: value})
        assert answer.status_code == 200, answer.text
