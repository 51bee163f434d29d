"""Lists of images."""

import io
import sys

import pytest

from mlx_fastvlm.data import manifests
from mlx_fastvlm.data.manifests import listed_items, manifest_items


def read(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(manifest_items(path, path.name))


def test_json_lines(tmp_path):
    lines = [
        '\ufeff{"image": "a.png", "prompt": "What?", "key": 5}',
        "",
        '{"url": "https://example.com/b.png"}',
        '{"file": "/elsewhere/c.png"}',
    ]
    first, second, third = read(tmp_path / "m.jsonl", "\n".join(lines))
    assert (first.key, first.source, first.prompt) == ("5", tmp_path / "a.png", "What?")
    assert (second.key, second.source) == ("https://example.com/b.png",) * 2
    assert str(third.source) == "/elsewhere/c.png"


def test_tables(tmp_path):
    first, second = read(tmp_path / "m.csv", 'file_name,prompt\r\n"a, b.png","two\nlines"\r\nc.png,\r\n')
    assert (first.source, first.prompt) == (tmp_path / "a, b.png", "two\nlines")
    assert (second.key, second.prompt) == ("c.png", None)


@pytest.mark.parametrize(
    "line",
    ["[1]", "{", '{"image": 5}', '{"image": ""}', '{"image": "a\\u0000"}', '{"image": "a", "prompt": 5}', "[" * 10**5],
    ids=lambda line: line[:20],
)
def test_a_wrong_line_is_one_error_between_the_others(tmp_path, line):
    first, wrong, last = read(tmp_path / "m.jsonl", f'{{"image": "a"}}\n{line}\n{{"image": "b"}}\n')
    assert (first.error, last.error) == (None, None)
    assert wrong.key == "m.jsonl:2"
    assert "m.jsonl:2" in wrong.error


def test_names_that_are_not_utf_8_lead_to_their_files(tmp_path):
    (item,) = read(tmp_path / "m.jsonl", b'{"image": "\xff.png"}\n')
    assert item.key == "\\udcff.png"
    assert item.source.name == "\udcff.png"


def test_lines_without_an_end_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(manifests, "LINE_LIMIT", 1000)
    with pytest.raises(ValueError, match="lists no images"):
        read(tmp_path / "m.jsonl", "x" * 1001)
    with pytest.raises(ValueError, match="lists no images"):
        read(tmp_path / "m.csv", "x" * 1001)


def test_a_table_that_is_none(tmp_path):
    items = read(tmp_path / "m.csv", 'image\na.png\n"b')
    assert [item.error is None for item in items] == [True, False]


def test_standard_input_has_paths_urls_or_json():
    text = b'a b.png\r\n\nhttps://example.com/b.png\n {"image": "c.png", "key": "k"}\n'
    assert [item.key for item in listed_items(io.BytesIO(text))] == ["a b.png", "https://example.com/b.png", "k"]


def test_standard_input_that_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ValueError, match="is closed"):
        list(listed_items())
