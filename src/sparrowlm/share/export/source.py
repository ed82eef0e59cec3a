"""What leaves: a shape, the weights of a plain model, a tokenizer, and where they come from."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from sparrowlm.checkpoint import RunFolder, find_run
from sparrowlm.config import ModelConfig, Recipe, SamplesConfig, learns_to_answer
from sparrowlm.errors import RunError, TokenizerError
from sparrowlm.share.adapters import with_adapter
from sparrowlm.text.chat import CHAT_TEMPLATE, ChatFormat
from sparrowlm.text.tokenizer import Tokenizer, load_tokenizer


class Origin(NamedTuple):
    """A run that went into what leaves."""

    run: RunFolder
    step: int
    recipe: Recipe


class Source:
    """What leaves.

    Args:
        name: of the model, for files and headings.
        weights: of a plain model, on the CPU.
        tokenizer: of the run.
        origins: the run itself, and before it the adapter's run where one was merged in.
    """

    def __init__(
        self,
        name: str,
        weights: dict[str, Tensor],
        tokenizer: Tokenizer,
        origins: tuple[Origin, ...],
    ) -> None:
        self.name = name
        self.weights = weights
        self.tokenizer = tokenizer
        self.origins = origins

    def holding(self, weights: dict[str, Tensor]) -> Source:
        """The same with other numbers."""
        return Source(self.name, weights, self.tokenizer, self.origins)

    @property
    def config(self) -> ModelConfig:
        """The shape."""
        return self.origins[-1].recipe.model

    @property
    def samples(self) -> SamplesConfig:
        """How the run wrote its samples."""
        return self.origins[0].recipe.samples

    @cached_property
    def chat(self) -> ChatFormat | None:
        """How the tokenizer writes conversations; None where it cannot."""
        try:
            return ChatFormat(self.tokenizer)
        except TokenizerError:
            return None

    @property
    def template(self) -> str | None:
        """The Jinja template by which it talks: the tokenizer's, or ours where it has none."""
        return self.tokenizer.chat_template or (CHAT_TEMPLATE if self.chat else None)

    @cached_property
    def answers(self) -> bool:
        """Whether the model was taught to answer; otherwise it continues text.

        Of an imported model nobody knows, so a template that its tokenizer brings decides.
        """
        if self.chat is None:
            return False
        if any(learns_to_answer(origin.recipe) for origin in self.origins):
            return True
        imported = any(origin.run.imported_from() for origin in self.origins)
        return imported and self.tokenizer.chat_template not in (None, "", CHAT_TEMPLATE)

    @property
    def ends(self) -> list[int]:
        """The ids at which the run itself stops writing, in order."""
        if self.answers and self.chat is not None:
            return sorted(self.chat.end_ids)
        return [] if self.tokenizer.eot_id is None else [self.tokenizer.eot_id]


def read_source(path: Path, adapter: Path | None = None) -> Source:
    """A run at its best step, or at the checkpoint that `path` names.

    Args:
        path: a run folder or a checkpoint; of a LoRA run the adapted model is taken.
        adapter: changes to put into it, as of `share.adapters.read_adapter`.

    Raises:
        RunError: no run there, no checkpoint in it, no tokenizer, or an adapter for another model.
    """
    run, step = find_run(path)
    recipe = run.recipe()
    if not (run.path / "tokenizer").is_dir():
        raise RunError(
            "has no tokenizer",
            where=str(run.path),
            why="it was trained on token ids alone, and nobody could give it text",
            fix="put the tokenizer's files (tokenizer.json …) into its folder tokenizer/",
        )
    if recipe.stage == "reward":
        raise RunError(
            'stage = "reward": it judges text with a head of its own, and writes none',
            where=str(run.path),
            why="the formats of an export hold language models",
        )
    weights = run.weights(step)
    origins = (Origin(run, step, recipe),)
    if adapter is not None:
        weights = with_adapter(weights, adapter)
        if not (adapter / "adapter_config.json").is_file():
            own, at = find_run(adapter)
            origins = (Origin(own, at, own.recipe()), *origins)
    name = origins[0].run.path.resolve().name
    return Source(name, weights, load_tokenizer(run.path / "tokenizer"), origins)
