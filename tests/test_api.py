"""A run in a Python program, against the model itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import sparrowlm
from lora_support import run, text_recipe
from sparrowlm.api import LanguageModel
from sparrowlm.cli import main
from sparrowlm.config import TokenizerConfig
from sparrowlm.errors import ConfigError, RunError, UserError
from sparrowlm.infer.sampling import Sampling


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("api")
    recipe = text_recipe(place, max_seq_len=256)
    shape = replace(recipe.model, vocab_size=0)
    run(replace(recipe, model=shape, tokenizer=TokenizerConfig(vocab_size=400)), place / "run")
    return place / "run"


@pytest.fixture(scope="module")
def bird(folder: Path) -> LanguageModel:
    return sparrowlm.load(folder, device="cpu", precision="float32")


def all_logprobs(bird: LanguageModel, ids: list[int]) -> torch.Tensor:
    """(T, V) by one plain pass."""
    model = bird.loaded.model
    with torch.no_grad():
        return F.log_softmax(model.logits(model(torch.tensor([ids])).hidden)[0].float(), -1)


def test_generate_is_what_the_command_writes(
    bird: LanguageModel, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = bird.generate("the sparrow", max_tokens=12, seed=3)
    options = ["--prompt", "the sparrow", "--max-tokens", "12", "--seed", "3"]
    main(["generate", str(folder), "--device", "cpu", "--precision", "float32", *options])
    assert capsys.readouterr().out.rstrip("\n") == f"the sparrow{said}".rstrip("\n")
    assert "".join(bird.stream("the sparrow", max_tokens=12, seed=3)) == said
    usual = Sampling(max_tokens=12, temperature=0.8, top_k=50, seed=3)
    assert bird.loaded.write("the sparrow", usual) == said


def test_logprobs_against_a_plain_pass(bird: LanguageModel) -> None:
    tokenizer = bird.loaded.tokenizer
    ids = tokenizer.encode("a sparrow is small")
    for given in ("", "once "):
        before = tokenizer.encode(given) if given else [tokenizer.eot_id or 0]
        rows = all_logprobs(bird, [*before, *ids])[len(before) - 1 : -1]
        wanted = rows.gather(1, torch.tensor(ids)[:, None])[:, 0]
        said = bird.logprobs("a sparrow is small", given=given)
        assert [one.token for one in said] == ids
        assert b"".join(one.bytes for one in said) == b"a sparrow is small"
        torch.testing.assert_close(torch.tensor([one.logprob for one in said]), wanted)
    assert bird.logprobs("") == []


def test_embeddings_are_mean_states_of_length_one(bird: LanguageModel) -> None:
    points = bird.embed(["the sparrow", "organ", "the sparrow"])
    assert points.shape == (3, bird.loaded.model.config.d_model)
    assert points.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(points[0], points[2])
    with torch.no_grad():
        ids = torch.tensor([bird.loaded.tokenizer.encode("organ")])
        mean = bird.loaded.model(ids).hidden[0].mean(0)
    np.testing.assert_allclose(points[1], (mean / mean.norm()).numpy(), atol=1e-6)
    np.testing.assert_array_equal(bird.embed("organ"), points[1])


def test_chat_answers_a_conversation(bird: LanguageModel) -> None:
    asked = [{"role": "user", "content": "is it small?"}]
    answer = bird.chat(asked, max_tokens=8, temperature=0)
    assert answer["role"] == "assistant"
    assert bird.chat("is it small?", max_tokens=8, temperature=0) == answer
    streamed = "".join(bird.stream(asked, max_tokens=8, temperature=0))
    assert streamed.strip() == answer["content"].strip()
    again = bird.chat([*asked, answer, {"role": "user", "content": "sure?"}], max_tokens=4)
    assert isinstance(again["content"], str)


def test_mistakes_are_told_as_everywhere(bird: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="temperature"):
        bird.generate("a", temperature=-1.0)
    with pytest.raises(UserError, match="context"):
        bird.generate("sparrow " * 70)
    with pytest.raises(UserError, match="context"):
        bird.logprobs("sparrow " * 70)
    with pytest.raises(UserError, match="context"):
        bird.embed("sparrow " * 70)
    with pytest.raises(RunError, match="not a run folder"):
        sparrowlm.load(tmp_path)
