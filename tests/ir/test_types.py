"""What a node's shape and dtype are, and every mistake with its kind of error and its hint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import integers, symbol, tensor

from tapeout.ir import (
    Add,
    Array,
    Circuit,
    Concat,
    DiscreteVar,
    Einsum,
    GeneralFunction,
    I,
    Index,
    Module,
    ModuleArgSpec,
    ModuleSpec,
    Rearrange,
    RearrangeSpec,
    Scalar,
    Scatter,
    SetSymbolicShape,
    Symbol,
    TorchDeviceDtypeOp,
    abs,
    cast_circuit,
    dim,
    last_dim_size,
    log_softmax,
    max,
    maximum,
    module_new_bind,
    pow,
    relu,
    rotate_half,
    sin,
    softmax,
    step,
    substitute_symbols,
)
from tapeout.ir.errors import (
    ModuleBindingError,
    ParseError,
    ShapeError,
    TapeoutError,
    TypeMismatchError,
    UnsupportedError,
)

SEQ, HID = dim("SEQ"), dim("HID")
F16, F32, F64, I64 = torch.float16, torch.float32, torch.float64, torch.int64


def array(*shape: int, name: str = "x", dtype: torch.dtype = F64) -> Array:
    return Array(tensor(*shape, seed=sum(shape), dtype=dtype), name)


X = array(2, 3)
ROW = array(3, name="row")
SINGLE = array(2, 3, name="single", dtype=F32)
WHERE = Array(integers(5, below=2), "where")
S, T = symbol(1, (3,), "s"), symbol(2, (SEQ, 3), "t")


def bound(*arg_specs: ModuleArgSpec, body: Circuit | None = None, **arguments: Circuit) -> Module:
    whole = body if body is not None else Add(*(spec.symbol for spec in arg_specs), name="body")
    return Module(ModuleSpec(whole, arg_specs), "call", **arguments)


MISTAKES: dict[str, tuple[Callable[[], Any], type[TapeoutError], str]] = {
    # -- Array, Scalar, Symbol
    "array of a list": (lambda: Array([1.0], "w"), TypeMismatchError, "holds a torch.Tensor, not list"),  # type: ignore[arg-type]
    "negative size": (lambda: Scalar(1.0, (-1,)), ShapeError, "not a size: -1"),
    "fractional size": (lambda: Symbol.new_with_random_uuid((2.5,)), ShapeError, r"not a size: 2\.5"),  # type: ignore[arg-type]
    "text for a size": (lambda: Symbol.new_with_random_uuid(("3",)), ShapeError, "not a size: '3'"),  # type: ignore[arg-type]
    "boolean size": (lambda: Scalar(1.0, (True,)), ShapeError, "not a size: True"),
    # -- Add
    "add shapes": (
        lambda: Add(X, array(2, 2, name="y"), name="total"),
        ShapeError,
        r"'total' do not broadcast: sizes 3 and 2 at axis -1.*<x \[2, 3\] Array>.*only size 1 expands",
    ),
    "add dtypes": (
        lambda: Add(X, SINGLE, name="total"),
        TypeMismatchError,
        "'total' have different dtypes: float64 and float32.*hint: dtypes never mix: cast",
    ),
    "add symbolic": (lambda: Add(symbol(3, (SEQ, SEQ), "a"), array(2, 3)), ShapeError, "do not broadcast"),
    # -- Einsum
    "einsum rank": (
        lambda: Einsum.from_einsum_string("a->a", X, name="product"),
        ShapeError,
        r"'product' \(a->a\) gives 1 axes to an operand of rank 2",
    ),
    "einsum sizes": (
        lambda: Einsum.from_einsum_string("ab,bc->ac", X, X, name="product"),
        ShapeError,
        r"'product' \(ab,bc->ac\): axis 'b' has sizes 3 and 2.*size 1 does not broadcast",
    ),
    "einsum size 1": (
        lambda: Einsum.from_einsum_string("ab,ab->a", X, array(2, 1, name="y")),
        ShapeError,
        "axis 'b' has sizes 3 and 1",
    ),
    "einsum diagonal": (
        lambda: Einsum.from_einsum_string("aa->a", X),
        ShapeError,
        "axis 'a' has sizes 2 and 3",
    ),
    "einsum output axis": (
        lambda: Einsum((X, (0, 1)), out_axes=(0, 2)),
        ShapeError,
        "has an output axis that no operand has.*hint: an output axis must occur before the arrow",
    ),
    "einsum output axis in a string": (
        lambda: Einsum.from_einsum_string("ab->abc", X),
        ShapeError,
        r"ab->abc\) has an output axis that no operand has",
    ),
    "einsum dtypes": (
        lambda: Einsum.from_einsum_string("ab,ab->", X, SINGLE),
        TypeMismatchError,
        "different dtypes",
    ),
    "einsum without arrow": (lambda: Einsum.from_einsum_string("ab", X), ParseError, "not an einsum: 'ab'"),
    "einsum with digits": (lambda: Einsum.from_einsum_string("a1->a", X), ParseError, "one letter an axis"),
    "einsum operands": (
        lambda: Einsum.from_einsum_string("ab,b->a", X),
        ParseError,
        "has 2 operands, but 1 nodes were given",
    ),
    "einsum axes apart": (
        lambda: Einsum.from_nodes_ints([X], [(0, 1), (1,)], (0,)),
        ShapeError,
        "1 nodes and 2 tuples of axes",
    ),
    "product": (lambda: X.mul(array(2, name="y")), ShapeError, "sizes 3 and 2"),
    # -- Rearrange
    "rearrange without arrow": (lambda: X.rearrange_str("a b"), ParseError, "not a rearrangement: 'a b'"),
    "rearrange with an open bracket": (
        lambda: X.rearrange_str("(a b -> a b"),
        ParseError,
        "not a rearrangement",
    ),
    "rearrange with a closed bracket": (
        lambda: X.rearrange_str("a b) -> a b"),
        ParseError,
        "not a rearrangement",
    ),
    "rearrange with nested brackets": (
        lambda: X.rearrange_str("(a (b)) -> a b"),
        ParseError,
        "not a rearrangement",
    ),
    "rearrange with signs": (lambda: X.rearrange_str("a b -> a, b"), ParseError, "not a rearrangement"),
    "rearrange with two sizes": (
        lambda: X.rearrange_str("a:2 b -> b a:3"),
        ParseError,
        "axis 'a' has two sizes",
    ),
    "rearrange twice on the left": (
        lambda: array(3, 3).rearrange_str("a a -> a"),
        ParseError,
        "an axis occurs twice on one side.*hint: use Einsum",
    ),
    "rearrange twice on the right": (
        lambda: ROW.rearrange_str("a -> a a"),
        ParseError,
        "occurs twice on one side",
    ),
    "rearrange spec with a repeated axis": (
        lambda: Rearrange(array(3, 3), RearrangeSpec(((0,), (0,)), ((0,),), (None,))),
        ShapeError,
        "does not fit",
    ),
    "rearrange rank": (
        lambda: X.rearrange_str("a b c -> a b c", "turned"),
        ShapeError,
        r"'turned' .*does not fit <x \[2, 3\] Array> of shape \[2,3\].*at most one part of unknown size",
    ),
    "rearrange sizes": (lambda: X.rearrange_str("a (b:2 c) -> a b c"), ShapeError, "does not fit"),
    "rearrange unknown sizes": (
        lambda: X.rearrange_str("a (b c) -> a b c"),
        ShapeError,
        "give sizes as 'h:12'",
    ),
    "rearrange repeat without size": (lambda: X.rearrange_str("a b -> a b c"), ShapeError, "does not fit"),
    "rearrange drops": (
        lambda: X.rearrange_str("a b -> a"),
        ShapeError,
        "drops an axis .* that is not of size 1",
    ),
    "rearrange squeeze": (lambda: X.rearrange_str("a 1 -> a"), ShapeError, "does not fit"),
    "reshape": (
        lambda: Rearrange.reshape(X, (4,)),
        ShapeError,
        r"cannot reshape <x \[2, 3\] Array> to \[4\]: 6 elements against 4",
    ),
    "squeeze": (lambda: X.squeeze(0), ShapeError, "does not fit"),
    "squeeze axis": (lambda: X.squeeze(2), ShapeError, r"has no axis 2.*hint: axes are from -2 to 1"),
    "unsqueeze axis": (lambda: X.unsqueeze(3), ShapeError, r"has no axis \[3\].*hint: axes are from -3 to 2"),
    "unsqueeze twice": (lambda: X.unsqueeze((0, -4)), ShapeError, "give each new axis once"),
    "expand sizes": (lambda: X.expand_at_axes((0, 1), (2,)), ShapeError, "as many sizes as axes"),
    "unflatten rank": (
        lambda: X.unflatten((2, 3)),
        ShapeError,
        "unflatten takes a node with one axis.*unflatten_axis",
    ),
    "unflatten size": (lambda: ROW.unflatten((2, 2)), ShapeError, "does not fit"),
    "unflatten axis": (lambda: X.unflatten_axis(2, (1, 3)), ShapeError, "has no axis 2"),
    "sum axis": (lambda: X.sum(2), ShapeError, "has no axis 2"),
    "mean axis": (lambda: X.mean((0, -3)), ShapeError, "has no axis"),
    "max axis": (lambda: X.max(-3), ShapeError, "has no axis -3"),
    "max of a number": (lambda: Scalar(1.0).max(0), ShapeError, "has no axis 0"),
    "mean symbolic": (lambda: T.mean(0), UnsupportedError, "symbolic size SEQ.*hint: use last_dim_size"),
    # -- Index: never clipped
    "index below": (
        lambda: X.index(I[-3]),
        ShapeError,
        r"index -3 is out of range for an axis of size 2 of <x \[2, 3\] Array>.*never clipped",
    ),
    "index above": (lambda: X.index(I[0, 3]), ShapeError, "index 3 is out of range for an axis of size 3"),
    "slice above": (
        lambda: X.index(I[:, 1:4]),
        ShapeError,
        "index 1:4 is out of range for an axis of size 3",
    ),
    "slice below": (lambda: X.index(I[:, -4:]), ShapeError, "index -4: is out of range"),
    "slice backwards": (lambda: X.index(I[:, 2:1]), ShapeError, "index 2:1 is out of range"),
    "slice step": (lambda: X.index(I[::2]), ShapeError, "slice with step 2 is not supported"),
    "tensor above": (
        lambda: X.index(I[torch.tensor([0, 2])]),
        ShapeError,
        "out of range for an axis of size 2",
    ),
    "tensor below": (
        lambda: X.index(I[torch.tensor([-3])]),
        ShapeError,
        "out of range for an axis of size 2",
    ),
    "too many": (
        lambda: X.index(I[0, 0, 0]),
        ShapeError,
        r"too many indices for <x \[2, 3\] Array>: 3 for rank 2",
    ),
    "two ellipses": (lambda: X.index(I[..., ...]), ShapeError, "one ellipsis"),
    "fraction": (lambda: X.index(I[0.5]), ShapeError, r"not an index of an axis: 0\.5.*hint: use an integer"),
    "fraction in a slice": (lambda: X.index(I[0.5:]), ShapeError, r"not an index of an axis: 0\.5"),
    "fraction in a list": (lambda: X.index(I[[0.5]]), ShapeError, r"not an index of an axis: 0\.5"),
    "fractions in a tensor": (lambda: X.index(I[torch.tensor([0.5])]), ShapeError, "1-D and of integers"),
    "boolean": (lambda: X.index(I[True]), ShapeError, "not an index of an axis: True"),
    "boolean tensor": (
        lambda: X.index(I[torch.tensor([True, False])]),
        ShapeError,
        "of integers, not 1-D of torch.bool",
    ),
    "new axis": (lambda: X.index(I[None]), ShapeError, "not an index of an axis: None"),
    "2-D tensor": (
        lambda: X.index(I[integers(2, 2, below=2)]),
        ShapeError,
        "1-D and of integers, not 2-D.*independently",
    ),
    # -- Concat
    "concat of nothing": (lambda: Concat(axis=0, name="joined"), ShapeError, "'joined' has no children"),
    "concat axis": (lambda: Concat(X, axis=2), ShapeError, "axis 2 of nodes of rank 2.*from -2 to 1"),
    "concat of numbers": (lambda: Concat(Scalar(1.0), axis=0), ShapeError, "axis 0 of nodes of rank 0"),
    "concat ranks": (lambda: Concat(X, ROW, axis=0), ShapeError, r"\[2,3\] and \[3\] do not fit"),
    "concat sizes": (
        lambda: Concat(X, array(3, 2), axis=0, name="joined"),
        ShapeError,
        r"'joined' along axis 0: \[2,3\] and \[3,2\]",
    ),
    "concat dtypes": (lambda: Concat(X, SINGLE, axis=0), TypeMismatchError, "different dtypes"),
    # -- Scatter
    "scatter shape": (
        lambda: Scatter(ROW, I[0:2], (5,), "placed"),
        ShapeError,
        r"'placed': \[0:2\] of \[5\] has shape \[2\], but <row \[3\] Array> has \[3\]",
    ),
    "scatter rank": (lambda: Scatter(ROW, I[0:3, 0:1], (5, 2)), ShapeError, "must have the node's shape"),
    "scatter range": (
        lambda: Scatter(ROW, I[3:6], (5,)),
        ShapeError,
        "3:6 is out of range for an axis of size 5",
    ),
    "scatter indices": (lambda: Scatter(ROW, I[0, 0:3], (5,)), ShapeError, "too many indices"),
    # -- functions
    "function arity": (
        lambda: GeneralFunction.new_by_name(X, X, spec_name="sin"),
        ShapeError,
        "sin takes 1 nodes, not 2",
    ),
    "function name": (
        lambda: GeneralFunction.new_by_name(X, spec_name="sine"),
        ParseError,
        "no function is called 'sine'.*hint: known are .*sin",
    ),
    "function of a number": (
        lambda: softmax(Scalar(1.0)),
        ShapeError,
        "softmax acts on the last axis.*rank 0",
    ),
    "reduction of a number": (lambda: max(Scalar(1.0)), ShapeError, "max acts on the last axis"),
    "odd halves": (lambda: rotate_half(X), ShapeError, "last axis has odd size 3"),
    "function of integers": (lambda: sin(WHERE), TypeMismatchError, "sin of .* has dtype int64.*hint: cast"),
    "softmax of integers": (
        lambda: log_softmax(WHERE),
        TypeMismatchError,
        "log_softmax of .* has dtype int64",
    ),
    "broadcast shapes": (lambda: maximum(X, array(2, 2), "m"), ShapeError, "'m' do not broadcast"),
    "broadcast dtypes": (lambda: pow(X, SINGLE), TypeMismatchError, "different dtypes"),
    "cast from another dtype": (
        lambda: GeneralFunction.new_cast(X, TorchDeviceDtypeOp(dtype=F32)),
        TypeMismatchError,
        "has dtype float64.*takes float32 only",
    ),
    "cast to an unknown dtype": (
        lambda: GeneralFunction.new_cast(X, output=TorchDeviceDtypeOp(dtype="float65")),
        TypeMismatchError,
        "no dtype is called 'float65'",
    ),
    # -- gen_index
    "gen_index of fractions": (
        lambda: GeneralFunction.gen_index(X, ROW, 0),
        TypeMismatchError,
        r"the index <row \[3\] Array> has dtype float64.*hint: an index must be int64",
    ),
    "gen_index of small integers": (
        lambda: GeneralFunction.gen_index(X, Array(torch.tensor([0], dtype=torch.int32)), 0),
        TypeMismatchError,
        "has dtype int32",
    ),
    "gen_index axis": (lambda: GeneralFunction.gen_index(X, WHERE, 2), ShapeError, r"no axis 2 in \[2,3\]"),
    "gen_index axis below": (lambda: GeneralFunction.gen_index(X, WHERE, -3), ShapeError, "no axis -3"),
    "gen_index of a number": (
        lambda: GeneralFunction.gen_index(Scalar(1.0), WHERE, 0),
        ShapeError,
        "no axis 0",
    ),
    "gen_index batch": (
        lambda: GeneralFunction.gen_index(X, WHERE, 0, batch_x=True),
        ShapeError,
        r"x \[2,3\] does not begin with the index's shape \[5\]",
    ),
    "gen_index batch rank": (
        lambda: GeneralFunction.gen_index(X, Array(integers(2, 3, below=2)), 0, batch_x=True),
        ShapeError,
        "no axis 0",
    ),
    "gen_index positive with batch_x alone": (
        lambda: GeneralFunction.gen_index(X, WHERE, 0, batch_x=True, batch_index=False),
        ShapeError,
        "index_dim must be negative",
    ),
    # -- SetSymbolicShape, DiscreteVar
    "set shape rank": (
        lambda: SetSymbolicShape(X, (SEQ,), "named"),
        ShapeError,
        r"'named': \[SEQ\] does not fit",
    ),
    "set shape sizes": (lambda: SetSymbolicShape(X, (2, 4)), ShapeError, "sizes compatible"),
    "set shape twice": (lambda: SetSymbolicShape(X, (SEQ, SEQ)), ShapeError, "does not fit"),
    "variable of a number": (lambda: DiscreteVar(Scalar(1.0)), ShapeError, "has no axis to sample"),
    "variable of unknown size": (
        lambda: DiscreteVar(T),
        ShapeError,
        "the number of samples is the symbolic size SEQ",
    ),
    "variable's group": (
        lambda: DiscreteVar(X, DiscreteVar.uniform_probs_and_group(3), "var"),
        ShapeError,
        r"'var': values \[2,3\] and probabilities \[3\] do not fit",
    ),
    "variable's group rank": (
        lambda: DiscreteVar(X, Scalar(0.5, (2, 1))),
        ShapeError,
        "probabilities have one axis",
    ),
    "group of none": (
        lambda: DiscreteVar.uniform_probs_and_group(0),
        ShapeError,
        "a dataset needs at least one row",
    ),
    # -- modules
    "argument missing": (
        lambda: bound(ModuleArgSpec(S), ModuleArgSpec(T), s=ROW),
        ModuleBindingError,
        "module 'call': missing: t.*hint: its arguments are s, t",
    ),
    "argument unknown": (
        lambda: bound(ModuleArgSpec(S), s=ROW, other=ROW),
        ModuleBindingError,
        "module 'call': unknown: other",
    ),
    "number of arguments": (
        lambda: Module.new_flat(ModuleSpec(S, [ModuleArgSpec(S)]), name="call"),
        ModuleBindingError,
        "'call' takes 1 arguments, not 0",
    ),
    "argument rank": (
        lambda: bound(ModuleArgSpec(T), t=ROW),
        ModuleBindingError,
        r"of shape \[3\] does not fit symbol 't' \[SEQ,3\] of module 'call': the argument has fewer axes",
    ),
    "argument size": (
        lambda: bound(ModuleArgSpec(S), s=array(4)),
        ModuleBindingError,
        "the symbol's size 3 is fixed",
    ),
    "argument sizes of one name": (
        lambda: bound(ModuleArgSpec(symbol(4, (SEQ, SEQ), "u")), u=X),
        ModuleBindingError,
        "size 3 is no SEQ",
    ),
    "argument not batchable": (
        lambda: bound(ModuleArgSpec(S, batchable=False), s=X),
        ModuleBindingError,
        "the symbol is not batchable",
    ),
    "argument not expandable": (
        lambda: bound(ModuleArgSpec(T, expandable=False), t=X),
        ModuleBindingError,
        "the symbol is not expandable",
    ),
    "argument dtype": (
        lambda: bound(ModuleArgSpec(Symbol((3,), S.uuid, "s", F32)), s=ROW),
        TypeMismatchError,
        "has dtype float64, its symbol .* float32.*hint: cast the argument",
    ),
    "argument dtype in the body": (
        lambda: bound(ModuleArgSpec(S), body=Add(S, array(3, dtype=F32)), s=ROW),
        TypeMismatchError,
        "different dtypes",
    ),
    "batch axes of arguments": (
        lambda: bound(ModuleArgSpec(S), ModuleArgSpec(symbol(2, (3,), "r")), s=X, r=array(4, 3)),
        ShapeError,
        r"do not agree: \[2\] and \[4\].*aligned on the right",
    ),
    "batch axes of an unused argument": (
        lambda: Module(
            ModuleSpec(S, [ModuleArgSpec(S), ModuleArgSpec(symbol(5, (), "unused"))], check_all_inputs_used=False),
            s=X,
            unused=array(4),
        ),
        ShapeError,
        "do not agree",
    ),
    "symbol not in the body": (
        lambda: ModuleSpec(ROW, [ModuleArgSpec(S)]),
        ModuleBindingError,
        r"binds symbols that do not occur in it: <s \[3\] Symbol>.*check_all_inputs_used=False",
    ),
    "symbols of one name": (
        lambda: ModuleSpec(Add(S, symbol(9, (3,), "s")), [ModuleArgSpec(S), ModuleArgSpec(symbol(9, (3,), "s"))]),
        ModuleBindingError,
        "several arguments of one name: s.*check_unique_arg_names=False",
    ),
    "symbols without a name": (
        lambda: ModuleSpec(S.rename(None), [ModuleArgSpec(S.rename(None))]),
        ModuleBindingError,
        "several arguments of one name: None",
    ),
    "capture on substitution": (
        lambda: substitute_symbols(bound(ModuleArgSpec(S), body=Add(S, T), s=ROW), {T: Add(S, Scalar(0.0, (2, 3)))}),
        ModuleBindingError,
        r"inside module 'call' would capture <s \[3\] Symbol>.*another uuid",
    ),
    "capture by a call": (
        lambda: module_new_bind(bound(ModuleArgSpec(S), body=Add(S, T), s=ROW), ("t", Add(S, X))).substitute(),
        ModuleBindingError,
        "would capture",
    ),
    "bind by a name that is not there": (
        lambda: module_new_bind(Add(S, T), ("u", ROW)),
        ModuleBindingError,
        "0 free symbols of .* match 'u'.*hint: free are s, t",
    ),
    "bind by a name that two have": (
        lambda: module_new_bind(Add(S, symbol(9, (3,), "s")), ("s", ROW)),
        ModuleBindingError,
        "2 free symbols of .* match 's'",
    ),
    "update of a bound symbol": (
        lambda: bound(ModuleArgSpec(S), s=ROW).update(S, lambda _: ROW),
        ModuleBindingError,
        "is bound by module 'call' and cannot be replaced.*hint: substitute the module first",
    ),
    "update that does not fit": (
        lambda: Add(X, ROW, name="total").update("row", lambda _: array(2)),
        ShapeError,
        "'total' do not broadcast",
    ),
    "the largest of no entries": (
        lambda: GeneralFunction.new_by_name(array(2, 0), spec_name="max"),
        ShapeError,
        "max over no entries.*hint: give the last axis at least one",
    ),
    # -- kinds
    "cast to another kind": (lambda: X.cast_module(), TypeMismatchError, "is no Module.*hint: it is a Array"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_an_error_of_its_kind_with_facts_and_a_hint(what: str) -> None:
    make, kind, said = MISTAKES[what]
    with pytest.raises(kind, match=f"(?s){said}") as caught:
        make()
    assert type(caught.value) is kind
    assert caught.value.hint
    assert str(caught.value).endswith(f"hint: {caught.value.hint}")
    assert "object at 0x" not in str(caught.value)


# -- dtypes


class TestDtypes:
    def test_undetermined_ones_join_with_any_other(self) -> None:
        number = Scalar(0.5, (3,))
        assert number.dtype is None and S.dtype is None
        for node in (
            Add(number, ROW),
            Einsum.from_einsum_string("a,a->", number, ROW),
            Concat(number, ROW, axis=0),
            maximum(ROW, number),
        ):
            assert node.torch_dtype is F64
        assert Add(number, S).torch_dtype is None
        assert Add(number, WHERE.index(I[:3])).torch_dtype is I64

    def test_functions_keep_them(self) -> None:
        half = array(2, 4, dtype=F16)
        assert {f(half).dtype for f in (sin, softmax, abs, relu, step, rotate_half, max, last_dim_size)} == {"float16"}
        assert {f(WHERE).dtype for f in (abs, relu, step, max, last_dim_size)} == {"int64"}
        assert GeneralFunction.gen_index(half, WHERE, 0).dtype == "float16"
        assert GeneralFunction.new_cast(half, output=TorchDeviceDtypeOp(dtype="int64")).torch_dtype is I64
        assert GeneralFunction.new_cast(half).torch_dtype is F16

    def test_binding_determines_them(self) -> None:
        call = bound(ModuleArgSpec(S), body=Add(S, Scalar(1.0)), s=ROW)
        assert call.torch_dtype is F64
        assert call.conform_to_input_shapes().arg_specs[0].symbol.torch_dtype is F64

    def test_they_clash_again_on_update(self) -> None:
        total = Add(S, SINGLE)
        assert total.torch_dtype is F32
        with pytest.raises(TypeMismatchError, match="different dtypes"):
            total.update("s", lambda _: ROW)

    def test_cast_circuit_moves_constants_and_symbols_and_leaves_the_rest(self) -> None:
        single = Symbol((3,), S.uuid, "single", F32)
        body = Add(single, SINGLE.index(I[0]), Scalar(2.0), name="body")
        call = Module(ModuleSpec(body, [ModuleArgSpec(single)]), "call", single=array(4, 3, dtype=F32))
        cast = cast_circuit(call, TorchDeviceDtypeOp(dtype=F64))
        assert cast.torch_dtype is F64 and cast.shape == call.shape
        assert cast.get_unique("body").free_symbols == {Symbol((3,), S.uuid, "single", F64)}
        torch.testing.assert_close(cast.evaluate(), call.evaluate("float64"), rtol=1e-15, atol=0)
        assert cast_circuit(call, TorchDeviceDtypeOp()) is call
        assert cast_circuit(cast, TorchDeviceDtypeOp(dtype="float32")) is call


# -- shapes

SHAPES: dict[str, tuple[Callable[[], Circuit], tuple[object, ...]]] = {
    "add": (lambda: Add(array(2, 1, 4), array(3, 1), Scalar(1.0)), (2, 3, 4)),
    "add of sizes 1": (lambda: Add(array(1, 1), array(1)), (1, 1)),
    "add of an empty axis": (lambda: Add(array(0, 3), array(1, 3), ROW), (0, 3)),
    "add of nothing": (lambda: Add(), ()),
    "add symbolic": (lambda: Add(symbol(3, (SEQ, 1), "a"), symbol(4, (HID,), "b")), (SEQ, HID)),
    "add unifies": (lambda: Add(T, array(5, 3)), (5, 3)),
    "add learns for all axes": (
        lambda: Add(symbol(3, (SEQ, SEQ), "a"), array(5, 1, name="y"), array(5)),
        (5, 5),
    ),
    "einsum": (lambda: Einsum.from_einsum_string("ab,cb->ac", T, array(4, 3)), (SEQ, 4)),
    "einsum unifies": (lambda: Einsum.from_einsum_string("ab,a->ba", T, array(5)), (3, 5)),
    "einsum of nothing": (lambda: Einsum.empty(), ()),
    "rearrange symbolic": (lambda: Rearrange.from_string(T, "s (a b:3) -> a (s b)"), (1, 3 * SEQ)),
    "rearrange splits a product": (
        lambda: Rearrange.from_string(symbol(3, (12 * HID,), "a"), "(h:12 d) -> h d"),
        (12, HID),
    ),
    "index": (lambda: Index(array(4, 5, 6, 7), I[torch.tensor([0, 0, 1]), 2, 1:-1]), (3, 4, 7)),
    "index symbolic": (lambda: Index(T, I[2:, 0]), (dim("?"),)),
    "index of known length": (lambda: Index(T, I[-2:]), (2, 3)),
    "index of one": (lambda: Index(T, I[4]), (3,)),
    "concat": (lambda: Concat(T, T, axis=0), (2 * SEQ, 3)),
    "concat of a number more": (lambda: Concat(T, array(1, 3), axis=0), (dim("?"), 3)),
    "concat unifies": (lambda: Concat(T, array(5, 2), axis=1), (5, 5)),
    "stack": (lambda: Concat.stack(ROW, ROW, axis=-1), (3, 2)),
    "scatter": (lambda: Scatter(ROW, I[1, 2:5], (4, 6)), (4, 6)),
    "scatter unifies": (lambda: Scatter(symbol(3, (SEQ,), "a"), I[2:5], (6,)), (6,)),
    "reduction": (lambda: max(T), (SEQ,)),
    "set shape keeps what is known": (
        lambda: SetSymbolicShape(symbol(3, (None, 3), "a"), (SEQ, HID)),
        (SEQ, 3),
    ),
    "variable": (lambda: DiscreteVar(array(7, 2, 3)), (2, 3)),
    "module": (lambda: bound(ModuleArgSpec(T), t=array(5, 3)), (5, 3)),
    "module batched": (lambda: bound(ModuleArgSpec(S), s=array(4, 5, 3)), (4, 5, 3)),
    "module with a free symbol": (lambda: bound(ModuleArgSpec(S), body=Add(S, T), s=ROW), (SEQ, 3)),
    "module that resizes numbers": (
        lambda: bound(ModuleArgSpec(S, ban_non_symbolic_size_expand=False), s=array(5)),
        (5,),
    ),
    "product that broadcasts": (lambda: array(3, 1).mul(array(1, 4)), (3, 4)),
    "product without leading axes": (lambda: X.mul(ROW), (2, 3)),
    "reshape": (lambda: Rearrange.reshape(array(2, 3, 4), (6, 2, 2)), (6, 2, 2)),
    "reshape without common factors": (lambda: Rearrange.reshape(array(4, 6), (6, 4)), (6, 4)),
}


@pytest.mark.parametrize("what", SHAPES)
def test_the_shape_is_inferred(what: str) -> None:
    make, shape = SHAPES[what]
    assert make().shape == shape


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((2, 3, 4), (6, 4)),
        ((6, 4), (2, 3, 4)),
        ((4, 6), (6, 4)),
        ((4, 6), (3, 8)),
        ((1, 4, 1), (4,)),
        ((4,), (2, 1, 2, 1)),
        ((), (1, 1)),
        ((1,), ()),
        ((2, 0), (0,)),
        ((0,), (3, 0, 5)),
        ((2, 6, 5), (4, 3, 5)),
    ],
    ids=str,
)
def test_reshape_is_torchs(source: tuple[int, ...], target: tuple[int, ...]) -> None:
    node = array(*source)
    assert torch.equal(Rearrange.reshape(node, target).evaluate(), node.value.reshape(target))


def test_reshape_of_symbolic_sizes_is_one_node_where_it_can() -> None:
    split = Rearrange.reshape(symbol(3, (SEQ, 12 * HID), "a"), (SEQ, 12, HID))
    assert split.shape == (SEQ, 12, HID) and split.children[0].is_symbol()
    turned = Rearrange.reshape(symbol(3, (SEQ, HID), "a"), (HID, SEQ))
    assert turned.shape == (HID, SEQ)


def test_automatic_names_are_fixed_and_none_if_a_child_has_none() -> None:
    p, q, nameless = (Array(tensor(3, seed=i), name) for i, name in enumerate(("p", "q", None)))
    named = Add(p, q)
    assert named.update("p", lambda c: c.rename("r")).name == "p + q"
    assert Add(p, nameless).op_name is None
    assert Add(p, Array(tensor(3), "")).op_name == "p + "
    assert Add(p, q, name=None).op_name is None
