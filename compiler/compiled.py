"""What compiling gives: a callable with named inputs that knows what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from tapeout.backends.common.cuda_graphs import CudaGraphs
from tapeout.backends.common.devices import as_device, failures_told, out_of_memory
from tapeout.backends.common.executable import Executable
from tapeout.backends.common.program import Program
from tapeout.backends.common.rows import joined, split_rows
from tapeout.compiler.cost import Cost
from tapeout.compiler.inputs import Input, check_values
from tapeout.compiler.mapping import Progress, mapped
from tapeout.compiler.saving import save
from tapeout.ir import Circuit, postorder
from tapeout.ir.dtypes import dtype_name
from tapeout.ir.errors import ModuleBindingError, UnsupportedError
from tapeout.passes import PassRecord


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled circuit: call it with its inputs by name.

    Attributes:
        backend: what runs it.
        executable: what the backend made; `executable.module` is the torch module where there is one.
        program: what it was made of: the optimised circuits, and how they run.
        inputs: the inputs.
        passes: the execution passes that ran.
        packed_bytes: copies of weights in another layout.
        max_memory: bytes that a call may take; None for no limit.
        batch: batch sizes that calls are expected to have, ascending.
        graphs: on CUDA the calls of these sizes, or the one without inputs, captured; None where nothing is captured.
    """

    backend: str
    executable: Executable
    program: Program
    inputs: tuple[Input, ...]
    passes: tuple[PassRecord, ...]
    packed_bytes: int = 0
    max_memory: int | None = None
    batch: tuple[int, ...] = ()
    graphs: CudaGraphs | None = field(init=False, default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.device.type != "cuda" or not self.executable.is_capturable:
            return
        sizes = self.batch if self.inputs else (1,)
        fitting = [size for size in sizes if self.max_memory is None or self._fits(size, self.max_memory)]
        if fitting:
            object.__setattr__(self, "graphs", CudaGraphs(self.executable, fitting, self.device))

    def __call__(self, /, *unnamed: object, **values: torch.Tensor) -> Any:
        """The value, one row an entry of the batch; a tuple if several circuits were compiled together.

        Raises:
            ModuleBindingError, ShapeError, TypeMismatchError, DataError: for inputs that are wrong.
            UnsupportedError: if not even one row fits `max_memory`.
            DeviceError: if the device fails, or has too little memory for half of the rows.
        """
        if unnamed:
            names = ", ".join(f"{each.name}=..." for each in self.inputs)
            raise ModuleBindingError("inputs were given without names", hint=f"name them: compiled({names})")
        return self.run(check_values(self.inputs, values, self.device))

    def map(
        self, /, chunk: int | None = None, progress: Progress | None = None, **values: torch.Tensor
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The value of every row of a dataset that lies on the CPU, in chunks that fit the device; see `mapped`.

        Args:
            chunk: rows that are computed at once; None for as many as fit.
            progress: told how many rows are done.

        Returns:
            The value on the CPU, one row an entry of the dataset; a tuple if several circuits were compiled together.

        Raises:
            ModuleBindingError, ShapeError, TypeMismatchError, DataError: for inputs that are wrong.
            UnsupportedError: without inputs, or if not even one row fits.
            DeviceError: if the device runs out of memory even so.
        """
        out: torch.Tensor | tuple[torch.Tensor, ...] = mapped(
            self, check_values(self.inputs, values, torch.device("cpu")), chunk, progress
        )
        return out

    def run(self, given: Sequence[torch.Tensor]) -> Any:
        """What a call does with values that were checked, in the order of the inputs.

        Where memory runs out, it is tried once more in halves.
        """
        rows = len(given[0]) if given else 1
        with failures_told(self.device):
            try:
                if self.graphs is not None:
                    return self.graphs(*given)
                return self._in_parts(
                    given, rows if self.max_memory is None else self.rows_within(self.max_memory, rows)
                )
            except torch.OutOfMemoryError:
                pass  # outside of the handler, which would hold what the call had allocated
            torch.cuda.empty_cache()
            try:
                if rows > 1:
                    return self._in_parts(given, -(-rows // 2))
            except torch.OutOfMemoryError:
                pass
        raise out_of_memory(
            self.device,
            self.cost(-(-rows // 2)).peak_bytes,
            "give fewer rows, or compile with max_memory, which computes them in parts, or to bfloat16",
        )

    def _in_parts(self, given: Sequence[torch.Tensor], part: int) -> Any:
        if not given or part >= len(given[0]):
            return self.executable(*given)
        return joined([self.executable(*each) for each in split_rows(given, part)])

    @property
    def roots(self) -> tuple[Circuit, ...]:
        """The optimised circuits."""
        return tuple(self.program.roots)

    @property
    def origins(self) -> Mapping[Circuit, str]:
        """Names for their nodes."""
        return self.program.origins

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of floating values."""
        return self.program.dtype

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.program.device

    @property
    def source(self) -> str:
        """What runs, as code to read."""
        return self.executable.source

    def cost(self, batch: int = 1) -> Cost:
        """What one call on that many rows costs."""
        return Cost.of(self.roots, batch, self.dtype, self.packed_bytes, self.program.order)

    def rows_within(self, memory: int, rows: int) -> int:
        """How many of `rows` rows can be computed at once in so many bytes, by the estimate of `cost`.

        Raises:
            UnsupportedError: if not even one can.
        """
        fits, fails = 0, rows + 1
        while fails - fits > 1:
            middle = (fits + fails) // 2
            fits, fails = (middle, fails) if self._fits(middle, memory) else (fits, middle)
        if fits == 0:
            raise UnsupportedError(
                f"one row takes {self.cost(1).peak_bytes:,} bytes, more than max_memory={memory:,}",
                hint=f"the weights alone are {self.cost(1).weight_bytes:,} bytes; allow more, or compile to bfloat16",
            )
        return fits

    def _fits(self, rows: int, memory: int) -> bool:
        return self.cost(rows).peak_bytes <= memory

    def to(self, device: torch.device | str) -> Compiled:
        """The same on another device.

        Raises:
            UnsupportedError: for one that is not here, or that the backend does not run on.
        """
        where = as_device(device)
        return replace(self, executable=self.executable.to(where), program=replace(self.program, device=where))

    def save(self, path: str | Path, force: bool = False) -> None:
        """Writes it to a folder that `tapeout.compiler.load` reads; see `tapeout.compiler.saving`.

        The folder appears whole or not at all: an interrupted save leaves what was there.

        Args:
            path: the folder.
            force: replace an artefact that is there.

        Raises:
            ArtefactError: if the folder exists and `force` is not set, is no artefact, or cannot be written.
            LoweringError: if it cannot be compiled ahead of time (inductor).
            UnsupportedError: for a backend that cannot be saved.
        """
        save(Path(path), self.backend, self.executable, self.roots, self.manifest(), force)

    def manifest(self) -> dict[str, Any]:
        """What an artefact's manifest says of it, as JSON's types."""
        order = list(postorder(*self.roots))
        options = getattr(self.executable, "options", None)
        return {
            "dtype": dtype_name(self.dtype),
            "device": str(self.device),
            "inputs": [each.to_json() for each in self.inputs],
            "outputs": len(self.roots),
            "max_memory": self.max_memory,
            "batch": list(self.batch),
            "packed_bytes": self.packed_bytes,
            "numerics": asdict(self.program.numerics),
            "options": None if options is None else asdict(options),
            "passes": [asdict(each) for each in self.passes],
            "origins": [[i, self.origins[node]] for i, node in enumerate(order) if node in self.origins],
        }

    def __repr__(self) -> str:
        names = ", ".join(each.name for each in self.inputs)
        return f"<Compiled {self.backend} ({names}) {str(self.dtype).removeprefix('torch.')} on {self.device}>"
