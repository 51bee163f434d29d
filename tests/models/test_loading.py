"""Reading and refusing checkpoints."""

import gc
import json
import os
import warnings
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

from mlx_fastvlm import load
from tests.support import small
from tests.support.checkpoints import apple_config, config, mlx_vlm, packed, small_tensors, write


@pytest.mark.parametrize(("head", "tied"), [(None, True), ("copy", True), ("own", False)])
@pytest.mark.parametrize("says", [True, False])
def test_the_weights_decide_about_tying(tmp_path, head, tied, says):
    write(tmp_path, "apple", head=head, config_dict=apple_config(says))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, _ = load(tmp_path)
    assert ("lm_head" not in model) == tied
    assert model.config.tie_word_embeddings == tied
    assert [w for w in caught if "going by the weights" in str(w.message)] if tied != says else not caught


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_and_a_tower_that_never_runs_in_float16(checkpoint, dtype):
    model, _ = load(checkpoint("apple"), dtype=dtype)
    vision = mx.bfloat16 if dtype == "float16" else getattr(mx, dtype)
    assert model.vision_tower.dtype == vision
    assert model.multi_modal_projector.linear_1.weight.dtype == vision
    assert model.language_model.embed_tokens.weight.dtype == getattr(mx, dtype)
    ids = mx.array([[1, *[-200] * 6, 2]])
    logits = model(ids, mx.array(small.pixels(1).transpose(0, 2, 3, 1))).logits
    assert logits.dtype == getattr(mx, dtype)
    assert mx.isfinite(logits).all()


def test_an_unknown_dtype_is_refused(checkpoint):
    with pytest.raises(ValueError, match="int8"):
        load(checkpoint("apple"), dtype="int8")


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_mlx_vlm_checkpoint_runs_with_an_image(tmp_path, checkpoint, bits):
    """As mlx-community publishes them: decoder and projector quantized; here the tower's linear layers as well."""

    def linear(name, value):
        return value.ndim == 2 and value.shape[-1] % 32 == 0 and "head" not in name

    settings = {"quantization": {"group_size": 32, "bits": bits}}
    folder = write(tmp_path, "mlx-vlm", config_dict=config("mlx-vlm") | settings)
    save_file(packed(mlx_vlm(small_tensors()), linear, bits), folder / "model.safetensors")
    quantized, _ = load(folder)
    plain, _ = load(checkpoint("mlx-vlm"))
    assert isinstance(quantized.language_model.layers[0].mlp.up_proj, nn.QuantizedLinear)
    assert isinstance(quantized.multi_modal_projector.linear_1, nn.QuantizedLinear)
    ids = mx.array([[1, *[-200] * 6, 2]])
    pixels = mx.array(small.pixels(1).transpose(0, 2, 3, 1))
    ours, reference = (np.array(model(ids, pixels).logits) for model in (quantized, plain))
    error = np.abs(ours - reference).max() / reference.std()
    assert error < {4: 1.5, 8: 0.1}[bits]


def test_quantized_tensors_need_a_truthful_config(tmp_path):
    name = "language_model.model.layers.0.mlp.up_proj.weight"
    named = packed(mlx_vlm(small_tensors()), lambda found, _: found == name, bits=4)
    folder = write(tmp_path, "mlx-vlm")
    save_file(named, folder / "model.safetensors")
    with pytest.raises(ValueError, match="no 'quantization' entry"):
        load(folder)
    lie = config("mlx-vlm") | {"quantization": {"group_size": 32, "bits": 8}}
    (folder / "config.json").write_text(json.dumps(lie))
    with pytest.raises(ValueError, match="stored with 4 bits"):
        load(folder)


def rewrite(folder, change):
    """Change the tensors of a single-file checkpoint."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


FAULTS = {
    "missing in the tower": (
        lambda t: t.pop("model.vision_tower.vision_tower.model.network.0.0.convffn.fc1.weight"),
        r"1 missing \(vision_tower\.stages\.0\.blocks\.0\.mlp\.fc1\.weight\)",
    ),
    "missing in the decoder": (
        lambda t: [t.pop(f"model.layers.{i}.mlp.{n}_proj.weight") for i in range(3) for n in ("up", "gate")],
        r"6 missing \(.*, \.\.\.\)",
    ),
    "unexpected": (
        lambda t: t.update({"model.layers.7.mlp.up_proj.weight": np.zeros((2, 2), np.float32)}),
        r"1 unexpected \(model\.layers\.7\.mlp\.up_proj\.weight\)",
    ),
    "unexpected in the tower": (
        lambda t: t.update({"model.vision_tower.vision_tower.model.extra.weight": np.zeros((2, 2), np.float32)}),
        r"1 unexpected \(model\.vision_tower\.vision_tower\.model\.extra\.weight\)",
    ),
    "wrong shape": (
        lambda t: t.update({"model.norm.weight": np.zeros(63, np.float32)}),
        r"1 misshapen \(language_model\.norm\.weight \(63,\) instead of \(64,\)\)",
    ),
    "wrong shape in the tower": (
        lambda t: t.update(
            {"model.vision_tower.vision_tower.model.network.0.0.convffn.fc1.bias": np.zeros(63, np.float32)}
        ),
        r"1 misshapen \(vision_tower\.stages\.0\.blocks\.0\.mlp\.fc1\.bias \(63,\) instead of \(64,\)\)",
    ),
    "no tower": (
        lambda t: [t.pop(name) for name in list(t) if "vision_tower" in name],
        "No vision tower",
    ),
    "Apple's language-only export": (
        lambda t: (
            [
                t.update({name.replace("model.mm_projector.", "multi_modal_projector.linear_"): t.pop(name)})
                for name in list(t)
                if "mm_projector" in name
            ]
            + [t.pop(name) for name in list(t) if "vision_tower" in name]
        ),
        "Core ML",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_tensors_that_do_not_fit_are_one_error(tmp_path, fault):
    change, message = FAULTS[fault]
    folder = write(tmp_path, "apple")
    rewrite(folder, change)
    with pytest.raises(ValueError, match=message) as raised:
        load(folder)
    assert len(str(raised.value)) < 600


def test_broken_files(tmp_path):
    folder = write(tmp_path / "one", "apple")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="broken or cut off"):
        load(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="no safetensors"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load(folder)

    folder = write(tmp_path / "sharded", "apple", shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks 1 of 2 shards"):
        load(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../../etc/passwd"}}))
    with pytest.raises(ValueError, match="outside its folder"):
        load(folder)
    index.write_text("{}")
    with pytest.raises(ValueError, match="not a valid index"):
        load(folder)


def test_unused_tensors_are_left_out(checkpoint):
    """The classification head and BatchNorm's counters are in Apple's files, and nothing of them in the model."""
    names = [name for name, _ in tree_flatten(load(checkpoint("apple", training=True))[0].parameters())]
    assert not [name for name in names if "head.proj" in name or "num_batches" in name or "bn" in name]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory of a process is read as Linux tells it")
def test_models_that_were_loaded_and_dropped_leave_nothing(checkpoint):
    def megabytes_after(loads):
        for _ in range(loads):
            load(checkpoint("apple"))
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    before = megabytes_after(10)
    assert megabytes_after(60) - before < 8  # it was 23: each model's random weights, never computed, were kept in mind
