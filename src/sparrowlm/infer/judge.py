"""The process in which rewards are computed; it imports no PyTorch."""

from __future__ import annotations

import os
import sys
from typing import Any

from sparrowlm.errors import ConfigError
from sparrowlm.infer.children import Answering, serve
from sparrowlm.objectives.rewards import Reward, judged, load


def prepare() -> tuple[dict[str, Any], Answering]:
    """Load the rewards named in the arguments: {"reward", "completion", "row"} becomes {"value",
    "fault"}."""
    sys.path.append(os.getcwd())  # for what a user's file imports; last, so it hides nothing
    rewards: list[Reward] = []
    fault = ""
    for name in sys.argv[1:]:
        try:
            rewards.append(load(name))
        except ConfigError as problem:
            fault = fault or str(problem)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        reward = rewards[request["reward"]]
        value, problem = judged(reward, request["completion"], request["row"])
        return {"value": value, "fault": problem}

    return {"fault": fault}, answer


if __name__ == "__main__":
    raise SystemExit(serve(prepare))
