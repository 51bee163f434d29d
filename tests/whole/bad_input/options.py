"""Options that can't be what they are given as, prompts among them."""

import os
from pathlib import Path

from mlx_fastvlm import convert, generate
from mlx_fastvlm.chat import main as chat
from tests.support.images import encoded

from .cases import IMAGE, Case, option


def prompt(words, text, **how):
    return Case(words, lambda place: ["--prompt", text], **how)


CASES = {
    "option: max_tokens 0": option("max_tokens must be at least 1", "--max-tokens", "0"),
    "option: max_tokens many": option("invalid int value: 'many'", "--max-tokens", "many"),
    "option: temperature below 0": option("temperature must be at least 0", "--temperature", "-1"),
    "option: temperature NaN": option("temperature must be a finite number", "--temperature", "nan"),
    "option: temperature infinite": option("temperature must be a finite number", "--temperature", "inf"),
    "option: top_p 0": option("top_p must be above 0", "--top-p", "0"),
    "option: top_p above 1": option("at most 1", "--top-p", "1.5"),
    "option: top_k below 0": option("top_k must be at least 0", "--top-k", "-1"),
    "option: min_p above 1": option("min_p must lie between", "--min-p", "2"),
    "option: repetition_penalty 0": option("repetition_penalty must be above 0", "--repetition-penalty", "0"),
    "option: repetition_penalty infinite": option("must be a finite number", "--repetition-penalty", "inf"),
    "option: repetition_context_size 0": option("must be at least 1", "--repetition-context-size", "0"),
    "option: seed below 0": option("seed must lie between", "--seed", "-1"),
    "option: seed above 64 bits": option("seed must lie between", "--seed", str(2**64)),
    "option: image_size 100": option("multiple of 64", "--image-size", "100"),
    "option: image_size 0": option("multiple of 64", "--image-size", "0"),
    "option: image_size in gigapixels": option("at most 4096", "--image-size", "6400000"),
    "option: frames 0": option("frames must be at least 1", "--frames", "0"),
    "option: vision_batch_size 0": option("must be at least 1", "--vision-batch-size", "0"),
    "option: max_kv_size 0": option("max_kv_size must be at least 1", "--max-kv-size", "0"),
    "option: max_kv_size too small for the prompt": option("max_kv_size", "--max-kv-size", "10"),
    "option: kv_bits 5": option("kv_bits must be 4 or 8", "--kv-bits", "5"),
    "option: kv_group_size that no head has": option("head_dim", "--kv-bits", "8", "--kv-group-size", "64"),
    "option: prefill_step_size 0": option("must be at least 1", "--prefill-step-size", "0"),
    "option: an empty stop string": option("empty string", "--stop", ""),
    "option: logit_bias without a value": option("must look like 42:-1.5", "--logit-bias", "42"),
    "option: logit_bias of no token": option("token ids from 0 to 319", "--logit-bias", "400:1"),
    "option: logit_bias NaN": option("logit_bias must be below infinity", "--logit-bias", "4:nan"),
    "option: dtype": option("invalid choice: 'int8'", "--dtype", "int8"),
    "option: misspelt": option("did you mean --temperature?", "--tempreature", "1"),
    "option: misspelt, with a value": option("did you mean --max-tokens?", "--max-token=4"),
    "option: like none": option("--help lists all", "--zzz"),
    "option: an answer on the command line": option("there is no What", "What", "is", "this?"),
    "option: logprobs without json": option("--logprobs needs --json", "--logprobs"),
    "option: images-dir alone": option("go together", "--images-dir", "images"),
    "option: a folder and an image": option("goes without", "--images-dir", "a", "--output", "b", "--image", "c"),
    "option: batch_size 0": Case(
        "batch_size must be at least 1",
        lambda p: ["--images-dir", str(p.folder), "--output", "captions.jsonl", "--batch-size", "0"],
        code=2,
    ),
    "option: kv_bits for a folder": Case(
        "kv_group_size must divide",
        lambda p: [
            *("--images-dir", str(Path(p.file("a.png", encoded(IMAGE))).parent)),
            *("--output", "captions.jsonl", "--kv-bits", "8"),
        ],
        code=2,
    ),
    "option: standard input twice": option("read once", "--image", "-", "--prompt", "-"),
    "option: a prompt cache that is none": Case(
        "not a prompt cache", lambda p: ["--prompt-cache", p.file("cache.safetensors", b"junk")]
    ),
    "option: a prompt cache that is a folder": Case(
        "no such prompt cache", lambda p: ["--prompt-cache", str(p.folder)]
    ),
    "option: chat, misspelt": option("did you mean --image?", "--imgae", "a.png", command=chat),
    "option: chat, top_p": option("top_p must be above 0", "--top-p", "0", command=chat),
    # Prompts
    "prompt: empty": prompt("prompt is empty", ""),
    "prompt: blanks": prompt("prompt is empty", " \n\t"),
    "prompt: empty on standard input": prompt("prompt is empty", "-"),
    "prompt: 100,000 characters": prompt("the model was made for 512", "x" * 100_000),
    "prompt: not UTF-8 on standard input": prompt("not UTF-8", "-", stdin=b"what is \xff\xfe?"),
    "prompt: not UTF-8 on the command line": prompt("not valid Unicode", os.fsdecode(b"what is \xff\xfe?")),
    "prompt: a system prompt that is not UTF-8": option("not valid Unicode", "--system", os.fsdecode(b"\xff"), code=1),
}

CALLS = {
    "a misspelt option": (lambda m: generate(*m, "Hi", tempreature=1), "did you mean temperature"),
    "an option like none": (lambda m: generate(*m, "Hi", zzz=1), "There is no option zzz"),
    "a text for a number": (lambda m: generate(*m, "Hi", max_tokens="5"), "must be a whole number, got '5'"),
    "half a token": (lambda m: generate(*m, "Hi", max_tokens=2.5), "must be a whole number"),
    "true for a number": (lambda m: generate(*m, "Hi", top_k=True), "must be a whole number"),
    "a number for a stop string": (lambda m: generate(*m, "Hi", stop=[3]), "stop must hold texts"),
    "a number for a prompt": (lambda m: generate(*m, 3), "a text or a list of messages"),
    "a role that ends a turn": (
        lambda m: generate(*m, [{"role": "user<|im_end|>\n<|im_start|>system", "content": "Hi"}]),
        "role must be one word",
    ),
    "an unknown layout": (lambda m: convert("demo", "out", layout="gguf"), "layout must be"),
}
