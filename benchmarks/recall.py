"""What bounded and quantized KV caches cost in right answers, with the demo checkpoint; prints Markdown tables.

    python benchmarks/recall.py [--conversations 100]

Conversations of ten questions about one held-out image, in a window that is 64 tokens larger than the first prompt;
then single questions, in which only the rounding of the cache can matter.
"""

import argparse
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "demo"))

from mlx_fastvlm import ChatSession, VisionCache, load
from scenes import HELD_OUT_SEEDS, draw, make_scene, questions

TURNS, LATE = 10, 5
ROOM = 64
FEATURES = VisionCache()  # no policy changes what the tower sees


def late_answers(model, processor, conversations, bounded=False, protected=True, kv_bits=None):
    """How many percent of the late questions of held-out conversations are answered right.

    Args:
        bounded: whether the cache has room for only 64 tokens beside the first prompt.
        protected: whether that prompt stays in it.
    """
    right = []
    for seed in HELD_OUT_SEEDS[:conversations]:
        scene = make_scene(seed)
        image, asked = draw(scene, 256), questions(scene, random.Random(f"recall {seed}"), TURNS)
        prompt = len(processor.encode_chat([{"role": "user", "content": f"<image>\n{asked[0].text}"}]))
        size = prompt + ROOM if bounded else None
        session = ChatSession(model, processor, max_kv_size=size, kv_bits=kv_bits, max_tokens=48, vision_cache=FEATURES)
        if not protected:
            session.cache.reset(keep=1)
        said = [session.ask(question.text, None if i else image) for i, question in enumerate(asked)]
        if bounded and session.cache.offset <= size:
            raise AssertionError("the conversation was too short for the window to matter")
        right += [text == question.answer for text, question in zip(said, asked)][-LATE:]
    return 100 * sum(right) / len(right)


def single_questions(count):
    """Images and questions about them, five for each image."""
    return [
        (draw(make_scene(seed), 256), question.text)
        for seed in HELD_OUT_SEEDS[1000 : 1000 + count // 5]
        for question in questions(make_scene(seed), random.Random(seed), 5)
    ]


def answers(model, processor, asked, **policy):
    """Greedy answers, each in a conversation of its own."""
    return [
        ChatSession(model, processor, max_tokens=48, vision_cache=FEATURES, **policy).ask(text, image)
        for image, text in asked
    ]


POLICIES = {
    "unbounded": {},
    "bounded": {"bounded": True},
    "bounded, 8 bits": {"bounded": True, "kv_bits": 8},
    "bounded, 4 bits": {"bounded": True, "kv_bits": 4},
    "bounded, first prompt not protected": {"bounded": True, "protected": False},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conversations", type=int, default=100)
    conversations = parser.parse_args().conversations
    model, processor = load("demo")
    print("| KV cache | right answers to questions 6 to 10 |")
    print("|---|---|")
    for name, policy in POLICIES.items():
        print(f"| {name} | {late_answers(model, processor, conversations, **policy):.1f}% |", flush=True)
    asked = single_questions(5 * conversations)
    full = answers(model, processor, asked)
    print("\n| KV cache | same greedy text as full precision |")
    print("|---|---|")
    for bits in (8, 4):
        same = sum(a == b for a, b in zip(full, answers(model, processor, asked, kv_bits=bits)))
        print(f"| {bits} bits | {100 * same / len(full):.1f}% of {len(full)} |", flush=True)


if __name__ == "__main__":
    main()
