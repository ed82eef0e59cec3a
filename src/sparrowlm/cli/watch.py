"""`sparrow watch [RUNS…]`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.text import Text
from tyro.conf import Positional, arg


def watch(
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="[RUNS …]")] = (),
    *,
    port: int | None = None,
    open_page: Annotated[bool, arg(name="open")] = False,
) -> None:
    """A page over one or many runs, live while they train, for this machine alone.

    Args:
        runs: Run folders, or folders that hold some; runs/ where none is given.
        port: Where to listen on 127.0.0.1; 0 for any port that is free. Default: 8100, or any.
        open_page: Open the page in a browser.
    """
    import webbrowser

    from sparrowlm.errors import RunError
    from sparrowlm.report.watch.server import HOST, open_server
    from sparrowlm.report.watch.watcher import Watcher

    for path in runs:
        if not path.is_dir():
            raise RunError(
                "no such folder", where=str(path), fix="give a run, or a folder that holds some"
            )
    watcher = Watcher(runs or (Path("runs"),))
    console = Console(highlight=False)
    with open_server(watcher, port) as server:
        address = f"http://{HOST}:{server.server_address[1]}/"
        console.print(Text.assemble(("watching  ", "dim"), ", ".join(map(str, watcher.roots))))
        console.print(Text.assemble((address, "bold"), ("   Ctrl-C ends it", "dim")))
        if open_page:
            webbrowser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            console.print()
