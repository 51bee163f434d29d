"""The converter: what goes in comes out, and nothing is lost or half-written."""

import json
import os
import shutil
import sys
import warnings

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

from mlx_fastvlm import FastVlmConfig, load
from mlx_fastvlm.checkpoints.export import CHAT_TEMPLATE
from mlx_fastvlm.checkpoints.weights import read_weights
from mlx_fastvlm.conversion import verification
from mlx_fastvlm.conversion.converter import convert
from mlx_fastvlm.convert import main
from mlx_fastvlm.processing.template import DEFAULT_TEMPLATE
from tests.support import hub, small
from tests.support.checkpoints import apple_config, small_tensors, write
from tests.support.differences import deviations
from tests.support.images import IMAGE
from tests.support.models import logits
from tests.support.paths import REFERENCE, ROOT, left
from tests.support.processes import run

SOURCES = [
    ("apple", {}),
    ("apple", {"training": True}),
    ("apple", {"shards": 3, "head": "own"}),
    ("apple", {"head": "copy"}),
    ("transformers", {}),
    ("mlx-vlm", {"head": "own"}),
]


@pytest.mark.parametrize(("layout", "how"), SOURCES, ids=lambda v: v if isinstance(v, str) else "-".join(v) or "plain")
def test_round_trips(checkpoint, tmp_path, layout, how):
    source = checkpoint(layout, **how)
    report = convert(source, tmp_path / "mlx")
    assert report.agreement.positions >= 64
    assert report.agreement.same_next_token == 1
    assert deviations(logits(tmp_path / "mlx"), logits(source)) < 1e-5
    # Our own form folds nothing: converting it again gives the same tensors.
    convert(tmp_path / "mlx", tmp_path / "again", verify=False)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("mlx", "again"))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("how", [{}, {"head": "own"}, {"training": True}], ids=lambda how: "-".join(how) or "plain")
def test_transformers_layout(checkpoint, tmp_path, how):
    source = checkpoint("apple", **how)
    convert(source, tmp_path / "hf", layout="transformers")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    # The names and shapes that transformers itself has, but for the rows that make room for <image>.
    expected = json.loads((REFERENCE / "shapes.json").read_text())["inference"]
    if how.get("head"):
        expected["lm_head.weight"] = expected["model.language_model.embed_tokens.weight"]
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        rows = 384 if name.endswith(("embed_tokens.weight", "lm_head.weight")) else None
        assert list(tensor.shape) == ([rows, *expected[name][1:]] if rows else expected[name]), name
    back, processor = load(tmp_path / "hf", dtype="float32")
    model, _ = load(source, dtype="float32")
    assert processor.image_settings.aspect_ratio == "crop"
    assert processor.tokenizer.token_to_id("<image>") == processor.image_token_id == 259
    pixels = mx.array(small.pixels(1).transpose(0, 2, 3, 1))
    ours = back(mx.array([[1, *[259] * 6, 2]]), pixels).logits[..., :320]
    assert deviations(ours, np.array(model(mx.array([[1, *[-200] * 6, 2]]), pixels).logits)) < 1e-5
    # New rows lie close to the mean of the old ones, but are not all the same.
    embedding = tensors["model.language_model.embed_tokens.weight"]
    mean, spread = embedding[:320].mean(axis=0), embedding[:320].std()
    assert 0 < np.abs(embedding[320:] - mean).max() < 0.05 * spread
    assert len(np.unique(embedding[320:], axis=0)) == 64


def test_transformers_layout_of_transformers_own_keeps_its_token(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("transformers"), tmp_path / "source")
    added = {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258, "<image>": 259}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    settings = json.loads((folder / "config.json").read_text()) | {"image_token_index": 259}
    (folder / "config.json").write_text(json.dumps(settings))
    convert(folder, tmp_path / "hf", layout="transformers")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    assert tensors["model.language_model.embed_tokens.weight"].shape == (320, 64)


def test_transformers_layout_keeps_a_template_of_its_own(checkpoint, tmp_path):
    """Whose prompts the model was trained with; only one that says the same makes room for one that takes parts."""
    for number, said in enumerate(("{{ messages[0].content }}", DEFAULT_TEMPLATE)):
        source = shutil.copytree(checkpoint("apple"), tmp_path / f"source{number}")
        (source / "chat_template.jinja").write_text(said)
        convert(source, tmp_path / f"hf{number}", layout="transformers")
        written = (tmp_path / f"hf{number}" / "chat_template.jinja").read_text()
        assert written == (CHAT_TEMPLATE if said == DEFAULT_TEMPLATE else said)


