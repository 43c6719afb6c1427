"""Recursion without the call stack: a step asks for other results by yielding their keys."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable
from typing import TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def memoised(step: Callable[[K], Generator[K, V, V]]) -> Callable[[K], V]:
    """The function whose value at a key is what `step(key)` returns, each key computed once.

    `step` is a generator function: `value = yield other_key` asks for another value. However deep
    the keys depend on each other, the interpreter's stack does not grow.
    """
    memo: dict[K, V] = {}

    def call(key: K) -> V:
        if key in memo:
            return memo[key]
        stack = [(key, step(key))]
        answer: V | None = None
        while stack:
            current, generator = stack[-1]
            try:
                wanted = generator.send(answer)  # type: ignore[arg-type]
            except StopIteration as finished:
                memo[current] = answer = finished.value
                stack.pop()
                continue
            if wanted in memo:
                answer = memo[wanted]
            else:
                answer = None
                stack.append((wanted, step(wanted)))
        return memo[key]

    return call
