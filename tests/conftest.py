"""Fixtures that the tests share: what transformers computed, small checkpoints, models, a real vocabulary."""

import dataclasses
import json
import lzma
import os
import shutil

import hypothesis
import numpy as np
import pytest

# On an M5, float32 products are TF32 unless MLX finds this when it is imported: too coarse to compare with.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

import mlx_fastvlm  # before anything imports mlx, so that OpenBLAS is found
from tests.support import as_on_gpu, checkpoints, differences, guidance
from tests.support.images import IMAGE, PROMPT
from tests.support.paths import FACTS, REFERENCE, SHARED

guidance.install()
hypothesis.settings.register_profile("no clock", deadline=None)  # a busy machine is no error
hypothesis.settings.load_profile("no clock")


@pytest.fixture(scope="session")
def recorded():
    """Arrays that tests/support/reference/record.py took from transformers and timm."""
    with np.load(REFERENCE / "recorded.npz") as file:
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

    def ask(prompt=PROMPT, image=IMAGE, **options):
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


@pytest.fixture(scope="session")
def demo():
    """Model and processor of the embedded checkpoint."""
    return mlx_fastvlm.load("demo")


@pytest.fixture(scope="session")
def facts():
    """The folder of real configs, tensor names, and an excerpt of the vocabulary."""
    return FACTS


@pytest.fixture(scope="session")
def released_shapes(facts):
    """Tensor names and shapes of released checkpoints, by layout and size."""
    return json.loads(lzma.decompress((facts / "shapes.json.xz").read_bytes()))


@pytest.fixture(scope="session")
def vocabulary(facts, tmp_path_factory):
    """The folder of Qwen2's vocabulary: all of it where it is, else the excerpt, which knows the texts of the tests.

    What is not in the excerpt stands there under other names, so that added tokens get their ids.
    """
    whole = SHARED / "facts" / "tokenizer"
    if whole.is_dir():
        return whole
    folder = tmp_path_factory.mktemp("vocabulary")
    shutil.copy(facts / "merges.txt", folder)
    known = json.loads((facts / "vocab.json").read_text(encoding="utf-8"))
    others = {f"(token {id})": id for id in set(range(151643)) - set(known.values())}
    (folder / "vocab.json").write_text(json.dumps(known | others), encoding="utf-8")
    return folder


def pytest_addoption(parser):
    parser.addoption("--differences", action="store_true", help="print what each test measured (docs/reference.md)")
    parser.addoption("--as-on-gpu", action="store_true", help="tell the package that it is on a GPU; with -m gpu")


def pytest_configure(config):
    if config.getoption("--as-on-gpu"):
        as_on_gpu.tell()


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("differences"):
        for test, found in differences.largest.items():
            terminalreporter.write_line(f"{found:.1e}  {test}")


@pytest.fixture
def processor(small_model):
    return small_model[1]


@pytest.fixture(scope="session")
def qwen(facts, vocabulary, tmp_path_factory):
    """A processor on Qwen2's real vocabulary, built from vocab.json and merges.txt as Apple ships them."""
    folder = tmp_path_factory.mktemp("qwen")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(vocabulary / name, folder)
    configs = facts / "configs"
    shutil.copy(configs / "apple-0.5b.added_tokens.json", folder / "added_tokens.json")
    shutil.copy(configs / "apple-0.5b.generation_config.json", folder / "generation_config.json")
    shutil.copy(configs / "apple-0.5b.tokenizer_config.likely.json", folder / "tokenizer_config.json")
    return mlx_fastvlm.FastVlmProcessor.from_folder(
        folder, mlx_fastvlm.FastVlmConfig.from_file(configs / "apple-0.5b.config.json")
    )


@pytest.fixture
def asked(monkeypatch):
    """Every prompt that an engine is asked."""
    found = []
    enqueue = mlx_fastvlm.Engine.enqueue
    monkeypatch.setattr(mlx_fastvlm.Engine, "enqueue", lambda *a, **k: found.append(a[1]) or enqueue(*a, **k))
    return found
