"""Training data in every form that people have, and what is said of data that can't be learnt from."""

import base64
import csv
import json

import pytest
from PIL import Image

from mlx_fastvlm.tuner.conversations import CAPTION_PROMPT, read_conversations
from tests.support.images import encoded

QUESTION = {"role": "user", "content": "Who?"}
ANSWER = {"role": "assistant", "content": "A fox."}
MARKED = {"role": "user", "content": "<image>\nWho?"}


@pytest.fixture
def data(tmp_path):
    """A folder with an image, and a way to write a file of rows into it and read it."""
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 10), "red").save(tmp_path / name)
    (tmp_path / "deep").mkdir()
    Image.new("RGB", (20, 10), "blue").save(tmp_path / "deep" / "c.png")

    def read(rows, name="train.jsonl", **how):
        if isinstance(rows, list):
            rows = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / name).write_text(rows, encoding="utf-8")
        return read_conversations(tmp_path, "train", **how)

    read.folder = tmp_path
    return read


FORMS = {
    "messages": {"images": ["a.png"], "messages": [QUESTION, ANSWER]},
    "messages with a mark": {"images": ["a.png"], "messages": [MARKED, ANSWER]},
    "messages of parts": {
        "images": ["a.png"],
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A fox."}]},
        ],
    },
    "a part's own image": {
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Who?"}]},
            ANSWER,
        ]
    },
    "a path in an object": {"images": [{"path": "a.png", "bytes": None}], "messages": [QUESTION, ANSWER]},
    "LLaVA": {
        "id": "1",
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nWho?"}, {"from": "gpt", "value": "A fox."}],
    },
    "question and answer": {"image": "a.png", "question": "Who?", "answer": "A fox."},
    "prompt and completion": {"image": "a.png", "prompt": "Who?", "completion": "A fox."},
    "caption": {"image": "a.png", "prompt": "Who?", "caption": "A fox."},
    "image folder": {"file_name": "a.png", "prompt": "Who?", "text": "A fox."},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_conversation(data, form, processor):
    (found,) = data([FORMS[form]])
    assert found.images == (data.folder / "a.png",)
    assert found.place == "train.jsonl, row 1"
    text = processor.apply_chat_template(found.messages, add_generation_prompt=False)
    assert text.endswith("user\n<image>\nWho?<|im_end|>\n<|im_start|>assistant\nA fox.<|im_end|>\n")


def test_a_json_list(data):
    found = data(json.dumps([FORMS["LLaVA"], FORMS["LLaVA"]]), "train.json")
    assert [conversation.place for conversation in found] == ["train.json, row 1", "train.json, row 2"]


