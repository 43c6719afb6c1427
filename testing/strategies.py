"""Random circuits as hypothesis draws them.

    @given(circuits())
    def test_my_pass(circuit): ...

Raises UnsupportedError when it is imported and hypothesis is not installed.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from tapeout.ir import Circuit
from tapeout.testing.need import need
from tapeout.testing.random_circuits import random_circuit

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

_strategies = need("hypothesis.strategies")

SEEDS: SearchStrategy[int] = _strategies.integers(0, 2**32 - 1)
"""Seeds for `random_circuit(Random(seed))`: circuits of more sorts than hypothesis would draw by itself."""


def circuits(size: int = 16, modules: bool = True, shared_names: bool = True) -> SearchStrategy[Circuit]:
    """Random circuits; the arguments are those of `random_circuit`."""
    return SEEDS.map(lambda seed: random_circuit(Random(seed), size, modules, shared_names))
