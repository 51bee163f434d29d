"""``python -m mlx_fastvlm.fuse``: one checkpoint that computes what model and adapters did."""

import shutil

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_fastvlm import load
from mlx_fastvlm.__main__ import main
from mlx_fastvlm.checkpoints.adapters import AdapterConfig, write_adapter
from tests.support.adapters import adapted, logits, written


@pytest.fixture
def adapters(checkpoint, tmp_path):
    """A folder of adapters for the small model, and the logits with them."""
    model, config = adapted(checkpoint("apple"))
    return written(tmp_path / "adapters", model, config), logits(model)


def fuse(*words):
    return main(["fuse", *map(str, words)])


def test_plain(checkpoint, adapters, tmp_path, capsys):
    folder, expected = adapters
    words = ["--model", checkpoint("apple"), "--adapter-path", folder, "--save-path", tmp_path / "fused"]
    assert fuse(*words) == 0
    assert capsys.readouterr().out == f"fused 14 adapters (lora)\nwrote {tmp_path / 'fused'}\n"
    found = logits(load(tmp_path / "fused", dtype="float32")[0])
    assert mx.abs(found - expected).max() <= 1e-5 * expected.std()
    assert fuse(*words) == 1
    assert "exists already" in capsys.readouterr().err
    assert fuse(*words, "--force") == 0


def test_into_transformers_layout(checkpoint, tmp_path):
    model, config = adapted(checkpoint("transformers"))
    folder, expected = written(tmp_path / "adapters", model, config), model(mx.array([[1, 2, 3]])).logits
    words = ["--model", checkpoint("transformers"), "--adapter-path", folder, "--save-path", tmp_path / "fused"]
    assert fuse(*words, "--layout", "transformers") == 0
    again, _ = load(tmp_path / "fused", dtype="float32")
    found = again(mx.array([[1, 2, 3]])).logits[..., : expected.shape[-1]]
    assert mx.abs(found - expected).max() <= 1e-5 * expected.std()


def test_a_quantized_model(checkpoint, adapters, tmp_path, capsys):
    folder, _ = adapters
    packed = tmp_path / "packed"
    convert = ["--hf-path", checkpoint("apple"), "--mlx-path", packed, "-q", "--q-group-size", 32, "--no-verify"]
    assert main(["convert", *map(str, convert)]) == 0
    expected = logits(load(packed, dtype="float32", adapter_path=folder)[0])
    words = ["--model", packed, "--adapter-path", folder, "--save-path", tmp_path / "fused"]
    capsys.readouterr()
    assert fuse(*words) == 1
    assert "of the adapters; dequantize the model (--dequantize), " in capsys.readouterr().err
    assert not (tmp_path / "fused").exists()
    assert fuse(*words, "--force") == 0
    assert "fused 14 adapters (lora); rounding lost " in capsys.readouterr().out
    shutil.rmtree(tmp_path / "fused")
    assert fuse(*words, "--dequantize") == 0
    found = logits(load(tmp_path / "fused", dtype="float32")[0])
    assert mx.abs(found - expected).max() <= 1e-5 * expected.std()
    assert fuse(*words, "--dequantize", "--q-bits", 8, "--q-group-size", 32, "--force") == 0
    again, _ = load(tmp_path / "fused", dtype="float32")
    assert any(name.endswith("scales") for name, _ in tree_flatten(again.parameters()))
    assert mx.abs(logits(again) - expected).max() <= 0.2 * expected.std()


def test_full_weights(checkpoint, tmp_path, capsys):
    name = "language_model.layers.2.mlp.up_proj.weight"
    weight = dict(tree_flatten(load(checkpoint("apple"), dtype="float32")[0].parameters()))[name] * 2
    write_adapter(tmp_path / "adapters", AdapterConfig("full"), {name: weight})
    words = ["--model", checkpoint("apple"), "--adapter-path", tmp_path / "adapters", "--save-path", tmp_path / "f"]
    assert fuse(*words) == 0
    assert "there is nothing to fuse" in capsys.readouterr().out
    again = dict(tree_flatten(load(tmp_path / "f", dtype="float32")[0].parameters()))
    assert mx.array_equal(again[name], weight)


def test_the_licence_goes_along(checkpoint, adapters, tmp_path):
    source = checkpoint("apple", shards=2)
    (source / "LICENSE_MODEL").write_text("terms")
    words = ["--model", source, "--adapter-path", adapters[0], "--save-path", tmp_path / "fused"]
    assert fuse(*words) == 0
    assert (tmp_path / "fused" / "LICENSE_MODEL").read_text() == "terms"


@pytest.mark.parametrize(
    ("flags", "words", "code"),
    [
        (["--q-group-size", "32"], "add --q-bits", 2),
        (["--q-bits", "4", "--layout", "transformers"], "transformers can't load", 2),
        (["--adapter-path", "nowhere"], "has no adapter_config.json", 1),
        (["--save-path", "MODEL", "--force"], "is or holds what is read", 2),
        (["--save-path", "ADAPTERS", "--force"], "is or holds what is read", 2),
    ],
)
def test_what_can_not_be(checkpoint, adapters, tmp_path, capsys, flags, words, code):
    folder, _ = adapters
    places = {"MODEL": str(checkpoint("apple")), "ADAPTERS": str(folder)}
    flags = [places.get(flag, flag) for flag in flags]
    common = ["--model", checkpoint("apple"), "--adapter-path", folder, "--save-path", tmp_path / "fused"]
    assert fuse(*common, *flags) == code
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "fused").exists()
    assert (checkpoint("apple") / "config.json").exists()
