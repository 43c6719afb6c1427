"""Pausing the cyclic garbage collector while nodes are built by the thousand.

Nodes form no cycles: reference counts free them. The collector, started by every few hundred
allocations, would walk them all and find nothing; it takes half the time of a large rewrite.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def without_gc(function: Callable[P, R]) -> Callable[P, R]:
    """The function with the cyclic collector paused while it runs, if it was on."""

    @wraps(function)
    def paused(*args: P.args, **kwargs: P.kwargs) -> R:
        if not gc.isenabled():
            return function(*args, **kwargs)
        gc.disable()
        try:
            return function(*args, **kwargs)
        finally:
            gc.enable()

    return paused
