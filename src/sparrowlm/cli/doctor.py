"""`sparrow doctor`: is this machine fit to train on, and what would make it fitter?"""

from __future__ import annotations

from dataclasses import asdict
from json import dumps
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from sparrowlm.errors import EnvironmentFault

if TYPE_CHECKING:
    from sparrowlm.cli.checks import Finding

_STYLES = {"ok": "green", "note": "yellow", "fault": "bold red"}


def doctor(*, device: str = "auto", json: bool = False) -> None:
    """Look at device, versions, precision, memory, disk and optional packages, and train for two
    seconds. Exit code 0 where all is well, 3 where something has to be mended.

    Args:
        device: auto, cpu, cuda or mps.
        json: Print one JSON object instead.
    """
    from sparrowlm.cli.checks import all_checks
    from sparrowlm.runtime import detect

    show = [] if json else [Console(highlight=False)]
    findings = []
    for finding in all_checks(detect(device)):
        findings.append(finding)
        for console in show:
            _print(finding, console)
    faults = [finding for finding in findings if finding.state == "fault"]
    if json:
        print(_as_json(findings))
    elif not faults:
        print("\nready: sparrow quickstart")
    if faults:
        raise EnvironmentFault(
            f"{len(faults)} thing{'s' * (len(faults) > 1)} to mend: "
            + ", ".join(finding.name for finding in faults),
            where="sparrow doctor",
            fix=next((finding.fix for finding in faults if finding.fix), ""),
        )


def _print(finding: Finding, console: Console) -> None:
    """One finding, and its fix below it."""
    style = _STYLES[finding.state]
    line = Text.assemble((f"{finding.state:<6}", style), (f"{finding.name:<13}", "bold"))
    console.print(line.append(finding.text), soft_wrap=True)
    if finding.fix:
        console.print(Text(f"{'':<6}{'':<13}fix: {finding.fix}", style), soft_wrap=True)


def _as_json(findings: list[Finding]) -> str:
    healthy = all(finding.state != "fault" for finding in findings)
    value = {"healthy": healthy, "findings": [asdict(finding) for finding in findings]}
    return dumps(value, indent=2, ensure_ascii=False)
