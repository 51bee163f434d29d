"""Measure a checkpoint on held-out scenes: how many of its answers are exactly right?

    python examples/demo/evaluate.py                              # 500 first questions, the demo checkpoint
    python examples/demo/evaluate.py --turn 10                    # 500 tenth questions, each after nine others
    python examples/demo/evaluate.py --image-size 512             # at another size
    python examples/demo/evaluate.py --skip 2000                  # about other scenes
    python examples/demo/evaluate.py --turn 10 --max-kv-size 128  # with a bounded KV cache

Before a question of a later turn, the model has answered the earlier ones itself; its answers, right or wrong,
stand in the conversation. Needs only the package.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter

import scenes
from mlx_fastvlm import ChatSession, load

PIXELS = 512  # of the images; the processor resizes them


def conversation(scene: scenes.Scene, turns: int) -> list[scenes.Question]:
    """The questions asked about a scene, always the same; the last one counts."""
    return scenes.questions(scene, random.Random(f"evaluate {scene.seed}"), turns)


def answer_in_turn(model, processor, scene: scenes.Scene, asked: list[scenes.Question], options: dict) -> str:
    """Ask one question after the other in one conversation; returns the last answer."""
    session = ChatSession(model, processor, **options)
    first, *others = asked
    answer = session.ask(first.text, scenes.draw(scene, PIXELS))
    for question in others:
        answer = session.ask(question.text)
    return answer


def evaluate(model, processor, count: int, turn: int, options: dict, progress: bool = False, skip: int = 0) -> dict:
    """Exact matches over `count` held-out scenes from number `skip` on, by kind too, and the wrong answers."""
    asked, right, wrong = Counter(), Counter(), []
    for done, seed in enumerate(scenes.HELD_OUT_SEEDS[skip : skip + count]):
        scene = scenes.make_scene(seed)
        questions = conversation(scene, turn)
        answer = answer_in_turn(model, processor, scene, questions, options)
        last = questions[-1]
        asked[last.kind] += 1
        if answer == last.answer:
            right[last.kind] += 1
        else:
            wrong.append({"seed": seed, "question": last.text, "answer": answer, "right": last.answer})
        if progress and sys.stderr.isatty():
            print(f"\r{done + 1} of {count}", end="", file=sys.stderr)
    if progress and sys.stderr.isatty():
        print(file=sys.stderr)
    return {
        "questions": count,
        "turn": turn,
        "right": right.total(),
        "by_kind": {kind: [right[kind], asked[kind]] for kind in sorted(asked)},
        "wrong": wrong,
    }


def print_table(result: dict) -> None:
    for kind, (right, asked) in result["by_kind"].items():
        print(f"{kind:9} {right:4} of {asked:4}  {100 * right / asked:6.1f}%")
    total, asked = result["right"], result["questions"]
    print(f"{'total':9} {total:4} of {asked:4}  {100 * total / asked:6.1f}%  in {result['seconds']} s")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="a folder, a hub id or demo (default: %(default)s)")
    parser.add_argument(
        "--questions", type=int, default=500, metavar="N", help="number of questions (default: %(default)s)"
    )
    parser.add_argument("--skip", type=int, default=0, metavar="N", help="leave out the first N held-out scenes")
    parser.add_argument("--turn", type=int, default=1, metavar="N", help="which question counts (default: the first)")
    parser.add_argument("--max-kv-size", type=int, metavar="N", help="limit the KV cache to this many tokens")
    parser.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="side to scale images to, instead of the checkpoint's 256"
    )
    parser.add_argument("--kv-bits", type=int, metavar="N", help="quantize the KV cache to this many bits")
    parser.add_argument("--json", action="store_true", help="print one JSON object, wrong answers included")
    args = parser.parse_args(argv)
    if args.questions < 1 or args.turn < 1 or args.skip < 0:
        parser.error("--questions and --turn start at 1, --skip at 0")

    names = ("max_kv_size", "kv_bits", "image_size")
    options = {"max_tokens": 64, **{name: getattr(args, name) for name in names}}
    options = {name: value for name, value in options.items() if value is not None}
    model, processor = load(args.model)
    started = time.perf_counter()
    result = evaluate(model, processor, args.questions, args.turn, options, progress=True, skip=args.skip)
    result["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(result)) if args.json else print_table(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
