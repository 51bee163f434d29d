"""Training data in parquet files and in data sets of Hugging Face, with the images in the rows."""

import json
import sys

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from mlx_fastvlm.processing.images import load_image
from mlx_fastvlm.tuner.conversations import read_conversations
from mlx_fastvlm.tuner.tables import ParquetTable
from tests.support.images import encoded

COLOURS = ("red", "green", "blue")


def image(number):
    return encoded(Image.new("RGB", (9, 5), COLOURS[number % 3]))


def asked(number):
    return {"image": {"bytes": image(number), "path": None}, "question": "Which?", "answer": f"{number}."}


def said(number):
    """With an image among the parts, and so with nulls where Arrow wants every part to have every key."""
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "Which?"}]
    answer = [{"type": "text", "text": f"{number}."}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
    return {"images": [{"bytes": image(number), "path": "x.png"}], "messages": messages}


def llava(number):
    turns = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": f"{number}."}]
    return {"image": image(number), "conversations": turns}


def write(path, rows, group=5):
    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)


def check(found, numbers):
    """Each row's answer, and its own image; in any order, as training goes through them."""
    assert [conversation.messages[-1]["content"] for conversation in found] == [f"{number}." for number in numbers]
    for conversation, number in sorted(zip(found, numbers), key=lambda pair: pair[1] * 7 % 13):
        (source,) = conversation.images
        assert load_image(source).getpixel((0, 0)) == Image.new("RGB", (1, 1), COLOURS[number % 3]).getpixel((0, 0))


@pytest.mark.parametrize("form", [asked, said, llava])
def test_parquet(tmp_path, form):
    write(tmp_path / "train.parquet", [form(number) for number in range(40)])
    found = read_conversations(tmp_path, "train")
    check(found, range(40))
    assert found[6].place == "train.parquet, row 7"
    assert str(found[6].images[0]).startswith("train.parquet, row 7: image")
    assert read_conversations(tmp_path, "valid") == []


def test_parquet_with_paths(tmp_path):
    (tmp_path / "a.png").write_bytes(image(0))
    write(tmp_path / "train.parquet", [{"image": "a.png", "caption": "One."}])
    assert read_conversations(tmp_path, "train")[0].images == (tmp_path / "a.png",)


@pytest.mark.parametrize("folder", [".", "data"])
def test_parquet_as_the_hub_has_it(tmp_path, folder):
    for i in range(3):
        write(tmp_path / folder / f"train-0000{i}-of-00003.parquet", [asked(4 * i + j) for j in range(4)])
    write(tmp_path / folder / "validation-00000-of-00001.parquet", [asked(5)])
    check(read_conversations(tmp_path, "train"), range(12))
    check(read_conversations(tmp_path, "valid"), [5])


def test_a_saved_data_set(tmp_path):
    rows = {split: datasets.Dataset.from_list([asked(n) for n in range(20)]) for split in ("train", "validation")}
    rows["train"] = rows["train"].cast_column("image", datasets.Image())
    datasets.DatasetDict(rows).save_to_disk(tmp_path / "both")
    check(read_conversations(tmp_path / "both", "train"), range(20))
    check(read_conversations(tmp_path / "both", "valid"), range(20))
    assert read_conversations(tmp_path / "both", "test") == []
    rows["train"].save_to_disk(tmp_path / "one")
    check(read_conversations(tmp_path / "one", "train"), range(20))
    assert read_conversations(tmp_path / "one", "valid") == []


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    """By its name; what ``datasets`` would get from there is given to it here."""
    data = datasets.DatasetDict({"train": datasets.Dataset.from_list([said(n) for n in range(3)])})
    asked_for = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name: asked_for.append(name) or data)
    check(read_conversations("somebody/some-data", "train"), range(3))
    assert asked_for == ["somebody/some-data"]


def test_without_the_extras(tmp_path, monkeypatch):
    write(tmp_path / "train.parquet", [asked(0)])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"pip install \"mlx-fastvlm\[parquet\]\""):
        read_conversations(tmp_path, "train")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install \"mlx-fastvlm\[datasets\]\""):
        read_conversations("somebody/some-data", "train")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**asked(0), "image": {"bytes": b"nothing", "path": None}}, "row 2: .* is not an image that can be read"),
        ({**asked(0), "image": None}, "row 2: The prompt has 1 <image> mark for 0 images"),
        ({**asked(0), "answer": ""}, "row 2, turn 2 is an empty answer"),
        ({**asked(0), "answer": None}, "row 2 has the keys .* and none of the forms"),
        ({**asked(0), "image": {"bytes": None, "path": "no.png"}}, "row 2: .*no.png: no such image"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, words):
    good = {**asked(1), "question": "<image>Which?"}
    write(tmp_path / "train.parquet", [good, {**row, "question": "<image>Which?"}])
    with pytest.raises((ValueError, FileNotFoundError), match=rf"^train\.parquet, {words}"):
        read_conversations(tmp_path, "train")


def test_damaged_tables(tmp_path):
    write(tmp_path / "train.parquet", [asked(n) for n in range(40)])
    content = bytearray((tmp_path / "train.parquet").read_bytes())
    offset = ParquetTable(tmp_path / "train.parquet")._file.metadata.row_group(3).column(0).data_page_offset
    content[offset : offset + 40] = b"\xff" * 40
    (tmp_path / "train.parquet").write_bytes(content)
    with pytest.raises(ValueError, match=r"^train\.parquet, row \d+ can't be read"):
        read_conversations(tmp_path, "train")
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"^train\.parquet is not a parquet file"):
        read_conversations(tmp_path, "train")
    (tmp_path / "train.parquet").unlink()
    (tmp_path / "dataset_info.json").write_text(json.dumps([]))
    with pytest.raises(ValueError, match="can't be loaded as a data set"):
        read_conversations(tmp_path, "train")
