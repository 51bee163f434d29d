"""What lmms-eval gives for random predictions, 200 of each metric: recorded in metrics.json.

    pip install lmms-eval==0.7.3 "filelock<3.20"
    python -m tests.support.reference.metrics

Needs nothing of this package. tests/evaluation/test_metrics.py reads the file.
"""

from __future__ import annotations

import json
import random
import string
from pathlib import Path

RECORDED = Path(__file__).with_name("metrics.json")
PAIRS = 200  # of each metric
WORDS = """a the An red Blue heart, two 2 ten none don't dont it's its somebodys couldn't've couldntve wi-fi t-shirt
U.S. 3.5 1,000 10% 0.1 o'clock left/right (small) yes Yes. no café "stop" what? Straße [x] A+ 7th new  york"""
NUMBERS = ("0", "0.0", "1", "12", "12.5", "13", "-4", "95%", "0.95", "1e3", "1,000", "$5", "nan", "5 %", "2019", "2100")


def phrase(rng: random.Random) -> str:
    return rng.choice((" ", " ", " ", "  ", "\n", "\t")).join(rng.choices(WORDS.split(), k=rng.randint(1, 4)))


def changed(rng: random.Random, text: str) -> str:
    """The text, or one that is nearly it."""
    how = rng.randrange(6)
    place = rng.randrange(len(text) + 1)
    if how == 0:
        return text.upper()
    if how == 1:
        return text + rng.choice((".", "!", " ,", "?"))
    if how == 2:
        return text[:place] + rng.choice(string.ascii_lowercase) + text[place:]
    if how == 3:
        return text[:place]
    if how == 4:
        return " ".join(reversed(text.split()))
    return text


def texts(rng: random.Random) -> tuple[str, list[str]]:
    answers = [phrase(rng) for _ in range(rng.randint(1, 3))]
    return changed(rng, rng.choice(answers)) if rng.random() < 0.8 else phrase(rng), answers


def annotators(rng: random.Random) -> tuple[str, list[str]]:
    """Ten answers, of which several are alike."""
    different = [phrase(rng) for _ in range(rng.randint(1, 4))]
    answers = [changed(rng, one) if rng.random() < 0.3 else one for one in rng.choices(different, k=10)]
    return changed(rng, rng.choice(answers)), answers


def numbers(rng: random.Random) -> tuple[str, list[str]]:
    answer = rng.choice(NUMBERS)
    try:
        near = f"{float(answer) * rng.choice((0.94, 0.951, 0.999, 1.049, 1.06)):.4g}"
    except ValueError:
        near = changed(rng, answer).strip()
    return rng.choice((near, near, answer, rng.choice(NUMBERS), changed(rng, answer).strip())), [answer]


def letters(rng: random.Random) -> tuple[str, list[str]]:
    """The letter alone, or with its choice; other wordings are no letter to lmms-eval's filter of AI2D."""
    answer, said = rng.choice("ABCD"), rng.choice("ABCD")
    return rng.choice(("{}", "{}.", "({})", " {}", "{}. blue", "{}. A red heart")).format(said), [answer]


def reference_scores():
    """The name of each metric -> its pairs, and the reference's function of (prediction, answers)."""
    from lmms_eval.api.metrics import anls, exact_match_hf_evaluate  # noqa: PLC0415  only where it is recorded
    from lmms_eval.tasks.ai2d.utils import MultiChoiceRegexFilter  # noqa: PLC0415  the same
    from lmms_eval.tasks.chartqa.utils import relaxed_correctness  # noqa: PLC0415  the same
    from lmms_eval.tasks.mmsearch.score.f1_score import get_f1_score  # noqa: PLC0415  the same
    from lmms_eval.tasks.vqav2.utils import vqav2_process_results_val  # noqa: PLC0415  the same

    def exact(prediction, answer):
        return exact_match_hf_evaluate([prediction], [answer], ignore_case=True, ignore_punctuation=True)["exact_match"]

    def vqa(prediction, answers):
        people = [{"answer": answer, "answer_id": number} for number, answer in enumerate(answers, 1)]
        return vqav2_process_results_val({"answers": people, "question_id": 0}, [prediction])["exact_match"]

    def choice(prediction, answers):
        (found,) = MultiChoiceRegexFilter().apply([[prediction]], [{}])
        return exact(found.strip(), answers[0])

    return {
        "exact": (texts, lambda p, answers: max(exact(p.strip(), answer.strip()) for answer in answers)),
        "vqa": (annotators, vqa),
        "anls": (texts, lambda p, answers: anls(answers, [p])["anls"]),
        "relaxed": (numbers, lambda p, answers: max(relaxed_correctness(p, answer) for answer in answers)),
        "choice": (letters, choice),
        "f1": (texts, lambda p, answers: max(get_f1_score(p, answer) for answer in answers)),
    }


def main():
    recorded = {}
    for name, (pairs, score) in reference_scores().items():
        rng = random.Random(name)
        drawn = [pairs(rng) for _ in range(PAIRS)]
        recorded[name] = [
            [prediction, answers, float(score(prediction, list(answers)))] for prediction, answers in drawn
        ]
        scores = [pair[-1] for pair in recorded[name]]
        print(name, f"{sum(scores) / PAIRS:.3f}, different values: {len(set(scores))}")
    lines = (
        f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, pairs)) + "\n]" for name, pairs in recorded.items()
    )
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
