"""What answers become: OpenAI's bodies and chunks, which its own client's models take."""

import json

import pytest

from mlx_fastvlm.generation.decision import Decision
from mlx_fastvlm.server.dialect import chat, completions, decisions, errors, models, responses
from mlx_fastvlm.server.dialect.errors import RequestError
from tests.server.dialect.bodies import PLAIN, SERVED, answer, says, write

RED = answer(["A", " red", " circle", "."])
CUT = answer(["A", " red"], "length")


@pytest.fixture
def types():
    pytest.importorskip("openai", reason="needs openai, of the extra test")
    import openai.types.chat  # noqa: PLC0415  optional
    import openai.types.responses  # noqa: PLC0415  optional

    return openai.types


def valid(model, value):
    """The value as openai's client sees it, after a way through JSON, which has no NaN."""
    return model.model_validate_json(json.dumps(value, allow_nan=False), strict=True)


# Chat


def test_a_chat_completion(types):
    writer, _ = write(chat, says(), RED)
    body = valid(types.chat.ChatCompletion, writer.whole())
    (choice,) = body.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "A red circle.", "stop")
    assert choice.logprobs is None
    assert body.model == "demo"
    assert body.id.startswith("chatcmpl-")
    usage = body.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (7, 5, 12)
    assert usage.prompt_tokens_details.cached_tokens == 0


def test_an_empty_answer_has_a_content():
    writer, chunks = write(chat, says(), answer([]))
    assert writer.whole()["choices"][0]["message"]["content"] == ""
    assert chunks[0]["choices"][0]["delta"]["content"] == ""


@pytest.mark.parametrize("format", [None, {"type": "json_object"}, {"type": "json_schema", "json_schema": {}}])
def test_an_answer_that_was_cut_says_so(format):
    writer, chunks = write(chat, says(response_format=format), CUT)
    assert writer.whole()["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_chunks(types):
    _, chunks = write(chat, says(stream=True), RED)
    seen = [valid(types.chat.ChatCompletionChunk, chunk) for chunk in chunks]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in seen}) == 1
    deltas = [chunk.choices[0].delta for chunk in seen]
    assert deltas[0].role == "assistant"
    assert all(delta.role is None for delta in deltas[1:])
    assert "".join(delta.content or "" for delta in deltas) == "A red circle."
    assert [chunk.choices[0].finish_reason for chunk in seen] == [None] * 5 + ["stop"]
    assert all("usage" not in chunk for chunk in chunks)


def test_usage_of_a_stream(types):
    _, chunks = write(chat, says(stream=True, stream_options={"include_usage": True}), RED)
    last = valid(types.chat.ChatCompletionChunk, chunks[-1])
    assert last.choices == []
    assert last.usage.total_tokens == 12
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"


def test_several_answers(types):
    writer, chunks = write(chat, says(n=2, stream=True), RED, CUT)
    first, second = valid(types.chat.ChatCompletion, writer.whole()).choices
    assert (first.index, first.message.content, first.finish_reason) == (0, "A red circle.", "stop")
    assert (second.index, second.message.content, second.finish_reason) == (1, "A red", "length")
    for index, text in enumerate(["A red circle.", "A red"]):
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert "".join(choice["delta"].get("content", "") for choice in own) == text
        assert own[0]["delta"]["role"] == "assistant"
        assert own[-1]["finish_reason"] is not None
    assert writer.whole()["usage"]["prompt_tokens"] == 7  # the prompt was read once
    assert writer.whole()["usage"]["completion_tokens"] == 7


def test_cached_tokens():
    some = [answer(["A"], cached_tokens=3), answer(["A"], cached_tokens=7)]  # the second has the first's prompt
    writer, _ = write(chat, says(n=2), *some)
    assert writer.whole()["usage"]["prompt_tokens_details"] == {"cached_tokens": 3}


