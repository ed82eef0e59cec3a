"""`sparrow data download NAME` and `sparrow data list`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text
from tyro.conf import Positional

from sparrowlm.config.units import show_bytes


def download(
    name: Positional[str],
    *,
    out: Path | None = None,
    files: int = 0,
    mirror: str = "",
    accept_license: bool = False,
) -> None:
    """Download a corpus that is known by its name; run it again to go on where it stopped.

    Args:
        name: One of those that `sparrow data list` shows.
        out: The folder; data/NAME if not named.
        files: Only the first so many files; 0 is all.
        mirror: Another server, such as https://hf-mirror.com; HF_ENDPOINT is heeded too.
        accept_license: You have read a license that is unclear or forbids some uses.
    """
    from sparrowlm.cli.counts import at_least
    from sparrowlm.cli.show import PrepareProgress
    from sparrowlm.data.corpora import find_corpus
    from sparrowlm.data.download import download as bring

    at_least(0, files=files)
    console = Console(highlight=False)
    corpus = find_corpus(name)
    folder = out or Path("data") / corpus.name
    console.print(Text(f"{corpus.name}: {corpus.about}"), soft_wrap=True)
    console.print(Text(f"license: {corpus.license}", "bold"), soft_wrap=True)
    console.print(Text(f"         {corpus.card}"), soft_wrap=True)
    with PrepareProgress(console) as progress:
        done = bring(
            corpus,
            folder,
            mirror=mirror,
            accept_license=accept_license,
            limit=files,
            progress=progress,
        )
    here = len(done.paths) - done.fetched
    already = f", {here} of them here already" if here else ""
    noun = "file" if len(done.paths) == 1 else "files"
    told = f"{len(done.paths)} {noun}, {show_bytes(done.bytes)}, checked{already}"
    console.print(Text(told), soft_wrap=True)
    console.print(Text(str(folder), "bold"), soft_wrap=True)


def list_corpora() -> None:
    """List the corpora that can be downloaded by name, with their sizes and licenses."""
    from sparrowlm.data.corpora import CORPORA

    console = Console(highlight=False)
    for corpus in CORPORA.values():
        mark = "" if corpus.clear else " *"
        size = f"  {show_bytes(int(corpus.size))}"
        console.print(Text.assemble((corpus.name, "bold"), size), soft_wrap=True)
        for line in (corpus.about, f"license: {corpus.license}{mark}", corpus.card):
            console.print(Text(f"    {line}"), soft_wrap=True)
        if corpus.mirror:
            console.print(Text(f"    also at {corpus.mirror}"), soft_wrap=True)
    console.print(Text("\n* unclear, or not for every use: read it, then add --accept-license"))
    console.print(Text("a hub's mirror: --mirror https://hf-mirror.com, or HF_ENDPOINT"))
