"""Fixtures shared by the tests: what transformers computed, and small checkpoints in any layout."""

import dataclasses
import functools
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mlx_fastvlm  # before anything imports mlx, so that OpenBLAS is found

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "reference")]

import checkpoints  # noqa: E402
import small  # noqa: E402

SHARED = HERE.parent.parent / "shared"
PICTURE = Image.fromarray(small.odd_picture(70, 50))
PROMPT = "What is this?"


@pytest.fixture(scope="session")
def recorded():
    """Arrays that tests/reference/record.py took from transformers and timm."""
    with np.load(HERE / "reference" / "recorded.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Writes a small checkpoint, each kind once: ``checkpoint("apple", training=True)`` -> its folder."""
    written = {}

    def write(layout="apple", **how):
        key = (layout, *sorted(how.items()))
        if key not in written:
            written[key] = checkpoints.write(tmp_path_factory.mktemp(layout), layout, **how)
        return written[key]

    return write


@pytest.fixture(scope="session")
def small_model(checkpoint):
    """Model and processor of the small checkpoint in Apple's layout, float32."""
    return mlx_fastvlm.load(checkpoint("apple"), dtype="float32")


@pytest.fixture(scope="session")
def untied_model(checkpoint):
    """The same with a head of its own: with tied random weights every answer repeats its first token."""
    return mlx_fastvlm.load(checkpoint("apple", head="own"))


@pytest.fixture
def ask(untied_model):
    """Ids of the answer of the small model, which rambles: 12 tokens unless it is told otherwise."""
    model, processor = untied_model
    processor = dataclasses.replace(processor, eos_token_ids=frozenset())

    def ask(prompt=PROMPT, image=PICTURE, **options):
        options = {"max_tokens": 12, **options}
        return [response.token for response in mlx_fastvlm.stream_generate(model, processor, prompt, image, **options)]

    return ask


@pytest.fixture
def first_logits(ask):
    """The logits that the first token is chosen from."""

    def first_logits(*arguments, **options):
        seen = []

        def watch(_, logits):
            seen.append(np.array(logits[0]))
            return logits

        ask(*arguments, max_tokens=1, logits_processors=[watch], **options)
        return seen[0]

    return first_logits


@functools.cache
def wide_model():
    """A model with heads of 64 channels, as the real ones have, that rambles: random weights, no end of sequence.

    A function and no fixture, so that hypothesis can use it.
    """
    import mlx.core as mx

    from mlx_fastvlm import FastVlmConfig, FastVlmForConditionalGeneration, FastVlmProcessor

    text = {**small.TEXT, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}
    config = FastVlmConfig(small.VISION, text, image_token_id=-200, image_aspect_ratio="pad")
    mx.random.seed(0)
    model = FastVlmForConditionalGeneration(config)
    for name, module in model.named_modules():
        if "weight" in module and module.weight.ndim == 2:  # MLX's own are too small for attention to matter
            module.weight = mx.random.normal(module.weight.shape) * (2 if "_proj" in name else 1) / 8
    mx.eval(model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.write_tokenizer(folder)
        processor = FastVlmProcessor.from_folder(folder, config)
    settings = dataclasses.replace(processor.image_settings, size=128)
    return model, dataclasses.replace(processor, eos_token_ids=frozenset(), image_settings=settings)


@pytest.fixture(scope="session")
def demo():
    """Model and processor of the embedded checkpoint."""
    return mlx_fastvlm.load("demo")


@pytest.fixture(scope="session")
def facts():
    """The folder of real configs, tensor names and vocabulary, which only the developers have."""
    if not (SHARED / "facts").is_dir():
        pytest.skip("needs ../shared/facts")
    return SHARED / "facts"


differences = {}  # the largest of each test, in standard deviations


def deviations(ours, theirs, spread=None):
    """The largest difference, in standard deviations of the reference (``spread``, where that is only a sample)."""
    ours, theirs = np.array(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    found = np.abs(ours - theirs).max() / (theirs.std() if spread is None else spread)
    test = os.environ["PYTEST_CURRENT_TEST"].partition("[")[0].partition(" ")[0]
    differences[test] = max(found, differences.get(test, 0.0))
    return found


def logits(folder):
    """The answer's first logits to a fixed question about a fixed picture, float32."""
    model, processor = mlx_fastvlm.load(folder, dtype="float32")
    inputs = processor(text="<image>\nWhat is this?", images=PICTURE, image_size=128)
    return np.array(model(inputs["input_ids"], inputs["pixel_values"]).logits)


def left(folder):
    """Everything in a folder, hidden things too."""
    return sorted(path.name for path in folder.iterdir())


def pytest_addoption(parser):
    parser.addoption("--differences", action="store_true", help="print what each test measured (docs/reference.md)")


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("differences"):
        for test, found in differences.items():
            terminalreporter.write_line(f"{found:.1e}  {test}")


@pytest.fixture
def processor(small_model):
    return small_model[1]


@pytest.fixture(scope="session")
def qwen(facts, tmp_path_factory):
    """A processor on Qwen2's real vocabulary, built from vocab.json and merges.txt as Apple ships them."""
    folder = tmp_path_factory.mktemp("qwen")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(facts / "tokenizer" / name, folder)
    configs = facts / "configs"
    shutil.copy(configs / "apple-0.5b.added_tokens.json", folder / "added_tokens.json")
    shutil.copy(configs / "apple-0.5b.generation_config.json", folder / "generation_config.json")
    shutil.copy(configs / "apple-0.5b.tokenizer_config.likely.json", folder / "tokenizer_config.json")
    return mlx_fastvlm.FastVlmProcessor.from_folder(
        folder, mlx_fastvlm.FastVlmConfig.from_file(configs / "apple-0.5b.config.json")
    )