def test_logprobs_of_chat(types):
    writer, chunks = write(chat, says(logprobs=True, top_logprobs=2), answer(["A", " red"], scored=3))
    content = valid(types.chat.ChatCompletion, writer.whole()).choices[0].logprobs.content
    assert [token.token for token in content] == ["A", " red"]
    assert [bytes(token.bytes) for token in content] == [b"A", b" red"]
    assert [token.logprob for token in content] == [-0.25, -0.25]
    assert [[other.token for other in token.top_logprobs] for token in content] == [["A", " red"]] * 2
    streamed = [c["choices"][0]["logprobs"] for c in chunks if c["choices"][0]["logprobs"]]
    assert [token for some in streamed for token in some["content"]] == writer.whole()["choices"][0]["logprobs"][
        "content"
    ]


def test_logprobs_of_an_empty_answer(types):
    writer, _ = write(chat, says(logprobs=True), answer([], scored=1))
    assert valid(types.chat.ChatCompletion, writer.whole()).choices[0].logprobs.content == []


# Completions


def test_a_completion(types):
    writer, _ = write(completions, {"prompt": "Hi"}, RED)
    body = valid(types.Completion, writer.whole())
    assert (body.choices[0].text, body.choices[0].finish_reason) == ("A red circle.", "stop")
    assert body.usage.total_tokens == 12
    assert body.choices[0].logprobs is None


def test_completions_of_several_prompts(types):
    some = [RED, CUT, answer(["ping"], prompt_tokens=9), answer([], prompt_tokens=9)]
    writer, chunks = write(completions, {"prompt": ["a", "b"], "n": 2, "stream": True}, *some)
    body = valid(types.Completion, writer.whole())
    assert [(choice.index, choice.text) for choice in body.choices] == list(
        enumerate(["A red circle.", "A red", "ping", ""])
    )
    assert body.usage.prompt_tokens == 7 + 9
    texts = [""] * 4
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == [choice.text for choice in body.choices]


def test_logprobs_of_completions(types):
    said = answer(["A", " red"], scored=3)
    writer, chunks = write(completions, {"prompt": "Hi", "logprobs": 2}, said)
    found = valid(types.Completion, writer.whole()).choices[0].logprobs
    assert found.tokens == ["A", " red"]
    assert found.token_logprobs == [-0.25, -0.25]
    assert found.top_logprobs == [{"A": -0.25, " red": -1.25}] * 2
    assert found.text_offset == [0, 1]
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [offset for one in streamed if one for offset in one["text_offset"]] == [0, 1]
    writer, _ = write(completions, {"prompt": "Hi", "logprobs": 0}, answer(["A"], scored=1))
    assert writer.whole()["choices"][0]["logprobs"]["top_logprobs"] is None


# Responses

EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    *["response.output_text.delta"] * 4,
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]


def test_a_response(types):
    writer, _ = write(responses, {"input": "Hi", "instructions": "Be brief.", "temperature": 0.5}, RED)
    body = valid(types.responses.Response, writer.whole())
    assert body.output_text == "A red circle."
    assert (body.status, body.error, body.incomplete_details) == ("completed", None, None)
    assert (body.temperature, body.top_p, body.instructions, body.max_output_tokens) == (0.5, 1.0, "Be brief.", None)
    assert writer.whole()["store"] is False
    usage = body.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (7, 5, 12)


