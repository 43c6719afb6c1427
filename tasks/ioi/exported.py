"""Hugging Face's model as torch exports it to ONNX, run by ONNX Runtime: what the onnx backend is measured beside."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from tapeout.ir.errors import UnsupportedError
from tapeout.tasks.ioi.setting import Setting


class _LastLogits(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> Any:
        return self.model(tokens, use_cache=False, logits_to_keep=1).logits[:, -1]


def exported_logit_diff(setting: Setting) -> Callable[[], torch.Tensor]:
    """A call that gives the logit differences [N]: the last position's logits by ONNX Runtime, then two of them.

    Raises:
        UnsupportedError: without onnxscript, which torch's exporter needs.
    """
    if find_spec("onnxscript") is None:
        raise UnsupportedError("torch.onnx.export needs onnxscript", hint="pip install onnxscript")
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's exporter
            torch.onnx.export(
                _LastLogits(setting.model).eval(),
                (setting.tokens[:2],),
                path,
                dynamo=True,
                verbose=False,
                input_names=["tokens"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
            )
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    tokens = setting.tokens.numpy()

    def logit_diff() -> torch.Tensor:
        (logits,) = session.run(None, {"tokens": tokens})
        left, right = torch.from_numpy(logits).gather(1, setting.labels).unbind(1)
        return left - right

    return logit_diff
