"""`sparrow push RUN hf:owner/name`: upload an export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from rich.console import Console
from rich.text import Text
from tyro.conf import Positional, arg


def push(
    run: Annotated[Positional[Path], arg(metavar="RUN")],
    target: Annotated[Positional[str], arg(metavar="TARGET")],
    *,
    to: Literal["hf", "gguf", "ollama"] = "hf",
    dtype: str = "",
    adapter: Path | None = None,
    license: str = "",
    public: bool = False,
    mirror: str = "",
    dry_run: bool = False,
) -> None:
    """Upload an export to Hugging Face or ModelScope, for nobody else to see unless --public.

    The hub's token is found by its own client: HF_TOKEN or hf auth login, MODELSCOPE_API_TOKEN.

    Args:
        run: An export folder, or a run, which is exported first.
        target: hf:owner/name or modelscope:owner/name.
        to: The form in which a run is exported.
        dtype: Of the export, as of sparrow export.
        adapter: Merged into the export, as of sparrow export.
        license: Of the weights, for the model card.
        public: Let everyone see it.
        mirror: Another address of the hub, https://HOST.
        dry_run: Show what would be uploaded, and upload nothing.
    """
    from sparrowlm.config.units import show_bytes
    from sparrowlm.share.push import parcel, target_of
    from sparrowlm.share.push import push as upload

    console = Console(highlight=False)

    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style), soft_wrap=True)

    address = target_of(target)
    told = {"dtype": dtype, "adapter": adapter, "license": license}
    told |= {"known_as": address.repository}
    with parcel(run, to, **told, say=lambda text: say(f"{text} …", "dim")) as what:
        seen = "everyone can see it" if public else "private"
        say(f"to {address.hub}:{address.repository}, {seen}; license: {what.license}")
        width = max(len(name) for name, _ in what.files)
        for name, size in what.files:
            say(f"  {name:<{width}}  {show_bytes(size)}")
        if dry_run:
            say("nothing was uploaded (--dry-run)", "yellow")
            return
        say(upload(what, address, public=public, mirror=mirror), "bold")
