"""`sparrow serve RUN`: a run for other programs, and a page to talk with it in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from rich.console import Console
from rich.text import Text
from tyro.conf import Positional, UseAppendAction, arg

from sparrowlm.errors import ConfigError

if TYPE_CHECKING:
    from sparrowlm.share.server.service import Served


def serve(
    run: Annotated[Positional[Path], arg(metavar="RUN")],
    *,
    port: int = 8000,
    host: str = "127.0.0.1",
    name: str = "",
    api_key: str = "",
    api_key_file: Path | None = None,
    insecure_no_auth: bool = False,
    allow_host: Annotated[tuple[str, ...], UseAppendAction] = (),
    cors: Annotated[tuple[str, ...], UseAppendAction] = (),
    adapter: Annotated[tuple[str, ...], UseAppendAction] = (),
    mode: Literal["auto", "chat", "text"] = "auto",
    slots: int = 16,
    queue: int = 64,
    drain_seconds: float = 30.0,
    device: str = "auto",
    precision: str = "auto",
) -> None:
    """Serve a trained run to OpenAI's clients, and a page to talk with it in the browser.

    Args:
        run: A run folder, which is taken at its best step, or one of its checkpoints.
        port: Where to listen; 0 takes any that is free.
        host: The address to listen on. One that others can reach needs a key.
        name: What clients call the model; otherwise the folder's name.
        api_key: What clients must bring. Others on this machine can see it in the list of its
            processes: rather use --api-key-file.
        api_key_file: A file that holds the key.
        insecure_no_auth: Let anyone who can reach the address use the model.
        allow_host: A name under which clients may address the server besides its address; may be
            given several times.
        cors: The origin of a page elsewhere that may ask, such as http://localhost:3000; may be
            given several times.
        adapter: NAME=PATH of changes that are served as a model of their own beside the run; may
            be given several times. Each takes as much memory as the run.
        mode: Answer by turns (chat) or only go on with a text (text); auto: as the run was taught.
        slots: Answers of one model under way at once.
        queue: Answers that may wait for a slot; who comes then is told to try again.
        drain_seconds: When asked to stop, finish what is under way for so long.
        device: auto, cpu, cuda or mps.
        precision: auto, float32, bfloat16, float16 or float64.
    """
    installed()
    from sparrowlm.share.server.limits import Limits
    from sparrowlm.share.server.running import Server, listen, rules_for

    check(slots, queue, drain_seconds)
    key = key_of(api_key, api_key_file)
    rules = rules_for(host, key=key, open_to_all=insecure_no_auth, names=allow_host, origins=cors)
    with listen(host, port) as waiting:
        models = load_models(run, name, adapter, mode, device, precision)
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{waiting.getsockname()[1]}"
        limits = Limits(queue=queue, drain_seconds=drain_seconds)
        Server(models, rules, limits, slots, lambda: greet(models, address)).answer(waiting)
    Console(highlight=False).print(Text("stopped", "dim"))


def installed() -> None:
    """Whether a server's packages are.

    Raises:
        DataError: one is not.
    """
    from sparrowlm.text.extras import need

    for package in ("fastapi", "uvicorn", "prometheus_client"):
        need(package, "serve", "sparrow serve", load=False)


def check(slots: int, queue: int, drain_seconds: float) -> None:
    """Whether the numbers make sense.

    Raises:
        ConfigError: one does not.
    """
    for where, value, least, most in (
        ("--slots", slots, 1, 4096),
        ("--queue", queue, 0, 100_000),
        ("--drain-seconds", drain_seconds, 0, 86_400),
    ):
        if not least <= value <= most:
            raise ConfigError(f"is {value}, and must be {least} to {most}", where=where)


def key_of(given: str, file: Path | None) -> str | None:
    """The key that clients must bring.

    Raises:
        ConfigError: two of them, or an empty file.
        UserError: the file cannot be read.
    """
    from sparrowlm.errors import UserError

    if file is None:
        return given or None
    if given:
        raise ConfigError("the key is given twice", where="--api-key-file", fix="give one of them")
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as fault:
        raise UserError(f"cannot be read: {fault}", where=str(file)) from fault
    if not key:
        raise ConfigError("holds no key", where=str(file))
    return key


def load_models(
    run: Path, name: str, adapter: tuple[str, ...], mode: str, device: str, precision: str
) -> list[Served]:
    """The run, and the run with each of the adapters.

    Raises:
        ConfigError: a name that cannot stand in an address, or is taken.
        RunError: no run there, or an adapter that is none of it.
    """
    from sparrowlm.checkpoint import find_run
    from sparrowlm.cli.chat import named_adapters

    own = name or find_run(run)[0].path.resolve().name
    adapters = named_adapters(adapter)
    if own in adapters or "/" in own:
        raise ConfigError(
            f"the name {own!r} is taken by an adapter, or holds a slash",
            where="--name",
            fix="choose another --name",
        )
    served = [_served(own, run, None, None, mode, device, precision)]
    for other, path in adapters.items():
        served.append(_served(other, run, path, own, mode, device, precision))
    return served


def _served(
    name: str,
    run: Path,
    adapter: Path | None,
    parent: str | None,
    mode: str,
    device: str,
    precision: str,
) -> Served:
    from sparrowlm.infer.engine import Engine
    from sparrowlm.pipeline import load_run
    from sparrowlm.share.server.service import Served
    from sparrowlm.text.chat import ChatFormat

    loaded = load_run(run, device, precision, adapter)
    chats = loaded.converses if mode == "auto" else mode == "chat"
    return Served(
        name,
        Engine(loaded.model, loaded.tokenizer, loaded.runtime, slide=False),
        ChatFormat(loaded.tokenizer) if chats else None,
        parent,
        sum(weight.numel() for weight in loaded.model.parameters()),
        loaded.step,
    )


def greet(models: list[Served], address: str) -> None:
    """Say where it is and how to use it."""
    from sparrowlm.config.units import show_count

    console = Console(highlight=False)
    for model in models:
        kind = "answers by turns" if model.chat else "goes on with a text"
        told = f"  step {model.step:,}  {show_count(model.parameters)} parameters"
        told += f"  context {model.engine.context}  {kind}"
        console.print(Text(model.name, "bold").append(told, "not bold dim"), soft_wrap=True)
    console.print(Text(f"page    {address}/"), soft_wrap=True)
    console.print(Text(f"OpenAI  {address}/v1"), soft_wrap=True)
    console.print(Text("Ctrl-C stops it", "dim"))
