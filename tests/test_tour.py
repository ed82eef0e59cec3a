"""The notebook, run from top to bottom in a real kernel."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "tour.ipynb"


@pytest.mark.slow
def test_the_tour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from jupyter_client.manager import KernelManager
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    minutes = [cell for cell in notebook.cells if "--minutes 3" in cell.source]
    assert len(minutes) == 1
    minutes[0].source = minutes[0].source.replace("--minutes 3", "--minutes 0.1")
    monkeypatch.setenv("SPARROW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    # This Python, whatever kernels the machine knows.
    manager = KernelManager()
    kernel = manager.kernel_spec
    assert kernel is not None
    kernel.argv[0] = sys.executable
    client = NotebookClient(
        notebook, km=manager, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=os.environ.copy())
    told = {
        cell.source: "".join(
            out.get("text", "") or out.get("data", {}).get("text/plain", "") for out in cell.outputs
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    assert all(told.values()), [source for source, text in told.items() if not text]
    assert "bits per byte" in next(text for source, text in told.items() if "math.log" in source)
    assert (tmp_path / "runs" / "bird-chat" / "report.html").is_file()
