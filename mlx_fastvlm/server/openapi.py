"""GET /openapi.json: the server as OpenAPI describes it, made of the tables that bodies are checked by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .dialect.shapes import a_list, an_object, one_of, or_null
from .guard import OPEN

if TYPE_CHECKING:
    from .asking import Dialect
    from .dialect.ask import Served
    from .dialect.shapes import Schema

TEXT, NUMBER, WHOLE = {"type": "string"}, {"type": "number"}, {"type": "integer"}
ERROR = an_object(
    "error",
    error=an_object(
        *("message", "type", "param", "code"), message=TEXT, type=TEXT, param=or_null(TEXT), code=or_null(TEXT)
    ),
)
EVENT = an_object("data", event=TEXT, data=TEXT)  # readers of streams check each event alone
MODEL = an_object("id", "object", "created", "owned_by", id=TEXT, object=one_of("model"), created=WHOLE, owned_by=TEXT)

# What is asked for by GET: a summary, the media type, and the schema of what comes.
ASKED: dict[str, tuple[str, str, Schema]] = {
    "/health": ("Whether the process lives", "application/json", an_object("status", status=one_of("ok"))),
    "/ready": (
        "Whether requests are answered now; 503 with the reason where not",
        "application/json",
        an_object("status", "busy_s", status=one_of("ready"), busy_s=NUMBER),
    ),
    "/metrics": ("Figures for Prometheus", "text/plain", TEXT),
    "/v1/models": (
        "The one model that is served",
        "application/json",
        an_object("object", "data", object=one_of("list"), data=a_list(MODEL)),
    ),
    "/v1/models/{id}": ("The model of this name or alias", "application/json", MODEL),
    "/openapi.json": ("This description", "application/json", an_object("openapi", "paths")),
    "/": ("A page to talk with the model in a browser", "text/html", TEXT),
}
# The statuses of errors; docs/server.md says when each comes.
ERRORS = (401, 403, 404, 405, 421, 500, 503)
OF_BODIES = (400, 408, 413, 415, 429, 504)


def description(answering: Mapping[str, Dialect], served: Served, version: str) -> dict[str, Any]:
    """The document, for the endpoints that answer and those of ``ASKED``, with this server's model and limits."""
    paths: dict[str, Any] = {path: {"get": _asked(path, *about)} for path, about in ASKED.items()}
    paths |= {path: {"post": _answering(dialect, served)} for path, dialect in answering.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "mlx_fastvlm.server", "version": version, "description": DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": {"Error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],  # a key only where the server was started with one
    }


DESCRIPTION = (
    "FastVLM behind OpenAI's interface. What changes an answer is honoured, or refused by its name; null means not "
    "given, and fields that are not named here are ignored."
)


def _asked(path: str, summary: str, media: str, schema: Schema) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": summary, "responses": _responses(media, schema, ERRORS)}
    if path in OPEN:
        operation["security"] = []
    if path.endswith("{id}"):
        operation["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": TEXT}]
    return operation


def _limited(body: Schema, served: Served) -> Schema:
    """A body's schema with what this server allows."""
    limits = served.limits
    most = dict.fromkeys(("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens"), limits.max_tokens)
    most |= {"n": limits.max_n, "frames": limits.max_images, "max_frames": limits.max_images}
    most |= {"image_size": served.max_image_size}
    narrower: dict[str, Schema] = {name: {"maximum": bound} for name, bound in most.items()}
    narrower["model"] = one_of(served.model, *served.aliases)
    properties = {
        name: {**schema, "anyOf": [{**schema["anyOf"][0], **narrower.get(name, {})}, *schema["anyOf"][1:]]}
        if "anyOf" in schema
        else schema
        for name, schema in body["properties"].items()
    }
    return {**body, "properties": properties}


def _answering(dialect: Dialect, served: Served) -> dict[str, Any]:
    schema = an_object("id", "object", "model", id=TEXT, object=one_of(dialect.answer), model=TEXT)
    responses = _responses("application/json", schema, (*ERRORS, *OF_BODIES))
    if "stream" in dialect.body["properties"]:
        responses["200"]["content"]["text/event-stream"] = {"schema": EVENT}
    return {
        "summary": dialect.summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _limited(dialect.body, served)}}},
        "responses": responses,
    }


def _responses(media: str, schema: Schema, errors: tuple[int, ...]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    failing = {str(status): {"description": "OpenAI's error object", "content": error} for status in errors}
    return {"200": {"description": "The answer", "content": {media: {"schema": schema}}}, **failing}
