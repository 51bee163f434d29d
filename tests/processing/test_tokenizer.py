"""Texts to ids and back, from every form of tokenizer files."""

import json
import shutil

import pytest

from mlx_fastvlm import FastVlmProcessor
from mlx_fastvlm.config import FastVlmConfig


def vectors(facts):
    """llama.cpp's for Qwen2: (text, ids)."""
    found = json.loads((facts / "vectors.json").read_text(encoding="utf-8"))
    assert len(found) == 47
    return found


def test_tokenizer_vectors_from_vocab_and_merges(qwen, facts):
    for text, ids in vectors(facts):
        assert qwen.encode(text) == ids, text


def test_tokenizer_vectors_from_tokenizer_json(qwen, facts, tmp_path):
    qwen.tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = FastVlmConfig.from_file(facts / "configs" / "apple-0.5b.config.json")
    processor = FastVlmProcessor.from_folder(tmp_path, config)
    for text, ids in vectors(facts):
        assert processor.encode(text) == ids, text


def test_object_ref_start_is_no_placeholder_in_7b(facts, vocabulary, tmp_path):
    """In 7B's vocabulary transformers' placeholder id, 151646, is another token."""
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(vocabulary / name, tmp_path)
    shutil.copy(facts / "configs" / "apple-7b.added_tokens.json", tmp_path / "added_tokens.json")
    config = FastVlmConfig.from_file(facts / "configs" / "apple-7b.config.json")
    processor = FastVlmProcessor.from_folder(tmp_path, config)
    assert processor.encode("<|object_ref_start|><image>")[:2] == [151646, -200]


def test_a_broken_tokenizer(checkpoint, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(checkpoint("apple"), folder)
    config = FastVlmConfig.from_file(folder / "config.json")
    added = {"<|endoftext|>": 300}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(ValueError, match="should have id 300"):
        FastVlmProcessor.from_folder(folder, config)
    (folder / "vocab.json").write_text("[")
    with pytest.raises(ValueError, match="broken"):
        FastVlmProcessor.from_folder(folder, config)
    (folder / "vocab.json").unlink()
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        FastVlmProcessor.from_folder(folder, config)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="broken"):
        FastVlmProcessor.from_folder(folder, config)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        FastVlmProcessor.from_folder(folder, config)


def test_streaming_gives_whole_characters_and_loses_none(processor):
    text = "naïve 東京 👩‍👩‍👧 e\u0301 ok"
    stream = processor.detokenizer()
    pieces = [stream.add(id) for id in processor.encode(text)]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) + stream.finish() == processor.decode(processor.encode(text))
    stream = processor.detokenizer()
    cut = "".join(stream.add(id) for id in processor.encode("ab👩")[:-1]) + stream.finish()
    assert cut == "ab"
