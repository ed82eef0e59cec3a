"""What a model writes while it trains."""

from __future__ import annotations

from collections.abc import Callable

from sparrowlm.config import Recipe, learns_to_answer
from sparrowlm.errors import ConfigError, TokenizerError
from sparrowlm.infer.engine import Engine, Request
from sparrowlm.infer.sampling import Sampling
from sparrowlm.model.transformer import Transformer
from sparrowlm.runtime import Runtime
from sparrowlm.text.chat import ChatFormat
from sparrowlm.text.tokenizer import Tokenizer

Write = Callable[[str, int], str]
"""(prompt, seed) -> what the model writes now."""


def writer(
    model: Transformer, tokenizer: Tokenizer | None, recipe: Recipe, runtime: Runtime
) -> Write | None:
    """What writes the samples of a run; where a model learns to answer, the prompts are a user's
    turns. None where there are to be none, or no tokenizer tells what ids mean.

    Raises:
        ConfigError: a prompt that the vocabulary or the context cannot hold: known here, not at
            the first sample.
    """
    settings = recipe.samples
    if tokenizer is None or not settings.every:
        return None
    chat = ChatFormat(tokenizer) if learns_to_answer(recipe) else None
    context = model.config.max_seq_len
    ids = {prompt: _ids(prompt, tokenizer, chat, context) for prompt in settings.prompts}

    def write(prompt: str, seed: int) -> str:
        sampling = Sampling(
            temperature=settings.temperature,
            top_k=settings.top_k,
            max_tokens=settings.max_tokens,
            seed=seed,
        )
        engine = Engine(model, tokenizer, runtime)
        ends = frozenset() if chat is None else chat.end_ids
        request = Request(ids[prompt] or engine.prompt(""), sampling, ends=ends)
        text = "".join(piece.text for piece in engine.stream([request]))
        # An answer stands on a line of its own wherever a sample is shown behind its prompt.
        return text if chat is None else "\n" + text

    return write


def _ids(prompt: str, tokenizer: Tokenizer, chat: ChatFormat | None, context: int) -> list[int]:
    """The ids of a prompt, or of the turn that it is; none of an empty text."""
    try:
        if chat is None:
            ids = tokenizer.encode(prompt)
        else:
            ids = chat.prompt_ids([{"role": "user", "content": prompt}])
    except TokenizerError as fault:
        raise ConfigError(
            f"{prompt!r} cannot be written: {fault.what}",
            where="samples.prompts",
            fix='take words that the training text has; "" begins with nothing',
        ) from fault
    if len(ids) > context:
        raise ConfigError(
            f"{prompt!r} has {len(ids)} tokens, and the model's context holds {context}",
            where="samples.prompts",
            fix="shorten it, or raise model.max_seq_len",
        )
    return ids
