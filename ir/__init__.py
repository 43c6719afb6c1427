"""The IR: what a circuit is. Imports nothing else of tapeout."""

from tapeout.ir.axis_index import I
from tapeout.ir.circuit import Circuit, nodes_below, postorder
from tapeout.ir.dtypes import TorchDeviceDtype, TorchDeviceDtypeOp
from tapeout.ir.files.store import tensors_of
from tapeout.ir.matching.iterative import (
    FINISHED,
    IterateMatchResults,
    IterativeMatcher,
    new_traversal,
    restrict,
    restrict_sl,
    traverse_until_depth,
)
from tapeout.ir.matching.matcher import Matcher, Regex
from tapeout.ir.nodes.add import Add
from tapeout.ir.nodes.array import Array
from tapeout.ir.nodes.concat import Concat
from tapeout.ir.nodes.discrete_var import DiscreteVar
from tapeout.ir.nodes.einsum import Einsum
from tapeout.ir.nodes.general_function import (
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
from tapeout.ir.nodes.index import Index
from tapeout.ir.nodes.module import Module, ModuleArgSpec, ModuleSpec
from tapeout.ir.nodes.rearrange import Rearrange, RearrangeSpec
from tapeout.ir.nodes.scalar import Scalar
from tapeout.ir.nodes.scatter import Scatter
from tapeout.ir.nodes.set_symbolic_shape import SetSymbolicShape
from tapeout.ir.nodes.tag import Tag
from tapeout.ir.rewriting.binding import BindItem, get_free_symbols, module_new_bind
from tapeout.ir.rewriting.cast import cast_circuit
from tapeout.ir.rewriting.expander import Expander
from tapeout.ir.rust_names.objects import AnyFound, BoundAnyFound, BoundGetter, BoundUpdater, Getter, Transform, Updater
from tapeout.ir.sizes import SymbolicSize, dim, symbolic_sizes
from tapeout.ir.substitution import replace_nodes, substitute_symbols
from tapeout.ir.symbol import Symbol
from tapeout.ir.text.diff import diff_circuits
from tapeout.ir.text.html import PrintHtmlOptions
from tapeout.ir.text.options import PrintOptions
from tapeout.ir.text.parse import parse_circuit, parse_circuits
from tapeout.ir.text.printing import circuit_text

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
