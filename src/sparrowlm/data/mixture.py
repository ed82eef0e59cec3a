"""A mixture's sources: each prepared on its own, all with one vocabulary, opened together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sparrowlm.config.schema import DataConfig, MixConfig, TokenizerConfig
from sparrowlm.data.build import REJECTED, REMOVED, Progress
from sparrowlm.data.cache import cache_key, clean, learning_texts
from sparrowlm.data.contamination import CONTAMINATED, text_hashes, trained_on
from sparrowlm.data.lock import made_once
from sparrowlm.data.prepare import PASSED_OVER, prepare_cached
from sparrowlm.data.sequences import AnyDataset
from sparrowlm.data.shards import FACTS, Dataset, Tokens, named_dataset
from sparrowlm.data.sources import as_sources
from sparrowlm.errors import ConfigError, TokenizerError
from sparrowlm.text.tokenizer import TOKENIZER_JSON, make_tokenizer


@dataclass(frozen=True)
class Part:
    """One source of a mixture."""

    name: str
    weight: float
    dataset: Dataset


@dataclass(frozen=True)
class Mixture(Dataset):
    """Several datasets with one vocabulary. `train` and `val` are theirs one after the other;
    what is drawn from them by weight is `mixed.MixedStream`'s to say."""

    parts: tuple[Part, ...] = ()


def named_mix(config: DataConfig) -> tuple[MixConfig, ...]:
    """The sources of a mixture, each with its name and text key filled in.

    Raises:
        ConfigError: a source without a path, without a name or with a weight that is not above
            zero, two of one name, or `data.path` besides.
    """
    found = tuple(
        replace(
            entry,
            name=entry.name or (_name_of(entry.path[0]) if entry.path else ""),
            text_key=entry.text_key or config.text_key,
        )
        for entry in config.mix
    )
    names = [entry.name for entry in found]
    faults = ["data.path and data.mix are both given; keep one"] if config.path else []
    for number, entry in enumerate(found):
        key = f"data.mix[{number}]"
        if not entry.path:
            faults.append(f"{key}.path is empty")
        elif not entry.name:
            faults.append(f"{key}.path {entry.path[0]!r} gives no name: set {key}.name")
        if not 0 < entry.weight < float("inf"):
            faults.append(f"{key}.weight is {entry.weight}, and must be above zero")
        if entry.name and entry.name in names[:number]:
            faults.append(f"{key}.name is {entry.name!r} as of another source: set another")
    if faults:
        raise ConfigError("; ".join(faults), where="data.mix")
    return found


def _name_of(path: str) -> str:
    """What a source is called that has no name: books of books.jsonl.zst, notes of .notes/, and of
    `.` the folder that it is. "" only of a path without any, such as /."""
    name = Path(path).name
    name = Path(path).resolve().name if name in ("", "..") else name
    return name.lstrip(".").split(".")[0]


def prepare_mix(
    config: DataConfig,
    tokenizer: TokenizerConfig,
    cache: Path,
    progress: Progress | None = None,
) -> list[Path]:
    """The prepared datasets of a mixture's sources, made in the cache where they are text.

    They share one vocabulary: that of a source which is prepared already, or else the recipe's,
    learned from the training sides of all of them (and from all the text, evenly: weights do not
    count here). Cleaning compares the documents of a source with each other, not with another's.

    Raises:
        ConfigError: as `named_mix`.
        DataError: as `prepare_cached`.
    """
    mix = named_mix(config)
    shared = _vocabulary(config, mix, tokenizer, cache, progress)
    return [
        named_dataset(entry.path) or prepare_cached(_alone(config, entry), shared, cache, progress)
        for entry in mix
    ]


def join(mix: Sequence[MixConfig], datasets: Sequence[Dataset]) -> Mixture:
    """One dataset of several.

    Raises:
        TokenizerError: they do not share one vocabulary.
    """
    first = datasets[0]
    for entry, dataset in zip(mix, datasets, strict=True):
        if _identity(dataset) != _identity(first):
            raise TokenizerError(
                f"source {entry.name!r} was made with another tokenizer than {mix[0].name!r}",
                where="data.mix",
                fix="give the text of one of them, which is then prepared with the other's",
            )
    parts = tuple(
        Part(entry.name, entry.weight, dataset)
        for entry, dataset in zip(mix, datasets, strict=True)
    )
    prints = [[part.name, part.dataset.fingerprint] for part in parts]
    held_out = [dataset.val for dataset in datasets if dataset.val is not None]
    return Mixture(
        train=_chained([dataset.train for dataset in datasets]),
        val=_chained(held_out) if held_out else None,
        tokenizer=first.tokenizer,
        vocab_size=max(dataset.vocab_size for dataset in datasets),
        eot_id=first.eot_id,
        fingerprint=hashlib.sha256(json.dumps(prints).encode()).hexdigest(),
        description={
            "mixture": {part.name: part.dataset.description for part in parts},
            "notes": _contaminated(parts),
        },
        parts=parts,
    )