def test_apples_mlx_export_takes_its_tower_from_elsewhere(checkpoint, tmp_path):
    tower = "model.vision_tower.timm_model."
    named = {
        name.replace("language_model.", "language_model.model.")
        .replace("model.language_model.model.", "language_model.model.")
        .replace("model.multi_modal_projector.linear_1", "multi_modal_projector.linear_0")
        .replace("model.multi_modal_projector.linear_2", "multi_modal_projector.linear_2"): value
        for name, value in small_tensors().items()
        if not name.startswith(tower)
    }
    folder = write(tmp_path / "export", "apple", config_dict=apple_config(False) | {"vision_config": {}})
    settings = json.loads((folder / "config.json").read_text())
    settings["vision_config"] = apple_config()["vision_config"]
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(named, folder / "model.safetensors")
    with pytest.raises(ValueError, match="--vision-from"):
        load(folder)
    with pytest.warns(UserWarning, match="going by the weights"):
        convert(folder, tmp_path / "whole", vision_from=checkpoint("mlx-vlm"))
    assert deviations(logits(tmp_path / "whole"), logits(checkpoint("apple"))) < 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype(checkpoint, tmp_path, dtype):
    report = convert(checkpoint("apple"), tmp_path / "half", dtype=dtype)
    tensors = mx.load(str(tmp_path / "half" / "model.safetensors"))
    assert tensors["language_model.norm.weight"].dtype == getattr(mx, dtype)
    assert tensors["vision_tower.stem.conv.weight"].dtype == mx.bfloat16
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == dtype
    assert report.bits_per_weight == 16
    assert 0 < report.agreement.max_difference < 0.2


@pytest.mark.parametrize(("head", "says"), [("copy", False), ("own", True), (None, False)])
def test_a_config_that_lies_about_tying_is_put_right(tmp_path, head, says):
    source = write(tmp_path / "source", "apple", head=head, config_dict=apple_config(says))
    with pytest.warns(UserWarning, match="going by the weights"):
        convert(source, tmp_path / "mlx")
    names = load_file(tmp_path / "mlx" / "model.safetensors")
    assert ("lm_head.weight" in names) == (head == "own")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path / "mlx")


def test_what_else_a_folder_holds(checkpoint, tmp_path):
    source = shutil.copytree(checkpoint("apple"), tmp_path / "source")
    (source / "LICENSE").write_text("research only")
    (source / "pytorch_model.bin").write_text("pickle")
    (source / "run_me.py").write_text("")
    assert main(["--hf-path", str(source), "--mlx-path", str(tmp_path / "mlx"), "-q", "--q-group-size", "32"]) == 0
    files = {file.name for file in (tmp_path / "mlx").iterdir()}
    assert files == {
        "LICENSE",
        "README.md",
        "added_tokens.json",
        "config.json",
        "merges.txt",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer_config.json",
        "vocab.json",
    }
    card = (tmp_path / "mlx" / "README.md").read_text()
    assert "convert.py --hf-path" in card
    assert "see LICENSE" in card
    assert card.startswith("---\nlicense: other\nlicense_name: as-the-source\nlicense_link: LICENSE\n")
    assert "pipeline_tag: image-text-to-text\nlibrary_name: mlx\n" in card
    # What the source's config said beyond what this package knows is still said.
    assert json.loads((tmp_path / "mlx" / "config.json").read_text())["mm_vision_tower"] == "mobileclip_l_128"


