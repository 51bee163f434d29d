"""A prompt that several answers share: one of them reads it, the others go on from there."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..cache.prompt import Contents, PromptCache

if TYPE_CHECKING:
    from ..cache.parameters import Parameters
    from ..cache.policy import CachePolicy
    from ..cache.tokens import Token
    from ..models.fastvlm import FastVlmModel


@dataclass
class SharedPrompt:
    """Rows have it until they have begun, so what it holds is gone with the last that waits.

    Attributes:
        contents: the whole prompt as a prompt cache holds it; None until it has been read.
    """

    contents: Contents | None = None

    def was_read(self, model: FastVlmModel, tokens: list[Token], caches: list[Any], parameters: Parameters) -> None:
        """Hold copies of the caches that have read exactly these tokens.

        Args:
            parameters: the model's, as they were when the prompt was begun.
        """
        self.contents = Contents(list(tokens), len(tokens), model, copy.deepcopy(caches), parameters)

    def cache(self, policy: CachePolicy) -> PromptCache:
        """A cache of a row's own with all of it."""
        assert self.contents is not None  # rows wait until it is read
        return PromptCache.from_policy(policy, replace(self.contents, caches=copy.deepcopy(self.contents.caches)))
