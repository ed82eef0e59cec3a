"""Other projects' tensor files, opened without running anything that is in them.

PyTorch's own format is a pickle. It is read by `torch.load(weights_only=True)` alone, which
builds tensors, plain values and nothing else. Settings that a project kept as an object of a class
of its own (`GPTConfig`) come in as `Settings`, a class of ours that holds values and does nothing.
"""

from __future__ import annotations

import errno
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from sparrowlm import files
from sparrowlm.errors import DataError, RunError

Tensors = dict[str, Tensor]

STATES = ("model", "model_state_dict", "state_dict")  # where a training checkpoint keeps weights
SETTINGS = ("config", "cfg", "args", "model_config", "model_args")  # the last one wins
STEPS = ("iter_num", "step", "steps")
LOSSES = ("best_val_loss", "val_loss", "dev_loss")
WRAPPERS = re.compile(r"^((_orig_mod|module)\.)+")  # torch.compile's and DDP's
# Masks and tables that a model makes anew: not weights.
BUFFERS = re.compile(
    r"\.attn\.(bias|masked_bias)$|\.tril$|(^|\.)(pos_idxs|freqs_(cis|cos|sin))$|rotary_emb\.inv_freq$"
)


class Settings:
    """Stands in for a project's own configuration object; whatever it held is in its `__dict__`."""


@dataclass
class Opened:
    """What a file holds."""

    path: Path
    tensors: Tensors
    """By the names that the other project gave them; buffers and wrappers' prefixes left out."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the model and of its training, as far as the file tells."""
    step: int = 0
    val_loss: float | None = None
    notes: list[str] = field(default_factory=list)
    """What a person should know: values that the file does not tell and that were taken."""

    def shape(self, name: str) -> torch.Size:
        """Of a tensor that has to be there.

        Raises:
            RunError: it is not.
        """
        if name not in self.tensors:
            raise RunError(f"lacks what becomes {name}", where=str(self.path))
        return self.tensors[name].shape


def open_tensors(path: Path) -> Opened:
    """A `.safetensors` file, or one that PyTorch wrote: a state dict, or a training checkpoint
    that holds one.

    Raises:
        DataError: the file is broken, holds no weights, or asks to run code.
    """
    if path.suffix == ".safetensors":
        return Opened(path, clean(read_safetensors(path), path))
    content = read_torch(path)
    if not isinstance(content, dict):
        raise DataError(f"holds a {type(content).__name__}, and no weights", where=str(path))
    state = next((content[key] for key in STATES if isinstance(content.get(key), dict)), content)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not any(value.ndim == 2 for value in tensors.values()):
        raise DataError(
            "holds no weights",
            where=str(path),
            why=f"neither it nor its {', '.join(STATES)} is a dictionary of tensors",
        )
    if state is content:
        return Opened(path, clean(tensors, path))
    settings: dict[str, Any] = {}
    for key in SETTINGS:
        value = content.get(key)
        told = vars(value) if isinstance(value, Settings) else value
        settings |= told if isinstance(told, dict) else {}
    step, loss = _number(content, STEPS) or 0, _number(content, LOSSES)
    step = int(step) if 0 < step < 1e12 else 0  # it becomes part of a folder's name
    return Opened(path, clean(tensors, path), settings, step, loss)


def _number(content: dict[str, Any], keys: tuple[str, ...]) -> float | None:
    """The first of these that is a finite number, which PyTorch may hold as a tensor."""
    for key in keys:
        value = content.get(key)
        value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    return None


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote, through the weights-only loader.

    Raises:
        DataError: the file is broken or asks for more than tensors and plain values.
    """
    try:
        asked = get_unsafe_globals_in_checkpoint(path)  # reads names, and imports none of them
    except (ValueError, RuntimeError, OSError):
        asked = []  # no whole zip file; the loader knows the older format, and says what is broken
    plain = [name for name in asked if re.search(r"\.\w*(Config|Args|Namespace)$", name)]
    if refused := sorted(set(asked) - set(plain)):
        raise _asks_to_run(", ".join(refused), path)
    with safe_globals([(Settings, name) for name in plain]):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as fault:  # a broken file may break the loader anywhere
            # A short one makes it seek to before its beginning: an invalid argument.
            if isinstance(fault, OSError) and fault.errno != errno.EINVAL:
                raise DataError(f"cannot be read: {fault.strerror}", where=str(path)) from fault
            if name := re.search(r"(?i)unsupported (?:global: )?GLOBAL ([\w.]+)", str(fault)):
                raise _asks_to_run(name[1], path) from fault
            raise DataError(
                "is not a whole checkpoint",
                where=str(path),
                why="PyTorch's weights-only loader cannot read it",
                fix="copy it again; if it is whole, save its state_dict() alone and import that",
            ) from fault


def _asks_to_run(names: str, path: Path) -> DataError:
    return DataError(
        f"asks to run code ({names})",
        where=str(path),
        why="only tensors, dicts, lists, strings and numbers are read from a checkpoint",
        fix="if you trust it, save its state_dict() alone, then import that",
    )


def read_safetensors(path: Path) -> Tensors:
    """The tensors of one file.

    Raises:
        DataError: the file is broken.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as fault:
        raise DataError(f"is not a whole safetensors file: {fault}", where=str(path)) from fault