def test_shards(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("mlx_fastvlm.files.write_tensors.__kwdefaults__", {"shard_limit": 10**6, "progress": print})
    convert(checkpoint("apple"), tmp_path / "mlx")
    index = json.loads((tmp_path / "mlx" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "mlx").glob("*.safetensors"))
    assert len(files) > 3
    assert {file.name for file in files} == set(index["weight_map"].values())
    assert max(file.stat().st_size for file in files) < 1.1e6
    assert index["metadata"]["total_size"] == sum(t.nbytes for file in files for t in load_file(file).values())
    assert deviations(logits(tmp_path / "mlx"), logits(checkpoint("apple"))) < 1e-5


def test_an_existing_folder_is_kept_unless_forced(checkpoint, tmp_path):
    target = tmp_path / "mlx"
    target.mkdir()
    convert(checkpoint("apple"), target, verify=False)  # empty: fine
    (target / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="--force"):
        convert(checkpoint("apple"), target)
    assert (target / "mine.txt").read_text() == "precious"
    with pytest.raises(ValueError, match="q_mixed"):
        convert(checkpoint("apple"), target, force=True, quantize=True, q_mode="mxfp4", q_mixed=True)
    assert (target / "mine.txt").exists()
    convert(checkpoint("apple"), target, force=True, verify=False)
    assert not (target / "mine.txt").exists()
    assert left(tmp_path) == ["mlx"]


def test_converting_onto_the_source_is_refused(checkpoint, tmp_path):
    source = shutil.copytree(checkpoint("apple"), tmp_path / "source")
    for target in (source, tmp_path):
        with pytest.raises(ValueError, match="is or holds the source"):
            convert(source, target, force=True)
    assert (source / "model.safetensors").exists()


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError("No space left on device")])
def test_an_interrupted_conversion_leaves_nothing(checkpoint, tmp_path, monkeypatch, fault):
    written = []

    def contiguous(tensor):
        written.append(tensor)
        if len(written) == 20:
            raise fault
        return tensor

    monkeypatch.setattr("mlx_fastvlm.files.tensors.mx.contiguous", contiguous)
    with pytest.raises((KeyboardInterrupt, OSError)):
        convert(checkpoint("apple"), tmp_path / "mlx")
    assert left(tmp_path) == []


