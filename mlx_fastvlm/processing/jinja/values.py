"""What a chat template computes with: plain data, looked at by rules of its own instead of Python's attributes.

A template gets no Python object by the hand: there is no attribute to climb up to code. Everything that takes time or
memory is taken from a budget first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import GeneratorType
from typing import Any

from ..provenance import Text, changed, characters_of, concatenated, cut

MOST = 2**63  # of a number
_PIECE = 64  # characters that handling one piece of a text counts for


class Refused(Exception):
    """What a template must not do, as the end of a sentence that begins with the template."""


def unneeded(what: str) -> Refused:
    """For parts of jinja2's language that are left out here."""
    return Refused(f"it uses {what}, which chat templates don't need")


class Budget:
    """What one rendering may still take.

    Attributes:
        steps: nodes to evaluate and elements to go through.
        characters: of texts to read and to make.
    """

    def __init__(self, steps: int, characters: int) -> None:
        self.steps, self.characters = steps, characters

    def step(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0:
            raise Refused("it takes too many steps")

    def read(self, *texts: str) -> None:
        """Before texts are gone through."""
        for text in texts:
            self.spend(len(text))
            self.cut(text)

    def cut(self, text: str) -> None:
        """Before something is cut from a text, for which its pieces are gone through."""
        if isinstance(text, Text):  # another one is a single piece
            self.spend(_PIECE * (len(text.pieces) - 1))

    def spend(self, characters: int) -> None:
        """Before so many characters are read or made."""
        self.characters -= max(characters, 0)
        if self.characters < 0:
            raise Refused("it makes too long a text, or reads one too often")


class Undefined:
    """What is not there. It is false, empty and written as nothing; everything else with it is an error."""

    def __init__(self, why: str) -> None:
        self.why = why

    def __bool__(self) -> bool:
        return False


class Namespace:
    """``namespace()``: the one thing that a template can change."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values


@dataclass(frozen=True)
class Function:
    """Something that a template can call; ``call`` is told the budget first."""

    name: str
    call: Callable[..., Any]


NUMBERS = (bool, int, float)
VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
ITERABLES = (list, tuple, dict, range, *VIEWS, GeneratorType)


def number(value: Any) -> Any:
    """A number that is not too large; ``Refused`` for what is no number."""
    if isinstance(value, Undefined):
        raise Refused(value.why)
    if not isinstance(value, NUMBERS):
        raise Refused(f"it computes with {kind(value)}")
    if not isinstance(value, float) and abs(value) > MOST:
        raise Refused("it makes too large a number")
    return value


def kind(value: Any) -> str:
    """What sort of thing a value is, for errors."""
    return "a text" if isinstance(value, str) else f"a {type(value).__name__.lower()}"


def iterate(value: Any, budget: Budget) -> Iterator[Any]:
    """A value's elements, each a step."""
    if isinstance(value, Undefined):
        return
    if not isinstance(value, (str, *ITERABLES)):
        raise Refused(f"it goes through {kind(value)}")
    elements: Any = characters_of(value) if isinstance(value, str) else value
    for element in elements:
        budget.step()
        yield element


def length(value: Any) -> int:
    if isinstance(value, Undefined):
        return 0
    if isinstance(value, GeneratorType) or not isinstance(value, (str, *ITERABLES)):
        raise Refused(f"it asks for the length of {kind(value)}")
    return len(value)  # type: ignore[arg-type]  # no generator is left


def key(value: Any) -> Any:
    """What may be a key: texts, numbers and none, whose hash takes no time."""
    if value is None or isinstance(value, (str, *NUMBERS)):
        return value
    raise Refused(f"it uses {kind(value)} as a key")


def equal(left: Any, right: Any, budget: Budget) -> bool:
    budget.step()
    if isinstance(left, str) and isinstance(right, str):
        if len(left) != len(right):
            return False
        budget.spend(len(left))
        return left == right
    if isinstance(left, (list, tuple)) and type(left) is type(right):
        return len(left) == len(right) and all(equal(one, other, budget) for one, other in zip(left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return len(left) == len(right) and all(
            name in right and equal(value, right[name], budget) for name, value in left.items()
        )
    if isinstance(left, NUMBERS) and isinstance(right, NUMBERS):
        return left == right
    return left is right or (isinstance(left, Undefined) and isinstance(right, Undefined))


def compare(by: Callable[[Any, Any], bool], left: Any, right: Any, budget: Budget) -> bool:
    """``<`` and its like, of two texts or two numbers."""
    if isinstance(left, str) and isinstance(right, str):
        budget.spend(min(len(left), len(right)))
        return by(left, right)
    return by(number(left), number(right))


def contains(container: Any, element: Any, budget: Budget) -> bool:
    if isinstance(container, str):
        if not isinstance(element, str):
            raise Refused(f"it looks for {kind(element)} in a text")
        budget.read(container, element)
        return element in container
    if isinstance(container, dict):
        return key(element) in container
    return any(equal(element, other, budget) for other in iterate(container, budget))


def item(value: Any, place: Any) -> Any:
    """``value[place]``, or ``Undefined``."""
    if isinstance(value, Undefined):
        raise Refused(value.why)
    if isinstance(value, dict) and key(place) in value:
        return value[place]
    if isinstance(value, (str, list, tuple, range)) and isinstance(place, int):
        if not -len(value) <= place < len(value):
            return Undefined(f"there is no element {place}")
        place %= len(value)
        return cut(value, place, place + 1) if isinstance(value, str) else value[place]
    if isinstance(value, Namespace) and isinstance(place, str):
        return value.values.get(place, Undefined(f"there is no {place[:50]!r}"))
    return Undefined(f"there is no {str(place)[:50]!r}")


def part(value: Any, start: int | None, stop: int | None, step: int | None, budget: Budget) -> Any:
    """``value[start:stop:step]``."""
    if isinstance(value, Undefined):
        raise Refused(value.why)
    if not isinstance(value, (str, list, tuple, range)):
        raise Refused(f"it takes a part of {kind(value)}")
    if not isinstance(value, str):
        taken = value[start:stop:step]
        budget.step(len(taken))
        return taken
    budget.read(value)
    first, last, by = slice(start, stop, step).indices(len(value))
    if by == 1:
        return cut(value, first, max(first, last))
    return changed(value, lambda text: text[start:stop:step])


def joined(texts: Iterable[str], budget: Budget) -> str:
    """Texts as one."""
    parts = []
    for text in texts:
        budget.read(text)
        parts.append(text)
    return concatenated(parts)