def left_out(dataset: Dataset) -> list[str]:
    """What of the text is not in a dataset, and where that is listed."""
    if isinstance(dataset, Mixture):
        return [f"{part.name}: {note}" for part in dataset.parts for note in left_out(part.dataset)]
    facts, folder = dataset.description, dataset.train.paths[0].parent
    told = [note for note in facts["notes"] if note.startswith(PASSED_OVER)]
    removed, rejected = facts.get("removed", {}), facts.get("rejected", 0)
    gone = sum(removed.values())
    rows = facts.get("accepted", 0) + gone + rejected
    if rejected:
        told.append(f"{rejected:,} of {rows:,} rows rejected: {folder / REJECTED}")
    if gone:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in removed.items())
        told.append(f"{gone:,} of {rows:,} documents removed ({reasons}): {folder / REMOVED}")
    return told


def contaminations(dataset: AnyDataset) -> list[str]:
    """What a person should hear before training: which held-out text is trained on as well."""
    facts = [dataset.description]
    if isinstance(dataset, Mixture):
        facts += [part.dataset.description for part in dataset.parts]
    notes = (note for fact in facts for note in fact.get("notes", []))
    return [note for note in notes if note.startswith(CONTAMINATED)]


def _contaminated(parts: Sequence[Part]) -> list[str]:
    """A sentence for every source whose held-out documents another one trains on."""
    told = []
    for one in parts:
        held_out = text_hashes(_folder(one), "val")
        for other in parts:
            if other is one:
                continue  # that, its own preparation has told
            shared = len(trained_on(held_out, text_hashes(_folder(other), "train")))
            if shared:
                told.append(
                    f"{CONTAMINATED} {shared:,} of {len(held_out):,} held-out documents of"
                    f" {one.name} are trained on in {other.name}; remove them from one of the two"
                )
    return told


def _folder(part: Part) -> Path:
    """Where a source's dataset lies."""
    return part.dataset.train.paths[0].parent


def _vocabulary(
    config: DataConfig,
    mix: Sequence[MixConfig],
    tokenizer: TokenizerConfig,
    cache: Path,
    progress: Progress | None,
) -> TokenizerConfig:
    """The tokenizer of all sources, as a recipe names it."""
    for entry in mix:
        folder = named_dataset(entry.path)
        if folder is not None and (folder / FACTS).is_file():
            return TokenizerConfig(kind="folder", path=str(folder / "tokenizer"))
    if tokenizer.kind not in ("bpe", "chars"):
        return tokenizer
    alone = [_alone(config, entry) for entry in mix if named_dataset(entry.path) is None]
    found = [(as_sources(part.path, part.mirror), part) for part in alone]
    keys = [cache_key(sources, part, tokenizer) for sources, part in found]
    folder = cache / f"tokenizer-{hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:32]}"

    def make(work: Path) -> None:
        def texts() -> Iterator[str]:
            for sources, part in found:
                cleaning = clean(sources, part, work, progress)
                yield from learning_texts(sources, part, tokenizer.kind, work, progress, cleaning)

        make_tokenizer(tokenizer, texts).save(work)

    made = made_once(folder, lambda there: (there / TOKENIZER_JSON).is_file(), make)
    return TokenizerConfig(kind="folder", path=str(made))


def _alone(config: DataConfig, entry: MixConfig) -> DataConfig:
    """The settings of one source."""
    return replace(config, path=entry.path, text_key=entry.text_key, mix=())


def _identity(dataset: Dataset) -> tuple[str, int]:
    """What makes the ids of two datasets mean the same."""
    if dataset.tokenizer is None:
        return "", 0
    return dataset.tokenizer.fingerprint, dataset.vocab_size


def _chained(splits: Sequence[Tokens]) -> Tokens:
    """Several splits as one, without the documents."""
    paths = [path for tokens in splits for path in tokens.paths]
    return Tokens(paths, splits[0].dtype, max(tokens.vocab_size for tokens in splits))
