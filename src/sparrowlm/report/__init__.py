"""What a run amounts to, as one page that needs nothing else."""

from sparrowlm.report.html import write_report

__all__ = ["write_report"]
