"""Random FastVLMs, computed here and by transformers: whatever is neither equal nor refused is a silent difference.

    python -m tests.whole.differential --cases 2000 --seed 0
    python -m tests.whole.differential --prompts 20000        # only tokenizer, template and images
    python -m tests.whole.differential --mlx-vlm PYTHON       # through the converter of that environment's mlx-vlm
    python -m tests.whole.differential --case '{"width": 24, ...}'

Needs what ``pip install ".[reference]"`` brings. A case is a checkpoint with random shapes, weights, tokenizer, chat
template and image settings, written in one of the layouts, and random prompts with random images. Compared are the
token ids, the pixels, the image features, the logits of all places with padding, the loss, the logits of tokens that
follow over a KV cache, and what ``stream_generate`` answers. A case that differs is made small, and printed as
``--case`` takes it. docs/reference.md has the figures of the last long run.
"""

import argparse
import sys
import time
from collections import Counter

from tests.support.differential import draws


def report(counts: Counter, largest: dict[str, float]):
    kinds = Counter()
    for (kind, _), count in counts.items():
        kinds[kind] += count
    for kind, count in kinds.most_common():
        print(f"{count:6} {kind}")
        for (its, reason), times in counts.most_common():
            if its == kind and reason:
                print(f"         {times:6} {reason}")
    print("largest differences: " + ", ".join(f"{what} {error:.1e}" for what, error in largest.items()))


def smaller(case: draws.Case, tried) -> draws.Case:
    """Of the same kind, and at the same comparison or for the same reason."""
    found = tried(case)

    def fails(other: draws.Case) -> bool:
        again = tried(other)
        return again.kind == found.kind and again.reason.split(":")[0] == found.reason.split(":")[0]

    return draws.shrunk(case, fails)


class Tally:
    """Counts outcomes, and prints the different ones."""

    def __init__(self, seed: int):
        self.counts: Counter = Counter()
        self.largest: dict[str, float] = {}
        self._seed, self._begun = seed, time.perf_counter()

    @property
    def different(self) -> int:
        return sum(count for (kind, _), count in self.counts.items() if kind == "different")

    def add(self, number: int, case: draws.Case, outcome, tried):
        different = outcome.kind == "different"
        self.counts[outcome.kind, outcome.reason.split(":")[0] if different else outcome.reason] += 1
        if outcome.kind == "equal":
            for what, error in outcome.largest.items():
                self.largest[what] = max(self.largest.get(what, 0), error)
        if different:
            print(f"case {number} of seed {self._seed}: {outcome.reason[:300]}", flush=True)
            print(f"    --case '{draws.written(smaller(case, tried))}'", flush=True)

    def progress(self, done: int):
        seconds = time.perf_counter() - self._begun
        print(f"{done} in {seconds:.0f} s, {self.different} different", flush=True)

    def report(self):
        report(self.counts, self.largest)


PROMPTS_A_CASE = 20


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, metavar="N", help="leave out the cases before this one")
    parser.add_argument("--prompts", type=int, metavar="N", help="compare what is read of so many prompts, not models")
    parser.add_argument("--show", metavar="TEXT", help="print the first case with this text in its kind or reason")
    parser.add_argument("--case", metavar="JSON", help="try one case, as an earlier run printed it")
    parser.add_argument("--mlx-vlm", metavar="PYTHON", help="convert Apple's layout with this environment's mlx-vlm")
    args = parser.parse_args(argv)
    from tests.support.differential import compare  # noqa: PLC0415  needs torch, which --help does not

    converter = compare.Converter(args.mlx_vlm) if args.mlx_vlm else None

    def tried(case: draws.Case) -> compare.Outcome:
        return compare.tried(case, converter)

    tally = Tally(args.seed)
    if args.case is not None:
        outcome = tried(draws.read(args.case))
        print(outcome)
        return outcome.kind == "different"
    if args.prompts is not None:
        for number in range(args.prompts // PROMPTS_A_CASE):
            case = draws.draw(args.seed, number)
            seeds = range(case["prompt"], case["prompt"] + PROMPTS_A_CASE)
            for seed, outcome in zip(seeds, compare.tried_prompts(case, seeds)):
                one = {**case, "prompt": seed}
                tally.add(number, one, outcome, lambda case: compare.tried_prompts(case, [case["prompt"]])[0])
            if number % 100 == 99:
                tally.progress((number + 1) * PROMPTS_A_CASE)
        tally.report()
        return tally.different > 0
    for number in range(args.start, args.cases):
        case = draws.draw(args.seed, number)
        outcome = tried(case)
        tally.add(number, case, outcome, tried)
        if args.show and args.show in f"{outcome.kind}: {outcome.reason}":
            print(f"{outcome.reason}\n    --case '{draws.written(smaller(case, tried))}'")
            return 0
        if number % 100 == 99:
            tally.progress(number + 1)
    tally.report()
    return tally.different > 0


if __name__ == "__main__":
    sys.exit(main())
