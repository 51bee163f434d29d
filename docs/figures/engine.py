"""Draws docs/figures/engine.svg: what the engine's rows do, step by step, recorded from a run of the demo checkpoint.

python docs/figures/engine.py
"""

from pathlib import Path

import mlx_fastvlm
from mlx_fastvlm import Engine

# When each prompt comes, what it is made of, and how many tokens its answer has.
ARRIVALS = [(0, 1, 14), (2, 1, 7), (3, 60, 8), (3, 1, 4), (9, 1, 9), (10, 20, 5)]
COLOURS = {"waits": "#dddddd", "reads": "#e8a33d", "answers": "#3d7ee8"}
CELL, LEFT, TOP = 26, 90, 40


def record():
    """For each prompt, what it did in each step."""
    model, processor = mlx_fastvlm.load("demo")
    processor.eos_token_ids = frozenset()
    engine = Engine(model, processor, max_rows=3, prefill_step_size=80)
    answers, done = [], []
    for moment in range(100):
        for comes, length, tokens in ARRIVALS:
            if comes == moment:
                answers.append(engine.submit("What is this? " * length, max_tokens=tokens))
                done.append([None] * moment)
        before = [answer.delivered for answer in answers]
        busy = engine.step()
        reading = {id(row.answer) for row in engine._rows if row.pick is None}
        for answer, count, steps in zip(answers, before, done):
            if answer.delivered > count:
                steps.append("answers" if count else "reads")
            elif not answer.ended:
                steps.append("reads" if id(answer) in reading else "waits")
        if not busy and len(answers) == len(ARRIVALS):
            return done


def draw(done):
    steps = max(map(len, done))
    width, height = LEFT + steps * CELL + 20, TOP + len(done) * (CELL + 6) + 40
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">']
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    for i, (name, colour) in enumerate(COLOURS.items()):
        parts.append(f'<rect x="{LEFT + i * 110}" y="10" width="14" height="14" fill="{colour}"/>')
        parts.append(f'<text x="{LEFT + i * 110 + 20}" y="22" font-size="13">{name}</text>')
    for row, line in enumerate(done):
        y = TOP + row * (CELL + 6)
        parts.append(f'<text x="8" y="{y + 18}" font-size="13">prompt {row + 1}</text>')
        for step, what in enumerate(line):
            if what is not None:
                place = f'x="{LEFT + step * CELL}" y="{y}" width="{CELL - 3}" height="{CELL}"'
                parts.append(f'<rect {place} fill="{COLOURS[what]}"/>')
    parts.append(f'<text x="{LEFT}" y="{height - 14}" font-size="13">steps, from left to right; at most 3 rows</text>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    (Path(__file__).parent / "engine.svg").write_text(draw(record()))