def read_folder(folder: Path) -> Tensors:
    """The weights of a Hugging Face folder, whole or in shards.

    Raises:
        DataError: none there, or a shard is missing or broken.
    """
    for name, read in (("model.safetensors", read_safetensors), ("pytorch_model.bin", read_torch)):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return clean(read(folder / name), folder / name)
        if index.is_file():
            tensors: Tensors = {}
            for shard in shards_of(index):
                tensors |= clean(read(folder / shard), folder / shard)
            return tensors
    raise DataError(
        "holds no weights",
        where=str(folder),
        why="there is no model.safetensors or pytorch_model.bin, nor an index of its parts",
    )


def shards_of(index: Path) -> list[str]:
    """The file names in an index, all of which are in its folder.

    Raises:
        DataError: not an index, or a name that leads elsewhere or nowhere.
    """
    try:
        named = files.read_json(index)["weight_map"].values()
    except (RunError, KeyError, TypeError, AttributeError) as fault:
        raise DataError("is not an index of shards", where=str(index)) from fault
    for name in sorted(set(map(str, named))):
        if Path(name).name != name or not (index.parent / name).is_file():
            raise DataError(f"names {name}, which is not beside it", where=str(index))
    return sorted(set(map(str, named)))


def clean(tensors: Any, path: Path) -> Tensors:
    """Plain names, without buffers.

    Raises:
        DataError: no dict of names and tensors that hold all of their numbers.
    """
    if not isinstance(tensors, dict):
        raise DataError(f"holds a {type(tensors).__name__}, and no weights", where=str(path))
    for name, value in tensors.items():
        whole = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
        if not isinstance(name, str) or not whole:
            raise DataError(f"holds {name!r}, which is no plain tensor by a name", where=str(path))
    plain = {WRAPPERS.sub("", name): value for name, value in tensors.items()}
    return {name: value for name, value in plain.items() if not BUFFERS.search(name)}


def rename(tensors: Tensors, names: dict[str, str], where: str) -> Tensors:
    """Tensors under Sparrow's names.

    Args:
        tensors: by the other project's names.
        names: ours to theirs, of modules; `{}` is the number of a block.
        where: the file, for a message.

    Raises:
        RunError: a tensor that the table does not know: the model has a part that ours lacks.

    >>> rename({"h.3.ln.weight": one}, {"blocks.{}.mlp_norm": "h.{}.ln"}, "a.pt")
    {'blocks.3.mlp_norm.weight': one}
    """
    ours = {theirs: our for our, theirs in names.items()}
    renamed, unknown = {}, []
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        number = re.search(r"(?<=\.)\d+(?=\.)", module)
        pattern = re.sub(r"(?<=\.)\d+(?=\.)", "{}", module, count=1)
        if pattern in ours:
            renamed[f"{ours[pattern].format(number and number[0])}.{kind}"] = tensor
        else:
            unknown.append(name)
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise RunError(
            f"has parts that Sparrow's model lacks: {', '.join(sorted(unknown)[:3])}{more}",
            where=where,
        )
    return renamed


def block_count(tensors: Tensors, prefix: str) -> int:
    """How many blocks there are, by the numbers behind `prefix` in the names."""
    found = (re.match(re.escape(prefix) + r"(\d+)\.", name) for name in tensors)
    return 1 + max((int(match[1]) for match in found if match), default=-1)