def test_a_table(data):
    with (data.folder / "train.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["filename", "caption"], ["a.png", 'A fox,\n"red".'], ["b.png", "Nö."]])
    first, second = read_conversations(data.folder, "train")
    assert (first.messages[1]["content"], second.messages[1]["content"]) == ('A fox,\n"red".', "Nö.")
    assert first.messages[0]["content"] == f"<image>\n{CAPTION_PROMPT}"


def test_a_file_instead_of_a_folder(data):
    (data.folder / "mine.json").write_text(json.dumps([FORMS["LLaVA"]]))
    assert len(read_conversations(data.folder / "mine.json", "train")) == 1
    assert read_conversations(data.folder / "mine.json", "valid") == []


def test_splits(data):
    data([FORMS["LLaVA"]])
    assert read_conversations(data.folder, "valid") == []
    (data.folder / "validation.jsonl").write_text(json.dumps(FORMS["caption"]) + "\n\n" + json.dumps(FORMS["LLaVA"]))
    found = read_conversations(data.folder, "valid")
    assert [conversation.place for conversation in found] == ["validation.jsonl, row 1", "validation.jsonl, row 3"]


def test_several_images_turns_and_a_system_prompt(data):
    messages = [{"role": "system", "content": "Be brief."}, QUESTION, ANSWER, {**MARKED, "content": "And <image>?"}]
    messages[1] = {"role": "user", "content": "<image><image>Who?"}
    (found,) = data([{"images": ["b.png", "a.png", "deep/c.png"], "messages": [*messages, ANSWER]}])
    assert [path.name for path in found.images] == ["b.png", "a.png", "c.png"]
    assert len(found.messages) == 5


def test_text_without_images(data):
    (found,) = data([{"messages": [QUESTION, ANSWER]}])
    assert found.images == ()


def test_a_mark_in_an_answer_is_text(data):
    (found,) = data([{"image": "a.png", "question": "Who?", "answer": "An <image>."}])
    assert found.messages[0]["content"] == "<image>\nWho?"
    assert found.images == (data.folder / "a.png",)


def test_an_image_in_the_row_itself(data):
    uri = "data:image/png;base64," + base64.b64encode(encoded(Image.new("RGB", (9, 9)))).decode()
    (found,) = data([{"image": uri, "question": "Who?", "answer": "A fox."}])
    assert found.images == (uri,)


def test_images_lie_elsewhere(data):
    row = {"image": "c.png", "question": "Who?", "answer": "A fox."}
    (found,) = data([row], image_folder=data.folder / "deep")
    assert found.images == (data.folder / "deep" / "c.png",)


def turns(*contents):
    return [{"role": role, "content": text} for role, text in contents]


def row(**changed):
    return {key: value for key, value in {**FORMS["question and answer"], **changed}.items() if value is not None}


def said(*messages, **more):
    return {"messages": list(messages), **more}


LLAVA = FORMS["LLaVA"]
BAD = {
    "no such image": (row(image="no.png"), "no.png: no such image"),
    "a folder for an image": (row(image="deep"), "no such image"),
    "a URL": (row(image="https://example.com/a.png"), "is a URL; download"),
    "a zero byte in a path": (row(image="a\0.png"), "no such image"),
    "a very long path": (row(image="a" * 5000), "no such image"),
    "a number for an image": (row(image=5), "is the path of a file, got 5"),
    "an object for an image": (row(image={"bytes": "x"}), "is the path of a file"),
    "an image that is none": (row(image="train.jsonl"), "is not an image that can be read"),
    "a data URI that is none": (row(image="data:image/png;base64,????"), "data: URI"),
    "images twice": (row(images=["a.png"]), "has both images and image"),
    "two images for one mark": (said(MARKED, ANSWER, images=["a.png", "b.png"]), "1 <image> mark for 2 images"),
    "a mark and no image": (said(MARKED, ANSWER), "1 <image> mark for 0 images"),
    "three marks": (row(question="<image><image><image>Who?"), "3 <image> marks for 1 image"),
    "no form": ({"image": "a.png"}, "has the keys ['image'] and none of the forms"),
    "an empty row": ({}, "none of the forms"),
    "a question and no answer": (row(answer=None), "none of the forms"),
    "an answer that is a number": (row(answer=42), "answer must be a text, got 42"),
    "a question that is a list": (row(question=["Who?"]), "question must be a text"),
    "an empty answer": (row(answer=""), "is an empty answer"),
    "an answer of spaces": (row(answer=" \n"), "is an empty answer"),
    "a caption without an image": ({"caption": "A fox."}, "has a caption and no image"),
    "messages that are a text": ({"messages": json.dumps([QUESTION, ANSWER])}, "messages must be a list"),
    "no messages": ({"messages": []}, "messages must be a list"),
    "a message that is a text": (said("Who?", ANSWER), "a message must be an object"),
    "a message without a role": (said({"content": "Who?"}, ANSWER), "a message must be an object"),
    "an unknown role": (said({"role": "human", "content": "Who?"}, ANSWER), "a role is one of system, user, assistant"),
    "a role that is a number": (said({"role": 1, "content": "Who?"}, ANSWER), "a role is one of"),
    "a tool": (said(QUESTION, {"role": "tool", "content": "x"}, ANSWER), "a role is one of"),
    "a late system prompt": (said(QUESTION, ANSWER, {"role": "system", "content": "x"}), "must take turns"),
    "only a system prompt": (said({"role": "system", "content": "x"}), "has no answer at its end"),
    "the assistant begins": (said(ANSWER), "turn 1 is the assistant's"),
    "two questions": (said(QUESTION, QUESTION, ANSWER), "turn 2 is the user's"),
    "a question at the end": (said(QUESTION, ANSWER, QUESTION), "has no answer at its end"),
    "an empty answer among others": (
        said(QUESTION, {"role": "assistant", "content": ""}, QUESTION, ANSWER),
        "turn 2 is an empty answer",
    ),
    "an answer with an image": (
        said(QUESTION, {"role": "assistant", "content": [{"type": "image"}]}),
        "is an answer with an image",
    ),
    "an answer that is none": (said(QUESTION, {"role": "assistant", "content": None}), "is an answer without text"),
    "an answer of strange parts": (said(QUESTION, {"role": "assistant", "content": [5]}), "is an answer without text"),
    "a turn from nobody": ({**LLAVA, "conversations": [{"value": "Who?"}]}, 'a turn is "from" human or gpt'),
    "a turn from a robot": (
        {**LLAVA, "conversations": [{"from": "robot", "value": "Who?"}]},
        "a turn is \"from\" human or gpt, got 'robot'",
    ),
    "a turn without a value": ({**LLAVA, "conversations": [{"from": "human"}]}, "a turn must be an object"),
    "turns that are a text": ({**LLAVA, "conversations": "Who?"}, "conversations must be a list of turns"),
    "no turns": ({**LLAVA, "conversations": []}, "conversations must be a list of turns"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_named(data, name):
    """Behind good ones: the row is in the error."""
    bad, words = BAD[name]
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        data([FORMS["caption"], FORMS["messages"], bad])
    error = str(raised.value)
    assert error.startswith("train.jsonl, row 3")
    assert words in error
    assert "\n" not in error
    assert len(error) < 600


FILES = {
    "a broken line": ('{"image": "a.png"\n', "train.jsonl, row 1 is not valid JSON"),
    "a list in a line": ("[]", "row 1 is not a JSON object but []"),
    "nested too deeply": ("[" * 100000, "row 1 is "),
    "nothing": ("", "has no rows"),
    "empty lines": ("\n\n", "has no rows"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_files_are_named(data, name):
    content, words = FILES[name]
    with pytest.raises(ValueError, match="train") as raised:
        data(content)
    assert words in str(raised.value)
    assert len(str(raised.value)) < 600


def test_other_bad_files(data):
    with pytest.raises(ValueError, match=r"train\.json holds no list"):
        data('{"a": 1}', "train.json")
    (data.folder / "train.json").write_bytes(b'["\xff"]')
    with pytest.raises(ValueError, match=r"train\.json is not UTF-8"):
        read_conversations(data.folder, "train")
    data.folder.joinpath("train.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"has train\.json and train\.csv; leave one"):
        read_conversations(data.folder, "train")
    data.folder.joinpath("train.json").unlink()
    data.folder.joinpath("train.csv").write_text('file_name,text\na.png,"one"\nb.png\n')
    with pytest.raises(ValueError, match=r"train\.csv, row 3 doesn't have as many fields"):
        read_conversations(data.folder, "train")
    with pytest.raises(FileNotFoundError, match="is not a folder; give one with"):
        read_conversations(data.folder / "nowhere", "train")
    (data.folder / "data.xml").write_bytes(b"<a/>")
    with pytest.raises(ValueError, match=r"data\.xml is none of \.jsonl, \.json, \.csv, \.parquet"):
        read_conversations(data.folder / "data.xml", "train")


def test_one_bad_row_in_ten_thousand(data):
    rows = [FORMS["caption"]] * 10_000
    rows[7_776] = BAD["an empty answer"][0]
    with pytest.raises(ValueError, match=r"^train\.jsonl, row 7777, turn 2 is an empty answer"):
        data(rows)
