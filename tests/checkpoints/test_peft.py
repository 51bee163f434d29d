"""PEFT's adapters, as PEFT wrote them, with transformers' logits (reference/peft_adapters.py); and ours for it."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest

from mlx_fastvlm import load
from mlx_fastvlm.__main__ import main
from mlx_fastvlm.checkpoints.adapters import AdapterConfig
from mlx_fastvlm.checkpoints.peft import our_name, write_peft
from mlx_fastvlm.errors import UsageError
from mlx_fastvlm.files import read_safetensors
from mlx_fastvlm.models.lora import adapter_tensors, adapters_of
from tests.support import small
from tests.support.adapters import adapted, written
from tests.support.paths import REFERENCE
from tests.whole.test_training import batch

PEFT = REFERENCE / "peft"


@pytest.fixture(params=["lora", "dora"])
def theirs(request):
    return PEFT / request.param


@pytest.fixture
def changed(tmp_path):
    """PEFT's folder, with another config."""

    def change(**content):
        shutil.copytree(PEFT / "lora", tmp_path / "changed")
        path = tmp_path / "changed" / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **content}))
        return tmp_path / "changed"

    return change


def test_with_pefts_adapters_it_says_what_transformers_says(checkpoint, theirs):
    model, _ = load(checkpoint("transformers"), dtype="float32", adapter_path=theirs)
    arguments = {name: value for name, value in batch().items() if name != "labels"}
    found = np.array(model(**arguments).logits)[small.batch()[1].astype(bool)]
    with np.load(PEFT / "logits.npz") as recorded:
        expected = recorded[theirs.name]
    assert np.abs(found - expected).max() <= 1e-4 * expected.std()
    kind = json.loads((theirs / "adapter_config.json").read_text())
    assert len(adapters_of(model)) == 7
    assert {float(layer.scale) for layer in adapters_of(model).values()} == {kind["lora_alpha"] / kind["r"] ** 0.5}


def test_written_again_it_is_what_peft_wrote(checkpoint, theirs, tmp_path, capsys):
    """Which PEFT then computes the same with, to the last bit: the script of the reference."""
    words = ["--model", checkpoint("transformers"), "--adapter-path", theirs, "--save-path", tmp_path / "out"]
    assert main(["fuse", *map(str, words), "--layout", "peft"]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'out'}: adapters for PEFT ({theirs.name})\n"
    found, expected = (
        read_safetensors(folder / "adapter_model.safetensors")[0] for folder in (tmp_path / "out", theirs)
    )
    assert found.keys() == expected.keys()
    assert all(mx.array_equal(found[name], expected[name]) for name in found)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["lora_alpha"] / config["r"] == 8 / 4**0.5
    assert config["use_dora"] == (theirs.name == "dora")
    assert len(config["target_modules"]) == 7


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_there_and_back(checkpoint, tmp_path, kind):
    folder = checkpoint("apple", head="own")
    keys = ("self_attn.q_proj", "mlp.gate_proj", "lm_head")
    model, config = adapted(folder, kind, projector=True, keys=keys)
    write_peft(tmp_path, config, adapter_tensors(model))
    again, _ = load(folder, dtype="float32", adapter_path=tmp_path)
    ids = mx.array([[1, 2, 7, 9]])
    assert mx.array_equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("base_model.model.model.layers.0.mlp.up_proj.lora_A.weight", "language_model.layers.0.mlp.up_proj.lora_a"),
        ("language_model.model.layers.3.x.lora_B.default.weight", "language_model.layers.3.x.lora_b"),
        ("base_model.model.model.mm_projector.2.lora_B.weight", "multi_modal_projector.linear_2.lora_b"),
        ("base_model.model.lm_head.lora_magnitude_vector.default.weight", "lm_head.m"),
    ],
)
def test_names_of_others(tmp_path, name, ours):
    """LLaVA's training code, transformers before 4.52, and tensors that were not saved by PEFT's own hand."""
    assert our_name(name, tmp_path) == ours


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"peft_type": "IA3"}, "PEFT's 'IA3' is not read"),
        ({"bias": "all"}, "PEFT's bias = 'all' is not read"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"r": 0}, "r must be a number above 0, and"),
        ({"lora_alpha": 10**400}, "lora_alpha must be a number"),
        ({"r": True}, "r must be a number above 0, and"),
        ({"lora_alpha": "8"}, "lora_alpha must be a number"),
        ({"r": 5}, r"do not fit this model .* has shape \(.*4\).*, and this model takes \(.*5\)"),
        ({"use_dora": True}, "do not fit this model"),
        ({"lora_dropout": 2}, "dropout must be"),
    ],
)
def test_what_would_compute_otherwise_is_refused(checkpoint, changed, content, said):
    with pytest.raises(ValueError, match=said) as raised:
        load(checkpoint("transformers"), adapter_path=changed(**content))
    assert "\n" not in str(raised.value)


def test_other_tensors_are_refused(checkpoint, changed):
    folder = changed()
    tensors, _ = read_safetensors(folder / "adapter_model.safetensors")
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), {**tensors, "base_model.model.x.lora_E": mx.ones(1)})
    with pytest.raises(ValueError, match=r"has a tensor 'base_model\.model\.x\.lora_E'; only LoRA and DoRA"):
        load(checkpoint("transformers"), adapter_path=folder)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"a pickle")
    with pytest.raises(FileNotFoundError, match="pickles are not read"):
        load(checkpoint("transformers"), adapter_path=folder)


def test_what_peft_has_no_place_for(checkpoint, tmp_path, capsys):
    model, config = adapted(checkpoint("apple"), vision=True)
    with pytest.raises(UsageError, match=r"no name for vision_tower\."):
        write_peft(tmp_path / "out", config, adapter_tensors(model))
    embedded, others = adapted(checkpoint("apple"), embeddings=True)
    with pytest.raises(UsageError, match=r"no name for language_model\.embed_tokens;"):
        write_peft(tmp_path / "out", others, adapter_tensors(embedded))
    with pytest.raises(UsageError, match="is for adapters"):
        write_peft(tmp_path / "out", AdapterConfig("full"), {})
    assert not (tmp_path / "out").exists()
    folder = written(tmp_path / "adapters", model, config)
    words = ["--model", checkpoint("apple"), "--adapter-path", folder, "--save-path", tmp_path / "out"]
    assert main(["fuse", *map(str, words), "--layout", "peft", "--q-bits", "4"]) == 2
    assert "holds the adapters alone" in capsys.readouterr().err
