"""Whatever goes wrong -> a status and OpenAI's error object: a sentence for people, and nothing about the inside."""

from __future__ import annotations

import re
from typing import Any

from ...errors import one_line
from ...generation.constraints import ConstraintError


class RequestError(Exception):
    """What a client is told.

    Attributes:
        message: a sentence that says what is wrong and what to do.
        param: the field of the body that it is about.
        code: OpenAI's word for some errors.
        status: of the HTTP response.
        kind: OpenAI's ``type``.
        retry_after: seconds until another try makes sense.
    """

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code
        self.status, self.kind, self.retry_after = status, kind, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object, which is also what a stream ends with."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def no_such_model(name: str, served: str) -> RequestError:
    message = f"There is no model {one_line(name)!r} here; this server has {served!r}."
    return RequestError(message, "model", "model_not_found", status=404)


def no_such_page(path: str) -> RequestError:
    return RequestError(f"There is nothing at {one_line(path)}; see docs/server.md for what there is.", status=404)


def wrong_method(method: str, allowed: str) -> RequestError:
    return RequestError(f"{one_line(method)} is not for this address; send {allowed}.", status=405)


def unauthorized() -> RequestError:
    message = "The API key is missing or wrong; send it as the header Authorization: Bearer KEY."
    return RequestError(message, code="invalid_api_key", status=401)


def forbidden(message: str) -> RequestError:
    """For a Host or Origin that is not this server's."""
    return RequestError(message, status=403)


def too_large(limit: int) -> RequestError:
    """For a body of more bytes than ``limit``."""
    message = f"The request has more than {limit} bytes, the most that this server reads; send smaller images."
    return RequestError(message, code="request_too_large", status=413)


def too_slow(seconds: float) -> RequestError:
    """For a body that did not come in time."""
    return RequestError(f"The request did not arrive within {seconds:g} s; send it again.", status=408)


def queue_full(retry_after: int) -> RequestError:
    message = f"The server has as many requests as it can take; try again in {retry_after} s."
    return RequestError(
        message, code="rate_limit_exceeded", status=429, kind="rate_limit_exceeded", retry_after=retry_after
    )


def timed_out(seconds: float) -> RequestError:
    """For an answer that took longer than the server allows."""
    message = f"The answer took longer than {seconds:g} s, the most that this server takes; ask for fewer tokens."
    return RequestError(message, code="timeout", status=504, kind="server_error")


def unavailable(message: str, retry_after: int | None = None) -> RequestError:
    """For a server that stops, or whose worker is gone."""
    return RequestError(message, code="unavailable", status=503, kind="server_error", retry_after=retry_after)


def out_of_memory() -> RequestError:
    message = "The server doesn't have enough memory for this request; send fewer or smaller images, or try later."
    return RequestError(message, code="out_of_memory", status=503, kind="server_error")


def from_preparing(error: BaseException) -> RequestError:
    """For what the library raises while it checks options, opens images and reads prompts: the request's own fault."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, MemoryError):
        return out_of_memory()
    told = isinstance(error, (ValueError, TypeError)) or (isinstance(error, OSError) and error.errno is None)
    return _sentence(str(error)) if told and str(error) else internal()


def from_answering(error: BaseException) -> RequestError:
    """For what ends an answer that was begun: the server's fault, unless it says otherwise.

    A schema can turn out to be too costly, or to have no end, only when it is followed.
    """
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ConstraintError):
        return _sentence(str(error))
    return out_of_memory() if isinstance(error, MemoryError) else internal()


def _sentence(text: str) -> RequestError:
    """A sentence of the library. One about an option begins with its name, the only word that begins in lower case."""
    named = re.match(r"(?:a token id in )?([a-z][a-z0-9_]+)\b", text)
    return RequestError(shown(text), named and named[1])


def shown(text: str) -> str:
    """Words that may be a client's, for a sentence: without control characters, and not too long."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text[:1000])


def internal() -> RequestError:
    return RequestError("Something went wrong in the server; its log says what.", status=500, kind="server_error")
