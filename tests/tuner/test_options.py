"""What a training can be told, and how the learning rate goes."""

import mlx.core as mx
import pytest

from mlx_fastvlm.checkpoints.adapters import AdapterConfig
from mlx_fastvlm.errors import UsageError
from mlx_fastvlm.tuner import TrainingOptions

WRONG = [
    ({"iters": 0}, "iters must be at least 1, got 0"),
    ({"batch_size": 2.5}, "batch_size must be a whole number"),
    ({"learning_rate": 0}, "learning_rate must be a number above 0"),
    ({"learning_rate": float("nan")}, "learning_rate must be a number above 0"),
    ({"learning_rate": "1e-5"}, "learning_rate must be a number above 0"),
    ({"optimizer": "lion"}, "optimizer must be one of adam, adamw"),
    ({"optimizer_config": {"beta": 1}}, "MLX can't make this optimizer"),
    ({"weight_decay": 0.1}, "weight_decay needs one of adamw"),
    ({"lr_schedule": "cosines"}, "lr_schedule must be one of cosine, linear"),
    ({"lr_schedule": {"name": "math"}}, "lr_schedule's name must be one of"),
    ({"lr_schedule": {"name": "cosine_decay"}}, "MLX can't make this optimizer"),
    ({"lr_schedule": {"name": "cosine_decay", "arguments": [1, 2]}, "warmup": 3}, "has a warmup of its own"),
    ({"max_grad_norm": -1}, "max_grad_norm must be"),
    ({"val_batches": -2}, "val_batches must be at least -1"),
    ({"train_vision": 1}, "train_vision must be True or False"),
    ({"vision_stages": 2}, "ask for train_vision too"),
    ({"vision_stages": -2, "train_vision": True}, "vision_stages must be at least -1"),
    ({"grad_accumulation_steps": 3}, "iters must be a multiple of grad_accumulation_steps"),
    ({"grad_accumulation_steps": 8, "iters": 16, "save_every": 12}, "save_every must be a multiple"),
    ({"seed": -1}, "seed must be at least 0"),
    ({"resume": True}, "name the adapter_path"),
    ({"adapters": AdapterConfig(dropout=0.5), "grad_checkpoint": True}, "can't be combined with dropout"),
]


@pytest.mark.parametrize(("options", "words"), WRONG, ids=[str(options) for options, _ in WRONG])
def test_what_can_not_be(options, words):
    with pytest.raises(UsageError, match=words) as raised:
        TrainingOptions(**options)
    assert "\n" not in str(raised.value)


def rates(updates, **options):
    """The learning rate of each update."""
    optimizer = TrainingOptions(**options).make_optimizer()
    found = []
    for _ in range(updates):
        optimizer.update({}, {})
        found.append(float(mx.array(optimizer.learning_rate)))
    return found


def test_rates():
    assert rates(3, learning_rate=0.5) == [0.5] * 3
    warmed = rates(20, learning_rate=1.0, warmup=4)
    assert warmed[:5] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert warmed[5:] == [1.0] * 15
    linear = rates(10, learning_rate=1.0, lr_schedule="linear", iters=10)
    assert linear == pytest.approx([1 - i / 10 for i in range(10)])
    cosine = rates(20, learning_rate=1.0, lr_schedule="cosine", iters=40, grad_accumulation_steps=2, save_every=2)
    assert cosine[10] == pytest.approx(0.5)
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[-1] < 0.01


def test_mlx_lms_schedule():
    schedule = {"name": "cosine_decay", "arguments": [1.0, 10], "warmup": 2, "warmup_init": 0.5}
    found = rates(14, lr_schedule=schedule)
    assert found[:3] == pytest.approx([0.5, 0.75, 1])
    assert found[-1] == pytest.approx(0, abs=1e-6)
