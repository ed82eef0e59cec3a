"""What a person knows of a checkpoint, held against what its file tells."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from sparrowlm.config.schema import Mlp
from sparrowlm.errors import ConfigError


@dataclass(frozen=True)
class Asked:
    """What a person knows of a checkpoint that it may not tell itself; 0 or "" leaves it to the
    file, and then to its project."""

    n_heads: int = 0
    max_seq_len: int = 0
    mlp: str = ""
    rope_theta: float = 0.0
    norm_eps: float = 0.0
    score_width: int = 0
    experts_per_token: int = 0


def check_asked(asked: Asked, project: str, takes: tuple[str, ...]) -> None:
    """Hold what a person says to what a project's files leave open.

    Raises:
        ConfigError: a number that is none above zero, or one that such a file tells itself.
    """
    for name, value in asdict(asked).items():
        if value and not isinstance(value, str) and not 0 < value < math.inf:
            raise ConfigError("must be a number above zero", where=option(name))
    given = [name for name, value in asdict(asked).items() if value and name not in takes]
    if given:
        raise tells_itself(given, project)


def settled(asked: Asked, name: str, told: object, project: str) -> Any:
    """The number that a file tells, or else the one asked for; 0 where neither is there.

    Raises:
        ConfigError: both are, and differ.
    """
    said = getattr(asked, name)
    if not isinstance(told, int | float) or not told:
        return said
    if said not in (0, told):
        raise tells_itself([name], project)
    return told


def tells_itself(names: list[str], project: str) -> ConfigError:
    """The refusal of what a person says against the file, or for nothing."""
    options = ", ".join(map(option, names))
    return ConfigError(
        f"{options}: a checkpoint of {project} tells that itself", fix=f"leave out {options}"
    )


def option(name: str) -> str:
    """
    >>> option("n_heads")
    '--n-heads'
    """
    return f"--{name.replace('_', '-')}"


def bend(asked: Asked, default: Mlp) -> Mlp:
    """The activation of an MLP: the one asked for, or its project's.

    Raises:
        ConfigError: none of GPT-2's kin has it.
    """
    match asked.mlp or default:
        case "gelu" | "gelu_tanh" | "relu" as kind:
            return kind
        case other:
            raise ConfigError(
                f"{other} is no bend of this MLP", where="--mlp", fix="gelu, gelu_tanh or relu"
            )
