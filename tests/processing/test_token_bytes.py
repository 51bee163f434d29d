"""The bytes of tokens: together they are the text, also where a character is split between tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st


@given(st.text(max_size=40))
def test_bytes_of_all_tokens_are_the_text(demo, text):
    _, processor = demo
    ids = processor.encode_answer(text)
    joined = b"".join(map(processor.token_bytes, ids))
    assert joined.decode() == processor.decode(ids)


def test_a_character_in_pieces(demo):
    _, processor = demo
    ids = processor.encode_answer("\N{SNOWMAN}")
    assert len(ids) > 1  # the demo has no token for it
    assert b"".join(map(processor.token_bytes, ids)) == "\N{SNOWMAN}".encode()
    with pytest.raises(UnicodeDecodeError):
        processor.token_bytes(ids[0]).decode()


def test_special_and_unknown_tokens_have_none(demo):
    _, processor = demo
    for id in (*processor.eos_token_ids, 10**6):
        assert processor.token_bytes(id) == b""


def test_a_real_vocabulary(qwen):
    for text in ("Grüße, 世界! \N{SNOWMAN}\n\t", "a  b\r\nc", "\N{ROCKET}" * 3):
        ids = qwen.encode_answer(text)
        assert b"".join(map(qwen.token_bytes, ids)).decode() == text
