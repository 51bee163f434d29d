"""Conversations: roles, parts, texts that look like marks, films, and what is refused."""

import pytest

from mlx_fastvlm.processing.marks import PlainText
from mlx_fastvlm.server.dialect import chat, completions, decisions, responses
from mlx_fastvlm.server.dialect.images import Source
from tests.server.dialect.bodies import SERVED, data_uri, image_part, refusal, says, served

URI = data_uri()


def prompt(body, dialect=chat, to=SERVED):
    return dialect.read(body, to).prompt


def said(role, content):
    return {"role": role, "content": content}


def text(words):
    return {"type": "text", "text": words}


def test_roles():
    messages = [said("system", "Be brief."), said("developer", "In English."), said("user", "Hi"), said("user", "")]
    assert prompt({"messages": messages}) == [said("system", "Be brief."), said("system", "In English."), *messages[2:]]


def test_an_answer_as_clients_send_it_back():
    """``message.model_dump()`` of openai's client has every field that a message can have."""
    sent = {"role": "assistant", "content": "Red.", "refusal": None, "annotations": None, "audio": None}
    sent |= {"function_call": None, "tool_calls": None}
    for answer in (sent, {**sent, "tool_calls": []}):
        assert prompt({"messages": [said("user", "Hi"), answer]})[1] == said("assistant", "Red.")
    assert prompt({"messages": [{**sent, "content": None}]}) == [said("assistant", "")]


def test_parts_keep_their_order():
    parts = [text("a"), image_part(URI), text("b"), image_part(URI, detail="high")]
    (message,) = prompt(says(parts))
    assert [part.get("text", part["type"]) for part in message["content"]] == ["a", "image", "b", "image"]
    assert message["content"][3]["image"] == Source(URI, "image", "messages[0].content[3].image_url.url")


def test_an_address_without_its_object():
    (message,) = prompt(says([{"type": "image_url", "image_url": URI}]))
    assert message["content"][0]["image"].text == URI


def test_texts_with_a_mark_in_them_have_none():
    for body in (says("an <image> tag"), says([text("an <image> tag")])):
        (message,) = prompt(body)
        content = message["content"]
        assert isinstance(content if isinstance(content, str) else content[0]["text"], PlainText)
    assert isinstance(prompt({"prompt": "<image>"}, completions)[0]["content"], PlainText)
    assert isinstance(prompt({"input": "<image>"}, responses)[0]["content"], PlainText)
    assert type(prompt(says("no tag"))[0]["content"]) is str


def test_details():
    for details, size in [
        ([None, "auto"], None),
        (["high"], None),
        (["original", "high", "auto"], None),
        (["low"], 512),
        (["low", "auto", None, "low"], 512),
    ]:
        parts = [image_part(URI, **({} if detail is None else {"detail": detail})) for detail in details]
        assert chat.read(says(parts), SERVED).options.get("image_size") == size
    for details in (["low", "high"], ["original", "auto", "low"]):
        parts = [image_part(URI, detail=detail) for detail in details]
        assert "the same size" in refusal(chat.read, says(parts)).message
        assert chat.read(says(parts, image_size=256), SERVED).options["image_size"] == 256
    refusal(chat.read, says([image_part(URI, detail="tiny")]), param="messages[0].content[0].image_url.detail")


def test_a_small_checkpoint_scales_nothing_up():
    assert chat.read(says([image_part(URI, detail="low")]), served(image_size=256)).options["image_size"] == 256


def test_image_size_goes_before_detail():
    assert chat.read(says([image_part(URI, detail="low")], image_size=768), SERVED).options["image_size"] == 768
    refusal(chat.read, says(image_size=2048), param="image_size")


def test_films():
    film = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
    ask = chat.read(says([text("What happens?"), film], fps=2, max_frames=4), SERVED)
    assert ask.prompt == [said("user", [text("What happens?")])]
    assert ask.options["video"] == Source(film["video_url"]["url"], "video", "messages[0].content[1].video_url.url")
    assert (ask.options["fps"], ask.options["max_frames"]) == (2, 4)
    assert "one video" in refusal(chat.read, says([film, film])).message
    later = {"messages": [said("user", "Hi"), said("user", [film])]}
    assert "first user message" in refusal(chat.read, later).message
    assert "first user message" in refusal(chat.read, {"messages": [said("system", [film])]}).message


