"""Docstrings as conversations, on the library of the Python that runs the tests."""

from __future__ import annotations

import json
import posixpath
import subprocess
import sys
from pathlib import Path

import pytest

from sparrowlm.config import DataConfig, TokenizerConfig
from sparrowlm.data.chats import open_sequences, prepare_sequences
from sparrowlm.data.corpus import python_sources, stdlib_folder
from sparrowlm.data.docstrings import (
    LONGEST,
    PHRASINGS,
    SHORTEST,
    explained,
    first_paragraph,
    module_name,
    write_chats,
)
from sparrowlm.data.sources import Source

SOURCE = '''"""Shapes of all kinds."""
def area(w, h):
    """The area of a rectangle,
    in ``float``.

    More about it.
    """
    def inner():
        """Nobody asks for this one."""
def _hidden():
    """This one is nobody's business."""
def bare(): ...
if True:
    class Square:
        """A rectangle with equal sides."""
        def grow(self):
            """A method, of which there are too many."""
    async def turn(shape):
        """turn(shape) -> shape

        Turn it to the left, and wait.
        """
    def turn(shape):
        """A second definition of it."""
    def table(shape):
        """What comes next is a table:"""
'''


def test_public_names_answer_with_their_first_paragraph() -> None:
    assert [tuple(found) for found in explained(SOURCE, "shapes")] == [
        ("shapes", False, "Shapes of all kinds."),
        ("shapes.area", True, "The area of a rectangle, in `float`."),
        ("shapes.Square", False, "A rectangle with equal sides."),
        ("shapes.turn", True, "Turn it to the left, and wait."),
    ]
    assert list(explained(SOURCE, "_private")) == list(explained("def f(:", "broken")) == []


def test_a_long_paragraph_ends_with_a_sentence() -> None:
    sentence = "It does what it says, and then it does it again. "
    found = first_paragraph(sentence * 20)
    assert found.endswith("again.")
    assert LONGEST - len(sentence) < len(found) <= LONGEST
    assert first_paragraph("x" * (LONGEST + 1)) == first_paragraph("Short.") == ""


@pytest.mark.skipif(posixpath.__doc__ is None, reason="docstrings are stripped")
def test_the_library_explains_itself(tmp_path: Path) -> None:
    library = stdlib_folder()
    if not (library / "json").is_dir():
        pytest.skip("this Python came without its own source")
    paths = [library / name for name in ("json/__init__.py", "posixpath.py", "json/decoder.py")]
    made = write_chats([Source(path, path.parts[-2]) for path in paths], tmp_path)
    assert [source.path.stem for source in made] == ["json", library.name]
    rows = [json.loads(line) for source in made for line in source.path.open(encoding="utf-8")]
    answers = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in rows}
    asked = [question for question in answers if "`json.dumps`" in question]
    assert len(asked) == PHRASINGS
    assert answers[asked[0]] == "Serialize `obj` to a JSON formatted `str`."
    assert any("`json.decoder.JSONDecoder`" in question for question in answers)
    if sys.platform != "win32":
        joins = [answer for question, answer in answers.items() if "`os.path.join`" in question]
        assert joins[0].startswith("Join two or more pathname components")


def test_names_are_those_of_an_import() -> None:
    library = stdlib_folder()
    assert module_name(library / "asyncio" / "tasks.py") == "asyncio.tasks"
    assert module_name(library / "email" / "__init__.py") == "email"
    with pytest.raises(ValueError, match="no module"):
        module_name(Path("elsewhere.py").absolute())


def test_thousands_of_answers_and_nothing_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from sparrowlm.data.corpus import python_sources;"
        "from sparrowlm.data.docstrings import write_chats;"
        f"write_chats(python_sources().sources, Path({str(tmp_path)!r}));"
        "sys.exit('imported' if 'this' in sys.modules or 'turtle' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for path in tmp_path.iterdir() for line in path.open(encoding="utf-8")]
    assert len(lines) > 3000
    assert len(list(tmp_path.iterdir())) > 20
    for line in lines:
        question, answer = json.loads(line)["messages"]
        assert (question["role"], answer["role"]) == ("user", "assistant")
        assert SHORTEST <= len(answer["content"]) <= LONGEST
        assert "\n" not in question["content"] + answer["content"]
    assert {path.stem for path in tmp_path.iterdir()} <= {
        source.group for source in python_sources().sources
    }


def test_held_out_questions_are_new_and_their_answers_mostly_known(tmp_path: Path) -> None:
    library = stdlib_folder()
    if not (library / "json").is_dir():
        pytest.skip("this Python came without its own source")
    found = sorted((library / "email").glob("*.py"))
    made = write_chats([Source(path, "email") for path in found], tmp_path / "chats")
    tokenizer, data = TokenizerConfig(vocab_size=400), DataConfig(val_fraction=0.1)
    folder = prepare_sequences(data, tokenizer, tmp_path / "cache", "chats", 512, None, made)
    dataset = open_sequences(folder)
    assert dataset.val is not None
    learned, asked = (
        [dataset.tokenizer.decode(split.bundle(at)[0].ids) for at in range(len(split))]
        for split in (dataset.train, dataset.val)
    )
    assert not set(learned) & set(asked)
    assert 0.05 < len(asked) / (len(learned) + len(asked)) < 0.15
    known = {text.split("`")[1] for text in learned}
    assert sum(text.split("`")[1] in known for text in asked) / len(asked) > 0.9
