"""The inductor backend as something to call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from tapeout.backends.common.numerics import Numerics
from tapeout.backends.common.program import Program
from tapeout.backends.common.quiet import without_known_warnings
from tapeout.backends.common.rows import filled_up, first_rows
from tapeout.backends.fx.lower import lower
from tapeout.backends.inductor.aot import AotExecutable, package
from tapeout.backends.inductor.examples import EXAMPLE_ROWS, LEAST_ROWS, LEAST_SIZE, examples, open_axes
from tapeout.backends.inductor.freezing import options, packed_bytes
from tapeout.ir import Symbol
from tapeout.ir.errors import LoweringError, UnsupportedError
from tapeout.ir.sizes import BATCH


class InductorExecutable:
    """A compiled GraphModule: one graph for batches of every size.

    Where sizes besides the batch are open, the first call compiles, and so does the first one in which another
    of them is 1: torch compiles such sizes apart.

    Attributes:
        module: the fx module that was compiled.
        inputs: its inputs.
        device: where it runs.
        rows: the batch size that the compiler took for typical.
        numerics: how its products are computed.
    """

    is_capturable = True

    def __init__(
        self,
        module: fx.GraphModule,
        inputs: Sequence[Symbol],
        device: torch.device,
        rows: int | None = None,
        numerics: Numerics = Numerics(),  # noqa: B008
    ) -> None:
        self.module = module
        self.inputs = tuple(inputs)
        self.device = device
        self.numerics = numerics
        self.rows = max(rows or EXAMPLE_ROWS, LEAST_ROWS)
        self._batched = [number for number, symbol in enumerate(inputs) if symbol.shape[:1] == (BATCH,)]
        self._open = tuple(open_axes(inputs))
        self._compiled: dict[tuple[bool, ...], Callable[..., Any]] = {}
        values = examples(self.inputs, device, self.rows)
        if values is not None:
            self._compiled_for(_as_compiled(values))

    @property
    def source(self) -> str:
        return self.module.code

    def __call__(self, *values: torch.Tensor) -> Any:
        given = _as_compiled(values)
        batched = [given[number] for number in self._batched]
        rows = batched[0].shape[0] if batched else LEAST_ROWS
        if rows < LEAST_ROWS:
            for number, filled in zip(self._batched, filled_up(batched, LEAST_ROWS), strict=True):
                given[number] = filled
        run = self._compiled_for(given)
        with self.numerics.applied(self.device), torch.inference_mode():
            out = run(*given)
        return out if rows >= LEAST_ROWS else first_rows(out, rows)

    def _compiled_for(self, values: Sequence[torch.Tensor]) -> Callable[..., Any]:
        """What computes values of these shapes, compiled where nothing so far does."""
        case = tuple(values[number].shape[axis] < LEAST_SIZE for number, axis in self._open)
        if case not in self._compiled:
            free = [place for place, is_special in zip(self._open, case, strict=True) if not is_special]
            with self.numerics.applied(self.device):
                self._compiled[case] = _compiled(self.module, values, free, self.device)
        return self._compiled[case]

    def to(self, device: torch.device) -> InductorExecutable:
        from copy import deepcopy

        return InductorExecutable(deepcopy(self.module).to(device), self.inputs, device, self.rows, self.numerics)

    def save(self, path: Path) -> None:
        """Writes a package that needs neither tapeout nor a compiler: see `aot.package`."""
        package(self.module, self.inputs, self.device, path, self.rows)


def build(program: Program) -> tuple[InductorExecutable, int]:
    """The executable, compiled, and the bytes of weights copied into another layout.

    Raises:
        UnsupportedError: without a C++ compiler.
        LoweringError: if Inductor cannot compile the fx module.
    """
    check_compiler()
    module, packed = lower(program)
    executable = InductorExecutable(module, program.inputs, program.device, program.rows, program.numerics)
    return executable, packed + packed_bytes(module, program.device)


def load(path: Path, device: torch.device, numerics: Numerics = Numerics()) -> AotExecutable:  # noqa: B008
    """Reads a package that was saved.

    Raises:
        ArtefactError: if it does not run here.
    """
    return AotExecutable(path, device, numerics)


def check_compiler() -> None:
    """Raises UnsupportedError if there is no C++ compiler for Inductor."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError) as error:
        raise UnsupportedError(
            "the inductor backend found no C++ compiler",
            facts=str(error).strip().splitlines()[:1],
            hint="install one (Debian: apt-get install g++, macOS: xcode-select --install), or name it in CXX; "
            "the backends fx and torchscript need none",
        ) from error


def _compiled(
    module: fx.GraphModule, values: Sequence[torch.Tensor], free: Iterable[tuple[int, int]], device: torch.device
) -> Callable[..., Any]:
    """The module compiled by running it once on the values, for every size of the free axes from 2."""
    from torch._dynamo import mark_dynamic
    from torch._inductor import config

    run = torch.compile(module, fullgraph=True)
    for number, axis in free:
        mark_dynamic(values[number], axis)
    try:
        with without_known_warnings(), config.patch(options(module, device)), torch.inference_mode():
            run(*values)
    except Exception as error:  # torch raises errors of many kinds here
        raise LoweringError(
            f"Inductor cannot compile the fx module: {type(error).__name__}",
            facts=str(error).strip().splitlines()[:8],
            hint="use backend='fx', and report it with the circuit's text",
        ) from error
    return run


@torch.inference_mode(False)
@torch.no_grad()
def _as_compiled(values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The values as torch.compile saw them: it would compile anew for other strides, for one tensor given
    for two inputs and for tensors made in inference mode."""
    return [
        each.clone(memory_format=torch.contiguous_format)
        if each.is_inference() or not _is_plain(each)
        else each.detach()
        for each in values
    ]


def _is_plain(value: torch.Tensor) -> bool:
    """Whether the strides are those of a new tensor; `is_contiguous` overlooks axes of size 1."""
    wanted = 1
    for size, stride in zip(reversed(value.shape), reversed(value.stride()), strict=True):
        if stride != wanted:
            return False
        wanted *= max(size, 1)
    return True