def test_numbers_of_images():
    few = served(max_images=3)
    assert chat.read(says([image_part(URI)] * 3), few)
    refusal(chat.read, says([image_part(URI)] * 4), few, "messages[0].content[3].image_url.url")
    refusal(chat.read, says([image_part(URI)] * 2, frames=2), few, "frames")
    film = {"type": "video_url", "video_url": {"url": "data:,x"}}
    refusal(chat.read, says([film]), few, "max_frames")  # 8, unless it says less
    assert chat.read(says([film], max_frames=3), few)
    refusal(chat.read, says([film, image_part(URI)], max_frames=3), few, "max_frames")
    refusal(chat.read, says([image_part(URI)], frames=33), param="frames")
    refusal(chat.read, says([image_part(URI)] * 10_000), param="messages[0].content[32].image_url.url")


REFUSED = [
    ({}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": ["Hi"]}, "messages[0]"),
    ({"messages": [{}]}, "messages[0].role"),
    ({"messages": [said(5, "Hi")]}, "messages[0].role"),
    ({"messages": [said("bot", "Hi")]}, "messages[0].role"),
    ({"messages": [said("tool", "Hi")]}, "messages[0].role"),
    ({"messages": [said("function", "Hi")]}, "messages[0].role"),
    ({"messages": [said("user", None)]}, "messages[0].content"),
    ({"messages": [said("user", 5)]}, "messages[0].content"),
    ({"messages": [said("user", {})]}, "messages[0].content"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{**said("user", "Hi"), "name": "Ann"}]}, "messages[0].name"),
    ({"messages": [{**said("user", "Hi"), "images": ["aGk="]}]}, "messages[0].images"),
    ({"messages": [{**said("assistant", ""), "tool_calls": [{}]}]}, "messages[0].tool_calls"),
    ({"messages": [{**said("assistant", ""), "function_call": {"name": "f"}}]}, "messages[0].function_call"),
    ({"messages": [{**said("assistant", None), "refusal": "No."}]}, "messages[0].refusal"),
    ({"messages": [{**said("assistant", None), "audio": {"id": "a"}}]}, "messages[0].audio"),
    (says(["Hi"]), "messages[0].content[0]"),
    (says([{}]), "messages[0].content[0].type"),
    (says([{"type": "input_audio", "input_audio": {}}]), "messages[0].content[0].type"),
    (says([{"type": "file", "file": {}}]), "messages[0].content[0].type"),
    (says([{"type": "image", "image": "/etc/passwd"}]), "messages[0].content[0].type"),
    (says([{"type": "text"}]), "messages[0].content[0].text"),
    (says([{"type": "text", "text": 5}]), "messages[0].content[0].text"),
    (says([{"type": "image_url"}]), "messages[0].content[0].image_url"),
    (says([{"type": "image_url", "image_url": {}}]), "messages[0].content[0].image_url.url"),
    (says([{"type": "image_url", "image_url": {"url": 5}}]), "messages[0].content[0].image_url.url"),
    ({"messages": [said("system", [image_part(URI)])]}, "messages[0].content[0].image_url.url"),
    ({"messages": [said("assistant", [image_part(URI)])]}, "messages[0].content[0].image_url.url"),
]


@pytest.mark.parametrize(("body", "param"), REFUSED)
def test_refused_messages(body, param):
    assert refusal(chat.read, body, param=param).status == 400


def test_prompts_of_completions():
    ask = completions.read({"prompt": ["a", "b", "c"], "n": 2}, SERVED)
    assert ask.prompts == [[said("user", word)] for word in "abc"]
    assert ask.n == 2
    for value in (None, 5, [], [1, 2], [[1, 2]], ["a", 5], {}, ["a"] * 17):
        refusal(completions.read, {"prompt": value}, param="prompt")
    refusal(completions.read, {"prompt": ["a"] * 9, "n": 2}, param="n")


