"""ONNX Runtime: sessions on one device, with the threads and memory that were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir
import onnxruntime
import torch

from tapeout.backends.common.numerics import Numerics
from tapeout.backends.onnx.file import skeleton
from tapeout.backends.onnx.options import OnnxOptions
from tapeout.ir.errors import ArtefactError, LoweringError, UnsupportedError

_CUDA = "CUDAExecutionProvider"

_INEXACT = ["MatMulScaleFusion"]
"""Fusions of ONNX Runtime that keep a factor in float32, whatever the model's dtype is."""


def of_model(
    model: onnx_ir.Model, device: torch.device, options: OnnxOptions, numerics: Numerics
) -> onnxruntime.InferenceSession:
    """A session of a model in memory.

    Raises:
        UnsupportedError: if ONNX Runtime does not have the device, or a kernel for an operator.
        LoweringError: if it refuses the model.
    """
    proto, tensors = skeleton(model)
    settings = _settings(device, options, numerics)
    lying = {name: tensor.contiguous() for name, tensor in tensors.items()}  # held until the session has copied them
    settings.add_external_initializers(list(lying), [_value(tensor) for tensor in lying.values()])
    try:
        return _started(proto.SerializeToString(), settings, device, numerics)
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented as error:
        raise UnsupportedError(
            f"ONNX Runtime cannot run the model: {_first_line(error)}",
            hint="compile to float32, or use backend='fx'",
        ) from error
    except ERRORS as error:
        raise LoweringError(
            f"ONNX Runtime refuses the model: {_first_line(error)}",
            hint="use backend='fx', and report it with the circuit's text",
        ) from error


def of_file(path: Path, device: torch.device, options: OnnxOptions, numerics: Numerics) -> onnxruntime.InferenceSession:
    """A session of a model in a file.

    Raises:
        ArtefactError: if it is no model.
        UnsupportedError: if ONNX Runtime does not have the device.
    """
    try:
        return _started(str(path), _settings(device, options, numerics), device, numerics)
    except ERRORS as error:
        raise ArtefactError(f"{path} is no ONNX model: {_first_line(error)}", hint="save it again") from error


ERRORS = (
    onnxruntime.capi.onnxruntime_pybind11_state.Fail,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidProtobuf,
    onnxruntime.capi.onnxruntime_pybind11_state.NoSuchFile,
    onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented,
    onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException,
)


def _settings(device: torch.device, options: OnnxOptions, numerics: Numerics) -> onnxruntime.SessionOptions:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # what goes wrong is raised
    settings.intra_op_num_threads = options.threads or torch.get_num_threads()
    settings.enable_cpu_mem_arena = options.arena
    settings.use_deterministic_compute = numerics.deterministic
    if device.type != "cpu":
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    return settings


def _started(
    model: bytes | str, settings: Any, device: torch.device, numerics: Numerics
) -> onnxruntime.InferenceSession:
    if device.type == "cpu":
        return onnxruntime.InferenceSession(
            model, settings, providers=["CPUExecutionProvider"], disabled_optimizers=_INEXACT
        )
    if device.type != "cuda":
        raise UnsupportedError(f"ONNX Runtime does not run on {device}", hint="use device 'cpu' or 'cuda'")
    missing = UnsupportedError(
        f"ONNX Runtime cannot use {device}", hint="install onnxruntime-gpu and CUDA's libraries, or use device='cpu'"
    )
    if _CUDA not in onnxruntime.get_available_providers() or not torch.cuda.is_available():
        raise missing
    where = {
        "device_id": device.index or 0,
        "user_compute_stream": str(torch.cuda.current_stream(device).cuda_stream),
        "use_tf32": int(numerics.tf32),
    }
    session = onnxruntime.InferenceSession(model, settings, providers=[(_CUDA, where)], disabled_optimizers=_INEXACT)
    if session.get_providers()[0] != _CUDA:  # it is a listed provider that could not be loaded
        raise missing
    return session


def _value(tensor: torch.Tensor) -> onnxruntime.OrtValue:
    if tensor.dtype is torch.bfloat16:
        bits = tensor.view(torch.uint16).numpy()
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, int(onnx_ir.DataType.BFLOAT16))
    return onnxruntime.OrtValue.ortvalue_from_numpy(tensor.numpy())


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
