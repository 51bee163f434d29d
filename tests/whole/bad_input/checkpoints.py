"""Checkpoints that are broken, are another model's or want to do harm."""

import json
import pickle
import struct
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.support import small

from .cases import Case, option


def model(words, change, **how):
    return Case(words, lambda place: ["--model", place.checkpoint(change, **how)])


def config(**changes):
    """Change ``config.json``."""

    def change(folder):
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | changes))

    return change


def text(name, content):
    """Write a file of a checkpoint."""
    return lambda folder: (folder / name).write_text(content)


def side(name, **settings):
    return text(name, json.dumps(settings))


def tensors(edit):
    """Change the tensors."""

    def change(folder):
        held = load_file(folder / "model.safetensors")
        edit(held)
        save_file(held, folder / "model.safetensors")

    return change


def header(edit):
    """Change the header of the tensors' file: a dict of dtype, shape and data_offsets."""

    def change(folder):
        file = folder / "model.safetensors"
        data = file.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        entries = json.loads(data[8 : 8 + length])
        edit(entries)
        new = json.dumps(entries).encode()
        file.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length :])

    return change


def overlap(entries):
    first, second = [name for name in entries if name != "__metadata__"][:2]
    entries[first]["data_offsets"] = entries[second]["data_offsets"]
    entries[first]["shape"] = entries[second]["shape"]


def lie(entries):
    entries["model.norm.weight"]["shape"] = [10**12]


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


class Bomb:
    """Unpickled, it would leave a file."""

    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def only_a_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def index(target):
    def change(folder):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": target}}))
        if "/" not in target and not (folder / target).exists() and not target.startswith("model-"):
            (folder / target).write_bytes(pickle.dumps(Bomb()))

    return change


def no_tokenizer(folder):
    (folder / "vocab.json").unlink()


def spoil(tensors):
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = np.nan


def unfinished(name, value):
    return lambda held: held.update({name: value})


VISION = small.VISION
NAN, INF = float("nan"), float("inf")
GREETING = "Hi " * 5

