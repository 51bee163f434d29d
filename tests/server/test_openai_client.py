"""The real client of OpenAI, sync and async, against a server with the demo: its texts are the library's."""

import asyncio
import base64
import json
import sys
import time
from typing import Literal

import pytest

from mlx_fastvlm import decide, generate, stream_generate
from tests.support import guidance
from tests.support.paths import ROOT
from tests.support.server import running

openai = pytest.importorskip("openai", reason="needs openai, of the extra test")

KEY = "sesame-open-up"
SCENE = (ROOT / "examples" / "images" / "shapes-1.png").read_bytes()
URI = "data:image/png;base64," + base64.b64encode(SCENE).decode()
QUESTION = "Describe the image."
real = pytest.mark.skipif(not guidance.REAL, reason="needs llguidance, of the extra constraints")


@pytest.fixture(scope="module")
def server():
    with running(api_keys=(KEY,)) as server:
        yield server


@pytest.fixture
def client(server):
    with openai.OpenAI(api_key=KEY, base_url=f"{server.url}/v1", max_retries=0) as client:
        yield client


def asking(question=QUESTION, uri=URI, **details):
    image = {"type": "image_url", "image_url": {"url": uri, **details}}
    return [{"role": "user", "content": [image, {"type": "text", "text": question}]}]


def expected(demo, question=QUESTION, **options):
    return generate(*demo, about_the_scene(question), **options)


def about_the_scene(question=QUESTION):
    """What ``asking`` sends, as the library takes it."""
    return [{"role": "user", "content": [{"type": "image", "image": SCENE}, text(question)]}]


def text(words):
    return {"type": "text", "text": words}


@pytest.fixture(scope="module")
def description(demo):
    return expected(demo)


# Chat


