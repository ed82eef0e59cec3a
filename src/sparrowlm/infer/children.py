"""A process of its own for code that may hang, crash or eat memory: a line of JSON in, one out."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

START_SECONDS = 60.0  # until a child says that it is ready


class Silent(Exception):
    """A child that did not answer in time, or ended; it is gone, and the next call starts anew."""


class Child:
    """A module of ours that answers requests, started when it is first asked.

    Args:
        module: run as `python -P -m`, which finds nothing in the working directory; it calls
            `serve`.
        arguments: of its command line.

    It ends with the pipe, so also when its parent is killed.
    """

    def __init__(self, module: str, arguments: tuple[str, ...] = ()) -> None:
        self.command = [sys.executable, "-P", "-m", module, *arguments]
        self.greeting: dict[str, Any] = {}  # what the process said when it was ready
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            Silent: none within `seconds`, or the process ended over it.
        """
        if self._process is None:
            self._start()
        process = self._process
        if process is None or process.stdin is None:
            raise Silent("could not be started")
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except OSError as fault:
            self.close()
            raise Silent("ended the process that ran it") from fault
        return self._answer(seconds)

    def close(self) -> None:
        """End the process, whatever it does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    _close(pipe)

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout is not None, "asked for above"
        self._answers = queue.SimpleQueue()
        reader = threading.Thread(
            target=_pass_on, args=(self._process.stdout, self._answers), daemon=True
        )
        reader.start()
        self.greeting = self._answer(START_SECONDS)

    def _answer(self, seconds: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty as fault:
            self.close()
            raise Silent(f"took longer than {seconds:g} seconds") from fault
        if not line:
            self.close()
            raise Silent("ended the process that ran it")
        return json.loads(line)


def _pass_on(pipe: IO[bytes], answers: queue.SimpleQueue[bytes]) -> None:
    """Read lines as they come, in a thread: a pipe alone knows no patience. The last is empty."""
    try:
        for line in pipe:
            answers.put(line)
    except (OSError, ValueError):  # closed under it
        pass
    answers.put(b"")


def _close(pipe: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # what could not be flushed any more
        pipe.close()


Answering = Callable[[dict[str, Any]], dict[str, Any]]


def serve(prepare: Callable[[], tuple[dict[str, Any], Answering]]) -> int:
    """Be the child: greet, then answer line after line to the end of the input.

    Args:
        prepare: gives the greeting and what answers a request.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a user's function prints must not look like an answer
    greeting, answer = prepare()
    _tell(out, greeting)
    for line in sys.stdin.buffer:
        _tell(out, answer(json.loads(line)))
    return 0


def _tell(out: IO[bytes], told: dict[str, Any]) -> None:
    out.write(json.dumps(told).encode() + b"\n")
    out.flush()
