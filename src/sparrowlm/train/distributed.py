"""Several processes on one run, as `torchrun` starts them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparrowlm.runtime import Runtime, env, env_int

# Long enough for rank 0 to prepare data while the others wait; a rank that dies is noticed by its
# closed connection, not by this.
_PATIENCE = timedelta(hours=12)


@contextmanager
def process_group(runtime: Runtime) -> Iterator[None]:
    """Join the other ranks for the length of a `with` block; nothing where there are none, or
    where they are together already.

    The store is prefixed by the attempt: restarted workers otherwise meet the keys of the dead
    ones in the elastic agent's store and hang (pytorch #135712, #167288).
    """
    if runtime.world_size == 1 or dist.is_initialized():
        yield
        return
    if runtime.device.type == "cuda":
        torch.cuda.set_device(runtime.device)
    agent_store = env("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = dist.TCPStore(
        env("MASTER_ADDR", "127.0.0.1"),
        env_int("MASTER_PORT", 29500),
        runtime.world_size,
        is_master=runtime.is_main and not agent_store,
        timeout=timedelta(minutes=2),
    )
    dist.init_process_group(
        "nccl" if runtime.device.type == "cuda" else "gloo",
        store=dist.PrefixStore(f"sparrow/attempt-{attempt()}", store),
        rank=runtime.rank,
        world_size=runtime.world_size,
        timeout=_PATIENCE,
    )
    try:
        yield
        dist.barrier()  # rank 0 writes the report while the others have nothing left to do
    finally:
        gc.collect()  # what still refers to the group must go before it
        dist.destroy_process_group()


def attempt() -> int:
    """How often `torchrun --max-restarts` has started the workers again."""
    return env_int("TORCHELASTIC_RESTART_COUNT", 0)


def barrier(runtime: Runtime) -> None:
    """Wait for all ranks."""
    if runtime.world_size > 1:
        dist.barrier()


def broadcast_text(text: str, runtime: Runtime) -> str:
    """Rank 0's string on every rank; strings, and nothing that would need unpickling."""
    if runtime.world_size == 1:
        return text
    content = torch.tensor(list(text.encode("utf-8")), dtype=torch.uint8, device=runtime.device)
    length = torch.tensor(content.numel(), device=runtime.device)
    dist.broadcast(length, 0)
    if not runtime.is_main:
        content = torch.empty(int(length.item()), dtype=torch.uint8, device=runtime.device)
    dist.broadcast(content, 0)
    return bytes(content.tolist()).decode("utf-8")


def wrap(step: nn.Module, runtime: Runtime) -> nn.Module:
    """The module whose backward pass averages gradients over ranks."""
    if runtime.world_size == 1:
        return step
    devices = [runtime.device] if runtime.device.type == "cuda" else None
    return DistributedDataParallel(step, device_ids=devices)
