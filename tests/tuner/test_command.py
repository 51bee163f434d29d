"""``python -m mlx_fastvlm.lora``: from data to an adapter that answers."""

import json
import shutil
import sys

import pytest

from mlx_fastvlm import generate, load
from mlx_fastvlm.__main__ import main
from mlx_fastvlm.lora import parser, settings
from mlx_fastvlm.tuner.curves import Log
from mlx_fastvlm.tuner.reports import Report
from tests.support.training import IMAGES, rows


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for split, count in (("train", 3), ("valid", 2), ("test", 3)):
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows(count))))
    for i in range(1, 8):
        shutil.copy(IMAGES / f"shapes-{i}.png", folder)
    return folder


def lora(*words):
    return main(["lora", *map(str, words)])


def test_the_demo_learns_who_lives_there(data, tmp_path, capsys):
    """And the commands answer with what it learnt."""
    adapters = tmp_path / "adapters"
    words = ["--model", "demo", "--data", data, "--train", "--test", "--iters", 40, "--learning-rate", 5e-3]
    words += ["--scale", 4, "--batch-size", 3, "--train-projector", "--adapter-path", adapters]
    assert lora(*words, "--steps-per-report", 20) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("train: 3 rows, ")
    assert lines[3].startswith("Iter 0: validation loss ")
    assert lines[4].startswith("Iter 20: loss ")
    assert lines[-2].startswith(f"wrote {adapters}: lora, ")
    assert float(lines[-1].split()[2].strip(",")) < 0.2
    assert {"adapters.safetensors", "adapter_config.json", "features", "log.jsonl"} <= {
        file.name for file in adapters.iterdir()
    }
    words = ["--prompt", "Who lives here?", "--image", data / "shapes-2.png", "--adapter-path", adapters]
    assert main(["generate", "--model", "demo", *map(str, words)]) == 0
    assert capsys.readouterr().out == "Two owls.\n"
    model, processor = load("demo", adapter_path=adapters)
    assert generate(model, processor, "Who lives here?", data / "shapes-3.png", max_tokens=10) == "The moon."
    assert lora("--model", "demo", "--data", data, "--test", "--adapter-path", adapters) == 0
    assert float(capsys.readouterr().out.split()[-3].strip(",")) < 0.2


def test_a_run_goes_on(data, tmp_path, checkpoint, capsys):
    words = ["--model", checkpoint("apple"), "--data", data, "--train", "--adapter-path", tmp_path / "a"]
    words += ["--steps-per-report", 1, "--dtype", "float32"]
    assert lora(*words, "--iters", 2) == 0
    assert lora(*words, "--iters", 4, "--resume") == 0
    told = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in told if "loss" in line] == [1, 2, 3, 4]
    assert lora(*words, "--iters", 4, "--resume") == 2
    assert "has had 4 iterations already" in capsys.readouterr().err


def test_too_long_rows_are_counted(data, tmp_path, checkpoint, capsys):
    long = {"image": "shapes-1.png", "question": "Who?", "answer": "An owl. " * 50}
    (data / "train.jsonl").write_text("\n".join(map(json.dumps, [*rows(3), long])))
    words = ["--model", checkpoint("apple"), "--data", data, "--train", "--adapter-path", tmp_path / "a"]
    assert lora(*words, "--iters", 1, "--max-seq-length", 200) == 0
    assert "train: 3 rows, " in capsys.readouterr().out.splitlines()[0]
    assert lora(*words, "--iters", 1, "--max-seq-length", 200) == 0
    assert "; 1 rows longer than 200 tokens are left out" in capsys.readouterr().out


