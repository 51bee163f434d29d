"""A training that stops goes on as if it had not."""

import json

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_fastvlm import load
from mlx_fastvlm.errors import UsageError
from mlx_fastvlm.models.lora import load_adapters
from mlx_fastvlm.tuner import AdapterConfig
from mlx_fastvlm.tuner.state import STATE, weights_of
from tests.support.adapters import logits
from tests.support.training import LORA, trained


class Stop(Exception):
    pass


def stop_at(iteration):
    def report(told):
        if told.iteration == iteration:
            raise Stop

    return report


def same(one, other):
    a, b = (dict(tree_flatten(model.parameters())) for model in (one, other))
    return a.keys() == b.keys() and all(mx.array_equal(a[name], b[name]) for name in a)


RUNS = {
    "lora": {},
    "cosine": {"lr_schedule": "cosine", "warmup": 5, "optimizer": "adamw", "max_grad_norm": 1.0},
    "accumulated": {"grad_accumulation_steps": 2, "optimizer": "sgd", "optimizer_config": {"momentum": 0.9}},
    "full": {"adapters": AdapterConfig("full", num_layers=1), "train_projector": True},
}


@pytest.mark.parametrize("run", RUNS)
def test_sixty_and_forty_are_a_hundred(checkpoint, tmp_path, run):
    """Bit for bit, with dropout; killed some time after the sixtieth's state was saved. The others: 12 and 8 are 20."""
    iters = 100 if run == "lora" else 20
    saved = iters * 6 // 10
    options = {"steps_per_report": 2, "save_every": iters // 5, "iters": iters, **RUNS[run]}
    whole, told = trained(checkpoint("apple"), adapter_path=tmp_path / "whole", **options)
    with pytest.raises(Stop):
        trained(checkpoint("apple"), adapter_path=tmp_path / "parts", report=stop_at(saved + 2), **options)
    mx.random.seed(99)
    parts, rest = trained(checkpoint("apple"), adapter_path=tmp_path / "parts", resume=True, **options)
    assert rest[0].iteration == saved + 2
    assert [report.loss for report in told if report.iteration > saved] == [report.loss for report in rest]
    assert same(whole, parts)
    written = [(tmp_path / name / "adapters.safetensors").read_bytes() for name in ("whole", "parts")]
    assert written[0] == written[1]


def test_more_iterations_than_were_planned(checkpoint, tmp_path):
    whole, _ = trained(checkpoint("apple"), iters=8)
    trained(checkpoint("apple"), iters=5, adapter_path=tmp_path)
    parts, _ = trained(checkpoint("apple"), iters=8, adapter_path=tmp_path, resume=True)
    assert same(whole, parts)


def test_what_is_in_the_folder(checkpoint, tmp_path):
    model, _ = trained(checkpoint("apple"), iters=5, save_every=2, adapter_path=tmp_path)
    names = [f"{step:07d}_adapters.safetensors" for step in (2, 4, 5)]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        *names,
        "adapter_config.json",
        "adapters.safetensors",
        STATE,
    ]
    assert weights_of(tmp_path, 5).read_bytes() == (tmp_path / "adapters.safetensors").read_bytes()
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["fine_tune_type"] == "lora"
    assert config["num_layers"] == 3
    assert len(config["lora_parameters"]["keys"]) == 7
    again, _ = load(checkpoint("apple"), dtype="float32", adapter_path=tmp_path)
    assert mx.array_equal(logits(again), logits(model))


OTHER = {
    "batch_size": {"batch_size": 3},
    "seed": {"seed": 1},
    "learning_rate": {"learning_rate": 1e-4},
    "lora_parameters": {"adapters": AdapterConfig(rank=5)},
    "fine_tune_type": {"adapters": AdapterConfig("dora", rank=4, scale=4.0, dropout=0.1)},
    "lr_schedule": {"lr_schedule": "cosine"},
}


@pytest.mark.parametrize("name", OTHER)
def test_only_the_same_training_goes_on(checkpoint, tmp_path, name):
    trained(checkpoint("apple"), iters=2, adapter_path=tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=f"was trained with another .*{name}.*--resume-adapter-file"):
        trained(checkpoint("apple"), iters=4, adapter_path=tmp_path, resume=True, **OTHER[name])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_other_data_are_another_training(checkpoint, tmp_path, processor):
    from tests.support.training import samples  # noqa: PLC0415  only here

    trained(checkpoint("apple"), iters=2, adapter_path=tmp_path)
    with pytest.raises(ValueError, match="was trained with another train set"):
        trained(checkpoint("apple"), iters=4, adapter_path=tmp_path, resume=True, train_set=samples(processor, 3))


def test_nothing_to_resume(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        trained(checkpoint("apple"), adapter_path=tmp_path, resume=True)
    with pytest.raises(UsageError, match="name the adapter_path"):
        trained(checkpoint("apple"), resume=True)
    trained(checkpoint("apple"), iters=2, adapter_path=tmp_path)
    with pytest.raises(UsageError, match="has had 2 iterations already"):
        trained(checkpoint("apple"), iters=2, adapter_path=tmp_path, resume=True)


def test_a_damaged_state_is_an_error(checkpoint, tmp_path):
    trained(checkpoint("apple"), iters=2, adapter_path=tmp_path)
    state = (tmp_path / STATE).read_bytes()
    (tmp_path / STATE).write_bytes(state[:-100])
    with pytest.raises(ValueError, match="is broken or cut off"):
        trained(checkpoint("apple"), iters=4, adapter_path=tmp_path, resume=True)
    mx.save_safetensors(str(tmp_path / STATE), {"x": mx.zeros(2)}, {"step": "two", "plan": "{}"})
    with pytest.raises(ValueError, match="is not a saved state of a training"):
        trained(checkpoint("apple"), iters=4, adapter_path=tmp_path, resume=True)
    (tmp_path / STATE).write_bytes(state)
    weights_of(tmp_path, 2).unlink()
    with pytest.raises(FileNotFoundError, match="0000002_adapters"):
        trained(checkpoint("apple"), iters=4, adapter_path=tmp_path, resume=True)


def test_weights_to_begin_with(checkpoint, tmp_path):
    first, _ = trained(checkpoint("apple"), iters=6, adapter_path=tmp_path)
    file = tmp_path / "adapters.safetensors"
    _, told = trained(checkpoint("apple"), iters=1, resume_adapter_file=file, batch_size=7, seed=3)
    _, fresh = trained(checkpoint("apple"), iters=1, batch_size=7, seed=3)
    assert told[0].loss < fresh[0].loss
    with pytest.raises(ValueError, match="does not fit what is trained here"):
        trained(checkpoint("apple"), resume_adapter_file=file, adapters=AdapterConfig(rank=5))
    model, _ = load(checkpoint("apple"), dtype="float32")
    load_adapters(model, tmp_path)
    assert mx.array_equal(logits(model), logits(first))
    assert LORA.rank == 4
