"""The field's own yardsticks: tasks of lm-eval, with our model as its model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparrowlm.config.load import near_miss
from sparrowlm.errors import ConfigError, EnvironmentFault
from sparrowlm.evaluate.answering import Progress, Subject
from sparrowlm.evaluate.figures import Figure, Measured
from sparrowlm.text.extras import need

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

REMOTE = ("huggingface_hub", "httpx", "requests", "aiohttp", "fsspec")
"""Packages whose exceptions say that a dataset could not be fetched."""


def harness(
    names: Sequence[str],
    subject: Subject,
    *,
    folder: Path | None = None,
    limit: int = 0,
    shots: int | None = None,
    chat: bool = False,
    progress: Progress | None = None,
) -> list[Measured]:
    """Run tasks of lm-eval.

    Args:
        names: of tasks, groups or tags.
        subject: what is measured.
        folder: of further task files (lm-eval's include_path). They may name Python files, which
            lm-eval runs.
        limit: documents of each task; 0: all.
        shots: shown first; None: as the task says.
        chat: put prompts into the chat template.
        progress: told how far requests are.

    Raises:
        DataError: lm-eval is not installed.
        ConfigError: no task of that name.
        EnvironmentFault: a task's dataset cannot be fetched.
    """
    need("lm_eval", "harness", "--harness", load=False)
    if folder is not None and not folder.is_dir():
        raise ConfigError("no such folder", where=f"--harness-tasks {folder}")
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    from sparrowlm.evaluate.harness_model import SparrowLM

    manager = TaskManager(include_path=str(folder), include_defaults=False) if folder else None
    if manager is None or not set(names) <= set(manager.all_tasks):
        # Thousands of files are read to know the names: not where a folder has them all.
        if progress is not None:
            progress("reading the list of lm-eval's tasks", 0, 0)
        manager = TaskManager(include_path=str(folder) if folder else None)
    check_names(names, manager.all_tasks)
    found = simple_evaluate(
        model=SparrowLM(subject, chat=chat, progress=progress),
        tasks=_loaded(names, manager),
        num_fewshot=shots,
        limit=limit or None,
        apply_chat_template=chat,
        task_manager=manager,
        log_samples=False,
    )
    assert found is not None, "one process, which has the results"
    return _measured(dict(found), names)


def check_names(names: Sequence[str], known: Sequence[str]) -> None:
    """
    Raises:
        ConfigError: a name that lm-eval does not know.
    """
    for name in set(names) - set(known):
        hint = near_miss(name, known)
        close = hint.removeprefix("; ") if "did you mean" in hint else ""
        raise ConfigError(
            f"lm-eval has no task {name!r}",
            where="--harness",
            fix=close or "lm-eval ls tasks lists them; --harness-tasks adds a folder of yours",
        )


def _loaded(names: Sequence[str], manager: TaskManager) -> list[Any]:
    """The tasks and groups, with their data.

    Raises:
        EnvironmentFault: it cannot be fetched.
    """
    found: list[Any] = []
    for name in names:
        try:
            loaded = manager.load([name])
        except Exception as fault:  # of whichever library fetches it
            if not is_remote(fault):
                raise
            raise EnvironmentFault(
                f"cannot reach the dataset of {name}: {_first_line(fault)}",
                where="--harness",
                why="lm-eval takes it from the Hugging Face hub",
                fix="set HF_ENDPOINT to a mirror that you reach; with HF_HUB_OFFLINE=1 only what is"
                " cached is used; --harness-tasks DIR runs tasks on files of your own",
            ) from fault
        groups = loaded.get("groups", {})
        found += [groups[name]] if name in groups else list(loaded["tasks"].values())
    return found


def is_remote(fault: BaseException) -> bool:
    """Whether something could not be fetched: by its own type, or by what caused it."""
    seen: BaseException | None = fault
    while seen is not None:
        package = type(seen).__module__.partition(".")[0]
        if isinstance(seen, ConnectionError | TimeoutError) or package in REMOTE:
            return True
        if type(seen).__name__ == "DatasetNotFoundError":  # of the library `datasets`
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _first_line(fault: BaseException) -> str:
    return f"{type(fault).__name__}: {fault}".splitlines()[0]


def _measured(found: dict[str, Any], names: Sequence[str]) -> list[Measured]:
    """What was asked for by its own name; of a tag, all its tasks."""
    results, groups = found["results"], found.get("groups", {})
    inside = {task for group in groups for task in found.get("group_subtasks", {}).get(group, ())}
    chosen = [name for name in results if name in names or name not in inside]
    return [_of(name, found) for name in chosen if any("," in key for key in results[name])]


def _of(name: str, found: dict[str, Any]) -> Measured:
    """One task's or group's figures; lm-eval says means and how many documents."""
    values = found["results"][name]
    samples = found.get("n-samples", {}).get(name, {}).get("effective") or values.get("sample_len")
    figures = {}
    for key, value in values.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = values.get(f"{metric}_stderr,{kind}")
        known = isinstance(error, int | float) and math.isfinite(error)
        label = metric if kind == "none" else f"{metric} ({kind})"
        count = samples or 1
        figures[label] = Figure(value * count, count, float(error) if known else None)
    shots = found.get("n-shot", {}).get(name)
    version = found["versions"].get(name)
    parts = ["lm-eval" if version in (None, "Yaml") else f"lm-eval, version {version}"]
    parts += [f"{samples:,} documents"] if samples else []
    parts += [f"{shots} shots"] if shots is not None else []
    return Measured(name, ", ".join(parts), figures)