def test_an_image(client, description):
    completion = client.chat.completions.create(model="demo", messages=asking())
    (choice,) = completion.choices
    assert choice.message.content == description
    assert len(description) > 10
    assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
    usage = completion.usage
    assert usage.prompt_tokens > 16
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_stream(client, description):
    with client.chat.completions.create(
        model="demo", messages=asking(), stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == description
    assert sum(map(bool, texts)) > 2  # it came in pieces
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 2
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"


def test_a_stream_by_events(client, description):
    """The client's own accumulator."""
    with client.chat.completions.stream(model="demo", messages=asking()) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == description


def test_a_conversation(client, demo, description):
    first = client.chat.completions.create(model="demo", messages=asking())
    answered = first.choices[0].message.model_dump()
    messages = [*asking(), answered, {"role": "user", "content": "How many shapes are there?"}]
    second = client.chat.completions.create(model="demo", messages=messages)
    said = [
        *about_the_scene(),
        {"role": "assistant", "content": description},
        {"role": "user", "content": "How many shapes are there?"},
    ]
    assert second.choices[0].message.content == generate(*demo, said)
    assert second.usage.prompt_tokens_details.cached_tokens > 16  # of the first prompt


SAMPLED = [
    {"temperature": 1.5, "seed": 0},
    {"temperature": 1.5, "seed": 7, "top_p": 0.9},
    {"max_tokens": 3},
    {"stop": ["and", "star"]},
    {"frequency_penalty": 1.5, "presence_penalty": 0.5},
    {"temperature": 2.0, "seed": 3, "extra_body": {"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.2}},
    {"logit_bias": {"0": 100}, "max_tokens": 4},
    {"extra_body": {"image_size": 192}},
]


@pytest.mark.parametrize("options", SAMPLED, ids=str)
def test_options(client, demo, options):
    completion = client.chat.completions.create(model="demo", messages=asking(), **options)
    plain = {**options, **options.get("extra_body", {})}
    plain.pop("extra_body", None)
    if "logit_bias" in plain:
        plain["logit_bias"] = {int(id): bias for id, bias in plain["logit_bias"].items()}
    assert completion.choices[0].message.content == expected(demo, **plain)


def test_both_names_of_the_limit(client, demo):
    for limit in ({"max_tokens": 3}, {"max_completion_tokens": 3}):
        completion = client.chat.completions.create(model="demo", messages=asking(), **limit)
        assert completion.choices[0].message.content == expected(demo, max_tokens=3)
        assert (completion.choices[0].finish_reason, completion.usage.completion_tokens) == ("length", 3)


def test_several_answers(client, demo):
    completion = client.chat.completions.create(model="demo", messages=asking(), n=3, temperature=1.5, seed=5)
    texts = [choice.message.content for choice in sorted(completion.choices, key=lambda choice: choice.index)]
    assert texts == [expected(demo, temperature=1.5, seed=5 + i) for i in range(3)]


def test_logprobs(client, demo, description):
    completion = client.chat.completions.create(model="demo", messages=asking(), logprobs=True, top_logprobs=3)
    content = completion.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in content).decode() == description
    assert [len(token.top_logprobs) for token in content] == [3] * len(content)
    found = [response.logprob for response in stream_generate(*demo, about_the_scene(), logprobs=True)]
    assert [token.logprob for token in content] == pytest.approx(found[: len(content)], abs=1e-4)


def test_a_word_that_looks_like_a_mark(client):
    completion = client.chat.completions.create(model="demo", messages=asking("What is an <image> tag?"), max_tokens=3)
    assert completion.choices[0].message.content


def test_many_at_once_async(server, demo):
    """Different questions and options; each gets its own answer."""
    asks = [{"question": "How many shapes are there?"}, {"max_tokens": 2}, {"temperature": 1.5, "seed": 1}, {}] * 3

    async def one(client, ask):
        options = {name: value for name, value in ask.items() if name != "question"}
        messages = asking(ask.get("question", QUESTION))
        stream = await client.chat.completions.create(model="demo", messages=messages, stream=True, **options)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them():
        async with openai.AsyncOpenAI(api_key=KEY, base_url=f"{server.url}/v1", max_retries=0) as client:
            return await asyncio.gather(*(one(client, ask) for ask in asks))

    assert asyncio.run(all_of_them()) == [expected(demo, **ask) for ask in asks]


# Errors


def test_errors_by_their_classes(server, client):
    create = client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="There is no model") as raised:
        create(model="gpt-6", messages=asking())
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="temperature") as raised:
        create(model="demo", messages=asking(), temperature=-1)
    assert raised.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="calls no tools") as raised:
        create(model="demo", messages=asking(), tools=[{"type": "function", "function": {"name": "f"}}])
    assert raised.value.param == "tools"
    with pytest.raises(openai.BadRequestError, match="--allow-urls"):
        create(model="demo", messages=asking(uri="https://example.com/a.png"))
    with pytest.raises(openai.BadRequestError, match="--image-root"):
        create(model="demo", messages=asking(uri="/etc/passwd"))
    with pytest.raises(openai.BadRequestError, match="not an image"):
        create(model="demo", messages=asking(uri="data:image/png;base64,aGVsbG8="))
    with pytest.raises(openai.BadRequestError, match="is missing"):
        create(model="demo", messages=[{"role": "user"}])
    with pytest.raises(openai.BadRequestError, match="image_size"):
        create(model="demo", messages=asking(), stream=True, extra_body={"image_size": 100})
    with (
        openai.OpenAI(api_key="another-key", base_url=f"{server.url}/v1", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.chat.completions.create(model="demo", messages=asking())


def test_a_full_queue_and_its_retry(demo):
    """One row, no queue: the second of two is told when to come again, and the client does so by itself."""
    with running(max_rows=1, max_queue=0) as server:
        long = {"max_tokens": 600, "logit_bias": {"0": 100}}  # it says "!" for ever

        async def both():
            options = {"api_key": "x", "base_url": f"{server.url}/v1"}
            async with openai.AsyncOpenAI(**options, max_retries=0) as client, openai.AsyncOpenAI(**options) as patient:
                first = await client.chat.completions.create(model="demo", messages=asking(), stream=True, **long)
                await anext(first)
                with pytest.raises(openai.RateLimitError) as raised:
                    await client.chat.completions.create(model="demo", messages=asking())
                again = asyncio.create_task(patient.chat.completions.create(model="demo", messages=asking()))
                await asyncio.sleep(0.1)
                await first.close()
                return raised.value, (await again).choices[0].message.content

        error, answer = asyncio.run(both())
    assert int(error.response.headers["retry-after"]) >= 1
    assert answer == expected(demo)


def test_a_client_with_little_time(server, client):
    """It leaves; the row does not stay."""
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.05).chat.completions.create(
            model="demo", messages=asking(), max_tokens=4000, logit_bias={"0": 100}
        )
    deadline = time.monotonic() + 20
    while server.service.worker.rows and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.service.worker.rows == 0
    assert client.chat.completions.create(model="demo", messages=asking(), max_tokens=1).choices


# Completions, models


def test_completions(client, demo):
    completion = client.completions.create(model="demo", prompt=["Hello.", "What can you see?"], max_tokens=4, n=2)
    texts = [generate(*demo, prompt, max_tokens=4) for prompt in ("Hello.", "What can you see?")]
    assert [choice.text for choice in completion.choices] == [texts[0]] * 2 + [texts[1]] * 2
    stream = client.completions.create(model="demo", prompt="Hello.", max_tokens=4, stream=True)
    assert "".join(choice.text for chunk in stream for choice in chunk.choices) == texts[0]


def test_models(client):
    (model,) = client.models.list()
    assert (model.id, model.object) == ("demo", "model")
    assert client.models.retrieve("demo") == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-6")


# Responses


def response_input(question=QUESTION):
    image = {"type": "input_image", "image_url": URI, "detail": "auto"}
    return [{"role": "user", "content": [image, {"type": "input_text", "text": question}]}]


def test_a_response(client, demo, description):
    response = client.responses.create(model="demo", input=response_input(), store=True)
    assert (response.output_text, response.status) == (description, "completed")
    said = [{"role": "system", "content": "Answer shortly."}, {"role": "user", "content": "Hello."}]
    response = client.responses.create(model="demo", input="Hello.", instructions="Answer shortly.")
    assert response.output_text == generate(*demo, said)


def test_a_response_goes_on_without_a_memory(client, demo, description):
    first = client.responses.create(model="demo", input=response_input())
    more = [*response_input(), *first.to_dict()["output"], {"role": "user", "content": "How many shapes are there?"}]
    second = client.responses.create(model="demo", input=more)
    said = [
        *about_the_scene(),
        {"role": "assistant", "content": [text(description)]},
        {"role": "user", "content": "How many shapes are there?"},
    ]
    assert second.output_text == generate(*demo, said)
    with pytest.raises(openai.BadRequestError, match="nothing is stored"):
        client.responses.create(model="demo", input="Hi", previous_response_id=first.id)


def test_a_streamed_response(client, description):
    with client.responses.stream(model="demo", input=response_input()) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text == description
    events = [event.type for event in client.responses.create(model="demo", input=response_input(), stream=True)]
    assert (events[0], events[-1]) == ("response.created", "response.completed")


def test_a_response_that_was_cut(client, demo):
    response = client.responses.create(model="demo", input=response_input(), max_output_tokens=2)
    assert response.output_text == expected(demo, max_tokens=2)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")


# Decisions, by the client's own way to other addresses


def test_decisions(client, demo):
    body = {"question": "Is there a star?", "images": [URI], "choices": ["Yes", "No"]}
    found = client.post("/decisions", body=body, cast_to=object)
    decision = decide(*demo, about_the_scene("Is there a star?"), choices=["Yes", "No"])
    assert found["choice"] == decision.choice
    assert found["probabilities"] == pytest.approx(decision.probabilities, abs=1e-5)
    assert found["usage"]["completion_tokens"] == 0


# JSON


@real
def test_parse(client):
    pydantic = pytest.importorskip("pydantic", reason="needs pydantic, of the extra test")

    class Seen(pydantic.BaseModel):
        colour: Literal["red", "blue", "green"]  # no free text: the demo would write on and on
        shape: Literal["star", "circle", "ring"]

    parsed = client.chat.completions.parse(model="demo", messages=asking(), response_format=Seen)
    assert isinstance(parsed.choices[0].message.parsed, Seen)
    response = client.responses.parse(model="demo", input=response_input(), text_format=Seen)
    assert isinstance(response.output_parsed, Seen)
    assert response.output_parsed == parsed.choices[0].message.parsed
    with client.responses.stream(model="demo", input=response_input(), text_format=Seen) as stream:
        list(stream)
        assert stream.get_final_response().output_parsed == response.output_parsed


@real
def test_json_objects(client):
    completion = client.chat.completions.create(
        model="demo", messages=asking(), response_format={"type": "json_object"}, max_tokens=400
    )
    if completion.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(completion.choices[0].message.content), dict)


@real
def test_json_that_was_cut_is_no_answer(client):
    pydantic = pytest.importorskip("pydantic", reason="needs pydantic, of the extra test")

    class Seen(pydantic.BaseModel):
        shapes: list[str] = pydantic.Field(min_length=50)

    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="demo", messages=asking(), response_format=Seen, max_tokens=5)


@pytest.mark.parametrize("format", [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "a"}}])
def test_json_without_llguidance_is_refused(client, format, monkeypatch):
    """In the server's threads, which are in this process."""
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(openai.BadRequestError, match="json_schema needs llguidance") as raised:
        client.chat.completions.create(model="demo", messages=asking(), response_format=format)
    assert raised.value.param == "json_schema"


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"properties": 3}, {"$ref": "#/nowhere"}], ids=str)
def test_schemas_that_can_not_be_are_refused(client, schema):
    """Before anything is answered, also in a stream."""
    format = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="json_schema"):
            client.chat.completions.create(model="demo", messages=asking(), response_format=format, stream=stream)
    assert client.chat.completions.create(model="demo", messages=asking(), max_tokens=1).choices
