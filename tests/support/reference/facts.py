"""The facts in tests/support/facts, made small enough for a clone from those that only the developers have.

    python -m tests.support.reference.facts     # where ../shared is

Writes shapes.json.xz, the tensor names and shapes of the released checkpoints; and an excerpt of Qwen2's vocabulary, as
vocab.json and merges.txt, with vectors.json: every merge that the texts in tests go through, so that these texts get
the ids that the whole vocabulary gives them. (In each step the first merge that applies is the same in both: it is in
the excerpt, and whatever else is there comes later.)
"""

import ast
import itertools
import json
import lzma
import re

from tokenizers import Tokenizer

from tests.support.paths import FACTS, ROOT, SHARED

# Files whose texts the real vocabulary has to know.
TESTS = ("test_processor.py", "test_tokenizer.py", "test_template.py", "test_token_bytes.py", "test_encoding.py")
TEMPLATES = ("mlx_fastvlm/processing/template.py", "mlx_fastvlm/checkpoints/export.py")


def texts():
    """All that tests encode, and more."""
    found = [text for text, _ in vectors()]
    files = [*(ROOT / "tests" / "processing" / name for name in TESTS), *(ROOT / name for name in TEMPLATES)]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found += [node.value, *re.split(r"<[^>]*>", node.value), *node.value.split("\n")]
    turns = ["system\nYou are a helpful assistant.", "\n", "user\n", "\n\nHi", "user\n\n\nHi", "assistant\n"]
    return [*found, *turns, "\nWhat are these?"]


def vectors():
    """llama.cpp's test vectors for Qwen2: (text, ids)."""
    folder = SHARED / "facts" / "tokenizer"
    inputs = (folder / "vectors.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    ids = (folder / "vectors.out").read_text().split("\n")[: len(inputs)]
    return [(text, [int(id) for id in line.split()]) for text, line in zip(inputs, ids)]


def merges_of(word, ranks):
    """The merges that a word, in the vocabulary's letters, goes through."""
    parts, used = list(word), []
    while True:
        pairs = [pair for pair in itertools.pairwise(parts) if pair in ranks]
        if not pairs:
            return used
        best = min(pairs, key=ranks.get)
        used.append(best)
        merged, i = [], 0
        while i < len(parts):
            if tuple(parts[i : i + 2]) == best:
                merged.append(parts[i] + parts[i + 1])
                i += 2
            else:
                merged.append(parts[i])
                i += 1
        parts = merged


def main():
    folder = SHARED / "facts"
    shapes = {
        file.name.removesuffix(".shapes.json"): json.loads(file.read_text()) for file in sorted(folder.glob("keys/*"))
    }
    (FACTS / "shapes.json.xz").write_bytes(lzma.compress(json.dumps(shapes).encode(), preset=9))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    lines = (folder / "tokenizer" / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    used = set()
    for text in texts():
        normal = tokenizer.normalizer.normalize_str(text)
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal):
            used |= set(merges_of(word, ranks))
    vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    kept = {token for token in vocabulary if len(token) == 1} | {"".join(pair) for pair in used}
    excerpt = {token: id for token, id in vocabulary.items() if token in kept}
    (FACTS / "vocab.json").write_text(json.dumps(excerpt, ensure_ascii=False) + "\n", encoding="utf-8")
    chosen = [" ".join(pair) for pair in merges if pair in used]
    (FACTS / "merges.txt").write_text("\n".join(["#version: 0.2", *chosen]) + "\n", encoding="utf-8")
    (FACTS / "vectors.json").write_text(json.dumps(vectors(), ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(excerpt)} tokens, {len(chosen)} merges, {len(shapes)} lists of shapes")


if __name__ == "__main__":
    main()
