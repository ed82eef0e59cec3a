"""The chat page in a real browser, against the real server."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparrowlm.text.turns import conversation_of

pytestmark = pytest.mark.slow

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SAID = "A **sparrow** hops: <b>麻雀</b> 🐦\n\n```python\nx = 1\n```\n\n- one\n- `two`"


def _without(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI must have it: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = CHROMIUM if Path(CHROMIUM).exists() else shutil.which("chromium")
    if path is None:
        _without("there is no chromium")
    try:
        from playwright.sync_api import expect, sync_playwright
    except ImportError:
        _without("playwright is not installed")
        raise
    expect.set_options(timeout=20_000)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def serving() -> Any:
    """server_support, which needs the packages of a server and of its clients."""
    for package in ("fastapi", "uvicorn", "prometheus_client", "httpx", "openai"):
        if not _there(package):
            _without(f"{package} is not installed")
    import server_support

    return server_support


def _there(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


@pytest.fixture(scope="module")
def random_site(serving: Any) -> Iterator[Any]:
    """Two chat models that write random tokens, broken characters among them."""
    models = [serving.served("tiny"), serving.served("tuned", parent="tiny")]
    with serving.running(models) as found:
        yield found


@pytest.fixture(scope="module")
def _scene(serving: Any) -> Iterator[Any]:
    model, script = serving.scripted("sparrow", context=512)
    with serving.running([model], slots=2) as found:
        yield serving.Scene(found, found.client(), model, script)


@pytest.fixture
def scene(_scene: Any) -> Iterator[Any]:
    """A chat model whose answers a test decides."""
    yield _scene
    _scene.script.seconds, _scene.script.fault = 0.0, None


class Visit:
    """A page that is open, what it asked for, and what should not have happened on it."""

    def __init__(self, context: Any, url: str) -> None:
        self.context, self.url, self.page = context, url, context.new_page()
        self.faults: list[str] = []
        self.asked: list[str] = []
        self.bodies: list[Any] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda fault: self.faults.append(str(fault)))
        self.page.on("request", self._seen)
        self.page.goto(url)

    def _heard(self, message: Any) -> None:
        # Chromium writes a line for every answer of 4xx and 5xx, which some tests want.
        if message.type in ("error", "warning") and "Failed to load" not in message.text:
            self.faults.append(message.text)

    def _seen(self, request: Any) -> None:
        self.asked.append(request.url)
        if request.method == "POST":
            self.bodies.append(request.post_data_json)

    def ask(self, text: str) -> None:
        self.page.fill("#ask", text)
        self.page.press("#ask", "Enter")

    @property
    def answers(self) -> Any:
        return self.page.locator(".turn.assistant")

    def hold(self, url: str) -> Callable[[], Any]:
        """Keep requests to a URL waiting. Returns what gives the next of them."""
        held: list[Any] = []
        self.page.route(url, lambda route: held.append(route))

        def following() -> Any:
            deadline = time.monotonic() + 20
            while not held:
                assert time.monotonic() < deadline
                self.page.wait_for_timeout(20)
            return held.pop(0)

        return following

    def settle(self) -> None:
        """Wait for the end of an answer."""
        self.page.locator("#stop").wait_for(state="hidden")

    def close(self) -> None:
        self.context.close()
        assert not self.faults
        assert self.asked
        assert all(url.startswith((self.url, "blob:" + self.url)) for url in self.asked)


Open = Callable[..., Visit]


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    opened: list[Visit] = []

    def open_page(url: str, **options: Any) -> Visit:
        context = browser.new_context(**{"locale": "en-US"} | options)
        opened.append(Visit(context, url))
        return opened[-1]

    yield open_page
    for one in opened:
        one.close()


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def test_what_a_person_sees_first_and_an_answer(visit: Open, scene: Any) -> None:
    from playwright.sync_api import expect

    here = visit(scene.running.url)
    page = here.page
    expect(page.get_by_role("heading", name="sparrow", exact=True)).to_be_visible()
    expect(page.locator(".facts")).to_have_text("1.2K parameters · context of 512 tokens")
    examples = page.locator(".examples button")
    assert examples.count() == 3
    scene.say(SAID + "<|im_end|>", [user(examples.first.inner_text())])
    examples.first.click()
    answer = here.answers.locator(".text").last
    expect(answer.locator("pre")).to_have_text("x = 1")
    expect(answer.locator("strong")).to_have_text("sparrow")
    expect(answer.locator("li")).to_have_text(["one", "two"])
    expect(answer.locator("p").first).to_have_text("A sparrow hops: <b>麻雀</b> 🐦")
    assert answer.locator("b").count() == 0
    here.settle()
    expect(page.locator("#spoken")).to_contain_text("<b>麻雀</b> 🐦")
    stats = page.locator(".stats").inner_text()
    assert "in the context" in stats
    # What was said goes along, as it was written.
    scene.say("Twice.<|im_end|>", [user("Who are you?"), assistant(SAID), user("Again?")])
    here.ask("Again?")
    expect(here.answers.last.locator(".text")).to_have_text("Twice.")
    roles = [turn["role"] for turn in here.bodies[-1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert here.bodies[-1]["messages"][1]["content"] == SAID


def test_what_is_sent_before_the_model_is_known_is_sent_when_it_is(visit: Open, scene: Any) -> None:
    from playwright.sync_api import expect

    scene.say("Here.<|im_end|>", [user("early")])
    here = visit(scene.running.url)
    held = here.hold("**/v1/models")

    def early() -> None:
        here.page.reload()
        here.ask("early")
        assert here.page.input_value("#ask") == "early"
        assert not here.answers.count()

    early()
    held().continue_()
    expect(here.answers.locator(".text")).to_have_text("Here.")
    here.settle()
    assert here.page.input_value("#ask") == ""
    # Who writes on has changed their mind.
    early()
    here.page.fill("#ask", "later")
    held().continue_()
    expect(here.page.locator(".facts")).to_be_visible()
    assert here.page.input_value("#ask") == "later"
    assert not here.answers.count()


def test_enter_before_the_model_is_known_is_no_wish_of_a_base_model(
    visit: Open, serving: Any
) -> None:
    from playwright.sync_api import expect

    with serving.running([serving.served("base", chat=False)]) as site:
        here = visit(site.url)
        page, held = here.page, here.hold("**/v1/models")
        given = page.locator(".given")

        def press(key: str) -> None:
            page.reload()
            page.fill("#ask", "麻雀")
            page.press("#ask", key)
            held().continue_()

        press("Enter")
        expect(page.locator(".welcome")).to_be_visible()
        assert page.input_value("#ask") == "麻雀\n", "Enter is a line of the text"
        assert not given.count()
        press("Control+Enter")
        expect(given).to_have_text("麻雀")
        here.settle()


def test_streams_stops_and_keeps_what_came(visit: Open, scene: Any, serving: Any) -> None:
    from playwright.sync_api import expect

    here = visit(scene.running.url)
    scene.script.seconds = 0.03
    scene.say("word " * 400, [user("go")])
    here.ask("go")
    answer = here.answers.locator(".text")
    expect(answer).to_contain_text("word word")
    lengths = [len(answer.inner_text())]
    for _ in range(3):
        here.page.wait_for_timeout(150)
        lengths.append(len(answer.inner_text()))
    assert lengths == sorted(set(lengths)), "it grows as it comes"
    here.page.keyboard.press("Escape")
    here.settle()
    assert serving.until(lambda: not scene.running.server.service.active), "its slot is free"
    expect(here.page.locator(".stats")).to_contain_text("stopped")
    kept = answer.inner_text()
    assert len(kept) >= lengths[-1]
    here.page.reload()
    here.page.locator(".open").click()
    expect(here.answers.locator(".text")).to_have_text(kept)


def test_retries_edits_and_goes_between_the_versions(visit: Open, scene: Any) -> None:
    from playwright.sync_api import expect

    here = visit(scene.running.url)
    page, answer = here.page, here.answers.locator(".text")
    scene.say("First.<|im_end|>", [user("Well?")])
    here.ask("Well?")
    expect(answer).to_have_text("First.")
    here.settle()
    scene.say("Second.<|im_end|>", [user("Well?")])
    page.get_by_role("button", name="Retry").click()
    expect(answer).to_have_text("Second.")
    here.settle()
    expect(page.locator(".versions")).to_have_text("‹2 of 2›")
    page.get_by_role("button", name="Version before").click()
    expect(answer).to_have_text("First.")
    # An edited question begins a branch; the old one stays beside it.
    scene.say("Third.<|im_end|>", [user("Well then?")])
    page.locator(".turn.user").get_by_role("button", name="Edit").click()
    box = page.locator(".editing textarea")
    assert box.input_value() == "Well?"
    box.fill("Well then?")
    box.press("Enter")
    expect(answer).to_have_text("Third.")
    here.settle()
    assert here.bodies[-1]["messages"] == [user("Well then?")]
    expect(page.locator(".turn.user .said")).to_have_text("Well then?")
    page.locator(".turn.user").get_by_role("button", name="Version before").click()
    expect(answer).to_have_text("First.")
    here.context.grant_permissions(["clipboard-read", "clipboard-write"])
    here.answers.get_by_role("button", name="Copy").click()
    expect(here.answers.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "First."


def test_shows_what_the_model_nearly_said(visit: Open, random_site: Any) -> None:
    """The percentages are those that the real client gets; half characters are joined."""
    from playwright.sync_api import expect

    here = visit(random_site.url)
    page = here.page
    page.get_by_role("button", name="Settings").click()
    for name, value in (("seed", "5"), ("max_tokens", "40"), ("temperature", "1.5")):
        page.fill(f"[name={name}]", value)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Probabilities").click()
    here.ask("麻雀")
    tokens = here.answers.locator(".token")
    expect(tokens.first).to_be_visible()
    here.settle()
    said = random_site.client().chat.completions.create(
        model="tiny", messages=[user("麻雀")], seed=5, max_tokens=40, temperature=1.5,
        logprobs=True, top_logprobs=5,
    )  # fmt: skip
    choice = said.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert "".join(tokens.all_inner_texts()) == choice.message.content
    first = choice.logprobs.content[0]
    tokens.first.hover()
    rows = page.locator("#nearly ol").first.locator("li")
    shown = [float(text.rstrip("%")) for text in rows.locator(".share").all_inner_texts()]
    wanted = [100 * math.exp(top.logprob) for top in first.top_logprobs]
    if first.token not in [top.token for top in first.top_logprobs]:
        wanted.append(100 * math.exp(first.logprob))
    assert shown == pytest.approx(wanted, abs=0.51)
    assert rows.locator("xpath=self::*[contains(@class, 'said')]").count() == 1
    # The same by keys alone.
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    expect(tokens.nth(1)).to_be_focused()
    expect(tokens.nth(1)).to_have_attribute("aria-describedby", "nearly")
    page.keyboard.press("End")
    expect(tokens.last).to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(page.locator("#nearly")).to_be_hidden()
    # Kept, and folded away again.
    page.reload()
    page.locator(".open").click()
    expect(tokens.first).to_be_visible()
    page.get_by_role("button", name="Probabilities").click()
    assert tokens.count() == 0


def test_themes_and_languages_are_the_systems_until_chosen(visit: Open, scene: Any) -> None:
    from playwright.sync_api import expect

    here = visit(scene.running.url, locale="zh-CN", color_scheme="dark")
    page = here.page

    def paper() -> int:
        color = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in color.strip("rgb()").split(","))

    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    expect(page.locator("#ask")).to_have_attribute("placeholder", "问点什么")
    assert paper() < 200
    page.get_by_role("radio", name="浅色").check()
    assert paper() > 600
    page.get_by_role("radio", name="English").check()
    expect(page.locator("#ask")).to_have_attribute("placeholder", "Ask something")
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    assert paper() > 600
    left = page.evaluate(
        "[...document.querySelectorAll('[data-word], [data-label]')]"
        ".filter(e => !(e.textContent || e.getAttribute('aria-label'))).length"
    )
    assert left == 0


def test_keys_alone_are_enough(visit: Open, scene: Any) -> None:
    from playwright.sync_api import expect

    here = visit(scene.running.url)
    page = here.page
    expect(page.locator("#ask")).to_be_focused()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    # The Enter that ends the composition of a word sends nothing.
    page.evaluate(
        "document.getElementById('ask').dispatchEvent(new KeyboardEvent('keydown',"
        " {key: 'Enter', isComposing: true, bubbles: true, cancelable: true}))"
    )
    assert here.answers.count() == 0
    scene.say("Yes.<|im_end|>", [user("one\ntwo")])
    page.keyboard.press("Enter")
    expect(here.answers.locator(".text")).to_have_text("Yes.")
    here.settle()
    expect(page.locator("#ask")).to_be_focused()
    # Everything that can be pressed is reached by Tab, and shows that it is.
    page.keyboard.press("Shift+Tab")
    seen = set()
    for _ in range(16):
        name, ring, otherwise = page.evaluate(
            "(({ activeElement: one }) => [one.textContent.trim().slice(0, 20),"
            " getComputedStyle(one).outlineStyle, one.matches('.choice input, #ask, body')])"
            "(document)"
        )
        assert otherwise or ring == "solid", name
        seen.add(name)
        page.keyboard.press("Shift+Tab")
    assert {"Retry", "Copy", "Edit", "New conversation", "Probabilities", "one", "×"} <= seen
    # The drawer holds the focus and gives it back.
    page.get_by_role("button", name="Settings").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#drawer")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Settings")).to_be_focused()


def test_fits_a_phone(visit: Open, random_site: Any) -> None:
    from playwright.sync_api import expect

    narrow = {"width": 360, "height": 640}
    here = visit(random_site.url, viewport=narrow, is_mobile=True, has_touch=True)
    page = here.page
    page.locator(".welcome").wait_for()  # it has kept its settings by then
    page.evaluate("localStorage.setItem('sparrow.settings', JSON.stringify({ seed: 1 }))")
    page.reload()

    def fits() -> bool:
        found = page.evaluate(
            "[document.documentElement.scrollWidth, document.getElementById('scroll').scrollWidth,"
            " document.getElementById('scroll').clientWidth, innerWidth]"
        )
        return found[0] <= 360 and found[1] <= found[2] and found[3] == 360

    expect(page.locator(".examples button").first).to_be_visible()
    assert fits()
    here.ask("w" * 60 + " `" + "c" * 25 + "`")
    expect(here.answers.locator(".acts")).to_be_visible()
    assert fits()
    page.get_by_role("button", name="Probabilities").tap()
    tokens = here.answers.locator(".token")
    tokens.last.tap()
    expect(page.locator("#nearly")).to_be_visible()
    box = page.locator("#nearly").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    assert fits()
    menu = page.get_by_role("button", name="Conversations, theme and language")
    menu.tap()
    expect(page.get_by_text("中文")).to_be_visible()
    page.wait_for_timeout(300)
    assert fits()
    page.touchscreen.tap(350, 300)
    expect(page.get_by_text("中文")).to_be_hidden()
    page.get_by_role("button", name="Settings").tap()
    assert fits()
    # A finger needs room.
    page.get_by_role("button", name="Done").tap()
    heights = page.evaluate(
        "Object.fromEntries([...document.querySelectorAll('button')].map((one) =>"
        " [one.textContent || one.id, one.getBoundingClientRect().height]))"
    )
    assert not [name for name, height in heights.items() if 0 < height < 28]


def test_a_base_model_goes_on_with_a_text(visit: Open, serving: Any) -> None:
    from playwright.sync_api import expect

    with serving.running([serving.served("base", chat=False)]) as site:
        here = visit(site.url)
        page = here.page
        expect(page.locator(".welcome")).to_contain_text("It does not answer questions")
        page.get_by_role("button", name="Settings").click()
        assert not page.locator("[name=system]").is_visible()
        page.fill("[name=max_tokens]", "12")
        page.fill("[name=seed]", "3")
        page.get_by_role("button", name="Done").click()
        page.fill("#ask", "麻雀")
        page.press("#ask", "Enter")
        assert page.input_value("#ask") == "麻雀\n", "Enter is a line of the text"
        page.press("#ask", "Backspace")
        page.press("#ask", "Control+Enter")
        expect(page.locator(".acts")).to_be_visible()
        wanted = site.client().completions.create(
            model="base", prompt="麻雀", max_tokens=12, seed=3
        )
        text = page.locator(".turn.assistant .text")
        assert text.inner_text() == wanted.choices[0].text
        expect(page.locator(".given")).to_have_text("麻雀")
        page.get_by_role("button", name="Probabilities").click()
        # Bytes come as \xe9 here, and are joined to the same characters.
        assert "".join(page.locator(".token").all_inner_texts()) == wanted.choices[0].text
        page.get_by_role("button", name="Probabilities").click()
        page.get_by_role("button", name="Continue").click()
        here.settle()
        assert here.bodies[-1]["prompt"] == "麻雀" + wanted.choices[0].text
        page.get_by_role("button", name="Edit").click()
        assert page.input_value("#ask").startswith("麻雀")


def test_thoughts_and_tool_calls(visit: Open, scene: Any) -> None:
    from playwright.sync_api import expect

    here = visit(scene.running.url)
    page = here.page
    weather = {"name": "weather", "parameters": {"type": "object"}}
    tool = {"type": "function", "function": weather}
    page.get_by_role("button", name="Settings").click()
    page.fill("[name=tools]", "[")
    page.get_by_role("button", name="Done").click()
    expect(page.locator("#drawer")).to_be_visible()  # it says what is wrong, and stays
    page.fill("[name=tools]", json.dumps([weather]))
    page.check("[name=thinking]")
    page.fill("[name=system]", "Be brief.")
    page.get_by_role("button", name="Done").click()
    system = {"role": "system", "content": "Be brief."}
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    scene.say(f"I should ask.\n</think>\n\n{call}<|im_end|>", [system, user("Warm?")], [tool], True)
    here.ask("Warm?")
    expect(page.locator(".call .name")).to_have_text("Calls weather")
    expect(page.locator(".call pre")).to_have_text('{\n  "city": "Oslo"\n}')
    here.settle()
    thought = page.locator(".thought")
    assert thought.get_attribute("open") is None
    thought.locator("summary").click()
    expect(thought.locator(".text")).to_have_text("I should ask.")
    # The person answers for the tool.
    expect(page.locator("#ask")).to_have_attribute("placeholder", "What does weather answer?")
    here.ask("4 degrees")
    here.answers.nth(1).wait_for()
    sent = here.bodies[-1]["messages"]
    assert [turn["role"] for turn in sent] == ["system", "user", "assistant", "tool"]
    assert sent[2]["reasoning_content"] == "I should ask."
    made = sent[2]["tool_calls"][0]
    assert made["function"]["name"] == "weather"
    assert json.loads(made["function"]["arguments"]) == {"city": "Oslo"}
    assert sent[3]["tool_call_id"] == made["id"]
    here.page.keyboard.press("Escape")


def test_faults_are_told_in_words(visit: Open, scene: Any, serving: Any) -> None:
    from playwright.sync_api import expect

    here = visit(scene.running.url)
    page, error = here.page, here.page.locator(".error")
    here.ask("long " * 600)
    expect(error).to_contain_text("tokens are needed, and it holds 512")
    assert scene.model.chat is not None
    needed = len(scene.model.chat.prompt_ids([user("long " * 600)]))
    expect(error).to_contain_text(f": {needed} tokens")
    page.get_by_role("button", name="New conversation").click()
    scene.script.fault = RuntimeError("the card is gone")
    here.ask("hello")
    expect(error).to_contain_text("The server failed")
    scene.script.fault = None
    scene.say("Back.<|im_end|>", [user("hello")])
    error.get_by_role("button", name="Try again").click()
    expect(here.answers.locator(".text")).to_have_text("Back.")
    assert error.count() == 0
    here.settle()
    page.route("**/v1/chat/completions", lambda route: route.abort())
    here.ask("anyone?")
    expect(error).to_contain_text("does not answer")
    page.unroute("**/v1/chat/completions")
    from sparrowlm.share.server.limits import Limits

    model, script = serving.scripted("busy", context=512)
    with serving.running([model], limits=Limits(queue=0), slots=1) as busy:
        script.seconds = 0.05
        here, other = visit(busy.url), visit(busy.url)
        here.ask("first")
        expect(here.answers.locator(".text")).to_contain_text("a")
        other.ask("second")
        expect(other.page.locator(".error")).to_contain_text("busy")
        here.page.keyboard.press("Escape")
        here.settle()


def test_asks_for_the_key_where_the_server_wants_one(visit: Open, serving: Any) -> None:
    from playwright.sync_api import expect

    from sparrowlm.share.server.gates import Rules

    with serving.running([serving.served("tiny")], Rules(key="secret")) as site:
        here = visit(site.url)
        dialog = here.page.locator("#key")
        expect(dialog).to_be_visible()
        dialog.locator("input").fill("wrong")
        dialog.get_by_role("button").click()
        expect(dialog.locator("input")).to_have_value("")
        dialog.locator("input").fill("secret")
        dialog.locator("input").press("Enter")
        expect(here.page.locator(".welcome")).to_be_visible()
        here.ask("hello")
        expect(here.answers.locator(".acts")).to_be_visible()
        stored = here.page.evaluate("JSON.stringify(localStorage)")
        assert "secret" not in stored


def test_conversations_are_kept_listed_exported_and_deleted(visit: Open, scene: Any) -> None:
    from playwright.sync_api import expect

    here = visit(scene.running.url)
    page = here.page
    for question in ("one?", "two?"):
        scene.say(f"{question[:3]}!<|im_end|>", [user(question)])
        page.get_by_role("button", name="New conversation").click()
        here.ask(question)
        expect(here.answers.locator(".text")).to_have_text(f"{question[:3]}!")
        here.settle()
    expect(page.locator(".open")).to_have_text(["two?", "one?"])
    page.locator(".open").last.click()
    expect(here.answers.locator(".text")).to_have_text("one!")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Export as JSONL").click()
    assert waiting.value.suggested_filename == "conversations.jsonl"
    rows = [json.loads(line) for line in Path(waiting.value.path()).read_text("utf-8").splitlines()]
    assert [conversation_of(row["conversations"]).messages for row in rows] == [
        (user(question), assistant(f"{question[:3]}!")) for question in ("two?", "one?")
    ]
    page.get_by_role("button", name="Delete “one?”").click()
    expect(page.locator(".open")).to_have_text(["two?"])
    page.reload()
    expect(page.locator(".open")).to_have_text(["two?"])


def test_tokens_and_events_are_put_together_however_they_are_cut(visit: Open, scene: Any) -> None:
    """Python's decoder is the authority, on whole text and on bytes that are none."""
    draw = random.Random(0)
    here = visit(scene.running.url)
    texts = ["".join(chr(draw.choice([10, 97, 0xE9, 0x9EBB, 0x1F426])) for _ in range(20))]
    raws = [texts[0].encode(), *(draw.randbytes(24) for _ in range(40))]
    for raw in raws:
        cuts = sorted(draw.sample(range(1, len(raw)), 9))
        parts = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
        cells = here.page.evaluate(
            "async (parts) => { const { cells, tokenOf } = await import('/page/tokens.js');"
            " return cells(parts.map((bytes) => tokenOf({ token: '?', bytes, logprob: -1 }))); }",
            [list(part) for part in parts],
        )
        assert "".join(cell["text"] for cell in cells) == raw.decode("utf-8", "replace")
        assert sum(len(cell["tokens"]) for cell in cells) == len(parts)
        if raw is raws[0]:
            assert all("\ufffd" not in cell["text"] for cell in cells)
    told = [
        json.dumps({"text": text, "n": at}, ensure_ascii=False) for at, text in enumerate(texts * 3)
    ]
    for end in ("\n", "\r\n"):
        stream = "".join(f": note{end}data: {one}{end}{end}" for one in told).encode()
        cuts = sorted(draw.sample(range(1, len(stream)), 30))
        parts = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        found = here.page.evaluate(
            "async (parts) => { const { events } = await import('/page/api.js');"
            " const body = new ReadableStream({ start(out) {"
            " for (const part of parts) out.enqueue(new Uint8Array(part)); out.close(); } });"
            " const found = []; for await (const one of events(body)) found.push(one);"
            " return found; }",
            [list(part) for part in parts],
        )
        assert found == told
