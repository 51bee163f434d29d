"""Whole responses in JSON, and errors as OpenAI's clients read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

if TYPE_CHECKING:
    from .dialect.errors import RequestError

# Answers were made for one client, so nobody keeps them, nor guesses their type.
HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


def to_json(value: Any) -> bytes:
    """Compact, in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(to_json(body), status, {**HEADERS, **(headers or {})}, "application/json")


def error_response(error: RequestError) -> Response:
    """OpenAI's error object, with its status.

    Its clients try again by themselves after some statuses; after a request that took too long that would only make it
    worse.
    """
    headers = dict(error.headers)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == 504:
        headers["x-should-retry"] = "false"
    return json_response(error.body, error.status, headers)
