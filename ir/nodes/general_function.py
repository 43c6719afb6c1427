"""`GeneralFunction`: a named function of nodes, and one constructor a function."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import torch

from tapeout.ir.circuit import _AUTONAME, Circuit, auto_name
from tapeout.ir.dtypes import TorchDeviceDtypeOp
from tapeout.ir.errors import ParseError
from tapeout.ir.index_rules import AxisIndices, Pushed
from tapeout.ir.nodes.functions import FUNCTIONS, Cast, Function, GenIndex, TakesIndex, known_functions
from tapeout.ir.nodes.kernels import KERNEL_READERS
from tapeout.ir.sizes import Shape

F = TypeVar("F")

_DEVICE_DTYPE = r"\{device:([\w:]+),dtype:(\w+)\}"


def _read_gen_index(dim: str, batch_x: str | None, no_batch_index: str | None, check: str | None) -> GenIndex:
    return GenIndex(int(dim), batch_x is not None, no_batch_index is None, check is not None)


def _read_cast(*words: str) -> Cast:
    known = [None if word == "None" else word for word in words]
    return Cast(TorchDeviceDtypeOp(*known[:2]), TorchDeviceDtypeOp(*known[2:]))


_PARAMETRISED: tuple[tuple[re.Pattern[str], Callable[..., Function]], ...] = (
    (re.compile(r"gen_index_at_(-?\d+)(_batch_x)?(_no_batch_index)?(_c)?"), _read_gen_index),
    (re.compile(f"cast_from_{_DEVICE_DTYPE}_to_{_DEVICE_DTYPE}"), _read_cast),
    *KERNEL_READERS,
)
"""For functions with parameters: what their names look like, and how they are made of the parts."""


class GeneralFunction(Circuit):
    """A function of its children: see `tapeout.ir.nodes.functions` for which there are.

    Args:
        nodes: the function's arguments.
        spec: the function.
        name: the node's name.

    Raises:
        ShapeError, TypeMismatchError: if the arguments do not fit the function.
    """

    __slots__ = ()

    def __new__(cls, *nodes: Circuit, spec: Function, name: str | None = _AUTONAME) -> GeneralFunction:
        return cls._make((spec,), nodes, auto_name(name, nodes, spec.name + "({})", ", "))

    @staticmethod
    def new_by_name(*nodes: Circuit, spec_name: str, name: str | None = _AUTONAME) -> GeneralFunction:
        """The function of that name, parameters included, as it stands in a circuit's text.

        Raises:
            ParseError: if there is none.
        """
        return GeneralFunction(*nodes, spec=function_by_name(spec_name), name=name)

    @staticmethod
    def new_by_name_op(*nodes: Circuit, spec_name: str, name: str | None = _AUTONAME) -> GeneralFunction | None:
        """The function of that name, None if there is none."""
        try:
            function = function_by_name(spec_name)
        except ParseError:
            return None
        return GeneralFunction(*nodes, spec=function, name=name)

    @staticmethod
    def gen_index(
        x: Circuit,
        index: Circuit,
        index_dim: int,
        batch_x: bool = False,
        batch_index: bool = True,
        check_index_ints: bool = True,
        name: str | None = _AUTONAME,
    ) -> GeneralFunction:
        """Looks up entries of `x` along `index_dim`.

        Shapes, with `index_dim=1` and x `[a, b, c]` or, where batched, `[batch..., a, b, c]`:

        - neither batched: index `[i, j]` gives `[a, i, j, c]`;
        - `batch_index` alone: index `[i, j]` gives `[i, j, a, c]`;
        - both: index `[batch...]` gives `[batch..., a, c]`, `index_dim` counts after the batch axes;
        - `batch_x` alone: as with neither; `index_dim` must be negative.

        Raises:
            ShapeError: if the shapes do not fit.
            TypeMismatchError: if the index is not int64.
        """
        return GeneralFunction(x, index, spec=GenIndex(index_dim, batch_x, batch_index, check_index_ints), name=name)

    @staticmethod
    def new_cast(
        x: Circuit,
        input_required_compatibility: TorchDeviceDtypeOp = TorchDeviceDtypeOp(),  # noqa: B008 (immutable)
        output: TorchDeviceDtypeOp = TorchDeviceDtypeOp(),  # noqa: B008
        name: str | None = _AUTONAME,
    ) -> GeneralFunction:
        """`x` on another device or with another dtype."""
        return GeneralFunction(x, spec=Cast(input_required_compatibility, output), name=name)

    @property
    def spec(self) -> Function:
        return self.attributes[0]  # type: ignore[no-any-return]

    def _infer(self) -> tuple[Shape, torch.dtype | None]:
        return self.spec.infer(self)

    def _expand(self, children: tuple[Circuit, ...]) -> Circuit:
        function, full = self.spec.expand(self, children)
        return self._make((function,), full, self.op_name)

    def push_index(self, index: AxisIndices) -> Pushed | None:
        """As the function says."""
        return self.spec.push_index(self, index) if isinstance(self.spec, TakesIndex) else None

    def _text(self) -> str:
        return self.spec.name


def function_of(node: Circuit, kind: type[F]) -> F | None:
    """The function that the node applies, if it applies one of that class."""
    return node.spec if isinstance(node, GeneralFunction) and isinstance(node.spec, kind) else None


def function_by_name(name: str) -> Function:
    """The function of that name.

    Raises:
        ParseError: if there is none.
    """
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    for pattern, make in _PARAMETRISED:
        if match := pattern.fullmatch(name):
            return make(*match.groups())
    raise ParseError(
        f"no function is called {name!r}",
        hint=f"known are {', '.join(known_functions())}, gen_index_at_..., cast_from_... and the compiler's kernels",
    )


def _unary(spec_name: str, circuit: Circuit, name: str | None) -> GeneralFunction:
    return GeneralFunction(circuit, spec=FUNCTIONS[spec_name], name=name)


def sin(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Elementwise sine."""
    return _unary("sin", circuit, name)


