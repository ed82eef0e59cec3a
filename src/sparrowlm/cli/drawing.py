"""Options of every command that writes: how tokens are drawn. Free of torch, for `--help`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from tyro.conf import UseAppendAction

if TYPE_CHECKING:
    from sparrowlm.infer.sampling import Sampling


@dataclass(frozen=True)
class Drawing:
    """How tokens are drawn.

    Args:
        temperature: 0 always takes the likeliest token; above 1 is wilder than the model.
        top_k: Choose among the k likeliest tokens; 0: all.
        top_p: Choose among the likeliest tokens that together hold this probability.
        min_p: Leave out tokens below this share of the likeliest one's probability.
        repetition_penalty: Above 1 makes tokens that occurred before less likely.
        seed: The same seed writes the same text.
        stop: Ends the text where this string would come; may be given several times.
        max_tokens: Longest text, or piece of an interactive story.
    """

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 1337
    stop: Annotated[tuple[str, ...], UseAppendAction] = ()
    max_tokens: int = 200

    def sampling(self) -> Sampling:
        """The same for the engine.

        Raises:
            ConfigError: impossible settings.
        """
        from sparrowlm.infer.sampling import Sampling

        return Sampling(**vars(self))


@dataclass(frozen=True)
class Answering(Drawing):
    """How answers are drawn.

    Args:
        seed: The same seed gives the same answers to the same questions.
        stop: Ends an answer where this string would come; may be given several times.
        max_tokens: Longest answer.
    """

    seed: int = 1337
    stop: Annotated[tuple[str, ...], UseAppendAction] = ()
    max_tokens: int = 512


DRAWING, ANSWERING = Drawing(), Answering()
"""Unless told otherwise."""