def test_input_of_responses():
    parts = [
        {"type": "input_text", "text": "What is it?"},
        {"type": "input_image", "image_url": URI, "detail": "low", "file_id": None},
    ]
    answer = {"type": "output_text", "text": "Red.", "annotations": [], "logprobs": []}
    items = [
        {"role": "user", "content": parts, "type": "message"},
        {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [answer]},
        {"role": "user", "content": "Sure?"},
    ]
    ask = responses.read({"input": items, "instructions": "Be brief."}, SERVED)
    assert ask.options["image_size"] == 512
    image = {"type": "image", "image": Source(URI, "image", "input[0].content[1].image_url")}
    assert ask.prompt == [
        said("system", "Be brief."),
        said("user", [text("What is it?"), image]),
        said("assistant", [text("Red.")]),
        said("user", "Sure?"),
    ]


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (None, "input"),
        (5, "input"),
        ([], "input"),
        ([5], "input[0]"),
        ([{"type": "function_call_output", "output": "", "call_id": "a"}], "input[0].type"),
        ([{"type": "item_reference", "id": "a"}], "input[0].type"),
        ([{"type": ["message"], "role": "user", "content": "a"}], "input[0].type"),
        ([said("user", [{"type": "input_file", "file_id": "a"}])], "input[0].content[0].type"),
        ([said("user", [{"type": "input_image", "file_id": "a"}])], "input[0].content[0].file_id"),
        ([said("user", [{"type": "input_image"}])], "input[0].content[0].image_url"),
        ([said("user", [{"type": "text", "text": "a"}])], "input[0].content[0].type"),
    ],
)
def test_refused_inputs(value, param):
    refusal(responses.read, {"input": value}, param=param)


def test_metadata_is_repeated():
    assert responses.read({"input": "Hi", "metadata": {"a": "b"}}, SERVED).about["metadata"] == {"a": "b"}
    many, long = {str(i): "" for i in range(17)}, "x" * 600
    for value in ("a", {"a": 5}, {"a": None}, many, {"a": long}, {long: "a"}, {"\n": 5}, {"\ud83d": "a"}):
        refusal(responses.read, {"input": "Hi", "metadata": value}, param="metadata")


def test_decisions():
    body = {"question": "Is it red?", "images": [URI, {"url": URI, "detail": "low"}], "choices": ["Yes", "No"]}
    ask = decisions.read(body, SERVED)
    assert ask.choices == ["Yes", "No"]
    assert [part["type"] for part in ask.prompt[0]["content"]] == ["image", "image", "text"]
    assert ask.prompt[0]["content"][1]["image"].where == "images[1].url"
    assert ask.options == {"image_size": 512}
    for one in (URI, {"url": URI}):
        single = decisions.read({"question": "Is it red?", "image": one, "choices": ["Yes", "No"]}, SERVED)
        assert [part["type"] for part in single.prompt[0]["content"]] == ["image", "text"]
        assert single.prompt[0]["content"][0]["image"].where.startswith("image")
    same = decisions.read({**says([image_part(URI), text("Is it red?")]), "choices": ["Yes", "No"]}, SERVED)
    assert [part["type"] for part in same.prompt[0]["content"]] == ["image", "text"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"question": None}, "messages"),
        ({"messages": []}, "question"),
        ({"question": None, **says()}, None),
        ({"question": None, **says(), "images": []}, "images"),
        ({"images": URI}, "images"),
        ({"question": None, **says(), "image": URI}, "image"),
        ({"image": URI, "images": [URI]}, "image"),
        ({"image": 5}, "image"),
        ({"image": {}}, "image.url"),
        ({"images": [5]}, "images[0]"),
        ({"images": [{}]}, "images[0].url"),
        ({"choices": None}, "choices"),
        ({"choices": "Yes"}, "choices"),
        ({"choices": ["Yes"]}, "choices"),
        ({"choices": ["Yes", "Yes"]}, "choices"),
        ({"choices": ["Yes", ""]}, "choices"),
        ({"choices": ["Yes", 5]}, "choices"),
        ({"choices": ["Yes", "a" * 501]}, "choices"),
        ({"choices": [str(i) for i in range(257)]}, "choices"),
    ],
)
def test_refused_decisions(fields, param):
    body = {"question": "Is it red?", "choices": ["Yes", "No"], **fields}
    if param is None:
        assert decisions.read(body, SERVED).choices
    else:
        refusal(decisions.read, body, param=param)
