"""The pages of docs/: their commands exist, their sisters agree, and what they tell to run runs."""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import shlex
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tyro

from pages_support import pages, run_page
from sparrowlm.cli import COMMANDS, main
from sparrowlm.text.tokenizer import byte_tokenizer

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted(DOCS.rglob("*.md"))]
PAIRS = [(ROOT / "README.md", ROOT / "README.zh-CN.md")] + [
    (page, DOCS / "zh" / page.name) for page in sorted(DOCS.glob("*.md"))
]
STORY = "It was a cold night, and the sparrow had nowhere to go but up.\n"


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def fenced(page: Path) -> list[Any]:
    return pages.blocks(read(page))


def inline(text: str) -> list[str]:
    """Whole commands inside of sentences and tables. A RUN to fill in, or options without what
    they belong to, are left aside."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return [
        command.replace(r"\|", "|")
        for command in re.findall(r"`(sparrow [^`\n]+)`", prose)
        if not re.search(r"…|\||\b[A-Z]{2,}\b", command)
        and not re.match(rf"sparrow ({'|'.join(COMMANDS)})( --|$)", command)
    ]


def all_commands() -> list[str]:
    found = [command for page in PAGES for block in fenced(page) for command in block.commands] + [
        command for page in PAGES for command in inline(read(page))
    ]
    return sorted({command for command in found if "…" not in command})


class Parsed(Exception):
    """A command line was understood."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tyro.cli` reads the command line as ever, and then nothing is done."""
    real = tyro.cli

    def cli(target: Any, **options: Any) -> None:
        if not isinstance(target, type):

            @functools.wraps(target)
            def nothing(*_: Any, **__: Any) -> None: ...

            real(nothing, **options)
        else:
            real(target, **options)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", cli)


@pytest.mark.parametrize("command", all_commands())
def test_every_command_exists_with_its_options(
    command: str, parse_only: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for page in PAGES:
        for block in fenced(page):
            if block.file_name:
                (tmp_path / block.file_name).write_text(block.text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    # The recipe that a run keeps can be any.
    words = [
        re.sub(r"^runs/\S+/(config|stages)\.toml$", "quickstart", word)
        # A file to read from is the shell's affair.
        for word in shlex.split(command.partition(" < ")[0])
    ]
    if words[1:] in (["--help"], ["--version"]):
        assert main(words[1:]) == 0
        return
    with pytest.raises(Parsed):
        main(words[1:])


def test_the_parser_of_this_test_refuses_what_does_not_exist(parse_only: None) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "runs/x", "--tempratur", "1"])
    assert main(["trian"]) == 2


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: name(pair[0]))
def test_both_languages_have_the_same_commands_and_outputs(pair: tuple[Path, Path]) -> None:
    english, chinese = map(fenced, pair)
    assert english == chinese, "python docs/copy_blocks.py makes them so"


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: name(pair[0]))
def test_both_languages_have_the_same_sections_and_tables(pair: tuple[Path, Path]) -> None:
    shapes = []
    for page in pair:
        prose = re.sub(r"^```.*?^```", "", read(page), flags=re.S | re.M)
        lines = re.findall(r"^(#+ |\||!\[)", prose, flags=re.M)
        shapes.append((lines, sorted(inline(read(page)))))
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_programs_and_recipes_in_pages_can_be_read(page: Path) -> None:
    for block in fenced(page):
        if block.language == "python":
            ast.parse(block.text)
        if block.language == "toml":
            tomllib.loads(block.text)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: name(pair[0]))
def test_both_languages_point_at_each_other(pair: tuple[Path, Path]) -> None:
    for page, sister in (pair, pair[::-1]):
        assert f"]({os.path.relpath(sister, page.parent)})".replace(os.sep, "/") in read(page)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", read(page)):
        assert (page.parent / target).exists(), target


def test_no_page_is_out_of_reach() -> None:
    linked = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", read(page))
    }
    assert not [name(page) for page in PAGES[2:] if page not in linked]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_block_that_is_not_run_says_why(page: Path) -> None:
    text = read(page)
    assert text.count("<!-- not run:") == sum(bool(block.not_run) for block in fenced(page))


def test_pictures_are_small() -> None:
    pictures = sorted((DOCS / "pictures").iterdir())
    assert pictures
    assert all(picture.stat().st_size < 60_000 for picture in pictures)


def shortened(command: str) -> list[str]:
    """The arguments, with a small model and a few steps, so that a page takes a minute."""
    words = shlex.split(command)[1:]
    if words[0] == "quickstart":
        at = words.index("--minutes")
        words[at + 1] = "0.1"
    if words[0] == "train":
        steps = "24" if "--resume" in words else "12"
        if words[1] == "quickstart":
            words += ["--model.d_model", "64", "--model.n_heads", "2", "--model.n_layers", "2"]
        words += ["--train.length", f"{steps} steps", "--eval.windows", "8"]
    return words


# Pages of one group run one after the other in one folder; a quickstart that was there is copied.
RUN = (
    ("quickstart", "whole-path", "export"),
    ("first-model",),
    ("resuming",),
    ("evaluation",),
    ("data", "recipes"),
)


@pytest.mark.slow
@pytest.mark.parametrize("group", RUN, ids=" ".join)
def test_pages_run_from_top_to_bottom(
    group: tuple[str, ...], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text(STORY * 400, encoding="utf-8")
    (tmp_path / "notes" / "b.txt").write_text(STORY[::-1] * 400, encoding="utf-8")

    if "data" in group:
        rows = (json.dumps({"text": f"{number}. {STORY}"}) + "\n" for number in range(30_000))
        (tmp_path / "poems.jsonl").write_text("".join(rows), encoding="utf-8")
        byte_tokenizer().save(tmp_path / "minimind-3")
        (tmp_path / "recipes").symlink_to(ROOT / "recipes")

    made: dict[str, Path] = {}

    def arguments(command: str) -> list[str]:
        words = shortened(command)
        if words[0] != "quickstart":
            return words
        out = tmp_path / words.pop(words.index("--out") + 1)
        before = made.setdefault(shlex.join(words), out)
        if before == out and not out.exists():
            return shortened(command)
        for kind in ("", "-chat"):
            if not Path(f"{out}{kind}").exists():
                shutil.copytree(f"{before}{kind}", f"{out}{kind}")
        return ["--version"]

    # One cache for all pages, whichever process runs them: they prepare the same text.
    cache = tmp_path_factory.getbasetemp().parent / "pages-cache"
    environment = os.environ | {"SPARROW_CACHE": str(cache), "MPLBACKEND": "agg"}
    told = "".join(
        run_page(DOCS / f"{page}.md", tmp_path, arguments=arguments, environment=environment)
        for page in group
    )
    if "recipes" in group:
        cards = re.findall(r"^\| \d+ GB \| yes .* ([\d.]+ GB) \|$", read(DOCS / "recipes.md"), re.M)
        assert len(cards) == 3
        assert all(f"{needed} in " in told for needed in cards)
    if "first-model" in group:
        assert (tmp_path / "runs/first/attention.png").stat().st_size > 1000
        assert "ln(512) = 6.238" in told
        difference = re.search(r"difference from the model's own: (\S+)", told)
        assert difference is not None
        assert float(difference[1]) < 1e-5
