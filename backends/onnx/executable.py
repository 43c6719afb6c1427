"""The onnx backend as something to call."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnx_ir
import torch
from onnx_ir.tensor_adapters import from_torch_dtype

from tapeout.backends.common.numerics import Numerics
from tapeout.backends.common.program import Program
from tapeout.backends.onnx import session
from tapeout.backends.onnx.file import write
from tapeout.backends.onnx.lower import lower
from tapeout.backends.onnx.options import OnnxOptions
from tapeout.backends.onnx.text import readable
from tapeout.ir.errors import DataError, UnsupportedError

Options = OnnxOptions

_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(bfloat16)": torch.bfloat16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(bool)": torch.bool,
}
"""What ONNX Runtime calls the dtypes of inputs and outputs."""


class OnnxExecutable:
    """An ONNX model and the session that runs it, on torch's own memory.

    Attributes:
        model: the model (onnx-ir); None if it was loaded.
        path: where it was loaded from; None if it was compiled.
        device: where it runs.
        options: how.
        numerics: how its products are computed.
    """

    is_capturable = False

    def __init__(
        self,
        model: onnx_ir.Model | None,
        path: Path | None,
        device: torch.device,
        options: OnnxOptions,
        numerics: Numerics = Numerics(),  # noqa: B008
    ) -> None:
        self.model, self.path, self.device, self.options, self.numerics = model, path, device, options, numerics
        if model is not None:
            self._session = session.of_model(model, device, options, numerics)
        elif path is not None:
            self._session = session.of_file(path, device, options, numerics)
        else:
            raise UnsupportedError("there is neither a model nor a file", hint="give one of them")
        self._nothing = torch.empty(1, device=device)  # an address for tensors without entries
        self._inputs = [each.name for each in self._session.get_inputs()]
        self._shapes = [each.shape for each in self._session.get_inputs()]
        self._outputs = [(each.name, each.shape, _DTYPES[each.type]) for each in self._session.get_outputs()]

    @property
    def source(self) -> str:
        return readable(self.model if self.model is not None else onnx_ir.load(self._file))

    @property
    def _file(self) -> Path:
        if self.path is None:
            raise UnsupportedError("the model is in no file", hint="save it first")
        return self.path

    def __call__(self, *values: torch.Tensor) -> Any:
        given = [value.detach().contiguous() for value in values]
        rows = len(given[0]) if given else 1
        sizes = {
            name: size
            for shape, value in zip(self._shapes, given, strict=True)
            for name, size in zip(shape, value.shape, strict=True)
        }
        results = [
            torch.empty(
                [size if isinstance(size, int) else sizes.get(size, rows) for size in shape],
                dtype=dtype,
                device=self.device,
            )
            for _, shape, dtype in self._outputs
        ]
        binding = self._session.io_binding()
        for name, value in zip(self._inputs, given, strict=True):
            binding.bind_input(name, *self._place(value))
        for (name, _, _), value in zip(self._outputs, results, strict=True):
            binding.bind_output(name, *self._place(value))
        try:
            self._session.run_with_iobinding(binding)
        except (RuntimeError, *session.ERRORS) as error:
            raise DataError(
                f"ONNX Runtime failed: {str(error).strip().splitlines()[0]}",
                hint="an index out of range, or too little memory: compare with backend='fx'",
            ) from error
        return results[0] if len(results) == 1 else tuple(results)

    def _place(self, value: torch.Tensor) -> tuple[str, int, int, list[int], int]:
        """Device, its number, dtype, shape and address of a tensor, as ONNX Runtime takes them."""
        address = value.data_ptr() or self._nothing.data_ptr()
        return (
            value.device.type,
            value.device.index or 0,
            int(from_torch_dtype(value.dtype)),
            list(value.shape),
            address,
        )

    def to(self, device: torch.device) -> OnnxExecutable:
        """The same on another device."""
        if device == self.device:
            return self
        return OnnxExecutable(self.model, self.path, device, self.options, self.numerics)

    def save(self, path: Path) -> None:
        """Writes the model: any ONNX runtime reads it, without tapeout. See `file.write`."""
        if self.model is not None:
            write(self.model, path, self.options.external_data)
            return
        shutil.copyfile(self._file, path)
        data = self._file.with_name(self._file.name + ".data")
        if data.exists():
            shutil.copyfile(data, path.with_name(data.name))


def build(program: Program, options: OnnxOptions) -> tuple[OnnxExecutable, int]:
    """The executable, and the bytes of weights copied into another layout.

    Raises:
        UnsupportedError: for what ONNX or ONNX Runtime cannot express or run, with the node where there is one.
        LoweringError: if ONNX Runtime refuses the model.
    """
    if program.dtype is torch.bfloat16 and program.device.type == "cpu":
        raise UnsupportedError(
            "ONNX Runtime has no bfloat16 kernels for the CPU, not even of products",
            hint="compile to float32, use device='cuda', or backend='fx' for bfloat16",
        )
    model, packed = lower(program, options)
    return OnnxExecutable(model, None, program.device, options, program.numerics), packed


def load(path: Path, device: torch.device, options: OnnxOptions, numerics: Numerics = Numerics()) -> OnnxExecutable:  # noqa: B008
    """Reads a model that was saved.

    Raises:
        ArtefactError: if it cannot be read.
        UnsupportedError: if ONNX Runtime does not have the device.
    """
    return OnnxExecutable(None, path, device, options, numerics)