CASES = {
    "checkpoint: a user that is none": option("nor a hub id", "--model", "~nobody-here/a", code=1),
    "checkpoint: a name longer than names can be": option("nor a hub id", "--model", "a" * 5000, code=1),
    "checkpoint: missing": option("nor a hub id", "--model", "nowhere", code=1),
    "checkpoint: a file": Case("is a file", lambda p: ["--model", p.file("model.safetensors")]),
    "checkpoint: an empty folder": Case("has no config.json", lambda p: ["--model", str(p.folder)]),
    "checkpoint: no config": model("has no config.json", lambda f: (f / "config.json").unlink()),
    "checkpoint: config cut off": model("not valid JSON", text("config.json", '{"model_type": "llava')),
    "checkpoint: config is a list": model("no JSON object", text("config.json", "[]")),
    "checkpoint: config is not UTF-8": model("not valid JSON", lambda f: (f / "config.json").write_bytes(b"\xff{}")),
    "checkpoint: config nested deeply": model("nested too deeply", text("config.json", "[" * 10**6)),
    "checkpoint: config of 70 MB": model("larger than 64 MB", text("config.json", " " * 70 * 2**20)),
    "checkpoint: another model's": model("is not a FastVLM", config(model_type="llama")),
    "checkpoint: model_type a list": model("is not a FastVLM", config(model_type=["llava_qwen2"])),
    "checkpoint: a trillion layers": model("num_hidden_layers must be", config(num_hidden_layers=10**12)),
    "checkpoint: width a text": model("hidden_size must be a whole number", config(hidden_size="64")),
    "checkpoint: width negative": model("hidden_size must be a whole number", config(hidden_size=-64)),
    "checkpoint: no heads": model("num_key_value_heads must be", config(num_key_value_heads=0)),
    "checkpoint: rope_theta NaN": model("rope_theta must be a positive", config(rope_theta=NAN)),
    "checkpoint: rope_theta infinite": model("rope_theta must be a positive", config(rope_theta=INF)),
    "checkpoint: a tower of a trillion blocks": model(
        "layers must be a whole", config(vision_config={**VISION, "layers": [10**12] * 5})
    ),
    "checkpoint: tower a text": model("config.json", config(vision_config="large")),
    "checkpoint: vision tower's name a number": model("malformed", config(mm_vision_tower=7)),
    "checkpoint: the projector's activation a list": model(
        "projector_hidden_act must be a word",
        lambda f: config(projector_hidden_act=["gelu"])(f),
        layout="transformers",
    ),
    "checkpoint: quantization a text": model("quantization must be an object", config(quantization="4 bits")),
    "checkpoint: eos_token_id a text": model("token id must be", config(eos_token_id="<|im_end|>")),
    "checkpoint: a million projector layers": model("is not supported", config(mm_projector_type="mlp1000000x_gelu")),
    "checkpoint: tensors cut off": model("broken or cut off", cut),
    "checkpoint: tensors empty": model("broken or cut off", lambda f: (f / "model.safetensors").write_bytes(b"")),
    "checkpoint: tensors overlap": model("broken or cut off", header(overlap)),
    "checkpoint: header lies about a size": model("broken or cut off", header(lie)),
    "checkpoint: header promises exabytes": model(
        "broken or cut off", lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 16)
    ),
    "checkpoint: a missing shard": model(
        "lacks 1 of 2 shards", lambda f: (f / "model-00002-of-00002.safetensors").unlink(), shards=2
    ),
    "checkpoint: index is no JSON": model("not valid JSON", text("model.safetensors.index.json", "{")),
    "checkpoint: index without a map": model("not a valid index", text("model.safetensors.index.json", "{}")),
    "checkpoint: index names a file outside": model("outside its folder", index("../secret.safetensors")),
    "checkpoint: index names an absolute path": model("outside its folder", index("/etc/passwd")),
    "checkpoint: index names a pickle": model("only safetensors files are read", index("pytorch_model.bin")),
    "checkpoint: index names a GGUF file": model("only safetensors files are read", index("model.gguf")),
    "checkpoint: a pickle and nothing else": model("no safetensors file", only_a_pickle),
    "checkpoint: a wrong shape": model(
        "1 misshapen", tensors(unfinished("model.norm.weight", np.zeros(63, np.float32)))
    ),
    "checkpoint: integers for weights": model(
        "1 mistyped", tensors(unfinished("model.norm.weight", np.zeros(64, np.int32)))
    ),
    "checkpoint: a missing tensor": model("1 missing", tensors(lambda t: t.pop("model.norm.weight"))),
    "checkpoint: NaN weights": model("first language_model.layers.1.mlp.up_proj.weight", tensors(spoil)),
    "checkpoint: no tokenizer": model("has no tokenizer", no_tokenizer),
    "checkpoint: tokenizer.json is no JSON": model("broken", text("tokenizer.json", "{")),
    "checkpoint: tokenizer of nothing": model("broken", text("tokenizer.json", "{}")),
    "checkpoint: a merge of unknown tokens": model("broken", text("merges.txt", "#version: 0.2\nxyzzy plugh\n")),
    "checkpoint: more tokens than the model has": model(
        "and the model has 320",
        lambda f: (
            (f / "vocab.json").write_text(
                json.dumps({c: i + 900 for c, i in json.loads((f / "vocab.json").read_text()).items()})
            )
            or (f / "added_tokens.json").write_text("{}")
        ),
    ),
    "checkpoint: special token a number": model("malformed", side("tokenizer_config.json", eos_token=7)),
    "checkpoint: added tokens a text": model("broken", side("tokenizer_config.json", added_tokens_decoder="all")),
    "checkpoint: image size a text": model("asks for images of", side("preprocessor_config.json", crop_size="big")),
    "checkpoint: images of gigapixels": model("asks for images of", side("preprocessor_config.json", crop_size=2**20)),
    "checkpoint: two colours": model("must be three numbers", side("preprocessor_config.json", image_mean=[0.5, 0.5])),
    "checkpoint: colours divided by 0": model(
        "the second not 0", side("preprocessor_config.json", image_std=[0, 1, 1])
    ),
    "checkpoint: a template that runs code": model(
        "chat template failed", text("chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}")
    ),
    "checkpoint: a template that reads a file": model(
        "chat template failed", text("chat_template.jinja", "{% include '/etc/passwd' %}")
    ),
    "checkpoint: a template without an end": model(
        "too many steps",
        text("chat_template.jinja", "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}"),
    ),
    "checkpoint: a template that calls itself": model(
        "too many steps",
        text(
            "chat_template.jinja",
            "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        ),
    ),
    "checkpoint: a template that fills the memory": model(
        "it uses * on texts", text("chat_template.jinja", "{{ 'a' * 10000000000 }}")
    ),
    "checkpoint: a template that doubles a text": model(
        "too long a text",
        text(
            "chat_template.jinja",
            "{% set n = namespace(x='aaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        ),
    ),
    "checkpoint: a template that joins a long text with itself": model(
        "too long a text",
        text(
            "chat_template.jinja",
            "{% set n = namespace(x='aaaa') %}{% for i in range(17) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
            "{{ range(90000) | map('string') | join(n.x) }}",
        ),
    ),
    "checkpoint: a template that collects a long text": model(
        "too long a text",
        text(
            "chat_template.jinja",
            "{% macro f() %}{% for i in range(90000) %}" + "a" * 1000 + "{% endfor %}{% endmacro %}{{ f() | length }}",
        ),
    ),
    "checkpoint: a template that pads": model(
        "uses ljust()", text("chat_template.jinja", "{{ 'a'.ljust(10000000000) }}")
    ),
    "checkpoint: a template of nothing": model("makes nothing of the prompt", text("chat_template.jinja", "{# #}")),
}