def test_events_of_a_response(types):
    pydantic = pytest.importorskip("pydantic", reason="needs pydantic, of the extra test")
    writer, events = write(responses, {"input": "Hi", "stream": True}, RED)
    assert [event["type"] for event in events] == [*EVENTS, "response.completed"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    adapter = pydantic.TypeAdapter(types.responses.ResponseStreamEvent)
    seen = [adapter.validate_json(json.dumps(event), strict=True) for event in events]
    for event, one in zip(events, seen):
        assert one.type == event["type"]
    assert "".join(one.delta for one in seen if one.type == "response.output_text.delta") == "A red circle."
    assert seen[8].text == seen[9].part.text == seen[10].item.content[0].text == "A red circle."
    assert seen[-1].response.output_text == "A red circle."
    assert events[-1]["response"] == writer.whole()
    assert len({one.item_id for one in seen if hasattr(one, "item_id")} | {seen[2].item.id, seen[10].item.id}) == 1
    assert seen[0].response.status == "in_progress"
    assert not writer.done


@pytest.mark.parametrize("format", ["text", "json_object", "json_schema"])
def test_a_response_that_was_cut(types, format):
    body = {"input": "Hi", "text": {"format": {"type": format, "name": "a", "schema": {}}}}
    writer, events = write(responses, body, CUT)
    whole = valid(types.responses.Response, writer.whole())
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert whole.output[0].status == "incomplete"
    assert events[-1]["type"] == "response.incomplete"
    assert events[-2]["item"]["status"] == "incomplete"


def test_logprobs_of_a_response(types):
    writer, events = write(responses, {"input": "Hi", "top_logprobs": 2}, answer(["A", " red"], scored=3))
    body = valid(types.responses.Response, writer.whole())
    assert [token.token for token in body.output[0].content[0].logprobs] == ["A", " red"]
    assert body.top_logprobs == 2
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [token["token"] for event in deltas for token in event["logprobs"]] == ["A", " red"]


# Decisions and models


def test_a_decision():
    ask = decisions.read(PLAIN[decisions], SERVED)
    writer = decisions.Writer(ask, SERVED)
    for response in answer(["A"], cached_tokens=2):
        assert writer.piece(0, response) == []
    writer.decided(Decision("Yes", {"Yes": 0.75, "No": 0.25}, {"Yes": -0.3, "No": float("-inf")}))
    body = json.loads(json.dumps(writer.whole(), allow_nan=False))
    assert (body["object"], body["choice"], body["model"]) == ("decision", "Yes", "demo")
    assert body["probabilities"] == {"Yes": 0.75, "No": 0.25}
    assert body["logprobs"] == {"Yes": -0.3, "No": -9999.0}
    assert body["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 0,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def test_models(types):
    listed = models.listed(SERVED)
    assert [valid(types.Model, model).id for model in listed["data"]] == ["demo"]
    assert models.one("demo", SERVED) == models.one("fastvlm", SERVED) == listed["data"][0]
    for name in ("gpt-6", "", "../demo"):
        with pytest.raises(RequestError) as raised:
            models.one(name, SERVED)
        assert raised.value.status == 404


# Errors in a stream


@pytest.mark.parametrize("dialect", [chat, completions, responses])
def test_an_error_in_a_stream_is_raised_by_the_client(dialect, types):
    import httpx  # noqa: PLC0415  comes with openai
    import openai  # noqa: PLC0415  optional

    writer, _ = write(dialect, {**PLAIN[dialect], "stream": True}, RED[:2])
    chunks = [*writer.begin(), *writer.fail(errors.internal())]
    lines = [
        (f"event: {chunk['type']}\n" if "type" in chunk else "") + f"data: {json.dumps(chunk)}" for chunk in chunks
    ]
    content = "".join(f"{line}\n\n" for line in lines)
    transport = httpx.MockTransport(
        lambda _: httpx.Response(200, headers={"content-type": "text/event-stream"}, content=content)
    )
    with openai.OpenAI(
        api_key="x", base_url="http://a/v1", http_client=httpx.Client(transport=transport), max_retries=0
    ) as client:
        ask = {
            chat: lambda: client.chat.completions.create(model="demo", messages=[], stream=True),
            completions: lambda: client.completions.create(model="demo", prompt="", stream=True),
            responses: lambda: client.responses.create(model="demo", input="", stream=True),
        }[dialect]
        with pytest.raises(openai.APIError, match="Something went wrong in the server"):
            list(ask())


def test_a_failed_response(types):
    writer, _ = write(responses, {"input": "Hi", "stream": True}, RED[:2])
    failed, error = writer.fail(errors.timed_out(5))
    body = valid(types.responses.ResponseFailedEvent, failed).response
    assert (body.status, body.error.code) == ("failed", "server_error")
    assert valid(types.responses.ResponseErrorEvent, error).code == "timeout"
