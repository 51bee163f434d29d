"""Throws damaged files and odd texts at the package; whatever is not one clear error is a finding.

    python -m tests.support.fuzz TARGET [SECONDS] [SEED]

TARGET is images, prompts, config, tokenizer, tensors, requests, shards, adapters or training; the seconds are of
processor time; Ctrl-C ends it earlier.

Every input is a seed with a few bytes or values changed. What must not happen: another exception than ValueError or
OSError (a crash), an error of several lines, or an input that takes longer than TOO_LONG (a hang). The input at hand is
kept in fuzz-input.bin, so that one which kills the process can be found there; findings are written as finding-*.bin.
docs/security.md tells what long runs have found; tests/whole/test_fuzz.py runs a short one.
"""

import contextlib
import io
import json
import random
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from mlx_fastvlm import FastVlmForConditionalGeneration
from mlx_fastvlm.config import FastVlmConfig
from mlx_fastvlm.models.loading import load_model
from mlx_fastvlm.processing.images import FORMATS, load_frames, load_image
from mlx_fastvlm.processing.messages import read_prompt
from mlx_fastvlm.processing.prepared import ImageSettings
from mlx_fastvlm.processing.preprocess import square
from mlx_fastvlm.processing.processor import FastVlmProcessor
from tests.support import checkpoints, small
from tests.support.damage import damaged, disturbed
from tests.support.fuzz_requests import Requests
from tests.support.fuzz_shards import Shards
from tests.support.fuzz_training import Adapters, Training

TOO_LONG = 10  # seconds of processor time for one input


class Images:
    """Files of every format that is read, and what is made of them."""

    def __init__(self, _):
        self.seeds = []
        image = Image.fromarray(small.odd_image(33, 20))
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 6, "a description"
        for kind in FORMATS:
            for mode in ("RGB", "L", "P", "RGBA", "1", "I;16", "CMYK"):
                buffer = io.BytesIO()
                with contextlib.suppress(Exception):
                    frames = {"save_all": True, "append_images": [image]} if kind in ("GIF", "TIFF", "WEBP") else {}
                    with_exif = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF", "MPO", "AVIF", "HEIF") else {}
                    (image if mode == "I;16" else image.convert(mode)).save(buffer, kind, **frames, **with_exif)
                    self.seeds.append(buffer.getvalue())
        grey = io.BytesIO()
        Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)).save(grey, "PNG")
        self.seeds.append(grey.getvalue())

    def make(self, rng):
        return damaged(rng.choice(self.seeds), rng)

    def feed(self, data):
        for image in load_frames(data, 3):
            assert image.mode == "RGB"
            for kind in ("pad", "crop"):
                assert square(image, 64, ImageSettings(aspect_ratio=kind)).size == (64, 64)


class Prompts:
    """Messages of every form, around the same small processor."""

    SEEDS = (
        "What is this?",
        "a <image> b",
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Ho"},
            {"role": "user", "content": "<image>"},
        ],
        [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image"}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}],
        [{"role": "system", "content": "x"}, {"role": "user", "content": "<|im_end|><|im_start|>\ue000\ue001:0"}],
    )

    def __init__(self, folder):
        checkpoints.write_tokenizer(folder)
        self.processor = FastVlmProcessor.from_folder(folder, FastVlmConfig.from_dict(checkpoints.apple_config()))
        self.image = Image.fromarray(small.odd_image(20, 20))

    def make(self, rng):
        seed = rng.choice(self.SEEDS)
        if isinstance(seed, str):
            words = (
                "<image>",
                "<|im_end|>",
                "<|endoftext|>",
                "\x00",
                "\ud800",
                "é",
                "👩‍👩‍👧",
                "\u202e",
                "\ue000",
                "{{ 1 }}",
                " \n",
            )
            seed = "".join(rng.choice((*words, seed, chr(rng.randrange(0x110000)))) for _ in range(rng.randrange(9)))
            return json.dumps([seed]).encode()
        return json.dumps([disturbed(seed, rng)]).encode()

    def feed(self, data):
        prompt = json.loads(data)[0]
        for images in ([], [self.image]):
            messages, _ = read_prompt(prompt, images, lambda source: [load_image(source)])
            ids = self.processor.encode_chat(messages)
            plain = self.processor.encode_chat([{**m, "content": "x"} for m in messages])
            assert ids.count(258) == plain.count(258), "a message ended a turn"