def test_a_full_disk_is_noticed_before_writing(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(OSError, match="make room"):
        convert(checkpoint("apple"), tmp_path / "mlx")
    assert left(tmp_path) == []


@pytest.mark.parametrize(("mode", "limit"), [("affine", 1e-5), ("mxfp4", 1e-2)])
def test_verification_predicts_what_the_model_does(checkpoint, tmp_path, mode, limit):
    """Layer by layer, and with unpacked weights, but the same (MLX looks up mxfp4's embeddings in bfloat16)."""
    folder = tmp_path / "packed"
    convert(checkpoint("apple", head="own"), folder, quantize=True, q_group_size=32, q_mode=mode, verify=False)
    model, processor = load(folder, dtype="float32")
    ids = processor.encode_chat([{"role": "user", "content": f"<image>\n{verification.PROMPT}"}])
    whole = model(mx.array([ids]), processor.preprocess(verification.sample_image(128))).logits[0]
    config = FastVlmConfig.from_file(folder / "config.json")
    predicted = verification.predictions(read_weights(folder, config), config, processor)
    assert predicted.shape[0] >= 64
    assert deviations(predicted, np.array(whole[-predicted.shape[0] :])) < limit


BAD_OPTIONS = {
    "both ways": ({"quantize": True, "dequantize": True}, "exclude each other"),
    "layout": ({"layout": "gguf"}, "layout must be"),
    "quantized transformers": ({"layout": "transformers", "quantize": True}, "can't load"),
    "bits": ({"quantize": True, "q_bits": 7}, "q_bits"),
    "group": ({"quantize": True, "q_group_size": 48}, "q_group_size"),
    "mode": ({"quantize": True, "q_mode": "nf4"}, "q_mode"),
    "dtype": ({"dtype": "int8"}, "dtype"),
    "verify": ({"verify": "maybe"}, "verify"),
    "public": ({"public": True}, "upload_repo"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(checkpoint, tmp_path, case):
    options, message = BAD_OPTIONS[case]
    with pytest.raises(ValueError, match=message):
        convert(checkpoint("apple"), tmp_path / "mlx", **options)
    assert left(tmp_path) == []


def spoil_json(folder):
    (folder / "config.json").write_text("{")


def spoil_type(folder):
    (folder / "config.json").write_text('{"model_type": "llava"}')


def cut(folder):
    file = folder / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def lose(folder):
    (folder / "model-00002-of-00002.safetensors").unlink()


def wander(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../other.safetensors"}}')


def misshape(folder):
    file = folder / "model-00001-of-00002.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("proj.bias"))
    save_file({**tensors, name: tensors[name][:-1].copy()}, file)


BAD_SOURCES = {
    spoil_json: "not valid JSON",
    spoil_type: "not a FastVLM",
    cut: "broken or cut off",
    lose: "lacks 1 of 2 shards",
    wander: "outside its folder",
    misshape: "misshapen",
}


@pytest.mark.parametrize("spoil", BAD_SOURCES, ids=lambda spoil: spoil.__name__)
def test_bad_sources_are_one_line(tmp_path, capfd, spoil):
    source = write(tmp_path / "source", "apple", shards=2)
    spoil(source)
    assert main(["--hf-path", str(source), "--mlx-path", str(tmp_path / "mlx")]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert BAD_SOURCES[spoil] in err
    assert left(tmp_path) == ["source"]


def test_the_command_prints_a_table(checkpoint, tmp_path, capfd):
    assert main(["--hf-path", str(checkpoint("apple")), "--mlx-path", str(tmp_path / "mlx"), "-q"]) == 0
    out, _ = capfd.readouterr()
    for label in ("size", "bits per weight", "time", "peak memory", "agreement", "full precision"):
        assert f"\n{label}" in out
    assert "language_model.layers.0.mlp.down_proj" in out


def test_progress_bars_in_a_terminal(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert main(["--hf-path", str(checkpoint("apple")), "--mlx-path", str(tmp_path / "mlx")]) == 0
    bars = {line.split(":")[0]: line for line in capsys.readouterr().err.replace("\r", "\n").split("\n") if line}
    assert bars.keys() == {"writing", "verifying"}
    assert "9.00/9.00" in bars["verifying"]  # three times three layers


def test_the_top_level_script_and_usage_errors():
    done = run([sys.executable, ROOT / "convert.py"], cwd=ROOT)
    assert done.returncode == 2
    assert "--hf-path" in done.stderr


def test_upload_and_download_through_a_hub(checkpoint, tmp_path):
    environment = {"HF_TOKEN": "hf_test", "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HUB_OFFLINE"] = "0"  # whatever the shell says: this hub is on this machine
    image = tmp_path / "image.png"
    IMAGE.save(image)

    def python(*words):
        command = [sys.executable, "-m", *map(str, words)]
        return run(command, env={**os.environ, **environment})

    with hub.serve() as (address, repos, downloads):
        environment["HF_ENDPOINT"] = address
        words = ["--hf-path", checkpoint("apple"), "--mlx-path", tmp_path / "mlx", "--upload-repo", "me/tiny"]
        done = python("mlx_fastvlm.convert", *words)
        assert done.returncode == 0, done.stderr
        assert repos["me/tiny"]["private"]
        assert {"config.json", "README.md", "model.safetensors"} <= repos["me/tiny"]["files"].keys()
        repos["me/tiny"]["files"]["pytorch_model.bin"] = b"never asked for"
        done = python("mlx_fastvlm.generate", "--model", "me/tiny", "--image", image, "--max-tokens", 2)
        assert done.returncode == 0, done.stderr
        assert "model.safetensors" in downloads
        assert not {"pytorch_model.bin", "README.md"} & set(downloads)
        done = python("mlx_fastvlm.convert", "--hf-path", "me/none", "--mlx-path", tmp_path / "none")
        assert done.returncode == 1
        assert "the hub has no such model" in done.stderr.splitlines()[-1]
        words = [*words[:2], "--mlx-path", tmp_path / "public", "--upload-repo", "me/open", "--public", "--no-verify"]
        assert python("mlx_fastvlm.convert", *words).returncode == 0
        assert not repos["me/open"]["private"]


def test_memory_is_bounded_by_the_largest_tensor(checkpoint, tmp_path):
    """Not by the model: while it writes, MLX never holds more than a few tensors."""
    source = checkpoint("apple", head="own")
    model = sum(array.nbytes for _, array in tree_flatten(load(source)[0].parameters()))
    mx.clear_cache()
    before = mx.get_active_memory()
    report = convert(source, tmp_path / "mlx", verify=False)
    assert report.peak_memory - before < model / 3


@pytest.mark.parametrize("flags", [["--q-bits", "8"], ["--q-group-size", "32"]], ids=" ".join)
def test_how_many_bits_is_enough_to_quantize(checkpoint, tmp_path, monkeypatch, flags):
    """As people type it: another name for the source, a folder by default, and no -q."""
    monkeypatch.chdir(tmp_path)
    assert main(["--model", str(checkpoint("apple")), "--no-verify", "--q-group-size", "32", *flags]) == 0
    config = json.loads((tmp_path / "mlx_model" / "config.json").read_text())
    assert config["quantization"]["bits"] == (8 if "8" in flags else 4)
    assert main(["-m", "mlx_model", "-d", "--mlx-path", "plain", "--no-verify"]) == 0
    assert "quantization" not in json.loads((tmp_path / "plain" / "config.json").read_text())
