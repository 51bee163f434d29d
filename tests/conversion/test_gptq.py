"""Calibrated rounding: the same format, and products that are nearer to the plain ones."""

import json

import mlx.core as mx
import numpy as np
import pytest

from mlx_fastvlm import convert, load
from mlx_fastvlm.checkpoints.quantization import BITS
from mlx_fastvlm.conversion import gptq
from mlx_fastvlm.convert import main
from mlx_fastvlm.tuner import calibration, read_conversations
from tests.support.images import IMAGE

QUESTIONS = ("What is this?", "Which colours does it have?", "Count the shapes.", "Is there a circle?", "Where is it?")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversations")
    IMAGE.save(folder / "image.png")
    rows = [{"image": "image.png", "question": question, "answer": "Two red circles."} for question in QUESTIONS]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def conversations(data):
    return read_conversations(data, "train")


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_codes_are_packed_as_mlx_packs_them(bits, group_size):
    codes = np.random.RandomState(bits).randint(0, 2**bits, (6, 256)).astype(np.uint8)
    groups = 256 // group_size
    scales, biases = mx.ones((6, groups)), mx.zeros((6, groups))
    found = mx.dequantize(gptq.packed(codes, bits), scales, biases, group_size, bits)
    assert np.array_equal(np.array(found), codes)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_products_lose_less(bits, dtype):
    """Inputs whose channels are alike, as a network's are."""
    mx.random.seed(bits)
    how = {"group_size": 32, "bits": bits, "mode": "affine"}
    weight = mx.random.normal((48, 128)).astype(dtype)
    seen = mx.random.normal((500, 20)) @ mx.random.normal((20, 128)) + 0.3 * mx.random.normal((500, 128))

    def lost(parts):
        codes, scales, biases = parts
        assert (codes.dtype, scales.dtype, biases.dtype) == (mx.uint32, dtype, dtype)
        found = mx.dequantize(codes, scales.astype(mx.float32), biases.astype(mx.float32), **how)
        return ((found - weight) @ seen.T).square().mean().item()

    made = gptq.rounded(weight, gptq._factor(seen.T @ seen), how)
    plain = mx.quantize(weight, **how)
    assert [x.shape for x in made] == [x.shape for x in plain]
    assert lost(made) < 0.5 * lost(plain)


def test_inputs_that_tell_nothing_are_plain_rounding():
    """Without correlations no column can make up for another; nor do groups of zeros, or dead channels, do harm."""
    how = {"group_size": 32, "bits": 4, "mode": "affine"}
    weight = mx.concatenate([mx.zeros((8, 32)), mx.random.normal((8, 96))], axis=1)
    plain = mx.quantize(weight, **how)
    for moments in (mx.zeros((128, 128)), mx.eye(128)):
        made = gptq.rounded(weight, gptq._factor(moments), how)
        assert mx.allclose(mx.dequantize(*made, **how), mx.dequantize(*plain, **how), atol=1e-6)


def test_a_calibrated_checkpoint_is_nearer_to_its_source(conversations, tmp_path):
    """The demo at 3 bits, over what it was calibrated with."""
    calibrated = calibration(conversations, image_size=64)
    before, processor = load("demo", dtype="float32")
    prompts = calibrated(before, processor)

    def predictions(model):
        logits = mx.concatenate([model.logits(model.language_model(x).last_hidden_state[0]) for x in prompts])
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    expected, lost = predictions(before), []
    for chosen in (None, calibrated):
        folder = tmp_path / str(chosen is None)
        convert("demo", folder, quantize=True, q_bits=3, q_mixed=True, q_gptq=chosen, verify=False)
        found = predictions(load(folder, dtype="float32")[0])
        lost.append((mx.exp(expected) * (expected - found)).sum(axis=-1).mean().item())
    assert lost[1] < 0.7 * lost[0]
    assert [len(list((tmp_path / name).iterdir())) for name in ("True", "False")] == [len(list(folder.iterdir()))] * 2


@pytest.mark.parametrize("options", [["-q"], ["--q-bits", "3", "--q-group-size", "32"], ["-q", "--q-mixed"]])
def test_the_command(options, data, checkpoint, tmp_path, capsys):
    """Verified as always; groups of 64 do not divide every width of the small model, and those stay plain."""
    words = ["--hf-path", str(checkpoint("apple")), "--mlx-path", str(tmp_path / "q"), "--q-gptq", str(data)]
    assert main([*words, *options]) == 0
    assert "same next token" in capsys.readouterr().out
    load(tmp_path / "q")


def test_what_is_refused(data, conversations, checkpoint, tmp_path, capsys):
    words = ["--hf-path", str(checkpoint("apple")), "--mlx-path", str(tmp_path / "q")]
    assert main([*words, "--q-gptq", str(data), "--q-mode", "mxfp4"]) == 2
    assert "q_gptq needs q_mode affine, got mxfp4" in capsys.readouterr().err
    assert main([*words, "--q-gptq", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err
    IMAGE.save(tmp_path / "image.png")
    (tmp_path / "valid.jsonl").write_text('{"caption": "x", "image": "image.png"}')
    assert main([*words, "--q-gptq", str(tmp_path)]) == 2
    assert "give a training set" in capsys.readouterr().err
    assert not (tmp_path / "q").exists()
    with pytest.raises(ValueError, match=r"q_gptq must be what tuner\.calibration returns"):
        convert("demo", tmp_path / "q", quantize=True, q_gptq="data")
    with pytest.raises(ValueError, match="q_gptq says how to quantize; add quantize"):
        convert("demo", tmp_path / "q", q_gptq=calibration(conversations))


def test_rows_are_chosen_evenly(conversations, small_model):
    model, processor = small_model
    assert len(calibration(conversations, rows=2, image_size=64)(model, processor)) == 2
    assert len(calibration(conversations, image_size=64)(model, processor)) == len(QUESTIONS)
    with pytest.raises(ValueError, match="rows must be at least 1"):
        calibration(conversations, rows=0)
