"""What a run says of its held-out split."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sparrowlm.checkpoint import RunFolder
from sparrowlm.config.load import load_recipe
from sparrowlm.data.shards import open_dataset
from sparrowlm.data.streams import windows
from sparrowlm.evaluate.corpus import Reading
from sparrowlm.evaluate.likelihood import evaluate
from sparrowlm.model.transformer import Transformer
from sparrowlm.objectives.next_token import NextToken
from sparrowlm.train.held_out import held_out
from support import cpu, run_ranks, write_recipe


@pytest.mark.parametrize(("whole", "overlap"), [(True, 0.0), (True, 0.75), (False, 0.75)])
def test_the_summary_is_of_the_whole_split_where_asked(
    tmp_path: Path, whole: bool, overlap: float
) -> None:
    measured = {"windows": 2, "whole_at_end": whole, "overlap": overlap}
    recipe = write_recipe(tmp_path, eval=measured)
    assert run_ranks("train", recipe, "--out", tmp_path / "run", ranks=1).returncode == 0
    run = RunFolder(tmp_path / "run")
    rows = [row for row in run.rows("metrics.jsonl") if str(row["kind"]).startswith("eval")]
    assert [row["kind"] for row in rows] == ["eval", "eval"] + ["eval_whole"] * whole
    summary = json.loads((run.path / "summary.json").read_text(encoding="utf-8"))

    config = load_recipe(run.path / "config.toml")
    config = replace(config, eval=replace(config.eval, windows=0 if whole else 2))
    val = open_dataset(tmp_path / "data").val
    assert val is not None
    assert run.newest() == rows[-1]["step"] == 20
    model = Transformer(config.model)
    model.load_state_dict(run.load(20).model)
    stride = 4 if whole and overlap else 0
    batches = windows(val, config.train.seq_len, 8, limit=config.eval.windows, stride=stride)
    nats, targets = evaluate(NextToken(), model.eval(), batches, cpu())["loss"]
    assert summary["val_loss"] == pytest.approx(nats / targets, rel=1e-6)
    if whole:
        assert targets == len(val) - 1
        [again] = held_out(run, 20, model, cpu(), Reading())
        assert again.figures["loss"].value == pytest.approx(summary["val_loss"], rel=1e-6)
        assert rows[-1].get("stride") == (stride or None)
