"""A model in memory, written and read again."""

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_fastvlm import FastVlmConfig, FastVlmForConditionalGeneration, load
from tests.support import small


def pixels(count, height=128, width=192):
    return mx.random.uniform(shape=(count, height, width, 3))


@pytest.mark.parametrize("head", [None, "own"])
def test_save_and_from_pretrained(tmp_path, checkpoint, head):
    model, processor = load(checkpoint("apple", head=head), dtype="float32")
    inputs = processor("What is <image>?", mx.zeros((128, 128, 3), dtype=mx.uint8))
    expected = model(inputs["input_ids"], inputs["pixel_values"]).logits
    model.save_pretrained(tmp_path / "alone")
    again = FastVlmForConditionalGeneration.from_pretrained(tmp_path / "alone", dtype="float32")
    assert mx.array_equal(again(inputs["input_ids"], inputs["pixel_values"]).logits, expected)
    with pytest.raises(FileExistsError, match="exists already"):
        model.save_pretrained(tmp_path / "alone")
    model.save_pretrained(tmp_path / "alone", processor=processor, force=True)
    again, same = load(tmp_path / "alone")
    question = same("What is <image>?", mx.zeros((128, 128, 3), dtype=mx.uint8))
    assert all(mx.array_equal(question[name], inputs[name]) for name in inputs)
    assert (same.eos_token_ids, same.pad_token_id, same.image_settings, same.chat_template) == (
        processor.eos_token_ids,
        processor.pad_token_id,
        processor.image_settings,
        processor.chat_template,
    )


@pytest.mark.parametrize("source", ["apple", "transformers"])
def test_save_for_transformers(tmp_path, checkpoint, source):
    model, processor = load(checkpoint(source), dtype="float32")
    ids, image = [1, *[model.config.image_token_id] * 6, 2], pixels(1)
    expected = model(mx.array([ids]), image).logits
    if source == "apple":
        with pytest.raises(ValueError, match="is not a token"):
            model.save_pretrained(tmp_path / "saved", layout="transformers")
        model.save_pretrained(tmp_path / "saved", layout="transformers", processor=processor)
    else:
        model.save_pretrained(tmp_path / "saved", layout="transformers")
    again = FastVlmForConditionalGeneration.from_pretrained(tmp_path / "saved", dtype="float32")
    ids = [again.config.image_token_id if id == model.config.image_token_id else id for id in ids]
    assert mx.allclose(again(mx.array([ids]), image).logits[..., :320], expected, atol=1e-4)


def test_what_transformers_can_not_hold(tmp_path, checkpoint):
    model, processor = load(checkpoint("transformers"), dtype="float32")
    with pytest.raises(ValueError, match="layout must be"):
        model.save_pretrained(tmp_path / "x", layout="onnx")
    nn.quantize(model, group_size=32, bits=8, class_predicate=lambda path, _: path.endswith("_proj"))
    with pytest.raises(ValueError, match="quantized"):
        model.save_pretrained(tmp_path / "x", layout="transformers")
    model.save_pretrained(tmp_path / "quantized", processor=processor)
    again, _ = load(tmp_path / "quantized", dtype="float32")
    assert mx.array_equal(again(mx.array([[1, 2]])).logits, model(mx.array([[1, 2]])).logits)
    linear = FastVlmForConditionalGeneration(FastVlmConfig(small.VISION, small.TEXT, projector_type="linear"))
    with pytest.raises(ValueError, match="no projector 'linear'"):
        linear.save_pretrained(tmp_path / "x", layout="transformers")
    assert not (tmp_path / "x").exists()
