"""`sparrow report RUN`."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text
from tyro.conf import Positional


def report(run: Positional[Path]) -> None:
    """Write report.html and loss.png into a run folder, from whatever the run has left so far.

    Args:
        run: The folder that --out named.
    """
    from sparrowlm.report import write_report
    from sparrowlm.report.read import read_run
    from sparrowlm.report.verdict import in_short

    read = read_run(run)
    path = write_report(run)
    console = Console(highlight=False)
    console.print(Text(in_short(read)), soft_wrap=True)
    for fault in read.faults:
        console.print(Text(fault, "yellow"), soft_wrap=True)
    console.print(Text.assemble((str(path), "bold")), soft_wrap=True)
    console.print(Text(str(run / "loss.png"), "bold"), soft_wrap=True)
