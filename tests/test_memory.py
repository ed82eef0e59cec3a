"""How much memory there is, and how much was held, against the system's own figures."""

from __future__ import annotations

import os
import sys

import pytest
import torch

from sparrowlm.runtime import memory_bytes, peak_memory_bytes


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX names")
def test_main_memory_against_sysconf() -> None:
    total, available = memory_bytes()
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available < total <= physical  # below where a container has a limit
    if total > 0.9 * physical:
        assert abs(total - physical) < 0.02 * physical


def test_the_peak_grows_with_what_is_held_and_stays() -> None:
    before = peak_memory_bytes()
    held = torch.ones(200 * 2**20, dtype=torch.uint8)
    grown = peak_memory_bytes()
    held_bytes = held.numel()
    del held
    assert before > 10**7
    assert grown >= before * 0.99  # the kernel's counters are per core, and lag a little
    assert grown > held_bytes
    assert peak_memory_bytes() >= grown * 0.99


@pytest.mark.gpu
def test_the_peak_of_a_card_is_of_its_tensors() -> None:
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.ones(100 * 2**20, dtype=torch.uint8, device=device)
    assert peak_memory_bytes(device) >= held.numel()
