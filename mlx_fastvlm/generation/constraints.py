"""Answers that keep to a JSON schema, a regular expression, a list of choices or a grammar.

llguidance (an extra) knows at each step which tokens may come; what it rules out is masked before the next is chosen.
An answer can end only where it is complete, so one that did end keeps to its description; only ``max_tokens`` and stop
strings cut one off.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from ..errors import UsageError, one_line, require

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from ..processing.processor import FastVlmProcessor


KEPT = 16  # compiled grammars, of each vocabulary
# Symbols of a grammar: 2,400 optional properties, or 4,900 required ones. Compiling that many takes half a second, and
# the time grows with their square; a step with them can take a twentieth.
MOST_SYMBOLS = 20_000


class ConstraintError(ValueError):
    """A description that an answer can't go on keeping to, or that is too costly to follow."""


class Grammar:
    """What an answer must be, compiled for a model's vocabulary.

    Args:
        name: the option that describes it: a key of ``DESCRIPTIONS``.
        value: the option's value.
        vocab_size: width of the logits, which may be padded beyond the tokenizer's ids.

    Raises:
        UsageError: for a description that is none, can't be compiled, or that no answer can keep to.
    """

    def __init__(self, name: str, value: Any, processor: FastVlmProcessor, vocab_size: int) -> None:
        self.name = name
        self._ends = [id for id in sorted(processor.eos_token_ids) if 0 <= id < vocab_size]
        require(bool(self._ends), f"{name} needs a model with a token that ends answers", processor.eos_token_ids)
        vocabulary = _vocabulary(processor.tokenizer, vocab_size, self._ends[0], name)
        self._words = (vocab_size + 31) // 32
        self._matcher = vocabulary.compile(name, describe(name, value))
        try:
            self.begin().allowed()
        except ValueError as error:
            raise UsageError(str(error)) from None

    def begin(self, said: Sequence[int] = ()) -> Constraint:
        """An answer of its own, whose beginning is ``said``."""
        constraint = Constraint(self.name, self._matcher.deep_copy(), self._ends, self._words)
        for token in said:
            constraint.take(token)
        return constraint


class Constraint:
    """One answer on its way through a grammar."""

    def __init__(self, name: str, matcher: Any, ends: list[int], words: int) -> None:
        self._name, self._matcher, self._ends, self._words = name, matcher, ends, words

    def take(self, token: int) -> None:
        """Go on from a token; ``ConstraintError`` for one that may not come."""
        if not self._matcher.consume_token(token):
            raise ConstraintError(self._broken(f"{self._name} does not allow the token {token}"))

    def allowed(self) -> np.ndarray:
        """Which tokens may come next: a bit each, lowest first, in (vocabulary / 32,) int32.

        Raises:
            ConstraintError: none may, or the grammar is too costly to follow.
        """
        from llguidance.numpy import fill_next_token_bitmask  # noqa: PLC0415  an extra; there, since there is a matcher

        words = np.zeros((1, self._words), np.int32)
        fill_next_token_bitmask(self._matcher, words, 0)
        if self._matcher.is_error() or not words.any():
            raise ConstraintError(self._broken(f"{self._name} leaves no token"))
        first, *others = self._ends  # to llguidance, the first alone ends an answer
        bits = np.unpackbits(words[0].view(np.uint8), bitorder="little")
        bits[others] = bits[first]
        return np.packbits(bits, bitorder="little").view(np.int32)

    def _broken(self, what: str) -> str:
        told = self._matcher.get_error().partition("<state>")[0] if self._matcher.is_error() else ""
        reason = one_line(told.strip()) or "it describes no answer"
        return f"{what} ({reason}); correct or simplify it."


def describe(name: str, value: Any) -> str:
    """An option's value as llguidance reads it; ``UsageError`` where it is none."""
    return DESCRIPTIONS[name](_library(name).LLMatcher, value)


def _from_json_schema(matcher: Any, value: Any) -> str:
    schema = json_schema(value)
    try:  # free white space is what small models fall into, and never leave
        return str(matcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False}))
    except ValueError as error:
        raise UsageError(f"json_schema can't be compiled ({one_line(str(error))}); correct it.") from None


