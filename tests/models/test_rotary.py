"""A token's rotation as a matrix, which the CPU's attention takes."""

import random
import threading

import mlx.core as mx
import pytest

from mlx_fastvlm.config import TextConfig
from mlx_fastvlm.models import cpu
from mlx_fastvlm.models.rotary import Rotary

KINDS = [
    None,
    {"rope_type": "linear", "factor": 3.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
]


def config(kind=None, **changes):
    shape = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}
    return TextConfig(
        **{**shape, "vocab_size": 32, "intermediate_size": 8, "max_position_embeddings": 64, **changes},
        rope_scaling=kind,
    )


def difference(rotary, position):
    x = mx.random.normal((2, 3, 1, 16))
    return mx.abs(x @ rotary.matrix(position) - rotary(x, position)).max().item()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["rope_type"] if kind else "default")
def test_a_product_turns_as_the_rotation_does(kind):
    rotary = Rotary(config(kind))
    assert max(difference(rotary, position) for position in (0, 1, 15, 16, 63, 64, 1000, 30000)) < 2e-6


def test_no_other_rotation_is_taken_for_it():
    """Several decoders, asked in any order, and by several threads at a time."""
    rotaries = [Rotary(config(kind, rope_theta=theta)) for kind in KINDS for theta in (1e4, 1e6)]
    worst = []

    def ask(seed):
        draw = random.Random(seed)
        worst.append(max(difference(draw.choice(rotaries), draw.randrange(4)) for _ in range(100)))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worst) == 4
    assert max(worst) < 2e-6


def test_layers_share_one_matrix():
    assert Rotary(config()).matrix(5) is Rotary(config()).matrix(5)


@pytest.mark.parametrize(
    ("length", "offset", "ids", "dtype", "by_matrix"),
    [
        (1, 7, None, mx.float32, True),
        (2, 7, None, mx.float32, False),
        (1, mx.array([7, 3]), None, mx.float32, False),
        (1, 7, mx.array([[4], [2]]), mx.float32, False),
        (1, 7, None, mx.bfloat16, False),
    ],
)
def test_when_attention_takes_it(length, offset, ids, dtype, by_matrix, monkeypatch):
    attention = cpu.CpuAttention(config())
    x = mx.random.normal((2, 4, length, 16)).astype(dtype)
    expected = Rotary(config())(x, offset, ids)
    asked = []
    real = Rotary.matrix
    monkeypatch.setattr(Rotary, "matrix", lambda self, position: asked.append(position) or real(self, position))
    assert mx.abs(attention.turn(x, offset, ids) - expected).max().item() < 2e-6
    assert asked == ([7] if by_matrix else [])
