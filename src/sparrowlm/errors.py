"""What can go wrong, as a tree.

    SparrowError                 one message for a person: what, where, why, the fix
    ├── UserError                exit code 2: the person can mend it
    │   ├── ConfigError          a recipe or an option
    │   ├── DataError            text, token files, prepared datasets
    │   ├── TokenizerError       a vocabulary, or one that does not match its data
    │   └── RunError             a run folder or a checkpoint
    └── EnvironmentFault         exit code 3: the machine (disk, memory, device, another rank)

The command line prints the message and exits with `exit_code`; a traceback is for our own
mistakes alone.
"""

from __future__ import annotations


class SparrowError(Exception):
    """One fault, told whole.

    Args:
        what: what went wrong, in one sentence.
        where: the file and line (`data.jsonl:12`) or the config key (`model.d_model`).
        why: what makes it a fault, where the first sentence does not say so already.
        fix: what to do about it.

    >>> print(UserError("no such file", where="a.txt", fix="check the path"))
    a.txt: no such file
      fix: check the path
    """

    exit_code = 3

    def __init__(self, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        self.what, self.where, self.why, self.fix = what, where, why, fix
        message = f"{where}: {what}" if where else what
        if why:
            message += f"\n  why: {why}"
        if fix:
            message += f"\n  fix: {fix}"
        super().__init__(message)


class UserError(SparrowError):
    """A mistake that the person at the keyboard can mend."""

    exit_code = 2


class ConfigError(UserError):
    """A recipe or an option says something impossible."""


class DataError(UserError):
    """Text, a token file or a prepared dataset cannot be used as it is."""


class TokenizerError(UserError):
    """A vocabulary cannot be read, or does not match its data."""


class RunError(UserError):
    """A run folder or one of its checkpoints cannot be used as it is."""


class EnvironmentFault(SparrowError):
    """The machine fails: the disk is full, memory is out, a device or a rank is gone."""
