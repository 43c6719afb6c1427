"""What there is to compile to: an entry a backend, which all that knows of backends reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from typing import Any

from tapeout.backends.common.executable import Executable
from tapeout.backends.common.program import Program
from tapeout.backends.onnx import OnnxOptions
from tapeout.ir.errors import UnsupportedError

Builder = Callable[[Program], tuple[Executable, int]]
"""What makes an executable: a backend's `build`, which also gives the bytes of weights copied."""

BackendOptions = OnnxOptions
"""What a backend can be told: a dataclass of its own."""


@dataclass(frozen=True, slots=True)
class Backend:
    """What is known of a backend before it is imported.

    Attributes:
        module: what holds its `build`, its `load` if it saves a model, and its `Options` if any.
        model: the file of what runs in a saved artefact; None where the circuits are enough.
        least_rows: how many rows what is saved takes at least.
    """

    module: str
    model: str | None = None
    least_rows: int = 1


BACKENDS = {
    "fx": Backend("tapeout.backends.fx.executable"),
    "torchscript": Backend("tapeout.backends.torchscript.executable", "model.pt"),
    "inductor": Backend("tapeout.backends.inductor.executable", "model.pt2", least_rows=2),
    "onnx": Backend("tapeout.backends.onnx.executable", "model.onnx"),
}


def backend_of(name: str) -> Backend:
    """The backend of that name.

    Raises:
        UnsupportedError: if there is none.
    """
    if name not in BACKENDS:
        raise UnsupportedError(f"there is no backend {name!r}", hint=f"there are {', '.join(BACKENDS)}")
    return BACKENDS[name]


def builder(backend: str, options: BackendOptions | Mapping[str, Any] | None = None) -> Builder:
    """What builds an executable, told the options.

    Raises:
        UnsupportedError: for a backend or an option that is not there.
    """
    module = import_module(backend_of(backend).module)
    known = getattr(module, "Options", None)
    if known is None:
        if options is not None:
            raise UnsupportedError(f"the backend {backend} has no options", hint="leave them out")
        return module.build  # type: ignore[no-any-return]
    return partial(module.build, options=read_options(known, options))


def read_options(kind: type[BackendOptions], given: BackendOptions | Mapping[str, Any] | None) -> BackendOptions:
    """A backend's options, of what may be given for them.

    Raises:
        UnsupportedError: for one that is not there, or a value that it cannot have.
    """
    if isinstance(given, kind):
        return given
    names = [field.name for field in fields(kind)]
    if given is None or (isinstance(given, Mapping) and set(given) <= set(names)):
        return kind(**(given or {}))
    unknown = sorted(set(given) - set(names)) if isinstance(given, Mapping) else [type(given).__name__]
    raise UnsupportedError(f"no such options: {', '.join(unknown)}", hint=f"there are {', '.join(names)}")
