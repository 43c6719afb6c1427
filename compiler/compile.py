"""`compile`: from circuits to something callable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tapeout.backends.common.devices import as_device
from tapeout.backends.common.numerics import Numerics
from tapeout.backends.common.program import Program
from tapeout.compiler.backends import BackendOptions, builder
from tapeout.compiler.compiled import Compiled
from tapeout.compiler.config import from_environment
from tapeout.compiler.inputs import find_inputs
from tapeout.compiler.optimise import already_run, optimise
from tapeout.ir import Circuit
from tapeout.ir.dtypes import as_dtype
from tapeout.ir.errors import TypeMismatchError, UnsupportedError

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def compile(
    circuit: Circuit,
    backend: str = "fx",
    inputs: Sequence[str | Circuit] | str = (),
    dtype: str | torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    level: int = 1,
    max_memory: int | None = None,
    options: BackendOptions | Mapping[str, Any] | None = None,
    batch: int | Sequence[int] | None = None,
    tf32: bool = False,
    deterministic: bool = False,
) -> Compiled:
    """Compiles a circuit of one row to a callable over batches of rows.

    Args:
        circuit: without random variables, unless these are inputs.
        backend: "fx", "torchscript", "inductor" or "onnx".
        inputs: names of symbols, arrays or random variables that become run-time inputs with a
            shared leading batch axis, of any size at each call. Without inputs the call has no arguments.
        dtype: what floating values are computed in: float32, float64 or bfloat16, in which products are computed
            while sums, norms, softmax and the results are float32 (see `tapeout.backends.common.precision`).
        device: where it runs, "cpu" or "cuda".
        level: 0 for no optimisation beyond what lowering needs, 1 for all.
        max_memory: bytes that weights and values may take by the estimate of `Compiled.cost`; larger
            batches are computed in parts, whose results are kept on top. None for no limit.
        options: what the backend can be told, as its own dataclass or by name: `OnnxOptions` for "onnx".
        batch: the batch size, or sizes, that calls are expected to have. It is no limit: every call takes any number
            of rows. On CUDA, fx and inductor capture a CUDA graph for each size, to which batches are filled up or
            by which they are computed in parts. Elsewhere the largest is what compilers take for typical.
        tf32: whether products of float32 on CUDA may round their operands to TF32: faster, with errors near 1e-3.
            Whatever torch is set to, a call computes as it was compiled.
        deterministic: whether a call on CUDA gives the same bits each time; see `Numerics`.

    Returns:
        A callable: `compile(c, inputs=["tokens"])(tokens=...)` gives the value with the batch axis first.

    Raises:
        MatchError: for an input that is not there.
        ModuleBindingError: for a symbol that is neither bound nor an input.
        UnsupportedError: for a backend, a device or an option that is not there, a node that the backend cannot
            lower, a `batch` that is no number of rows, or a `max_memory` that not even one row fits.
    """
    return compile_many(
        [circuit], backend, inputs, dtype, device, level, max_memory, options, batch, tf32, deterministic
    )


def compile_many(
    circuits: Sequence[Circuit],
    backend: str = "fx",
    inputs: Sequence[str | Circuit] | str = (),
    dtype: str | torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    level: int = 1,
    max_memory: int | None = None,
    options: BackendOptions | Mapping[str, Any] | None = None,
    batch: int | Sequence[int] | None = None,
    tf32: bool = False,
    deterministic: bool = False,
) -> Compiled:
    """Compiles several circuits to one callable with several results; what they share is computed once.

    Args and errors: see `compile`.
    """
    for each in circuits:
        if not isinstance(each, Circuit):
            raise TypeMismatchError(f"a {type(each).__name__} is to be compiled", hint="give a circuit")
    build, sizes = builder(backend, options), batch_sizes(batch)
    kind, where, numerics = as_dtype(dtype), as_device(device), Numerics(tf32, deterministic)
    numerics.check(where)
    check_memory(max_memory)
    if kind not in DTYPES:
        raise TypeMismatchError(f"cannot compile to {kind}", hint="use float32, float64 or bfloat16")
    rows, found = find_inputs(circuits, [inputs] if isinstance(inputs, str) else inputs, kind)
    typical = max(sizes, default=None)
    optimised = optimise(rows, found, level, from_environment(), kind, typical)
    symbols = [each.batched for each in found]
    program = Program(optimised.roots, symbols, optimised.origins, kind, where, typical, optimised.order, numerics)
    try:
        executable, packed = build(program)
    except Exception as error:
        error.add_note(f"in lowering to {backend}; {already_run(optimised.records)}")
        raise
    return Compiled(backend, executable, program, tuple(found), tuple(optimised.records), packed, max_memory, sizes)


def check_memory(max_memory: object) -> None:
    """Raises UnsupportedError if a limit is no number of bytes."""
    if max_memory is not None and not (isinstance(max_memory, int | float) and max_memory >= 0):
        raise UnsupportedError(
            f"max_memory={max_memory!r} is no number of bytes", hint="give bytes, 4 << 30 for 4 GiB, or None"
        )


def batch_sizes(batch: int | Sequence[int] | None) -> tuple[int, ...]:
    """The sizes that may be given as `batch`, ascending, each once; none for None.

    Raises:
        UnsupportedError: if one is no positive number.
    """
    given = () if batch is None else batch if isinstance(batch, Sequence) else (batch,)
    if any(type(size) is not int or size < 1 for size in given):
        raise UnsupportedError(
            f"batch={batch!r} is no size of a batch", hint="give a positive number or several: [1, 32]"
        )
    return tuple(sorted(set(given)))
