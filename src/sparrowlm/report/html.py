"""One page that holds everything: no script, and no request to anywhere."""

from __future__ import annotations

from importlib.resources import files as package_files
from pathlib import Path

from sparrowlm import files
from sparrowlm.report.picture import draw_loss
from sparrowlm.report.read import Run, read_run
from sparrowlm.report.sections import curves, figures, header, samples
from sparrowlm.report.tables import commands, configuration, data_and_machine, events
from sparrowlm.report.verdict import headline
from sparrowlm.report.words import escape

# A browser that obeys this fetches nothing and runs nothing, whatever a model has written.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_report(run: Path) -> Path:
    """Write report.html and loss.png into a run folder, from whatever of the run is there.

    Returns:
        The path of report.html.

    Raises:
        RunError: no such folder, or nothing in it is a run's.
        EnvironmentFault: the disk is full or may not be written.
    """
    read = read_run(run)
    files.write_bytes(run / "loss.png", draw_loss(read))
    path = run / "report.html"
    files.write_bytes(path, page(read).encode("utf-8"))
    return path


def page(run: Run) -> str:
    """The whole report as HTML."""
    style = (package_files("sparrowlm.report") / "report.css").read_text(encoding="utf-8")
    parts = (header, figures, curves, samples, configuration, data_and_machine, events, commands)
    body = "\n".join(filter(None, (part(run) for part in parts)))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<link rel="icon" href="data:,"><title>{escape(run.name)} · Sparrow</title>\n'
        f'<meta name="description" content="{escape(headline(run))}">\n'
        f"<style>\n{style}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )
