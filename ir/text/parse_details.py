"""Reading what stands behind the kind in a node's text, and the tensors that the text names by hash."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from uuid import UUID

import torch

from tapeout.ir.axis_index import AxisIndex, Picks, Span, axis_index
from tapeout.ir.errors import ParseError
from tapeout.ir.hashing import HASH_DIGITS
from tapeout.ir.nodes.einsum import Axes, axis_number
from tapeout.ir.nodes.rearrange_spec import RearrangeSpec
from tapeout.ir.quote import QUOTED, unquote
from tapeout.ir.sizes import UNKNOWN, Shape, Size, SymbolicSize, format_shape

Tensors = Mapping[str, torch.Tensor]
"""Tensors by content hash."""

BRACKETED = rf"\[[^\]']*(?:{QUOTED}[^\]']*)*\]"
_INTEGER = re.compile(r"-?[0-9]{1,18}")
_DIM = rf"(?:{QUOTED}|\w+)"
_SIZE = re.compile(rf"(?:(-?[0-9]{{1,18}})\*)?({_DIM}(?:\*{_DIM})*)")
_WORD = re.compile(rf"(?:[^,']|{QUOTED})+")
_AXIS = re.compile(r"\{(-?[0-9]{1,9})\}|([A-Za-z\u0400-\u047f])|(.)", re.DOTALL)
_PART = re.compile(rf"\(|\)|->|;|1(?![^\s()])|(\{{-?[0-9]{{1,9}}\}}|[^\W\d])(?::((?:[^\s()';]|{QUOTED})+))?")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_HASH = re.compile(rf"[0-9a-f]{{{HASH_DIGITS}}}")


def read_uuid(word: str) -> UUID:
    if not _UUID.fullmatch(word):
        raise ParseError(f"{word!r} is no uuid", hint="it looks like 6a0d1c3e-52f4-4b44-9d1b-8f6f3f1e7a10")
    return UUID(word)


def read_shape(text: str) -> Shape:
    if not re.fullmatch(BRACKETED, text):
        raise ParseError(f"{text!r} is no shape", hint="write it as [2,SEQ,3*HALF,?]")
    inner = text[1:-1]
    return tuple(_read_size(word.strip()) for word in _split(inner)) if inner.strip() else ()


def _split(text: str) -> list[str]:
    """The parts between commas that are not in quotes."""
    return text.split(",") if "'" not in text else _WORD.findall(text)


def _read_size(word: str) -> Size:
    if _INTEGER.fullmatch(word):
        return int(word)
    if word == "?":
        return UNKNOWN
    match = _SIZE.fullmatch(word)
    if match is None:
        raise ParseError(f"{word!r} is no size", hint="a size is a number, ?, or a product such as 2*SEQ")
    factor, names = match.groups()
    dims = (unquote(name) if name[0] == "'" else name for name in re.findall(_DIM, names))
    return SymbolicSize(1 if factor is None else int(factor), tuple(dims))


def read_axes(word: str) -> Axes:
    return tuple(map(_axis_of, _AXIS.finditer(word)))


def _axis_of(match: re.Match[str]) -> int:
    number, letter, wrong = match.groups()
    if wrong is not None:
        raise ParseError(f"{wrong!r} is no axis", hint="an axis is a letter, or a number in braces")
    return axis_number(letter) if number is None else int(number)


def read_index(text: str, tensors: TensorTable) -> list[AxisIndex]:
    if not (text.startswith("[") and text.endswith("]")):
        raise ParseError(f"{text!r} is no index", hint="write it as [0,1:3,:]")
    inner = text[1:-1]
    return [_read_axis_index(word.strip(), tensors) for word in inner.split(",")] if inner.strip() else []


def _read_axis_index(word: str, tensors: TensorTable) -> AxisIndex:
    if word.startswith("t"):
        return tensors.picks(word[1:])
    bounds = [None if not bound else _read_integer(bound) for bound in word.split(":")]
    if len(bounds) == 1 and bounds[0] is not None:
        return bounds[0]
    if len(bounds) != 2:
        raise ParseError(
            f"{word!r} is no index of an axis", hint="write a number, a slice such as 1:3, or t and a hash"
        )
    return Span(*bounds)


def _read_integer(word: str) -> int:
    if not _INTEGER.fullmatch(word):
        raise ParseError(f"{word!r} is no integer", hint="indices are integers or slices such as 1:3")
    return int(word)


def read_spec(text: str) -> RearrangeSpec:
    """Einops' notation, or with `;` letters that stand for numbers (`RearrangeSpec.numbered_text`)."""
    if ";" not in text:
        return RearrangeSpec.from_string(text)
    sides: list[list[tuple[int, ...]]] = [[]]
    sizes: dict[int, Size | None] = {}
    group: list[int] | None = None
    end = 0
    for match in _PART.finditer(text):
        if text[end : match.start()].strip():
            raise _no_spec(text)
        end = match.end()
        token = match[0]
        if token in ("->", ";"):
            sides.append([])
        elif token == "(":
            group = []
        elif token == ")" or token == "1":
            sides[-1].append(tuple(group or ()))
            group = None
        else:
            number = read_axes(match[1])[0]
            sizes[number] = None if match[2] is None else _read_size(match[2])
            if group is None:
                sides[-1].append((number,))
            else:
                group.append(number)
    if text[end:].strip() or len(sides) != 3 or group is not None or set(sizes) != set(range(len(sizes))):
        raise _no_spec(text)
    return RearrangeSpec(tuple(sides[0]), tuple(sides[1]), tuple(sizes[i] for i in range(len(sizes))))


def _no_spec(text: str) -> ParseError:
    return ParseError(f"not a rearrangement: {text!r}", hint='write it as "a (b c:2) -> b a c"')


# -- tensors


class TensorTable:
    """Tensors by the prefix of their hash that stands in the text."""

    def __init__(self, tensors: Tensors) -> None:
        self.by_prefix = {digest[:HASH_DIGITS]: tensor for digest, tensor in tensors.items()}
        self.known_picks: dict[str, Picks] = {}

    def get(self, digest: str, shape: Shape, dtype: torch.dtype | None) -> torch.Tensor:
        """The tensor with that hash, in that shape and dtype (tensors of equal bytes have equal hashes).

        Raises:
            ParseError: if it was not given or has another size. (The content is checked by who hashes it.)
        """
        sizes = [size for size in shape if isinstance(size, int)]
        tensor = self._find(digest)
        wanted = dtype or tensor.dtype
        if len(sizes) != len(shape) or min(sizes, default=0) < 0 or prod(sizes) * wanted.itemsize != tensor.nbytes:
            raise ParseError(
                f"the tensor {digest} has {tensor.nbytes} bytes: no {format_shape(shape)} of {wanted}",
                hint="give the tensor that the circuit was printed with",
            )
        return (tensor if tensor.dtype is wanted else _reinterpreted(tensor, wanted)).reshape(sizes)

    def picks(self, digest: str) -> Picks:
        """The tensor of positions with that hash."""
        found = self.known_picks.get(digest)
        if found is None:
            positions = self.get(digest, (self._find(digest).nbytes // 8,), torch.int64)
            found = self.known_picks[digest] = _as_picks(positions)
            check_content(digest, found.digest)
        return found

    def _find(self, digest: str) -> torch.Tensor:
        if not _HASH.fullmatch(digest):
            raise ParseError(f"{digest!r} is no hash", hint=f"a hash is {HASH_DIGITS} hexadecimal digits")
        tensor = self.by_prefix.get(digest)
        if tensor is None:
            raise ParseError(
                f"no tensor with hash {digest} was given",
                hint="a text holds no tensors: give them beside it, as tensors_of(circuit) collects them",
            )
        return tensor


def _as_picks(positions: torch.Tensor) -> Picks:
    index = axis_index(positions)
    if not isinstance(index, Picks):
        raise ParseError("a tensor of positions is 1-D", hint="give the tensor that the circuit was printed with")
    return index


def check_content(digest: str, found: str) -> None:
    if not found.startswith(digest):
        raise ParseError(
            f"the tensor that was given for hash {digest} has the hash {found[:HASH_DIGITS]}",
            hint="its content is another: give the tensor that the circuit was printed with",
        )


def _reinterpreted(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The same bytes as another dtype."""
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    aligned = flat.data_ptr() % dtype.itemsize == 0 and flat.storage_offset() % dtype.itemsize == 0
    return (flat if aligned else flat.clone()).view(dtype)
