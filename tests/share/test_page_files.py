"""The files of the chat page, read as text: two languages of the same words, nothing from
elsewhere, nothing that a strict content security policy would refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "src" / "sparrowlm" / "share" / "page"
FILES = sorted(PAGE.iterdir())
SCRIPTS = [path for path in FILES if path.suffix == ".js"]
BLOCKS = {"code", "heading", "list", "paragraph", "bold"}  # kinds of Markdown
HTML = (PAGE / "index.html").read_text(encoding="utf-8")


def read(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def tables() -> dict[str, dict[str, str]]:
    """The words of each language. Every key counts: a repeated one is a fault."""
    found = re.search(r"^export const WORDS = (\{.*?^\});", read("words.js"), re.S | re.M)
    assert found is not None

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        assert len(dict(pairs)) == len(pairs), "a key is there twice"
        return dict(pairs)

    return json.loads(found[1], object_pairs_hook=unique)


def test_both_languages_have_the_same_keys_and_blanks() -> None:
    english, chinese = tables()["en"], tables()["zh"]
    assert list(english) == list(chinese)
    for key, text in english.items():
        assert text.strip()
        assert chinese[key].strip()
        blanks = [sorted(re.findall(r"\{(\w+)\}", one)) for one in (text, chinese[key])]
        assert blanks[0] == blanks[1], key


def test_every_word_that_is_used_exists_and_none_is_idle() -> None:
    code = "".join(read(path.name) for path in SCRIPTS if path.name != "words.js")
    known = set(tables()["en"])
    asked = set(re.findall(r'data-(?:word|label|hint)="(\w+)"', HTML))
    asked |= set(re.findall(r'\bword\("(\w+)"', code))
    faults = re.findall(r'(?:ApiError\(|kind: )(?:[^"\n]*\? )?"(\w+)"(?: : "(\w+)")?', code)
    kinds = {kind for pair in faults for kind in pair if kind} - {"chat", "text", *BLOCKS}
    asked |= {f"error_{kind}" for kind in kinds}
    assert asked <= known
    # Others are chosen between, or put together from a part and a number.
    chosen = set(re.findall(r'"(\w+)"', code)) | asked
    together = {f"example_{kind}_{n}" for kind in ("chat", "base") for n in (1, 2, 3)}
    together |= {"about_chat", "about_base", "finish_length", "finish_stopped"}
    assert known - chosen == together - chosen


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_comes_from_elsewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    allowed = {"http://www.w3.org/2000/svg"}  # the name of a format, which nobody fetches
    assert set(re.findall(r"\b\w+://[^\s\"'<>)]*", text)) <= allowed
    assert not re.search(r"""["'(]//\w""", text)
    assert not re.search(r"@import|@font-face|WebSocket|EventSource|sendBeacon|importScripts", text)


def test_the_markup_keeps_to_a_strict_policy() -> None:
    """No inline script, style or handler, and files of the page alone."""
    assert not re.search(
        r"<style|\sstyle=|\son\w+=|javascript:|<base|<iframe|<object|<form[^>]*action", HTML
    )
    assert not re.search(r"<script(?![^>]*\ssrc=)", HTML)
    found = re.findall(r'(?:src|href)="([^"#]+)"', HTML)
    assert found
    for target in found:
        assert target.startswith("page/")
        assert (PAGE / target.removeprefix("page/")).is_file()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_text_never_becomes_markup_or_code(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    sinks = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment"
        r"|srcdoc|setHTML|\beval\b|new Function|setTimeout\(\s*[\"']"
    )
    assert not re.findall(sinks, text)
    for imported in re.findall(r'from "([^"]+)"', text):
        assert (PAGE / imported).is_file()


def test_every_element_that_the_scripts_ask_for_is_there() -> None:
    asked = {
        name for path in SCRIPTS for name in re.findall(r'\bat\("([\w-]+)"\)', read(path.name))
    }
    assert asked <= set(re.findall(r'\sid="([\w-]+)"', HTML))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_fits_a_glance(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 480
    assert max(map(len, lines)) <= (200 if path.name in ("words.js", "index.html") else 120)
