"""The processes that ``mlx.launch`` has started together."""

from __future__ import annotations

import mlx.core as mx


def join_group() -> mx.distributed.Group:
    """All of them, when they have met; this process alone where there are no others.

    Raises:
        RuntimeError: they can't reach each other.
    """
    try:
        return mx.distributed.init()
    except RuntimeError as error:
        raise RuntimeError(
            f"The processes can't reach each other ({error}); check mlx.launch's hosts, or give it another "
            "--starting-port."
        ) from None
