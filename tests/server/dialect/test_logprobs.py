"""Log-probabilities go with the text that is shown, token by token."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from mlx_fastvlm.generation.text import TextStream
from mlx_fastvlm.server.dialect.logprobs import LEAST, Scores
from tests.server.dialect.bodies import END, SERVED, WORDS, answer


class Spelling:
    """A processor of ``WORDS``, as far as a ``TextStream`` asks."""

    eos_token_ids = frozenset({END})

    def detokenizer(self):
        return self.Detokenizer()

    class Detokenizer:
        def __init__(self):
            self._held = b""

        def add(self, token):
            self._held += WORDS[token]
            try:
                text = self._held.decode()
            except UnicodeDecodeError:
                return ""
            self._held = b""
            return text

        def finish(self):
            return self._held.decode(errors="ignore")


def told(tokens, stop):
    """The responses of an answer of these tokens, as ``Row`` makes them, cut by stop strings."""
    stream, made = TextStream(Spelling(), stop), []
    pattern = answer(["A"], scored=1)[0]
    for count, token in enumerate(tokens, 1):
        text = stream.add(token)
        last = stream.ended or count == len(tokens)
        reason = ("stop" if stream.ended else "length") if last else None
        text += stream.finish() if last else ""
        made.append(dataclasses.replace(pattern, text=text, token=token, finish_reason=reason))
        if last:
            break
    return made


@given(
    st.lists(st.sampled_from([0, 1, 2, 3, 6, 7, END]), min_size=1, max_size=12),
    st.lists(st.sampled_from(["red", ".", " c", "STOP", "pin", "A red", "gA", "circle. S"]), max_size=3),
)
def test_tokens_are_those_that_begin_in_the_text(tokens, stop):
    scores, text, shown = Scores(SERVED), "", []
    for response in told(tokens, stop):
        scored = scores.add(response)
        assert not scored or response.text or response.finish_reason
        text += response.text
        shown += scored
        joined = b"".join(one.data for one in shown).decode()
        assert joined.startswith(text) or text.startswith(joined)
    assert joined.startswith(text)
    last = len(shown[-1].data) if shown else 0
    assert len(joined.encode()) - last < len(text.encode()) or not shown


@given(st.lists(st.sampled_from([0, 1, 4, 5]), min_size=1, max_size=8))
def test_tokens_of_half_characters_are_told_too(tokens):
    scores = Scores(SERVED)
    shown = [one for response in told(tokens, []) for one in scores.add(response)]
    assert b"".join(one.data for one in shown) == b"".join(WORDS[token] for token in tokens)
    assert all(list(one.data) == one.plain["bytes"] for one in shown)


def test_what_json_can_not_hold():
    (response,) = answer(["A"], "length", scored=2)
    response.logprob = float("-inf")
    (scored,) = Scores(SERVED).add(response)
    assert scored.logprob == LEAST


def test_without_logprobs():
    assert [Scores(SERVED).add(response) for response in answer(["A", " red"])] == [[], [], []]
