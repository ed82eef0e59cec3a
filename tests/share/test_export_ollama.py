"""Modelfiles: what they say, and what their template writes.

No Ollama and no Go is on the machines that test this, so `go_template` stands in for Go's engine.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from export_support import TINY, bpe, make_run
from go_template import render
from sparrowlm.config import Recipe
from sparrowlm.errors import RunError
from sparrowlm.share.export.ollama import CHAT
from sparrowlm.share.export.writing import export
from sparrowlm.text.chat import ChatFormat
from sparrowlm.text.tokenizer import Tokenizer
from sparrowlm.text.turns import conversation_of

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="needs the gguf package"
)


def parse(text: str) -> list[tuple[str, str]]:
    """The instructions of a Modelfile, in order; a value may stand in three quotes."""
    pattern = re.compile(r'([A-Z]+) (?:"""(.*?)"""|([^\n]*))\n', flags=re.S)
    found, at = [], 0
    while at < len(text):
        line = pattern.match(text, at)
        assert line, text[at:]
        found.append((line[1], line[2] if line[2] is not None else line[3]))
        at = line.end()
    return found


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return bpe()


def test_the_modelfile_of_a_chat(tmp_path: Path, tokenizer: Tokenizer) -> None:
    make_run(tmp_path / "run", TINY, tokenizer, Recipe(stage="sft"))
    done = export(tmp_path / "run", "ollama", tmp_path / "out", license="mit")
    found = parse((tmp_path / "out" / "Modelfile").read_text(encoding="utf-8"))
    assert found[0] == ("FROM", "./run-F16.gguf")
    assert (tmp_path / "out" / "run-F16.gguf").is_file()
    assert found[1] == ("TEMPLATE", CHAT)
    stops = [value for name, value in found if name == "PARAMETER" and value.startswith("stop ")]
    assert stops == ['stop "<|endoftext|>"', 'stop "<|im_end|>"']
    assert ("PARAMETER", "num_ctx 64") in found
    assert found[-1] == ("LICENSE", "mit")
    assert {name for name, _ in done.files} >= {"Modelfile", "README.md", "run-F16.gguf"}


def test_a_model_that_continues_gets_no_turns(tmp_path: Path, tokenizer: Tokenizer) -> None:
    make_run(tmp_path / "run", TINY, tokenizer)
    export(tmp_path / "run", "ollama", tmp_path / "out")
    found = parse((tmp_path / "out" / "Modelfile").read_text(encoding="utf-8"))
    assert ("TEMPLATE", "{{ .Prompt }}") in found
    stops = [value for name, value in found if value.startswith("stop ")]
    assert stops == ['stop "<|endoftext|>"']


CHATS = [
    [("user", "hello")],
    [("system", "Be brief."), ("user", "{{ .Role }}\n\n  "), ("assistant", "a"), ("user", " b ")],
    [
        ("user", "麻雀？"),
        ("assistant", "  A bird.\n"),
        ("user", "x"),
        ("assistant", ""),
        ("user", ""),
    ],
]


@pytest.mark.parametrize("turns", CHATS)
def test_the_template_writes_what_the_chat_format_writes(
    tokenizer: Tokenizer, turns: list[tuple[str, str]]
) -> None:
    chat = ChatFormat(tokenizer)
    messages = [{"role": role, "content": content} for role, content in turns]
    told = [{"Role": role, "Content": content} for role, content in turns]
    wanted = tokenizer.decode(chat.prompt_ids(messages), specials=True)
    assert render(CHAT, {"Messages": told}) == wanted
    # An answer that is begun goes on: the whole conversation without what ends it.
    begun = [*messages, {"role": "assistant", "content": "It is"}]
    whole = chat.text(conversation_of(begun))
    found = render(CHAT, {"Messages": [*told, {"Role": "assistant", "Content": "It is"}]})
    assert found == whole.removesuffix("<|im_end|>\n")


def test_another_template_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    plain = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    other = Tokenizer(
        tokenizer.definition, "folder", {"chat_template": plain, "eos_token": "<|im_end|>"}
    )
    make_run(tmp_path / "run", TINY, other, Recipe(stage="sft"))
    with pytest.raises(RunError, match="chat_template, which is not Sparrow's"):
        export(tmp_path / "run", "ollama", tmp_path / "out")
    export(tmp_path / "run", "gguf", tmp_path / "out")
