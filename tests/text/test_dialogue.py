"""What fits a context, what leaves it, and what becomes of it as data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparrowlm.config import TokenizerConfig
from sparrowlm.errors import DataError, UserError
from sparrowlm.text.chat import ChatFormat
from sparrowlm.text.conversations import Found, chat_of, read_values
from sparrowlm.text.dialogue import Dialogue, Story
from sparrowlm.text.reply import Fragment, message_from
from sparrowlm.text.tokenizer import make_tokenizer
from sparrowlm.text.turns import order_fault

TEXT = "the sparrow is small, and no organ is missing. " * 20
TOKENIZER = make_tokenizer(TokenizerConfig(vocab_size=320), lambda: [TEXT])
CHAT = ChatFormat(TOKENIZER)


def said(text: str) -> list[Fragment]:
    return [Fragment("content", text)]


def shown(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, specials=True)


def test_the_next_prompt_begins_with_the_last_one_and_its_answer() -> None:
    dialogue = Dialogue(CHAT, context=500, system="be small")
    dialogue.say("why? <|im_end|>")
    first = dialogue.prompt(room=50)
    answer = TOKENIZER.encode("so")
    dialogue.hear(answer, said("so"))
    dialogue.say("and?")
    second = dialogue.prompt(room=50)
    assert second[: len(first) + len(answer)] == first + answer
    assert shown(second).startswith("<|im_start|>system\nbe small<|im_end|>\n<|im_start|>user\nwhy")
    assert dialogue.forgotten == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.text("ab ", max_size=60), st.text("cd ", max_size=60)), max_size=8),
    st.integers(40, 200),
    st.integers(1, 40),
    st.sampled_from(["", "be small"]),
)
def test_a_prompt_leaves_room_and_the_oldest_turns_go_first(
    turns: list[tuple[str, str]], context: int, room: int, system: str
) -> None:
    dialogue = Dialogue(CHAT, context, system)
    for question, answer in turns:
        dialogue.say(question)
        dialogue.turns.append(message_from(said(answer)))
    dialogue.say("last?")
    head = [{"role": "system", "content": system}] if system else []
    try:
        ids = dialogue.prompt(room)
    except UserError:
        assert len(CHAT.prompt_ids([*head, {"role": "user", "content": "last?"}])) >= context
        return
    left = dialogue.turns[dialogue.forgotten :]
    assert dialogue.forgotten % 2 == 0
    assert len(ids) + room <= context or len(left) == 1
    assert ids == CHAT.prompt_ids([*head, *left])
    if dialogue.forgotten:  # not one turn more than had to
        more = [*head, *dialogue.turns[dialogue.forgotten - 2 :]]
        assert len(CHAT.prompt_ids(more)) + room > context


def test_a_question_that_fills_the_context_is_taken_back() -> None:
    dialogue = Dialogue(CHAT, context=40)
    dialogue.say("a")
    dialogue.hear([], said("b"))
    dialogue.say("why " * 100)
    with pytest.raises(UserError, match="context 40"):
        dialogue.prompt(room=10)
    assert [turn["content"] for turn in dialogue.turns] == ["a", "b"]
    dialogue.say("c")
    assert "c<|im_end|>" in shown(dialogue.prompt(room=10))
    with pytest.raises(DataError):
        dialogue.say("\ud800")


def test_an_answer_is_taken_back_and_a_question_without_one_is_asked_again() -> None:
    dialogue = Dialogue(CHAT, context=500)
    assert not dialogue.again()
    dialogue.say("a")
    first = dialogue.prompt(room=9)
    dialogue.hear([], said("b"))
    assert dialogue.again()
    assert dialogue.prompt(room=9) == first
    dialogue.hear([], [])
    assert dialogue.empty
    assert dialogue.again()
    assert dialogue.prompt(room=9) == first
    dialogue.hear([], [Fragment("thinking", "hm")])
    assert not dialogue.empty
    dialogue.reset()
    assert dialogue.empty
    assert not dialogue.again()


def test_what_was_said_is_data_for_fine_tuning(tmp_path: Path) -> None:
    dialogue = Dialogue(CHAT, context=64, system="be small")
    call = '{"name": "add", "arguments": {"a": 1}}'
    answers = [
        [Fragment("thinking", "hm\n"), *said("b 麻雀")],
        [*said("c"), Fragment("tool_call", call)],
        [Fragment("tool_call", "no call")],
    ]
    for answer in answers:
        dialogue.say("a </think> <|im_end|>")
        dialogue.hear([], answer)
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps(dialogue.row(), ensure_ascii=False) + "\n", encoding="utf-8")
    (found,) = read_values(path, chat_of)
    assert isinstance(found, Found)
    messages = found.value.messages
    assert order_fault(messages) == ""
    assert messages[0] == {"role": "system", "content": "be small"}
    assert messages[2] == {"role": "assistant", "content": "b 麻雀", "reasoning_content": "hm\n"}
    assert messages[4]["tool_calls"] == [{"name": "add", "arguments": '{"a": 1}'}]
    assert messages[6]["content"] == "<tool_call>\nno call\n</tool_call>"
    assert f"c\n<tool_call>\n{call}\n</tool_call><|im_end|>" in CHAT.text(found.value)


def test_a_story_goes_on_and_its_beginning_leaves() -> None:
    story = Story(TOKENIZER.encode, [0], context=20)
    assert not story.again()
    story.say("")
    assert story.prompt(room=5) == [0]
    story.hear([7, 8], said("xy"))
    story.say("麻雀")
    first = [7, 8, *TOKENIZER.encode("麻雀")]
    assert story.prompt(room=5) == first
    story.hear([9], said("z"))
    assert story.row() == {"text": "xy麻雀z"}
    assert story.again()
    assert story.prompt(room=5) == first
    assert story.row() == {"text": "xy麻雀"}
    story.hear(list(range(30)), said("!"))
    story.say("")
    assert story.prompt(room=5) == list(range(15, 30))
    assert story.forgotten == len(first) + 15
    story.reset()
    assert story.empty
    assert story.prompt(room=5) == [0]
