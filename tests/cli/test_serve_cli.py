"""`sparrow serve` as a person starts and stops it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from lora_support import lora_recipe, text_recipe
from lora_support import run as train
from server_support import chat_tokenizer, running, tiny_model
from sparrowlm.checkpoint import Checkpoint, RunFolder, State
from sparrowlm.cli import main
from sparrowlm.cli.serve import load_models
from sparrowlm.config import Recipe, dump_recipe
from sparrowlm.infer.sampling import Sampling
from sparrowlm.pipeline import load_run
from support import command

CONTEXT = 1536
HELLO: list[Any] = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was taught to answer, with Chinese letters in its name."""
    folder = tmp_path_factory.mktemp("runs") / "麻雀"
    saved = RunFolder(folder)
    saved.create()
    model = tiny_model("tiny", CONTEXT)
    recipe = Recipe(stage="sft", model=model.config)
    (folder / "config.toml").write_text(dump_recipe(recipe), encoding="utf-8")
    (folder / "tokenizer").mkdir()
    chat_tokenizer().save(folder / "tokenizer")
    saved.save(Checkpoint(State(step=10), model.state_dict(), {}), keep_last=1)
    return folder


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--host", "0.0.0.0"], "--insecure-no-auth"),
        (["--slots", "0"], "--slots: is 0"),
        (["--queue", "-1"], "--queue: is -1"),
        (["--drain-seconds", "nan"], "--drain-seconds: is nan"),
        (["--cors", "example.com"], "no origin"),
        (["--name", "a/b"], "--name"),
        (["--adapter", "x=no/such/folder"], "no/such/folder"),
        (["--api-key", "a", "--api-key-file", "b"], "given twice"),
        (["--api-key-file", "no/such/file"], "no/such/file"),
    ],
)
def test_what_cannot_be_served_is_told_at_once(
    run: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(run), "--port", "0", "--device", "cpu", *options]) == 2
    assert told in capsys.readouterr().err


def test_a_package_that_is_missing_is_named(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "uvicorn" else real(name)
    )
    assert main(["serve", str(run)]) == 2
    assert 'pip install "sparrowlm[serve]"' in capsys.readouterr().err


@pytest.mark.slow
def test_an_adapter_is_a_model_of_its_own(tmp_path: Path) -> None:
    """Beside its base, whose text stays its own."""
    recipe = text_recipe(tmp_path)
    train(recipe, tmp_path / "base")
    train(lora_recipe(recipe, tmp_path / "base"), tmp_path / "poet")
    adapter = (f"tuned={tmp_path / 'poet'}",)
    models = load_models(tmp_path / "base", "plain", adapter, "auto", "cpu", "float32")
    assert [(one.name, one.parent) for one in models] == [("plain", None), ("tuned", "plain")]
    with running(models) as server:
        client = server.client()
        told = {
            name: client.completions.create(
                model=name, prompt="def ", temperature=0, max_tokens=8, logprobs=0
            )
            for name in ("plain", "tuned")
        }
        for name, folder in (("plain", "base"), ("tuned", "poet")):
            loaded = load_run(tmp_path / folder, "cpu", "float32")
            alone = loaded.write("def ", Sampling(temperature=0, max_tokens=8))
            assert told[name].choices[0].text == alone
        likely = [told[name].choices[0].logprobs.token_logprobs for name in told]  # pyright: ignore
        assert likely[0] != likely[1]
        with pytest.raises(openai.BadRequestError, match="/v1/completions"):
            client.chat.completions.create(model="plain", messages=HELLO)


@contextmanager
def serving(run: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The real command, once it answers, and its address."""
    process = subprocess.Popen(
        command("serve", run, "--port", "0", "--device", "cpu", *options),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    try:
        assert process.stdout is not None
        told = ""
        for line in process.stdout:
            told += line
            if found := re.search(r"OpenAI +(http://\S+)/v1", line):
                yield process, found[1]
                break
        else:
            pytest.fail(f"it did not begin: {told}")
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no SIGTERM")
def test_sigterm_finishes_what_is_under_way_and_refuses_what_is_new(run: Path) -> None:
    with serving(run) as (process, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == ["麻雀"]
        stream = client.chat.completions.create(
            model="麻雀", messages=HELLO, stream=True, temperature=0
        )
        chunks = [next(iter(stream))]
        reading = threading.Thread(target=lambda: chunks.extend(stream))
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        with pytest.raises(openai.InternalServerError, match="stopping") as caught:
            client.chat.completions.create(model="麻雀", messages=HELLO)
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"] == "1"
        reading.start()
        reading.join(60)
        assert chunks[-1].choices[0].finish_reason in ("stop", "length")
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0, out
        assert out.strip().endswith("stopped")
        assert "Traceback" not in out


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no SIGTERM")
def test_what_takes_longer_than_the_time_to_drain_is_told_so(run: Path) -> None:
    with serving(run, "--drain-seconds", "0.1") as (process, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        stream = client.chat.completions.create(
            model="麻雀", messages=HELLO, stream=True, temperature=0
        )
        next(iter(stream))
        process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="stopped before"):
            list(stream)
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0, out
        assert "Traceback" not in out
