"""`sparrow data sample IN OUT`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text
from tyro.conf import Positional

SEEDS = 1 << 127  # the choice takes 16 bytes of it, with a sign


def sample(
    source: Positional[Path],
    out: Positional[Path],
    *,
    target_mb: float,
    seed: int = 42,
    skip_bad: bool = False,
) -> None:
    """Take a random part of a JSON-lines file, by size; its lines stay in their order.

    Args:
        source: A .jsonl, .jsonl.gz or .jsonl.zst file.
        out: The file to write, compressed as its name says.
        target_mb: Megabytes (a million bytes) before compression.
        seed: Of the choice; a smaller sample with the same seed is part of a larger one.
        skip_bad: Leave out lines that are not JSON objects instead of stopping.
    """
    from sparrowlm.cli.show import PrepareProgress
    from sparrowlm.data.sample import sample as take
    from sparrowlm.errors import ConfigError, DataError
    from sparrowlm.text.documents import find_inputs

    if not 1 <= target_mb * 1e6 < float("inf"):
        told = f"is {target_mb:g}, and must be 0.000001 or more, and finite"
        raise ConfigError(told, where="--target-mb")
    if not -SEEDS <= seed < SEEDS:
        raise ConfigError(f"is {seed}, and must be of at most 127 bits", where="--seed")
    found = find_inputs([str(source)])
    if len(found) > 1:
        raise DataError(
            f"is {len(found)} files, and a sample is taken of one",
            where=str(source),
            fix=f"name one of them, such as {found[0]}",
        )
    [source] = found
    console = Console(highlight=False)
    total, read = source.stat().st_size, 0
    with PrepareProgress(console) as progress:

        def heard(taken: int) -> None:
            nonlocal read
            read += taken
            progress("reading", min(read, total - 1), total)

        done = take(source, out, int(target_mb * 1e6), seed, skip_bad=skip_bad, progress=heard)
    share = done.bytes / max(1, done.total_bytes)
    console.print(
        Text(
            f"{done.lines:,} of {done.total_lines:,} lines, {done.bytes / 1e6:,.2f} of "
            f"{done.total_bytes / 1e6:,.2f} MB ({share:.1%}), seed {seed}"
        ),
        soft_wrap=True,
    )
    if done.rejected:
        console.print(Text(f"{done.rejected:,} lines rejected", "yellow"), soft_wrap=True)
    if done.total_bytes <= target_mb * 1e6:
        console.print(Text("all of it: the input is no larger", "yellow"), soft_wrap=True)
    console.print(Text(str(out), "bold"), soft_wrap=True)
