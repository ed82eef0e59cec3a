"""The README's commands, run as they stand there, only shorter."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STORY = "It was a cold night, and the sparrow had nowhere to go but up.\n" * 400


def commands() -> list[str]:
    """Every `sparrow …` of the fenced blocks, in order, without comments."""
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.S | re.M):
        for line in block.splitlines() if language in ("", "sh") else ():
            line = line.partition("  #")[0].strip().removeprefix("uv run ")
            if line.startswith("sparrow "):
                found.append(line)
    return found


def shortened(command: str) -> list[str]:
    """The arguments, with a length of twelve seconds wherever one can be set."""
    words = shlex.split(command)[1:]
    if words[0] == "quickstart":
        if "--minutes" in words:
            at = words.index("--minutes")
            del words[at : at + 2]
        words += ["--minutes", "0.2"]
    if words[0] == "train" and "--resume" not in words:
        words += ["--train.length", "0.2 minutes"]
    if words[0] == "train" and "--resume" in words:
        words += ["--train.length", "0.3 minutes"]
    return words


def test_the_readme_is_short_and_has_commands():
    assert len(README.splitlines()) < 200
    assert len(commands()) >= 5


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
    for command in commands():
        words = [
            str(path)
            for word in shortened(command)
            for path in (sorted(tmp_path.glob(word)) if "*" in word else [word])
        ]
        done = subprocess.run(
            [sys.executable, "-m", "sparrowlm", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
