"""The IR: what a circuit is. Imports nothing else of tapeout."""

from tapeout.ir.add import Add
from tapeout.ir.array import Array
from tapeout.ir.axis_index import I
from tapeout.ir.binding import BindItem, get_free_symbols, module_new_bind
from tapeout.ir.cast import cast_circuit
from tapeout.ir.circuit import Circuit, nodes_below, postorder
from tapeout.ir.concat import Concat
from tapeout.ir.diff import diff_circuits
from tapeout.ir.discrete_var import DiscreteVar
from tapeout.ir.dtypes import TorchDeviceDtype, TorchDeviceDtypeOp
from tapeout.ir.einsum import Einsum
from tapeout.ir.expand import replace_nodes, substitute_symbols
from tapeout.ir.expander import Expander
from tapeout.ir.general_function import (
    GeneralFunction,
    abs,
    cos,
    exp,
    gaussian_cdf,
    gaussian_pdf,
    gelu,
    gelu_new,
    last_dim_size,
    log,
    log_exp_p_1,
    log_softmax,
    logit,
    max,
    maximum,
    min,
    minimum,
    pow,
    reciprocal,
    relu,
    rotate_half,
    rsqrt,
    sigmoid,
    silu,
    sin,
    softmax,
    step,
    tanh,
)
from tapeout.ir.html import PrintHtmlOptions
from tapeout.ir.index import Index
from tapeout.ir.iterative import (
    FINISHED,
    IterateMatchResults,
    IterativeMatcher,
    new_traversal,
    restrict,
    restrict_sl,
    traverse_until_depth,
)
from tapeout.ir.matcher import Matcher, Regex
from tapeout.ir.module import Module, ModuleArgSpec, ModuleSpec
from tapeout.ir.parse import parse_circuit, parse_circuits
from tapeout.ir.print_options import PrintOptions
from tapeout.ir.rearrange import Rearrange, RearrangeSpec
from tapeout.ir.scalar import Scalar
from tapeout.ir.scatter import Scatter
from tapeout.ir.search_objects import AnyFound, BoundAnyFound, BoundGetter, BoundUpdater, Getter, Transform, Updater
from tapeout.ir.set_symbolic_shape import SetSymbolicShape
from tapeout.ir.sizes import SymbolicSize, dim, symbolic_sizes
from tapeout.ir.store import tensors_of
from tapeout.ir.symbol import Symbol
from tapeout.ir.tag import Tag
from tapeout.ir.text import circuit_text

__all__ = [
    "FINISHED", "Add", "AnyFound", "Array", "BindItem", "BoundAnyFound", "BoundGetter", "BoundUpdater", "Circuit",
    "Concat", "DiscreteVar", "Einsum", "Expander", "GeneralFunction", "Getter", "I", "Index", "IterateMatchResults",
    "IterativeMatcher", "Matcher", "Module", "ModuleArgSpec", "ModuleSpec", "PrintHtmlOptions", "PrintOptions",
    "Rearrange", "RearrangeSpec", "Regex", "Scalar", "Scatter", "SetSymbolicShape", "Symbol", "SymbolicSize", "Tag",
    "TorchDeviceDtype", "TorchDeviceDtypeOp", "Transform", "Updater", "abs", "cast_circuit", "circuit_text", "cos",
    "diff_circuits", "dim", "exp", "gaussian_cdf", "gaussian_pdf", "gelu", "gelu_new", "get_free_symbols",
    "last_dim_size", "log", "log_exp_p_1", "log_softmax", "logit", "max", "maximum", "min", "minimum",
    "module_new_bind", "new_traversal", "nodes_below", "parse_circuit", "parse_circuits", "postorder", "pow",
    "reciprocal", "relu", "replace_nodes", "restrict", "restrict_sl", "rotate_half", "rsqrt", "sigmoid", "silu",
    "sin", "softmax", "step", "substitute_symbols", "symbolic_sizes", "tanh", "tensors_of", "traverse_until_depth",
]  # fmt: skip
