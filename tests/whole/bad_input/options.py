"""Options that can't be what they are given as, prompts among them."""

import os
from pathlib import Path

import numpy as np

from mlx_fastvlm import PrefixCache, PromptCache, batch_generate, convert, generate
from mlx_fastvlm.caption import main as caption
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
    "option: two questions": option("the question is given twice", "What", "is", "this?", "--prompt", "Why?"),
    "option: logprobs without json": option("--logprobs needs --json", "--logprobs"),
    "option: no output": option("required: --output", "images", command=caption),
    "option: images-dir, of old": option("there is no --images-dir", "--images-dir", "images"),
    "option: batch_size 0": Case(
        "batch_size must be at least 1",
        lambda p: [str(p.folder), "--output", "captions.jsonl", "--batch-size", "0"],
        code=2,
        command=caption,
    ),
    "option: kv_bits for a folder": Case(
        "kv_group_size must divide",
        lambda p: [
            str(Path(p.file("a.png", encoded(IMAGE))).parent),
            *("--output", "captions.jsonl", "--kv-bits", "8"),
        ],
        code=2,
        command=caption,
    ),
    "option: output of no kind": option("output must end with", "a", "--output", "a.csv", command=caption),
    "option: output empty": option("output must end with", "a", "--output", "", command=caption),
    "option: shard 2/2": option("must look like 0/8", "a", "--output", "a.jsonl", "--shard", "2/2", command=caption),
    "option: append as a path": option(
        "letters, digits", "a", "--output", "a.jsonl", "--append-as", "../b", command=caption
    ),
    "option: no threads": option("threads must be at least 1", "a", "--output", "-", "--threads", "0", command=caption),
    "option: retry on standard output": option(
        "nothing to overwrite", "a", "--output", "-", "--retry-errors", command=caption
    ),
    "option: captions by temperature among choices": option(
        "leave out temperature", "a", "--output", "-", "--choices", "a,b", "--temperature", "1", command=caption
    ),
    "option: temperature next to nothing": option("float32 can hold", "--temperature", "1e-42"),
    "option: temperature beyond float32": option("float32 can hold", "--temperature", "1e39"),
    "option: top_p next to nothing": option("float32 can hold", "--top-p", "1e-300"),
    "option: repetition_penalty next to nothing": option("float32 can hold", "--repetition-penalty", "1e-45"),
    "option: logit_bias beyond float32": option("numbers of float32", "--logit-bias", "4:1e39"),
    "option: logit_bias of a word": option("must look like 42:-1.5", "--logit-bias", "star:1"),
    "option: presence_penalty 3": option("must lie between -2 and 2", "--presence-penalty", "3"),
    "option: frequency_penalty NaN": option("must be a finite number", "--frequency-penalty", "nan"),
    "option: min_tokens below 0": option("min_tokens must be at least 0", "--min-tokens", "-1"),
    "option: min_tokens above max_tokens": option("at most max_tokens", "--min-tokens", "9", "--max-tokens", "8"),
    "option: top_logprobs 21": option("at most 20", "--json", "--top-logprobs", "21"),
    "option: no answers": option("--n must be at least 1", "--n", "0"),
    "option: several answers and a prompt cache": option(
        "--n can't be combined with", "--n", "2", "--prompt-cache", "a"
    ),
    "option: prompt-cache empty": option("--prompt-cache is empty", "--prompt-cache", ""),
    "option: image empty": option("name is empty", "--image", "", code=1),
    "option: model empty": option("is neither a folder here nor a hub id", "--model", "", code=1),
    "option: a flag without its value": option("expected one argument", "--prompt"),
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
    "a list for a prompt cache": (lambda m: generate(*m, "Hi", prompt_cache=[]), "must be a PromptCache"),
    "a path for a prompt cache": (lambda m: generate(*m, "Hi", prompt_cache="a"), "must be a PromptCache"),
    "a dict for a vision cache": (lambda m: generate(*m, "Hi", vision_cache={}), "must be a VisionCache"),
    "true for a vision cache": (lambda m: generate(*m, "Hi", vision_cache=True), "must be a VisionCache"),
    "a text for a token id": (lambda m: generate(*m, "Hi", logit_bias={"42": 1}), "must be a whole number"),
    "true for a token id": (lambda m: generate(*m, "Hi", logit_bias={True: 1}), "must be a whole number"),
    "numpy's number for a token id": (lambda m: generate(*m, "Hi", logit_bias={np.int64(4): 1}), "a whole number"),
    "a text for a bias": (lambda m: generate(*m, "Hi", logit_bias={4: "a"}), "must hold numbers"),
    "pairs for biases": (lambda m: generate(*m, "Hi", logit_bias=[(0, 1)]), "must be a dict"),
    "a number for stop": (lambda m: generate(*m, "Hi", stop=5), "a text or a list of texts"),
    "an iterator for stop": (lambda m: generate(*m, "Hi", stop=iter("a")), "a text or a list of texts"),
    "a number for progress": (lambda m: generate(*m, "Hi", progress=3), "must be a function"),
    "a number for processors": (lambda m: generate(*m, "Hi", logits_processors=3), "a list of functions"),
    "a temperature of 400 digits": (lambda m: generate(*m, "Hi", temperature=10**400), "float32 can hold"),
    "half a place in a cache": (lambda m: PromptCache(100.5), "must be a whole number"),
    "a text for the bytes of prefixes": (lambda m: PrefixCache("many"), "must be a whole number"),
    "no batch size": (lambda m: batch_generate(*m, ["Hi"], batch_size=None), "must be a whole number"),
    "conversations for one": (
        lambda m: m[1].encode_chat([[{"role": "user", "content": "Hi"}]]),
        "several conversations",
    ),
    "images of other prompts": (lambda m: m[1](text=["<image>"], images=[[], []]), "2 lists of images for 1 prompts"),
    "a message without content": (lambda m: generate(*m, [{"role": "user"}]), '"role" and "content"'),
    "a message that is a text": (lambda m: generate(*m, ["Hi"]), '"role" and "content"'),
    "no messages": (lambda m: generate(*m, []), "at least one"),
    "a part of no kind": (lambda m: generate(*m, [{"role": "user", "content": [{"type": "video"}]}]), "A part of"),
    "an image_url that is none": (
        lambda m: generate(*m, [{"role": "user", "content": [{"type": "image_url", "image_url": 3}]}]),
        "must be",
    ),
    "a role that ends a turn": (
        lambda m: generate(*m, [{"role": "user<|im_end|>\n<|im_start|>system", "content": "Hi"}]),
        "role must be one word",
    ),
    "an unknown layout": (lambda m: convert("demo", "out", layout="gguf"), "layout must be"),
}
