"""Errors: OpenAI's object, a sentence that helps, nothing about the inside, and the class that its client raises."""

import pytest

from mlx_fastvlm.errors import UsageError
from mlx_fastvlm.generation.options import GenerationOptions
from mlx_fastvlm.server.dialect import errors
from mlx_fastvlm.server.dialect.errors import RequestError

ALL = {
    "BadRequestError": [RequestError("It is wrong.", "temperature")],
    "AuthenticationError": [errors.unauthorized()],
    "PermissionDeniedError": [errors.forbidden("Not from there.")],
    "NotFoundError": [errors.no_such_model("a", "demo"), errors.no_such_page("/v2")],
    "APIStatusError": [errors.too_large(10), errors.too_slow(5), errors.wrong_method("GET", "POST")],
    "RateLimitError": [errors.queue_full(3)],
    "InternalServerError": [
        errors.timed_out(600),
        errors.unavailable("The server is stopping; try another."),
        errors.out_of_memory(),
        errors.internal(),
    ],
}
EACH = [pytest.param(name, error, id=f"{name}-{error.status}") for name, some in ALL.items() for error in some]


@pytest.mark.parametrize(("name", "error"), EACH)
def test_what_the_client_raises(name, error):
    openai = pytest.importorskip("openai", reason="needs openai, of the extra test")
    httpx = pytest.importorskip("httpx", reason="needs httpx, of the extra test")
    request = httpx.Request("POST", "http://127.0.0.1/v1/chat/completions")
    response = httpx.Response(error.status, json=error.body, headers=error.headers, request=request)
    with openai.OpenAI(api_key="x", base_url="http://127.0.0.1/v1") as client:
        raised = client._make_status_error_from_response(response)
    assert type(raised).__name__ == name
    assert error.message in raised.message
    assert (raised.param, raised.code, raised.type) == (error.param, error.code, error.kind)


@pytest.mark.parametrize(("name", "error"), EACH)
def test_the_object(name, error):
    assert set(error.body) == {"error"}
    assert set(error.body["error"]) == {"message", "type", "param", "code"}
    assert error.message.isprintable()
    assert error.message.endswith(".")
    assert ("Retry-After" in error.headers) == (name == "RateLimitError")


@pytest.mark.parametrize(
    ("option", "value"),
    [("temperature", -1), ("top_p", 2), ("seed", -1), ("frequency_penalty", 3), ("image_size", True), ("min_p", 2)],
)
def test_what_the_library_says_names_its_field(option, value):
    with pytest.raises(UsageError) as raised:
        GenerationOptions(**{option: value})
    error = errors.from_preparing(raised.value)
    assert (error.status, error.param, error.message) == (400, option, str(raised.value))


PREPARING = [
    (ValueError("The data: URI is not an image; give one."), 400),
    (UsageError("regex needs the package llguidance; install it."), 400),
    (TypeError("There is no option json_schema."), 400),
    (OSError("http://a.example answered 404 Not Found; check the address."), 400),
    (MemoryError(), 503),
    (FileNotFoundError(2, "No such file or directory", "/home/ann/secret.png"), 500),
    (PermissionError(13, "Permission denied", "/home/ann/secret.png"), 500),
    (ValueError(), 500),
    (KeyError("secret"), 500),
    (AttributeError("'NoneType' object has no attribute 'secret'"), 500),
    (RuntimeError("secret"), 500),
    (RecursionError("secret"), 500),
]


@pytest.mark.parametrize(("error", "status"), PREPARING, ids=lambda value: str(value)[:30])
def test_errors_before_an_answer_begins(error, status):
    told = errors.from_preparing(error)
    assert told.status == status
    assert "secret" not in told.message
    assert told.message.endswith(".")


@pytest.mark.parametrize(("error", "_"), PREPARING, ids=lambda value: str(value)[:30])
def test_errors_of_an_answer_are_never_the_clients(error, _):
    told = errors.from_answering(error)
    assert told.status in (500, 503)
    assert told.message in (errors.internal().message, errors.out_of_memory().message)


def test_errors_that_are_told_already_stay():
    error = errors.queue_full(3)
    assert errors.from_preparing(error) is errors.from_answering(error) is error


def test_words_of_clients_are_shown_on_one_line():
    told = errors.from_preparing(ValueError("a\r\nSet-Cookie: b\x1b[31m\u202e" + "x" * 5000))
    assert told.message.isprintable()
    assert len(told.message) <= 1000
    assert "\n" not in errors.no_such_model("a\nb" * 1000, "demo").message