def json_schema(value: Any) -> str:
    """A JSON schema as text: from a dict, from text, or from a class that pydantic can describe."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"json_schema is not JSON ({one_line(str(error))}); correct it.") from None
    elif isinstance(value, type):
        value = _schema_of(value)
    require(isinstance(value, (dict, bool)), "json_schema must be a dict, JSON text or a pydantic model", value)
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"json_schema is not JSON ({one_line(str(error))}); correct it.") from None


def _schema_of(kind: type) -> Any:
    try:
        from pydantic import TypeAdapter  # noqa: PLC0415  whoever has models has it
    except ImportError:
        raise UsageError(
            f"json_schema of the class {kind.__name__} needs pydantic; run: pip install pydantic, or give a dict."
        ) from None
    try:
        return TypeAdapter(kind).json_schema()
    except Exception as error:  # pydantic's own kinds are many
        raise UsageError(
            f"json_schema can't be made of {kind.__name__} ({one_line(str(error))}); give a dict."
        ) from None


def _from_regex(matcher: Any, value: Any) -> str:
    require(isinstance(value, str) and value != "", "regex must be a text that is not empty", value)
    return str(matcher.grammar_from_regex(value))


def _from_choices(matcher: Any, value: Any) -> str:
    several = isinstance(value, (list, tuple)) and bool(value) and all(isinstance(choice, str) for choice in value)
    require(several, "choices must be a list of texts", value)
    require(all(value), "choices must not hold an empty text", value)
    return str(matcher.grammar_from_regex("|".join(map(re.escape, dict.fromkeys(value)))))


def _from_grammar(matcher: Any, value: Any) -> str:
    require(isinstance(value, str) and value.strip() != "", "grammar must be a text in lark's notation", value)
    return str(matcher.grammar_from_lark(value))


DESCRIPTIONS: dict[str, Callable[[Any, Any], str]] = {
    "json_schema": _from_json_schema,
    "regex": _from_regex,
    "choices": _from_choices,
    "grammar": _from_grammar,
}


def _library(name: str) -> Any:
    try:
        import llguidance  # noqa: PLC0415  an extra
    except ImportError:
        raise UsageError(f"{name} needs llguidance; run: pip install 'mlx-fastvlm[constraints]'.") from None
    return llguidance


class _Vocabulary:
    """llguidance's tables for a tokenizer, which take a while to make, and what was compiled for it lately."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, end: int, name: str) -> None:
        try:
            self._tokens = _library(name).LLTokenizer(tokenizer.to_str(), n_vocab=vocab_size, eos_token=end)
        except (ValueError, RuntimeError) as error:
            raise UsageError(
                f"llguidance can't work with the checkpoint's tokenizer ({one_line(str(error))}); leave out {name}."
            ) from None
        self._compiled: dict[str, Any] = {}

    def compile(self, name: str, description: str) -> Any:
        """A matcher at its beginning, which nobody moves."""
        matcher = self._compiled.pop(description, None)
        if matcher is None:
            library = _library(name)
            limits = library.LLParserLimits(max_grammar_size=MOST_SYMBOLS)
            matcher = library.LLMatcher(self._tokens, description, log_level=0, limits=limits)
        if matcher.is_error():
            raise UsageError(f"{name} can't be compiled ({one_line(matcher.get_error())}); correct or simplify it.")
        with _LOCK:
            self._compiled[description] = matcher
            if len(self._compiled) > KEPT:
                del self._compiled[next(iter(self._compiled))]
        return matcher


_VOCABULARIES: WeakKeyDictionary[Tokenizer, dict[tuple[int, ...], _Vocabulary]] = WeakKeyDictionary()
_LOCK = threading.Lock()  # a server prepares requests in several threads


def _vocabulary(tokenizer: Tokenizer, vocab_size: int, end: int, name: str) -> _Vocabulary:
    key = vocab_size, end, tokenizer.get_vocab_size()
    with _LOCK:
        made = _VOCABULARIES.setdefault(tokenizer, {})
        if key not in made:
            made[key] = _Vocabulary(tokenizer, vocab_size, end, name)
        return made[key]
