"""The command line: parse, call, print, exit. Nothing else in the package prints or exits."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

# name -> (module:function, one line of help). A module is imported only when its command runs, so
# that `sparrow --help` needs neither torch nor a second.
COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": (
        "quickstart:quickstart",
        "train a small model on this machine's own Python source",
    ),
    "train": ("train:train", "train by a recipe"),
    "generate": ("generate:generate", "let a trained run write"),
    "chat": ("chat:chat", "talk with a trained run"),
    "serve": ("serve:serve", "serve a run to OpenAI's clients, and a page to talk with it"),
    "evaluate": ("evaluate:evaluate", "measure runs: text, tasks, lm-eval"),
    "merge": ("merge:merge", "put a LoRA run's changes into its weights"),
    "import": ("adopt:adopt", "turn another project's checkpoint into a run"),
    "export": ("export:export", "take a run to transformers, llama.cpp or Ollama"),
    "push": ("push:push", "upload an export to Hugging Face or ModelScope"),
    "plan": ("plan:plan", "what a recipe will need, before anything starts"),
    "report": ("report:report", "write a run's report.html and loss.png"),
    "watch": ("watch:watch", "a local page over runs, live while they train"),
    "tokenizer train": ("tokenizer:train", "learn a vocabulary from text"),
    "tokenizer inspect": ("tokenizer:inspect", "see how a vocabulary cuts text"),
    "data prepare": ("data:prepare", "turn text into tokens on disk"),
    "data list": ("data_download:list_corpora", "corpora to download, their sizes and licenses"),
    "data download": ("data_download:download", "download one of them, resumed and checked"),
    "data inspect": ("data_inspect:inspect", "see what is in a dataset or a text"),
    "data sample": ("data_sample:sample", "take a random part of a JSON-lines file"),
    "doctor": ("doctor:doctor", "check this machine"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0, or 2 for a user's mistake, 3 for a fault of the machine, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _speak_utf8()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if arguments[0] in ("-V", "--version"):
        from sparrowlm import __version__

        print(f"sparrow {__version__}")
        return 0
    name = _find(arguments)
    if name is None:
        print(_unknown(arguments), file=sys.stderr)
        return 2
    return _run(name, arguments[len(name.split()) :])


def _run(name: str, arguments: list[str]) -> int:
    from sparrowlm.errors import SparrowError
    from sparrowlm.process import settle

    settle()  # before any command imports torch

    place, _, function = COMMANDS[name][0].partition(":")
    try:
        module = importlib.import_module(f"sparrowlm.cli.{place}")
        parse = getattr(module, f"parse_{function}", None)
        if parse is not None:
            parse(arguments)
        else:
            import tyro

            tyro.cli(getattr(module, function), args=arguments, prog=f"sparrow {name}")
    except SparrowError as fault:
        print(f"error: {fault}", file=sys.stderr)
        return fault.exit_code
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has gone; that is its right.
        sys.stderr.close()
        return 0
    return 0


def overview() -> str:
    """What `sparrow --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "sparrow: from raw text to a language model of your own, on the machine you have",
            "",
            "usage: sparrow COMMAND [OPTIONS]",
            "",
            *lines,
            "",
            "sparrow COMMAND --help explains one; sparrow --version prints the version.",
            "New here? sparrow quickstart",
        ]
    )


def _find(arguments: list[str]) -> str | None:
    for length in (2, 1):
        name = " ".join(arguments[:length])
        if name in COMMANDS:
            return name
    return None


def _unknown(arguments: list[str]) -> str:
    import difflib

    typed = " ".join(arguments[:2]) if arguments[0] in _groups() else arguments[0]
    if typed in _groups():
        choices = [name for name in COMMANDS if name.startswith(typed + " ")]
        return f"error: sparrow {typed} needs one of: {', '.join(choices)}"
    close = difflib.get_close_matches(typed, COMMANDS, n=1)
    hint = f"did you mean sparrow {close[0]}?" if close else "sparrow --help lists the commands"
    return f"error: there is no command {typed!r}\n  fix: {hint}"


def _groups() -> set[str]:
    return {name.split()[0] for name in COMMANDS if " " in name}


def _speak_utf8() -> None:
    """Chinese Windows gives stdout GBK, which cannot say everything a model writes."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="replace")
