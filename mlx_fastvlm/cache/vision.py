"""Images -> features, each image once: an LRU of features by what is in the image, not by where it came from."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

import mlx.core as mx

from ..errors import require


class VisionCache:
    """Projected features of the images used last, by the pixels and by the weights of tower and projector in memory.

    Weights that have changed since, or were loaded again, encode an image again.

    Args:
        max_bytes: bound on the features' memory; the longest unused go first. A 1024 px image takes 0.9 MB with
            FastVLM-0.5B in float32, and 1.8 MB with 7B in bfloat16.

    Attributes:
        hits, misses: how often an image was found here, and how often not.
        nbytes: of the features.
    """

    def __init__(self, max_bytes: int = 256 * 2**20) -> None:
        require(max_bytes >= 1, "max_bytes must be at least 1", max_bytes)
        self.max_bytes = max_bytes
        self.hits = self.misses = self.nbytes = 0
        self._features: OrderedDict[Hashable, mx.array] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._features)

    def get(self, key: Hashable) -> mx.array | None:
        """(tokens, text hidden size), or None."""
        with self._lock:
            features = self._features.get(key)
            if features is None:
                self.misses += 1
            else:
                self.hits += 1
                self._features.move_to_end(key)
            return features

    def put(self, key: Hashable, features: mx.array) -> None:
        """Keep features, which must be computed already, unless they alone are over the bound."""
        with self._lock:
            before = self._features.pop(key, None)
            self.nbytes += features.nbytes - (0 if before is None else before.nbytes)
            self._features[key] = features
            while self.nbytes > self.max_bytes:
                self.nbytes -= self._features.popitem(last=False)[1].nbytes