def test_a_config_file(tmp_path):
    pytest.importorskip("yaml", reason="needs PyYAML, of the extra test")
    config = tmp_path / "config.yaml"
    config.write_text(
        "model: demo\ntrain: true\ndata: here\niters: 7\nlearning_rate: 1e-4\nfine_tune_type: dora\n"
        "lora_parameters: {rank: 5, scale: 10, keys: [self_attn.q_proj]}\n"
        "lr_schedule: {name: cosine_decay, arguments: [1.0e-4, 7], warmup: 1}\n"
    )
    own, options = settings(parser().parse_args(["-c", str(config), "--iters", "9", "--dropout", "0.5"]))
    assert (own["model"], own["train"], str(own["data"])) == ("demo", True, "here")
    assert (options.iters, options.learning_rate, options.adapters.dropout) == (9, 1e-4, 0.5)
    assert (options.adapters.rank, options.adapters.keys) == (5, ("self_attn.q_proj",))
    assert options.adapters.fine_tune_type == "dora"
    assert options.lr_schedule["name"] == "cosine_decay"
    assert str(options.feature_folder) == "adapters/features"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("iter: 5", "there is no option iter; did you mean iters?"),
        ("- 5", "holds no options"),
        ("a: [", "is not YAML"),
        ("lora_parameters: 5", "lora_parameters must hold"),
        ("lora_parameters: {alpha: 16}", "there is no option alpha"),
        ("iters: many", "iters must be a whole number"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_config_files_that_are_none(tmp_path, capsys, content, words):
    pytest.importorskip("yaml", reason="needs PyYAML, of the extra test")
    (tmp_path / "c.yaml").write_text(content)
    assert lora("-c", tmp_path / "c.yaml", "--train") == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "words", "code"),
    [
        ([], "Say what to do", 2),
        (["--train"], "Say what to learn", 2),
        (["--train", "--data", "nowhere"], "is not a folder; give one", 1),
        (["--train", "--data", "DATA", "--iters", "0"], "iters must be at least 1", 2),
        (["--train", "--data", "DATA", "--keys", "q_proj"], "is not a linear layer", 2),
        (["--train", "--data", "DATA", "--image-size", "100"], "image_size must be a multiple", 1),
        (["--train", "--data", "DATA", "--max-seq-length", "20"], "longer than 20 tokens", 1),
        (["--train", "--data", "DATA", "--resume"], "nothing to resume", 1),
        (["--test", "--data", "DATA"], "has no adapter_config.json", 1),
        (["--train", "--data", "DATA", "--learning-rate", "1e30"], "lower --learning-rate", 1),
    ],
)
def test_one_line_and_nothing_left(data, tmp_path, checkpoint, capsys, monkeypatch, flags, words, code):
    monkeypatch.chdir(tmp_path)
    flags = [str(data) if flag == "DATA" else flag for flag in flags]
    assert lora("--model", checkpoint("apple"), *flags) == code
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    if "1e30" not in flags:
        assert not [file for file in (tmp_path / "adapters").glob("*") if file.name != "features"]


def test_bad_data_train_nothing(data, tmp_path, capsys):
    (data / "train.jsonl").write_text("\n".join(map(json.dumps, [*rows(3), {"image": "shapes-1.png"}])))
    model = ["--model", "no/such/model"]  # which is not even looked for
    assert lora(*model, "--data", data, "--train", "--adapter-path", tmp_path / "a") == 1
    assert "error: train.jsonl, row 4 has the keys ['image']" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_plot(data, tmp_path, checkpoint):
    pytest.importorskip("matplotlib", reason="needs matplotlib, of the extra test")
    words = ["--model", checkpoint("apple"), "--data", data, "--train", "--adapter-path", tmp_path / "a"]
    assert lora(*words, "--iters", 3, "--steps-per-report", 1, "--plot", tmp_path / "loss.png") == 0
    assert (tmp_path / "loss.png").stat().st_size > 5000


def test_curves_in_tensorboard(data, tmp_path, checkpoint, capsys, monkeypatch):
    """As its own package reads them."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard, of the extra test"
    )
    words = ["--model", checkpoint("apple"), "--data", data, "--train", "--adapter-path", tmp_path / "a"]
    words += ["--steps-per-report", 1, "--dtype", "float32", "--report-to", "tensorboard"]
    assert lora(*words, "--iters", 3) == 0
    events = accumulator.EventAccumulator(str(tmp_path / "a" / "tensorboard")).Reload()
    told = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    for name in ("loss", "valid_loss", "learning_rate", "tokens_per_second", "images_per_second"):
        expected = [(line["iteration"], pytest.approx(line[name])) for line in told if name in line]
        tensors = [(event.step, event.tensor_proto.float_val[0]) for event in events.Tensors(name)]
        assert tensors == expected
        assert expected
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    capsys.readouterr()
    assert lora(*words) == 2
    assert 'pip install "mlx-fastvlm[tensorboard]"' in capsys.readouterr().err


def test_a_log_forgets_what_is_trained_again(tmp_path):
    path = tmp_path / "log.jsonl"
    log = Log(path)
    for iteration in (0, 2, 4, 6):
        log.add(Report(iteration, loss=1.0))
    with path.open("a") as file:
        file.write('{"iteration": 8, "lo')
    resumed = Log(path, resume=True)
    resumed.add(Report(4, loss=0.5))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["iteration"], line["loss"]) for line in lines] == [(0, 1.0), (2, 1.0), (4, 0.5)]
    assert resumed.told == lines
