"""A KV cache that outlives one answer: it knows which tokens and images it holds, so it is never used for others."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .parameters import Parameters, parameters_of
from .policy import CachePolicy
from .tokens import Token, in_common

if TYPE_CHECKING:
    from ..models.fastvlm import FastVlmModel


class StaleCache(ValueError):
    """What a bounded cache has forgotten already can't be taken back, so another prompt can't use it."""


@dataclass(frozen=True)
class Contents:
    """What a prompt cache holds. It is replaced as a whole, so that an interrupt never leaves half of a change.

    Attributes:
        tokens: those of the latest prompt and its answer; they may run ahead of the caches, or behind them by what was
            computed ahead.
        keep: how many of them a bounded cache protects.
        model: whose keys and values they are.
        caches: one for each decoder layer; none where there is nothing, or while an answer is writing to them.
        parameters: the model's, as they were when the latest answer began.
    """

    tokens: list[Token] = field(default_factory=list)
    keep: int = 0
    model: Any = None
    caches: list[Any] = field(default_factory=list)
    parameters: Parameters | None = None

    @property
    def offset(self) -> int:
        return min((cache.offset for cache in self.caches), default=0)

    def without_caches(self) -> Contents:
        return replace(self, model=None, caches=[])

    @property
    def current(self) -> bool:
        """Whether the model would compute the same keys and values today."""
        return parameters_of(self.model) is self.parameters


class PromptCache:
    """Keeps the KV cache from one call to the next.

    The prompt of a call is always the whole conversation. What it has in common with the tokens of the calls before,
    images by their pixels, is not computed again, and what differs is dropped. So a wrong prompt costs time and never
    gives a wrong answer. Neither do other weights: after a step of training, or an adapter, all is computed again. Nor
    does an interrupt in the midst of a step: what it was writing to is computed again.

    One answer uses it at a time: a later one takes it over, and the earlier can't go on. Other threads may save it,
    reset it and ask for its size meanwhile; they wait until the step that is being computed is on its way.

    Args:
        max_kv_size, kv_bits, kv_group_size: see :class:`mlx_fastvlm.cache.policy.CachePolicy`; of a bounded cache, the
            first prompt is protected.

    Attributes:
        policy: the three together.
    """

    def __init__(self, max_kv_size: int | None = None, kv_bits: int | None = None, kv_group_size: int = 64) -> None:
        self.policy = CachePolicy(max_kv_size, kv_bits, kv_group_size)
        self._contents = Contents()
        self._lock = threading.RLock()

    @classmethod
    def from_policy(cls, policy: CachePolicy, contents: Contents | None = None) -> PromptCache:
        """An empty one, or one that begins with ``contents``."""
        cache = cls(*astuple(policy))
        if contents is not None:
            cache._contents = contents
        return cache

    def __deepcopy__(self, _: dict[int, Any]) -> PromptCache:
        """A cache of the same contents that goes its own way: a conversation can be forked."""
        with self.at_rest() as contents:
            own = replace(contents, tokens=list(contents.tokens), caches=copy.deepcopy(contents.caches))
            return PromptCache.from_policy(self.policy, own)

    @property
    def max_kv_size(self) -> int | None:
        return self.policy.max_kv_size

    @property
    def kv_bits(self) -> int | None:
        return self.policy.kv_bits

    @property
    def kv_group_size(self) -> int:
        return self.policy.kv_group_size

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[Contents]:
        """What it holds, for as long as the block lasts: no answer writes to it meanwhile, in whatever thread."""
        with self._lock:
            yield self._contents

    @property
    def tokens(self) -> list[Token]:
        """Tokens of the latest prompt and its answer."""
        with self.at_rest() as contents:
            return contents.tokens

    @property
    def keep(self) -> int:
        """How many tokens a bounded cache protects."""
        with self.at_rest() as contents:
            return contents.keep

    @property
    def caches(self) -> list[Any]:
        """One KV cache for each decoder layer, for ``past_key_values``; none while there is nothing in it."""
        with self.at_rest() as contents:
            return contents.caches

    @property
    def parameters(self) -> Parameters | None:
        """The model's, as they were when the latest answer began."""
        return self._contents.parameters

    @property
    def offset(self) -> int:
        """How many tokens it has seen; a bounded one may hold fewer."""
        with self.at_rest() as contents:
            return contents.offset

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        with self.at_rest() as contents:
            return sum(cache.nbytes for cache in contents.caches if not cache.empty())

    def reset(self, keep: int = 0) -> None:
        """Forget everything; of the next prompt, a bounded cache will protect ``keep`` tokens, or all for 0."""
        with self._lock:
            self._contents = Contents(keep=keep)

    def drop(self) -> None:
        """Forget keys and values, but not what a bounded cache protects of a prompt that goes on from here."""
        with self._lock:
            self._contents = self._contents.without_caches()

    def shared(self, tokens: list[Token]) -> int:
        """How many of a prompt's first tokens it holds.

        Images count as a whole, and the last token never does: it is needed for the logits.
        """
        with self.at_rest() as contents:
            count = min(len(tokens) - 1, contents.offset, in_common(contents.tokens, tokens))
        while count > 0 and isinstance(token := tokens[count], tuple) and token[1]:
            count -= 1
        return max(count, 0)

    def check(self, model: FastVlmModel, tokens: list[Token]) -> None:
        """Whether a prompt can go on from here.

        Raises:
            UsageError: where the prompt does not fit, or a ``kv_group_size`` does not suit the model.
            ValueError: where the cache belongs to another model.
            StaleCache: where tokens would have to be taken back that a bounded cache has overwritten others for.
        """
        self.policy.check(model)
        with self.at_rest():
            contents = self._up_to_date()
            if contents.caches and contents.model is not model:
                raise ValueError("The prompt cache belongs to another model; give this one a PromptCache of its own.")
            shared = self.shared(tokens)
            if any(cache.offset > shared and not cache.is_trimmable() for cache in contents.caches):
                raise StaleCache(
                    f"The prompt goes on from {shared} of the {contents.offset} tokens in the prompt cache, but a "
                    "bounded cache that has begun to overwrite can't go back; reset() it first."
                )
            self.policy.check_keep(_keep(contents, tokens))

    def begin(self, model: FastVlmModel, tokens: list[Token]) -> int:
        """Take in a prompt; returns how many of its tokens need not be computed again.

        The list is the cache's from now on: the answer adds its tokens to it, and is known by it (:meth:`growing`).
        """
        with self.at_rest() as contents:
            self.check(model, tokens)
            contents = self._contents
            shared, keep = self.shared(tokens), _keep(contents, tokens)
            caches = contents.caches or self.policy.make_caches(model, keep)
            self._contents = contents.without_caches()  # what an interrupt leaves
            for cache in caches:
                cache.trim(cache.offset - shared)
                if self.policy.max_kv_size is not None:
                    cache.keep = keep
            parameters = contents.parameters if contents.caches else parameters_of(model)
            self._contents = Contents(tokens, keep, model, caches, parameters)
            return shared

    def _up_to_date(self) -> Contents:
        """What it holds, after it has dropped keys and values of parameters that are no more."""
        if self._contents.caches and not self._contents.current:
            self.drop()
        return self._contents

    def check_owner(self, tokens: list[Token], there: bool = True) -> None:
        """``ValueError`` where another answer has begun since :meth:`begin` got this list, or nothing is there."""
        with self.at_rest() as contents:
            if contents.tokens is not tokens or not there:
                raise ValueError(
                    "Another answer or a reset() has taken over the prompt cache (or the chat session); give each "
                    "answer that runs at the same time its own."
                )

    @contextlib.contextmanager
    def growing(self, tokens: list[Token]) -> Iterator[list[Any]]:
        """Its KV caches, lent to an answer that writes to them, and to nobody else meanwhile, in whatever thread.

        What the answer has written must be on its way to the device (``mx.async_eval``) when the block ends: another
        thread may look at the caches then, and MLX can't evaluate an array in two threads at once. Where the block ends
        with an error, the caches are dropped.

        Args:
            tokens: the list that :meth:`begin` was given.

        Raises:
            ValueError: another answer has begun since.
        """
        with self.at_rest() as contents:
            self.check_owner(tokens, there=bool(contents.caches))
            self._contents = lent = contents.without_caches()
            yield contents.caches
            if self._contents is lent:  # and was not reset from inside the block
                self._contents = contents


def _keep(contents: Contents, tokens: list[Token]) -> int:
    """How many tokens of a prompt to protect: the first prompt, or all of one that leaves it before its end."""
    goes_on = not contents.tokens or in_common(contents.tokens, tokens) >= contents.keep
    return contents.keep if contents.keep and goes_on else len(tokens)
