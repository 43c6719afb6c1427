"""Every constructor and method that rust_circuit's users know, called in the same words in both libraries."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

import pytest
import torch

import tapeout
from tapeout.ir.errors import TapeoutError

rust = pytest.importorskip("rust_circuit")
index = pytest.importorskip("rust_circuit.py_utils")

CALLS = [
    line for line in Path(__file__).with_name("oracle_calls.txt").read_text().splitlines() if not line.startswith("#")
]
FEW_VALUES = 50


def nodes(rc: ModuleType) -> dict[str, Any]:
    """The names that the calls use: arrays a, b, c, v, k, q, indices i, symbols s, t, su, and circuits of them."""
    generator = torch.Generator().manual_seed(1)

    def array(name: str | None, *shape: int) -> Any:
        return rc.Array(torch.randn(shape, generator=generator, dtype=torch.float64), name)

    at = {"a": (3, 4), "b": (3, 4), "c": (4, 5), "v": (4,), "k": (6,), "q": (2, 3, 4)}
    out: dict[str, Any] = {name: array(name, *shape) for name, shape in at.items()}
    a, b, v = out["a"], out["b"], out["v"]
    s, t = rc.Symbol((3, 4), UUID(int=1), "s"), rc.Symbol((4,), UUID(int=2), "t")
    inner = rc.Einsum.from_einsum_string("ab,b->ab", s, t, name="inner")
    spec = rc.ModuleSpec(rc.Add(inner, s, name="body"), [rc.ModuleArgSpec(s), rc.ModuleArgSpec(t)])
    x = rc.Add(a, rc.Einsum.from_einsum_string("ab,b->ab", b, v, name="prod"), name="x")
    deep = rc.Add(rc.softmax(x, name="sm"), rc.Index(x, [slice(0, 3)], name="idx"), name="deep")
    return out | {
        "rc": rc,
        "torch": torch,
        "I": tapeout.I if rc is tapeout else index.I,
        "n": array(None, 3, 4),
        "i": rc.Array(torch.tensor([0, 2]), "i"),
        "s": s,
        "t": t,
        "su": rc.Symbol((None, 4), UUID(int=3), "su"),
        "x": x,
        "deep": deep,
        "spec": spec,
        "mod": rc.Module(spec, "mod", s=a, t=v),
    }


def described(value: Any, rc: ModuleType) -> Any:
    """A value so that those of the two libraries can be compared: a circuit by its nodes and its value."""
    if isinstance(value, rc.Circuit):
        try:
            number = described(value.evaluate(), rc)
        except Exception:
            number = None
        return tree(value), number
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), [round(float(x), 6) for x in value.flatten()[:FEW_VALUES]]
    if isinstance(value, dict):
        return sorted((repr(described(k, rc)), repr(described(v, rc))) for k, v in value.items())
    if isinstance(value, (set, frozenset)):
        return sorted(repr(described(item, rc)) for item in value)
    if isinstance(value, (list, tuple)):
        return [described(item, rc) for item in value]
    plain = isinstance(value, (int, str, float, bool, type(None)))
    return value if plain else type(value).__name__


def tree(node: Any) -> Any:
    sizes = tuple(int(size) if isinstance(size, int) else str(size) for size in node.shape)
    return type(node).__name__, node.op_name, sizes, [tree(child) for child in node.children]


def result(call: str, rc: ModuleType) -> Any:
    names = nodes(rc)
    if "out=" in call:
        exec(call, names)
        return described(names["out"], rc)
    return described(eval(call, names), rc)


@pytest.mark.parametrize("call", CALLS)
def test_same_call_same_result(call: str) -> None:
    try:
        theirs = result(call, rust)
    except BaseException:  # some of its errors are panics
        with pytest.raises(TapeoutError, match="hint: "):
            result(call, tapeout)
        return
    assert repr(result(call, tapeout)) == repr(theirs)


def test_calls_are_told_apart() -> None:
    """What the comparison sees: names, kinds, shapes, values, numbers."""
    seen = [result(call, tapeout) for call in ("a", "b", "a.rename('z')", "rc.Add(a)", "a.unsqueeze(0)", "1", "{a, b}")]
    assert len({repr(one) for one in seen}) == len(seen)