def cos(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Elementwise cosine."""
    return _unary("cos", circuit, name)


def sigmoid(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Elementwise logistic function."""
    return _unary("sigmoid", circuit, name)


def tanh(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Elementwise hyperbolic tangent."""
    return _unary("tanh", circuit, name)


def rsqrt(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Elementwise 1 / sqrt(x)."""
    return _unary("rsqrt", circuit, name)


def gelu(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Elementwise x times the normal distribution function (the exact, erf form; Hendrycks and Gimpel 2016)."""
    return _unary("gelu", circuit, name)


def gelu_new(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """The tanh approximation of gelu, under Hugging Face's name for it; what GPT-2 uses."""
    return _unary("gelu_new", circuit, name)


def silu(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Elementwise x * sigmoid(x)."""
    return _unary("silu", circuit, name)


def relu(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Elementwise max(x, 0)."""
    return _unary("relu", circuit, name)


def step(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Elementwise 1 where x > 0, else 0."""
    return _unary("step", circuit, name)


def reciprocal(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Elementwise 1 / x."""
    return _unary("reciprocal", circuit, name)


def log_exp_p_1(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Elementwise log(exp(x) + 1)."""
    return _unary("log_exp_p_1", circuit, name)


def gaussian_pdf(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Elementwise density of the standard normal distribution."""
    return _unary("gaussian_pdf", circuit, name)


def gaussian_cdf(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Elementwise distribution function of the standard normal distribution."""
    return _unary("gaussian_cdf", circuit, name)


def softmax(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Softmax over the last axis."""
    return _unary("softmax", circuit, name)


def log_softmax(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Logarithm of the softmax over the last axis."""
    return _unary("log_softmax", circuit, name)


def rotate_half(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """`[-x2, x1]` for the halves `x1, x2` of the last axis (rotary embeddings; Su et al. 2021, half-rotation form)."""
    return _unary("rotate_half", circuit, name)


def min(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Minimum over the last axis."""
    return _unary("min", circuit, name)


def max(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Maximum over the last axis."""
    return _unary("max", circuit, name)


def last_dim_size(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """The size of the last axis, as a number; the shape is that without the last axis."""
    return _unary("last_dim_size", circuit, name)


def abs(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Elementwise absolute value."""
    return _unary("abs", circuit, name)


def exp(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Elementwise exponential."""
    return _unary("exp", circuit, name)


def log(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Elementwise natural logarithm."""
    return _unary("log", circuit, name)


def logit(circuit: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Elementwise log(x / (1 - x))."""
    return _unary("logit", circuit, name)


def pow(base: Circuit, exponent: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Elementwise power, broadcasting."""
    return GeneralFunction(base, exponent, spec=FUNCTIONS["pow"], name=name)


def minimum(x: Circuit, y: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Elementwise minimum, broadcasting."""
    return GeneralFunction(x, y, spec=FUNCTIONS["minimum"], name=name)


def maximum(x: Circuit, y: Circuit, name: str | None = _AUTONAME) -> GeneralFunction:
    """Elementwise maximum, broadcasting."""
    return GeneralFunction(x, y, spec=FUNCTIONS["maximum"], name=name)
