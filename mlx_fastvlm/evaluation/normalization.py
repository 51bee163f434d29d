"""Answers in the form in which they are compared: what each benchmark's own script does to a text first."""

from __future__ import annotations

import re
import string

_TO_TEN = "zero one two three four five six seven eight nine ten"
_DIGITS = {word: str(number) for number, word in enumerate(_TO_TEN.split())}
_NUMBERS = {"none": "0", **_DIGITS}
_ARTICLES = ("a", "an", "the")
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
_PERIOD = re.compile(r"\.(?!\d)")

# The official list has these forms, found by the word without its apostrophe, or without one of two.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't shan't she'd've should've shouldn't shouldn't've someone'd someone'd've someone'll someone's
    something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
    they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd
    who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've
    you'd you'd've you'll you're you've
"""
# Where it departs from that rule.
_ODD = {
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "somebody'd": "somebodyd",
    "somebodyd've": "somebody'd've",
    "somebody'dve": "somebody'd've",
    "somebodyll": "somebody'll",
    "somebodys": "somebody's",
}


def _without_one(word: str) -> list[str]:
    return [word[:i] + word[i + 1 :] for i, character in enumerate(word) if character == "'"]


CONTRACTIONS = {short: form for form in _CONTRACTIONS.split() for short in _without_one(form)} | _ODD


def vqa_answer(text: str) -> str:
    """An answer as VQA's script compares it: marks, articles, words for numbers and lost apostrophes are made alike.

    Source: PythonEvaluationTools/vqaEvaluation/vqaEval.py of GT-Vision-Lab/VQA. That script leaves texts as they are
    where all annotators agree; EvalAI's server and lmms-eval don't make that exception, and neither does this.
    """
    text = text.replace("\n", " ").replace("\t", " ").strip()
    kept = text
    # One mark beside a space, or a comma inside a number, decides whether a mark goes or becomes a space.
    comma = _COMMA_IN_NUMBER.search(text) is not None
    for mark in _MARKS:
        beside = f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if beside or comma else " ")
    words = [_NUMBERS.get(word, word) for word in _PERIOD.sub("", kept).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def without_punctuation(text: str) -> str:
    """In lower case, without ASCII punctuation."""
    return text.lower().translate(_PUNCTUATION)


def squad_answer(text: str) -> str:
    """An answer as SQuAD's script compares it: lower case, no punctuation, no articles, single spaces.

    Source: ``normalize_answer`` of SQuAD's evaluate-v1.1.py and evaluate-v2.0.py.
    """
    return " ".join(_ARTICLE.sub(" ", without_punctuation(text)).split())