class Config:
    """config.json of each layout: read, and the model built on it."""

    def __init__(self, folder):
        self.seeds = [checkpoints.config("apple"), checkpoints.config("transformers"), FastVlmConfig().to_dict()]
        self.seeds.append(self.seeds[0] | {"quantization": {"group_size": 32, "bits": 4}})
        self.folder = checkpoints.write(folder, "apple")

    def make(self, rng):
        if rng.random() < 0.1:
            return damaged(json.dumps(rng.choice(self.seeds)).encode(), rng)
        return json.dumps(disturbed(rng.choice(self.seeds), rng)).encode()

    def feed(self, data):
        (self.folder / "config.json").write_bytes(data)
        config = FastVlmConfig.from_file(self.folder / "config.json")
        FastVlmConfig.from_dict(config.to_dict())
        FastVlmProcessor.from_folder(self.folder, config)
        load_model(FastVlmForConditionalGeneration, self.folder, config)


class Tokenizer:
    """The tokenizer's and the processor's files, then a prompt through them."""

    def __init__(self, folder):
        self.folder, self.config = Path(folder), FastVlmConfig.from_dict(checkpoints.apple_config())
        checkpoints.write_tokenizer(folder)
        processor = FastVlmProcessor.from_folder(folder, self.config)
        (self.folder / "chat_template.jinja").write_text(processor.chat_template)
        added = {str(i): {"content": t, "special": True} for i, t in ((256, "<|endoftext|>"), (258, "<|im_end|>"))}
        (self.folder / "tokenizer_config.json").write_text(
            json.dumps(
                {
                    "eos_token": "<|im_end|>",
                    "pad_token": {"content": "<|endoftext|>"},
                    "chat_template": "{{ messages }}",
                }
            )
        )
        (self.folder / "generation_config.json").write_text(
            json.dumps({"eos_token_id": [256, 258], "temperature": None})
        )
        crop = {"crop_size": {"height": 128, "width": 128}, "image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
        (self.folder / "preprocessor_config.json").write_text(json.dumps(crop))
        self.files = {file.name: file.read_bytes() for file in self.folder.iterdir()}
        self.files["tokenizer_config.json "] = json.dumps({"added_tokens_decoder": added}).encode()
        self.files["tokenizer.json"] = processor.tokenizer.to_str().encode()

    def make(self, rng):
        name = rng.choice(list(self.files))
        data = self.files[name]
        if name.strip().endswith(".json") and rng.random() < 0.8:
            data = json.dumps(disturbed(json.loads(data), rng)).encode()
        else:
            data = damaged(data, rng)
        return name.strip().encode() + b"\n" + data

    def feed(self, data):
        name, _, content = data.partition(b"\n")
        for file, original in self.files.items():
            if file.strip() == file and file != "tokenizer.json":
                (self.folder / file).write_bytes(original)
        (self.folder / "tokenizer.json").unlink(missing_ok=True)
        (self.folder / name.decode()).write_bytes(content)
        processor = FastVlmProcessor.from_folder(self.folder, self.config)
        ids = processor.encode_chat([{"role": "user", "content": "<image>\nHi <|im_end|> é 東京"}])
        stream = processor.detokenizer()
        processor.decode(ids), [stream.add(id) for id in ids if id >= 0], stream.finish()


class Tensors:
    """The header of a safetensors file, in bytes and as JSON, and the index of several."""

    def __init__(self, folder):
        self.folder = checkpoints.write(folder, "apple", shards=2)
        self.config = FastVlmConfig.from_file(self.folder / "config.json")
        self.file, self.index = (
            sorted(self.folder.glob("*.safetensors"))[0],
            self.folder / "model.safetensors.index.json",
        )
        self.whole, self.listing = self.file.read_bytes(), self.index.read_bytes()

    def make(self, rng):
        (length,) = struct.unpack("<Q", self.whole[:8])
        header, kind = self.whole[8 : 8 + length], rng.randrange(4)
        if kind == 0:
            return b"0" + damaged(self.whole[: 8 + length], rng)
        if kind == 1:
            return b"1" + json.dumps(disturbed(json.loads(self.listing), rng)).encode()
        entries = json.loads(header)
        if kind == 2:
            name = rng.choice(list(entries))
            entries[name] = disturbed(entries[name], rng)
            types = ("F64", "I64", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "BF16", "C64", "X")
            entries[name] |= (
                {"dtype": rng.choice(types)} if rng.random() < 0.3 and isinstance(entries[name], dict) else {}
            )
        else:
            entries = disturbed(entries, rng)
        encoded = json.dumps(entries).encode()
        return b"0" + struct.pack("<Q", len(encoded)) + encoded

    def feed(self, data):
        header = data[:1] == b"0"
        body = self.whole[8 + struct.unpack("<Q", self.whole[:8])[0] :]
        self.file.write_bytes(data[1:] + body if header else self.whole)
        self.index.write_bytes(self.listing if header else data[1:])
        load_model(FastVlmForConditionalGeneration, self.folder, self.config)


TARGETS = {
    "images": Images,
    "prompts": Prompts,
    "config": Config,
    "tokenizer": Tokenizer,
    "tensors": Tensors,
    "requests": Requests,
    "shards": Shards,
    "adapters": Adapters,
    "training": Training,
}


def fuzz(
    target: str, *, seconds: float = 1e9, inputs: int = 10**12, seed: int = 0, keep: Path | None = None
) -> Counter:
    """Try inputs until the seconds of processor time, or the number, is up.

    Returns:
        How many were "read", how many were "refused" in one line, and each finding's kind with its count.
    """
    rng, found, start = random.Random(seed), Counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tried = TARGETS[target](folder)
        while found.total() < inputs and time.process_time() - start < seconds:
            data = tried.make(rng)
            if keep is not None:
                (keep / "fuzz-input.bin").write_bytes(data)
            begun = time.process_time()
            try:
                tried.feed(data)
                outcome = "read"
            except (ValueError, OSError) as error:
                outcome = "refused" if "\n" not in str(error) else f"several lines: {str(error)[:80]!r}"
            except KeyboardInterrupt:
                break
            except BaseException as error:  # whatever it is, a panic in Rust included
                place = traceback.extract_tb(error.__traceback__)[-1]
                outcome = f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}: {str(error)[:80]}"
            if time.process_time() - begun > TOO_LONG:
                outcome = f"too long ({outcome})"
            found[outcome] += 1
            if keep is not None and outcome not in ("read", "refused") and found[outcome] == 1:
                (keep / f"finding-{target}-{len(found)}.bin").write_bytes(data)
                print(f"{target}: {outcome}", flush=True)
    return found


def main():
    target, seconds, seed = sys.argv[1], float((*sys.argv, "", "60")[2] or 60), int((*sys.argv, "", "", "0")[3] or 0)
    found = fuzz(target, seconds=seconds, seed=seed, keep=Path.cwd())
    for outcome, count in found.most_common():
        print(f"{count:8} {outcome}")
    kinds = len(found.keys() - {"read", "refused"})
    print(
        f"{found.total()} inputs to {target}, {kinds} kinds of findings, {time.process_time():.0f} s of processor time"
    )


if __name__ == "__main__":
    main()
