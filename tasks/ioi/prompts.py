"""IOI prompts as records: their text, the space they are drawn from, and their flips. No tokens here."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import perm
from typing import Literal

from tapeout.tasks.ioi.templates import TEMPLATES

Order = Literal["ABBA", "BABA"]
PromptType = Literal["mixed", "ABBA", "BABA"]
PromptFamily = Literal["IOI", "ABC"]
Flip = Literal["IO", "S1", "S2", "S", "order"]

PROMPT_ORDERS: dict[PromptType, tuple[Order, ...]] = {
    "mixed": ("ABBA", "BABA"),
    "ABBA": ("ABBA",),
    "BABA": ("BABA",),
}
"""The orders that a prompt type takes in turn."""

FAMILY_NAMES: dict[PromptFamily, int] = {"IOI": 2, "ABC": 3}
"""How many different people a prompt of each family names."""

FRESH_NAMES = 2
"""The most new names that a flip brings into one prompt."""


@dataclass(frozen=True, slots=True)
class IOIPrompt:
    """One prompt.

    Attributes:
        template: index into `templates.TEMPLATES`.
        order: "ABBA" if the indirect object is named first, "BABA" if it is named second.
        io: the indirect object, named once.
        s: the subject as the opening clause names it (S1).
        place: fills the template's `{place}`.
        object: fills the template's `{object}`.
        c: the person who gives (S2) where that is not `s`: in the family ABC, and after a flip of
            S1 or S2 alone.
    """

    template: int
    order: Order
    io: str
    s: str
    place: str
    object: str
    c: str | None = None

    @property
    def giver(self) -> str:
        """The name at S2."""
        return self.s if self.c is None else self.c

    @property
    def words(self) -> dict[str, str]:
        """The word in each slot of the template."""
        first, second = (self.io, self.s) if self.order == "ABBA" else (self.s, self.io)
        return {
            "first": first,
            "second": second,
            "giver": self.giver,
            "place": self.place,
            "object": self.object,
        }

    @property
    def text(self) -> str:
        """The prompt without its expected completion: it ends with "to"."""
        return TEMPLATES[self.template].format_map(self.words)


@dataclass(frozen=True, slots=True)
class PromptSpace:
    """Every prompt that some templates and words can make, numbered.

    For a given order, the numbers `0 .. size - 1` stand for prompts of different text. Drawing
    numbers without replacement is drawing distinct prompts, however near the limit.

    Attributes:
        templates: indices into `templates.TEMPLATES`.
        names: candidate names, all different; places and objects likewise.
        family: "IOI" (two people) or "ABC" (three).
    """

    templates: tuple[int, ...]
    names: tuple[str, ...]
    places: tuple[str, ...]
    objects: tuple[str, ...]
    family: PromptFamily

    @property
    def size(self) -> int:
        """The number of distinct prompts of one order."""
        people = perm(len(self.names), FAMILY_NAMES[self.family])
        return len(self.templates) * people * len(self.places) * len(self.objects)

    def capacity(self, prompt_type: PromptType) -> int:
        """The number of distinct prompts of a type.

        In the family ABC the two orders have the same texts (they differ in who is called IO), so
        mixing them adds nothing.
        """
        return self.size * (len(PROMPT_ORDERS[prompt_type]) if self.family == "IOI" else 1)

    def prompt(self, number: int, order: Order) -> IOIPrompt:
        """The prompt with a number, in an order."""
        number, template = divmod(number, len(self.templates))
        number, place = divmod(number, len(self.places))
        number, object_ = divmod(number, len(self.objects))
        people = self._people(number)
        io, s = people[:2] if order == "ABBA" else people[1::-1]
        return IOIPrompt(
            template=self.templates[template],
            order=order,
            io=io,
            s=s,
            place=self.places[place],
            object=self.objects[object_],
            c=people[2] if self.family == "ABC" else None,
        )

    def _people(self, number: int) -> list[str]:
        """The different names, in the order of the text, that a number stands for."""
        left = list(self.names)
        people = []
        for _ in range(FAMILY_NAMES[self.family]):
            number, chosen = divmod(number, len(left))
            people.append(left.pop(chosen))
        return people

    def draw(self, count: int, prompt_type: PromptType, rng: random.Random) -> list[IOIPrompt]:
        """Draws distinct prompts, the orders of the type taking turns.

        Args:
            count: at most `capacity(prompt_type)`.
            prompt_type: which orders.
            rng: the stream to draw from.
        """
        turns = PROMPT_ORDERS[prompt_type]
        orders = [turns[row % len(turns)] for row in range(count)]
        if self.family == "ABC":
            numbers = rng.sample(range(self.size), count)
            return [self.prompt(number, order) for number, order in zip(numbers, orders, strict=True)]
        streams = {order: iter(rng.sample(range(self.size), orders.count(order))) for order in turns}
        return [self.prompt(next(streams[order]), order) for order in orders]


def _flip_io(prompt: IOIPrompt, fresh: Sequence[str]) -> IOIPrompt:
    return replace(prompt, io=fresh[0])


def _flip_s(prompt: IOIPrompt, fresh: Sequence[str]) -> IOIPrompt:
    return replace(prompt, s=fresh[0], c=None if prompt.c is None else fresh[1])


def _flip_s1(prompt: IOIPrompt, fresh: Sequence[str]) -> IOIPrompt:
    return replace(prompt, s=fresh[0], c=prompt.giver)


def _flip_s2(prompt: IOIPrompt, fresh: Sequence[str]) -> IOIPrompt:
    return replace(prompt, c=fresh[0])


def _flip_order(prompt: IOIPrompt, fresh: Sequence[str]) -> IOIPrompt:
    return replace(prompt, order="BABA" if prompt.order == "ABBA" else "ABBA")


FLIPS: dict[Flip, Callable[[IOIPrompt, Sequence[str]], IOIPrompt]] = {
    "IO": _flip_io,
    "S1": _flip_s1,
    "S2": _flip_s2,
    "S": _flip_s,
    "order": _flip_order,
}
"""What each flip makes of a prompt and `FRESH_NAMES` names that the prompt does not contain."""


def flip_prompt(prompt: IOIPrompt, flip: Flip, names: Sequence[str], rng: random.Random) -> IOIPrompt:
    """The prompt with one thing changed; every flip draws alike from the stream.

    Args:
        prompt: what to flip.
        flip: a key of `FLIPS`.
        names: candidates for the new names: at least `FRESH_NAMES` beyond those of the prompt.
        rng: the stream to draw from.
    """
    unused = [name for name in names if name not in (prompt.io, prompt.s, prompt.c)]
    return FLIPS[flip](prompt, rng.sample(unused, FRESH_NAMES))
