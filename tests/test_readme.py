"""The README's commands, run as they stand there, only shorter."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from pages_support import pages, run_page

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STORY = "It was a cold night, and the sparrow had nowhere to go but up.\n" * 400


def shortened(command: str) -> list[str]:
    """The arguments, with a length of seconds wherever one can be set."""
    words = shlex.split(command)[1:]
    if words[0] == "quickstart":
        if "--minutes" in words:
            at = words.index("--minutes")
            del words[at : at + 2]
        words += ["--minutes", "0.2"]
    if words[0] == "train" and "--resume" not in words:
        words += ["--train.length", "0.1 minutes"]
    if words[0] == "train" and "--resume" in words:
        words += ["--train.length", "0.15 minutes"]
    if words[0] == "serve":
        words += ["--port", "0"]
    return words


def test_the_readme_is_short_and_has_commands():
    assert len(README.splitlines()) < 200
    assert sum(len(block.commands) for block in pages.blocks(README)) >= 5


def test_every_recipe_is_in_the_readme():
    for path in (ROOT / "recipes").glob("*.toml"):
        assert f"`{path.name}`" in README


def test_every_link_leads_to_a_file():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.slow
def test_readme_commands_run(tmp_path):
    for folder in ("notes", "stories"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(STORY, encoding="utf-8")
        (tmp_path / folder / "b.txt").write_text(STORY[::-1], encoding="utf-8")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    environment = os.environ | {"SPARROW_CACHE": str(tmp_path / "cache")}
    run_page(ROOT / "README.md", tmp_path, arguments=shortened, environment=environment)
    assert (tmp_path / "exports" / "mine" / "config.json").is_file()
