"""`compile`: from circuits to something callable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

import torch

from tapeout.compiler.compiled import Compiled, Executable
from tapeout.compiler.config import from_environment
from tapeout.compiler.inputs import find_inputs
from tapeout.compiler.optimise import already_run, optimise
from tapeout.ir import Circuit, Symbol
from tapeout.ir.dtypes import as_dtype
from tapeout.ir.errors import TypeMismatchError, UnsupportedError

Builder = Callable[
    [Sequence[Circuit], Sequence[Symbol], Mapping[Circuit, str], torch.dtype, torch.device], tuple[Executable, int]
]

BACKENDS = {
    "fx": "tapeout.backends.fx.executable",
    "torchscript": "tapeout.backends.torchscript.executable",
    "inductor": "tapeout.backends.inductor.executable",
}
"""For every backend the module that holds its `build`."""

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def compile(
    circuit: Circuit,
    backend: str = "fx",
    inputs: Sequence[str | Circuit] = (),
    dtype: str | torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    level: int = 1,
    max_memory: int | None = None,
) -> Compiled:
    """Compiles a circuit of one row to a callable over batches of rows.

    Args:
        circuit: without random variables, unless these are inputs.
        backend: "fx", "torchscript" or "inductor".
        inputs: names of symbols, arrays or random variables that become run-time inputs with a
            shared leading batch axis, of any size at each call. Without inputs the call has no arguments.
        dtype: what floating values are computed in: float32, float64 or bfloat16.
        device: where it runs.
        level: 0 for no optimisation beyond what lowering needs, 1 for all.
        max_memory: bytes that weights and values may take by the estimate of `Compiled.cost`; larger
            batches are computed in parts. None for no limit.

    Returns:
        A callable: `compile(c, inputs=["tokens"])(tokens=...)` gives the value with the batch axis first.

    Raises:
        MatchError: for an input that is not there.
        ModuleBindingError: for a symbol that is neither bound nor an input.
        UnsupportedError: for a backend that is not there, a node that it cannot lower, or a
            `max_memory` that not even one row fits.
    """
    return compile_many([circuit], backend, inputs, dtype, device, level, max_memory)


def compile_many(
    circuits: Sequence[Circuit],
    backend: str = "fx",
    inputs: Sequence[str | Circuit] = (),
    dtype: str | torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    level: int = 1,
    max_memory: int | None = None,
) -> Compiled:
    """Compiles several circuits to one callable with several results; what they share is computed once.

    Args and errors: see `compile`.
    """
    build = builder(backend)
    kind, where = as_dtype(dtype), torch.device(device)
    if kind not in DTYPES:
        raise TypeMismatchError(f"cannot compile to {kind}", hint="use float32, float64 or bfloat16")
    rows, found = find_inputs(circuits, inputs, kind)
    optimised = optimise(rows, found, level, from_environment())
    symbols = [each.batched for each in found]
    try:
        executable, packed = build(optimised.roots, symbols, optimised.origins, kind, where)
    except Exception as error:
        error.add_note(f"in lowering to {backend}; {already_run(optimised.records)}")
        raise
    return Compiled(
        backend,
        executable,
        tuple(found),
        optimised.roots,
        optimised.origins,
        tuple(optimised.records),
        kind,
        where,
        packed,
        max_memory,
    )


def builder(backend: str) -> Builder:
    if backend not in BACKENDS:
        raise UnsupportedError(f"there is no backend {backend!r}", hint=f"there are {', '.join(BACKENDS)}")
    return import_module(BACKENDS[backend]).build  # type: ignore[no-any-return]
