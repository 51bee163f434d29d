"""A decoder over two processes computes what it computes in one."""

import json
import sys

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_fastvlm import FastVlmForConditionalGeneration, generate, load
from mlx_fastvlm.checkpoints.quantization import plan, quantize_modules
from mlx_fastvlm.models.lora import LoRALinear
from mlx_fastvlm.models.sharding import shard
from tests.support.differences import deviations
from tests.support.paths import ROOT
from tests.support.ranks import finish, launch, start_ranks

IMAGE = ROOT / "examples/images/shapes-1.png"
PROMPTS = ["Describe the image.", "What are these?"]
SCRIPT = """
import json, mlx_fastvlm
from tests.models import test_sharding as here
import mlx.core as mx
group = mx.distributed.init()
for bits in (None, 4):
    print(json.dumps(here.looked_at(here.sharded(bits, group))), flush=True)
"""


def chosen(bits):
    model, processor = load("demo", lazy=True)
    if bits:
        quantize_modules(model, plan(dict(tree_flatten(model.parameters())), bits=bits, group_size=32).modules)
    return model, processor


def sharded(bits, group):
    model, processor = chosen(bits)
    return shard(model, group), processor


def looked_at(loaded):
    """Logits, greedy texts, and the bytes of the decoder's layers and of everything."""
    model, processor = loaded
    logits = model(input_ids=mx.arange(12)[None], attention_mask=None).logits
    return {
        "logits": np.array(logits).tolist(),
        "texts": [generate(model, processor, prompt, IMAGE, max_tokens=30) for prompt in PROMPTS],
        "layers": sum(x.nbytes for _, x in tree_flatten([x.parameters() for x in model.language_model.layers])),
        "norms": sum(x.nbytes for name, x in tree_flatten(model.language_model.parameters()) if "norm" in name),
        "all": sum(x.nbytes for _, x in tree_flatten(model.parameters())),
    }


def test_two_processes_compute_what_one_does(tmp_path):
    ends = finish(start_ranks([sys.executable, "-c", SCRIPT], tmp_path))
    assert [code for code, *_ in ends] == [0, 0], ends
    for number, bits in enumerate((None, 4)):
        alone = looked_at(chosen(bits))
        shares = [json.loads(out.splitlines()[number]) for _, out, _ in ends]
        assert shares[0] == shares[1]  # to the bit, or they would choose different tokens some day
        for share in shares:
            assert deviations(share["logits"], alone["logits"]) < 1e-5
            assert share["texts"] == alone["texts"]
            assert share["layers"] - alone["norms"] <= (alone["layers"] - alone["norms"]) / 2 + 4096
            assert alone["all"] - share["all"] == alone["layers"] - share["layers"]


def test_generate_under_mlx_launch_answers_once():
    question = ["mlx_fastvlm.generate", "--model", "demo", "--image", str(IMAGE), "--prompt", PROMPTS[0]]
    ended = launch(question)
    assert ended.stdout == generate(*load("demo"), PROMPTS[0], IMAGE) + "\n", ended.stderr


def test_tokens_are_drawn_alike(tmp_path):
    question = ["mlx_fastvlm.generate", "--model", "demo", "--prompt", "Hi", "--temperature", "5", "--max-tokens", "20"]
    (first, second) = finish(start_ranks([sys.executable, "-m", *question], tmp_path))  # or one would wait for ever
    assert first[0] == 0, first
    assert first[1].strip()
    assert second == (0, "", "")


class Group:
    def __init__(self, size):
        self.size = lambda: size
        self.rank = lambda: 0


@pytest.mark.parametrize(
    ("size", "words"),
    [(3, "3 processes can't share 4 attention heads equally"), (4, "4 processes can't share 2 KV heads equally")],
)
def test_what_does_not_divide_is_refused_in_a_line(size, words):
    model, _ = chosen(None)
    before = [name for name, _ in tree_flatten(model.parameters())]
    with pytest.raises(ValueError, match=words) as caught:
        shard(model, Group(size))
    assert "\n" not in str(caught.value)
    assert [name for name, _ in tree_flatten(model.parameters())] == before


def test_groups_of_quantized_weights_that_do_not_divide_are_refused():
    model, _ = load("demo", lazy=True)
    quantize_modules(model, plan(dict(tree_flatten(model.parameters())), bits=4, group_size=64).modules)
    assert model.language_model.layers[0].mlp.down_proj.scales.shape[-1] == 5  # 320 / 64
    with pytest.raises(ValueError, match="5 groups of quantized weights"):
        shard(model, Group(2))


def test_adapters_and_a_second_time_are_refused():
    model, _ = load("demo", lazy=True)
    attention = model.language_model.layers[3].self_attn
    attention.q_proj = LoRALinear(attention.q_proj, 4)
    with pytest.raises(ValueError, match="fuse the adapters first"):
        shard(model, Group(2))
    model, _ = load("demo", lazy=True)
    shard(model, mx.distributed.init())  # alone: nothing to share
    assert isinstance(model, FastVlmForConditionalGeneration)


@pytest.mark.parametrize("flags", [["--prompt", "-"], ["--prompt-cache", "cache.safetensors"]])
def test_what_several_processes_can_not_do_is_refused_by_name(flags, tmp_path):
    command = [sys.executable, "-m", "mlx_fastvlm.generate", "--model", "demo", *flags]
    (code, _, err), *_ = finish(start_ranks(command, tmp_path, count=1))
    assert (code, err.count("\n")) == (2, 1)
    assert f"{flags[0] if flags[0] != '--prompt' else '-'} can't be combined with mlx.launch" in err
