"""How right an answer is: the metrics of the usual benchmarks, each as its official script has it.

Every function takes a prediction and the answers that would be right, and returns a score from 0 to 1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .normalization import squad_answer, vqa_answer, without_punctuation

Score = Callable[[str, Sequence[str]], float]


def exact(prediction: str, answers: Sequence[str]) -> float:
    """1 where the prediction is one of the answers; case and ASCII punctuation don't count.

    Source: ``exact_match`` with ``ignore_case`` and ``ignore_punctuation``, as lmms-eval has it for GQA.
    """
    predicted = without_punctuation(prediction.strip())
    return float(any(predicted == without_punctuation(answer.strip()) for answer in answers))


def vqa(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy: as right as 3 other people agree, min(1, n / 3), the mean over leaving out one of them each time.

    Source: Antol et al., "VQA: Visual Question Answering", arXiv 1505.00468, and visualqa.org/evaluation.html.

    Args:
        answers: one of each annotator, 10 in the data sets; with fewer than 4 no prediction is ever fully right.
    """
    predicted = vqa_answer(prediction)
    same = [vqa_answer(answer) == predicted for answer in answers]
    return sum(min(1.0, (sum(same) - left_out) / 3) for left_out in same) / len(same)


ANLS_THRESHOLD = 0.5


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Average normalized Levenshtein similarity: 1 - edits / length to the closest answer, and 0 below one half.

    Source: Biten et al., "Scene Text Visual Question Answering", arXiv 1905.13648, as the script of the Robust Reading
    Competition computes it for DocVQA and InfographicVQA: case and runs of white space don't count, lengths are of the
    texts as given, and exactly one half counts, which in the paper is 0.
    """
    score = max(_similarity(prediction, answer) for answer in answers)
    return score if score >= ANLS_THRESHOLD else 0.0


def _similarity(a: str, b: str) -> float:
    length = max(len(a.upper()), len(b.upper()))
    return 1 - _edits(" ".join(a.lower().split()), " ".join(b.lower().split())) / length if length else 1.0


def _edits(a: str, b: str) -> int:
    """The Levenshtein distance: how many characters to insert, delete or replace."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


RELATIVE_TOLERANCE = 0.05


def relaxed(prediction: str, answers: Sequence[str]) -> float:
    """Relaxed accuracy: a number may be 5% off, anything else must be the same but for case.

    Source: Masry et al., "ChartQA", arXiv 2203.10244, section 5.1; percentages and an answer of 0 as the code in use
    reads them (Pix2Struct, Qwen-VL, lmms-eval): 12% is 0.12, and what is exactly 0 must be the same text.
    """
    return float(any(_within(prediction.strip(), answer.strip()) for answer in answers))


def _within(prediction: str, answer: str) -> bool:
    predicted, right = _number(prediction), _number(answer)
    if predicted is not None and right:
        return abs(predicted - right) / abs(right) <= RELATIVE_TOLERANCE
    return prediction.lower() == answer.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


# "B", "(B)", "B. blue", "b)", "Answer: B", "The correct answer is (B)."; but no sentence that begins with the word A.
_LETTER = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+|best\s+)?(?:answer|option|choice)(?:\s+is)?\s*:?\s*)?"
    r"(?:\(([A-Z])\)|([A-Z])(?:[.):,]|\s*$)).*",
    re.IGNORECASE | re.DOTALL,
)


def choice(prediction: str, answers: Sequence[str]) -> float:
    """1 where the prediction begins with the right letter, or is the right choice's text as :func:`exact` has it.

    Source: the letter "directly", as the prompts of MMMU, AI2D, ScienceQA and SEED-Bench ask for it. What names no
    letter and no text is wrong; MMMU's own script takes a random letter then.

    Args:
        answers: the right letter, and its text where it is known.
    """
    letter, *texts = answers
    found = _LETTER.fullmatch(prediction.strip())
    if found and (found[1] or found[2]).upper() == letter.upper():
        return 1.0
    return exact(prediction, texts)


def f1(prediction: str, answers: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of words, with the answer where it is highest.

    Source: Rajpurkar et al., "SQuAD", arXiv 1606.05250, and its evaluate-v2.0.py: where either has no word left, both
    must have none.
    """
    return max(_word_f1(squad_answer(prediction).split(), squad_answer(answer).split()) for answer in answers)


def _word_f1(predicted: list[str], right: list[str]) -> float:
    if not predicted or not right:
        return float(predicted == right)
    common = (Counter(predicted) & Counter(right)).total()
    return 2 * common / (len(predicted) + len(right))


@dataclass(frozen=True)
class Metric:
    """A way to score answers, and how to ask for answers that it is meant for.

    Attributes:
        score: (prediction, answers) -> 0 to 1.
        post_prompt: added to a question, as lmms-eval does for the benchmarks that use this metric.
        least_answers: a question needs so many.
    """

    score: Score
    post_prompt: str
    least_answers: int = 1


_PHRASE = "\nAnswer the question using a single word or phrase."
METRICS = {
    "exact": Metric(exact, _PHRASE),
    "vqa": Metric(vqa, _PHRASE, least_answers=4),
    "anls": Metric(anls, _PHRASE),
    "relaxed": Metric(relaxed, "\nAnswer the question with a single word."),
    "choice": Metric(choice, "\nAnswer with the option's letter from the given choices directly."),
    "f1": Metric(f1, _PHRASE),
}
