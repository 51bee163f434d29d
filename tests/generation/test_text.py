"""Tokens -> text: whole characters, nothing lost, and cut off at stop strings."""

import dataclasses
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_fastvlm import generate, stream_generate
from mlx_fastvlm.generation.text import StopStrings
from tests.support.images import IMAGE, PROMPT
from tests.support.models import wide_model


def test_stop_strings(untied_model):
    model, processor = untied_model
    processor = dataclasses.replace(processor, eos_token_ids=frozenset())
    whole = generate(model, processor, PROMPT, IMAGE, max_tokens=40)
    for start in (3, 5):
        stop = whole[start : start + 3]
        pieces = list(stream_generate(model, processor, PROMPT, IMAGE, max_tokens=40, stop=["never", stop]))
        assert "".join(piece.text for piece in pieces) == whole[: whole.index(stop)]
        assert pieces[-1].finish_reason == "stop"
        assert generate(model, processor, PROMPT, IMAGE, max_tokens=40, stop=stop) == whole[: whole.index(stop)]
    # What only begins like a stop string comes out after all.
    assert generate(model, processor, PROMPT, IMAGE, max_tokens=40, stop=whole[-1] + "!") == whole


class Counted(str):
    """Counts how often a part of it is taken."""

    taken = 0

    def __getitem__(self, part):
        self.taken += 1
        return super().__getitem__(part)


def test_a_long_stop_string_costs_no_more_than_the_text_that_comes():
    stop = Counted("b" * 100_000)
    stream = StopStrings([stop])
    assert "".join(stream.add(piece) for piece in ("ab", "c", "d")) + stream.finish() == "abcd"
    assert stop.taken < 10


@given(
    text=st.text("abc", max_size=30),
    strings=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=8),
)
def test_stop_strings_do_not_depend_on_the_pieces(text, strings, cuts):
    def run(pieces):
        stop, shown = StopStrings(strings), ""
        for piece in pieces:
            shown += stop.add(piece)
            assert not any(string in shown for string in strings)
            if stop.found:
                return shown
        return shown + stop.finish()

    cuts = [0, *sorted(cuts), len(text)]
    shown = run([text[a:b] for a, b in pairwise(cuts)])
    assert shown == run(list(text)) == run([text])
    assert text.startswith(shown)
    assert (shown == text) == (not any(string in text for string in strings))


@settings(max_examples=60)
@given(st.lists(st.integers(0, 257), max_size=40) | st.text(max_size=12).map(lambda text: list(text.encode())))
def test_streamed_text_is_the_decoded_text(values):
    """Any bytes, whole characters or not: nothing broken in the middle, nothing lost at the end."""
    _, processor = wide_model()
    stream = processor.detokenizer()
    pieces = [stream.add(id) for id in values]  # this tokenizer's ids are bytes, and two specials
    assert "".join(pieces) + stream.finish() == processor.decode(values).rstrip("\ufffd")
