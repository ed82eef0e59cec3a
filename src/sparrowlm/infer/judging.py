"""Completions judged by reward functions in worker processes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, NamedTuple

from sparrowlm.errors import ConfigError
from sparrowlm.infer.children import Child, Silent
from sparrowlm.objectives.rewards import check_name

SHOWN = 200  # characters of a completion in a message


class Case(NamedTuple):
    """A completion to judge."""

    completion: str
    row: dict[str, Any]
    """Of the prompt file, handed to the reward as it is."""
    place: str
    """Where the row is, for a person: `prompts.jsonl:12`."""


class Verdict(NamedTuple):
    """What the rewards say of one completion."""

    values: tuple[float, ...]
    """Of each reward; 0 where it failed."""
    faults: tuple[str, ...]
    """Each failure, with its reward and its row."""


class Judge:
    """Rewards, each call with its time.

    Args:
        names: as in `rollout.rewards`.
        seconds: that one call may take.
        workers: processes. One that hangs is killed, and another takes its place.

    Raises:
        ConfigError: no such reward.

    >>> with Judge(("exact_match",)) as judge:
    ...     judge([Case("4", {"gold": "4"}, "prompts.jsonl:1")])
    [Verdict(values=(1.0,), faults=())]
    """

    def __init__(self, names: Sequence[str], seconds: float = 5.0, workers: int = 1) -> None:
        for name in names:
            check_name(name)
        self.names, self.seconds = tuple(names), seconds
        self.children = [Child("sparrowlm.infer.judge", self.names) for _ in range(max(1, workers))]

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for child in self.children:
            child.close()

    def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
        """What each case is worth, in order.

        Raises:
            ConfigError: a file of rewards cannot be run.
        """
        free: SimpleQueue[Child] = SimpleQueue()
        for child in self.children:
            free.put(child)

        def judge(case: Case) -> Verdict:
            child = free.get()
            try:
                return self._verdict(child, case)
            finally:
                free.put(child)

        if len(self.children) == 1:
            return [judge(case) for case in cases]
        with ThreadPoolExecutor(len(self.children)) as pool:
            return list(pool.map(judge, cases))

    def _verdict(self, child: Child, case: Case) -> Verdict:
        values, faults = [], []
        for number, name in enumerate(self.names):
            request = {"reward": number, "completion": case.completion, "row": case.row}
            try:
                told = child.ask(request, self.seconds)
            except Silent as fault:
                told = {"value": 0.0, "fault": str(fault)}
            if problem := child.greeting.get("fault"):
                raise ConfigError(problem)
            values.append(float(told["value"]))
            if told["fault"]:
                text = case.completion[:SHOWN]
                faults.append(f"reward {name} {told['fault']} ({case.place}, of {text!r})")
        return Verdict(tuple(values), tuple(faults))
