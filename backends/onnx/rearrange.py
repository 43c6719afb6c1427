"""Rearrangements as a reshape, a transpose and a reshape, of which what does nothing is left out."""

from __future__ import annotations

from tapeout.backends.onnx.graph import Lowering, Value
from tapeout.ir import RearrangeSpec
from tapeout.ir.sizes import Shape, multiply


def rearranged(low: Lowering, value: Value, spec: RearrangeSpec) -> Value:
    """The value rearranged."""
    sizes = spec.sizes(low.shape(value))
    before = [number for group in spec.input_ints for number in group]
    after = [number for group in spec.output_ints for number in group]
    left = [number for number in before if number in after]
    value = low.reshape(value, tuple(sizes[number] for number in left))
    value = low.permute(value, [left.index(number) for number in after if number in left])
    if any(number not in left and sizes[number] != 1 for number in after):
        value = low.reshape(value, tuple(sizes[number] if number in left else 1 for number in after))
        value = low.expand(value, tuple(sizes[number] for number in after))
    shape: Shape = tuple(multiply(sizes[number] for number in group) for group in spec.output_ints)
    return low.reshape(value, shape)
