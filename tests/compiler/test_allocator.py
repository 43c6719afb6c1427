"""Holding freed memory: in a process of its own, because it cannot be undone."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from tapeout.compiler.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(4_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

without = faults()
assert keep_freed_memory()
faults()
print(without, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_memory_that_is_held_costs_no_page_faults() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    without, held = map(int, done.stdout.split())
    assert held * 10 < without


@pytest.mark.skipif(sys.platform.startswith("linux"), reason="there it may take effect")
def test_elsewhere_it_says_that_nothing_changed() -> None:
    from tapeout.compiler.allocator import keep_freed_memory

    assert not keep_freed_memory()
