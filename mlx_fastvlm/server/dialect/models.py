"""GET /v1/models and /v1/models/{id}: the one model that is served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import no_such_model

if TYPE_CHECKING:
    from .ask import Served


def listed(served: Served) -> dict[str, Any]:
    return {"object": "list", "data": [_model(served)]}


def one(name: str, served: Served) -> dict[str, Any]:
    """The model of this name or alias; ``RequestError`` for another."""
    if name not in (served.model, *served.aliases):
        raise no_such_model(name, served.model)
    return _model(served)


def _model(served: Served) -> dict[str, Any]:
    return {"id": served.model, "object": "model", "created": served.created, "owned_by": "mlx_fastvlm"}
