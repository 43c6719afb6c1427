"""The onnx backend: a circuit as an ONNX model, built node by node, and ONNX Runtime to run it."""

from tapeout.backends.onnx.options import OnnxOptions

__all__ = ["OnnxOptions"]
