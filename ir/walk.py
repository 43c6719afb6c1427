"""Walking a graph of anything without the call stack."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


def depth_first(roots: Iterable[T], below: Callable[[T], Iterable[T]]) -> Iterator[T]:
    """Everything at and below the roots once, each item after those below it, earlier roots first.

    Args:
        roots: where the walk begins.
        below: the items below one, those to be met first in front. No item is below itself.
    """
    done: set[T] = set()
    stack = list(roots)[::-1]
    while stack:
        item = stack[-1]
        pending = [] if item in done else [each for each in below(item) if each not in done]
        if pending:
            stack += reversed(pending)
            continue
        stack.pop()
        if item not in done:
            done.add(item)
            yield item
