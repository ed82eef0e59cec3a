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
from sparrowlm.evaluate.likelihood import evaluate
from sparrowlm.model.transformer import Transformer
from sparrowlm.objectives.next_token import NextToken
from support import cpu, run_command, write_recipe


@pytest.mark.parametrize("whole", [True, False])
def test_the_summary_is_of_the_whole_split_where_asked(tmp_path: Path, whole: bool) -> None:
    recipe = write_recipe(tmp_path, eval={"windows": 2, "whole_at_end": whole})
    assert run_command("train", recipe, "--out", tmp_path / "run").returncode == 0
    run = RunFolder(tmp_path / "run")
    rows = [row for row in run.rows("metrics.jsonl") if str(row["kind"]).startswith("eval")]
    assert [row["kind"] for row in rows] == ["eval", "eval"] + ["eval_whole"] * whole
    summary = json.loads((run.path / "summary.json").read_text(encoding="utf-8"))

    config = load_recipe(run.path / "config.toml")
    config = replace(config, eval=replace(config.eval, windows=0 if whole else 2))
    held_out = open_dataset(tmp_path / "data").val
    assert held_out is not None
    assert run.newest() == rows[-1]["step"] == 20
    model = Transformer(config.model)
    model.load_state_dict(run.load(20).model)
    batches = windows(held_out, config.train.seq_len, 8, limit=config.eval.windows)
    nats, targets = evaluate(NextToken(), model.eval(), batches, cpu())["loss"]
    assert summary["val_loss"] == pytest.approx(nats / targets, rel=1e-6)
    if whole:
        assert targets == len(held_out) - 1
