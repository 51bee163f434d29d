"""What transformers' users type first on a model: ``use_cache``, ``.model``, ``.dtype``, ``.num_parameters()``."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from mlx_fastvlm import FastVlmConfig, FastVlmForConditionalGeneration, FastVlmModel, load
from mlx_fastvlm.errors import UsageError
from tests.support import hub, small


@pytest.fixture
def model():
    mx.random.seed(0)
    return FastVlmForConditionalGeneration(FastVlmConfig(small.VISION, small.TEXT, tie_word_embeddings=True))


def test_use_cache_gives_filled_caches(model):
    ids = mx.array([[5, 9, 12, 7]])
    first = model(ids[:, :3], use_cache=True)
    assert [cache.offset for cache in first.past_key_values] == [3] * small.TEXT["num_hidden_layers"]
    second = model(ids[:, 3:], past_key_values=first.past_key_values, use_cache=True)
    assert second.past_key_values is first.past_key_values
    assert mx.allclose(second.logits[:, -1], model(ids).logits[:, -1], atol=1e-4)
    assert model(ids).past_key_values is None
    assert model(ids, use_cache=False).past_key_values is None


def test_model_is_the_parts_without_the_head(model):
    part, ids = model.model, mx.array([[5, 9, 12]])
    assert type(part) is FastVlmModel
    assert part.language_model is model.language_model
    hidden = part(ids).last_hidden_state
    assert mx.array_equal(model.logits(hidden), model(ids).logits)
    assert part.training == model.training
    assert "model" not in dict(tree_flatten(model.parameters()))


def test_dtype_and_number_of_parameters(model):
    total = sum(x.size for _, x in tree_flatten(model.parameters()))
    assert (model.dtype, model.num_parameters()) == (mx.float32, total)
    model.vision_tower.freeze()
    frozen = sum(x.size for _, x in tree_flatten(model.vision_tower.parameters()))
    assert model.num_parameters(only_trainable=True) == total - frozen
    nn.quantize(model, group_size=32, bits=4, class_predicate=lambda path, _: "proj" in path and "layers" in path)
    assert model.num_parameters() == total
    assert model.dtype == mx.float32


@pytest.mark.parametrize("layout", ["mlx", "transformers", "mlx-vlm"])
def test_push_to_hub(checkpoint, monkeypatch, tmp_path, layout):
    """What arrives is private, has a card that the hub can file, and loads again."""
    model, processor = load(checkpoint("apple"), dtype="float32")
    for name, value in (("HF_TOKEN", "hf_test"), ("HF_HUB_DISABLE_XET", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with hub.serve() as (address, repos, _):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        model.push_to_hub("me/tiny", layout=layout, processor=processor, base_model="apple/FastVLM-0.5B")
    assert repos["me/tiny"]["private"]
    files = repos["me/tiny"]["files"]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    ids = mx.array([[5, 9, 12, 7]])
    again, _ = load(tmp_path, dtype="float32")
    assert mx.allclose(again(ids).logits[..., :300], model(ids).logits[..., :300], atol=1e-4)
    card = files["README.md"].decode()
    assert "license: apple-amlr\nbase_model: apple/FastVLM-0.5B\npipeline_tag: image-text-to-text\n" in card
    assert f"library_name: {'transformers' if layout == 'transformers' else 'mlx'}\n" in card
    assert "me/tiny" in card


def test_an_upload_that_fails(model, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    with pytest.raises(OSError, match="upload to me/tiny failed"):
        model.push_to_hub("me/tiny")


@pytest.mark.parametrize(
    ("call", "advice"),
    [
        (lambda m: type(m).from_pretrained("demo", torch_dtype="float16"), "give dtype"),
        (lambda m: type(m).from_pretrained("demo", subfolder="x"), "whole path"),
        (lambda m: m.save_pretrained("x", push_to_hub=True), r"model\.push_to_hub"),
        (lambda m: m(mx.array([[1]]), return_dict=False), "objects with names"),
        (lambda m: m(mx.array([[1]]), num_items_in_batch=3), "divide"),
        (lambda m: m.resize_token_embeddings(200, mean_resizing=False), "around the mean"),
    ],
    ids=["torch_dtype", "subfolder", "push_to_hub", "return_dict", "num_items_in_batch", "mean_resizing"],
)
def test_keywords_that_are_not_done_say_what_to_do(model, call, advice):
    with pytest.raises(UsageError, match=advice):
        call(model)


def test_keywords_of_what_is_done_in_any_case(model, tmp_path):
    model.save_pretrained(tmp_path / "x", max_shard_size="1GB", safe_serialization=True)
    again = FastVlmForConditionalGeneration.from_pretrained(
        tmp_path / "x", torch_dtype="auto", device_map="auto", low_cpu_mem_usage=True, trust_remote_code=False
    )
    ids = mx.array([[5, 9]])
    assert mx.allclose(again(ids, return_dict=True).logits, model(ids).logits, atol=1e-4)


@pytest.mark.parametrize(("name", "advice"), [("to", "set_dtype"), ("half", "set_dtype"), ("device", "default_device")])
def test_attributes_that_are_not_there_say_what_to_do(model, name, advice):
    with pytest.raises(AttributeError, match=advice):
        getattr(model, name)
    assert not hasattr(model, "no_such_name")
