"""A prompt's pieces -> token ids, where only the template can write special tokens."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from tokenizers import AddedToken, Tokenizer

from ..errors import one_line
from .marks import IMAGE_MARK, AnswerText
from .provenance import Author, Piece

# What looks like a role or the end of a turn: <|im_start|>, </s>, <start_of_turn>, [INST].
_CONTROL = re.compile(r"<[^<>\s]{1,64}>|\[/?[A-Z_]{1,32}\]")
_LEVELS = 64  # of cutting a text so that it spells no special token
_SHORT, _KEPT = 500, 4096  # characters of a text whose tokens are remembered, and such texts


@dataclass
class _Plain:
    """Text without any special meaning, and the spans in it that the template did not write."""

    text: str = ""
    said: list[tuple[int, int]] = field(default_factory=list)

    def add(self, text: str, author: Author) -> None:
        if author is not Author.TEMPLATE and text:
            self.said.append((len(self.text), len(self.text) + len(text)))
        self.text += text

    def part(self, start: int, stop: int) -> _Plain:
        said = [(max(first, start) - start, min(last, stop) - start) for first, last in self.said]
        return _Plain(self.text[start:stop], [(first, last) for first, last in said if first < last])

    def is_said(self, start: int, stop: int) -> bool:
        """Whether any of these characters was."""
        before = bisect_right(self.said, (stop - 1, len(self.text))) - 1
        return before >= 0 and self.said[before][1] > start


class PromptEncoder:
    """A tokenizer that knows who wrote what.

    Special are the added tokens that are marked so, that begin with ``<|`` or that end an answer, whatever the files
    call them. What users and the model say becomes none of their ids, nor that of a word like ``[INST]`` in the
    template, also where the vocabulary itself spells it: such a text is cut until it does not. A template whose roles
    are plain words (``USER:``) can't be protected, since nothing tells a user's from its own.
    """

    def __init__(self, tokenizer: Tokenizer, eos_token_ids: frozenset[int], template: str) -> None:
        self._tokenizer = tokenizer
        # Special tokens are recognised here alone, in the template's text and never in a user's.
        tokenizer.encode_special_tokens = True
        words = set(_CONTROL.findall(template))
        _mark_special(tokenizer, eos_token_ids)
        self._special: dict[str, int | None] = {
            token.content: id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special
        }
        named = (tokenizer.token_to_id(word) for word in words)
        ends = (
            id for id in eos_token_ids if (tokenizer.id_to_token(id) or "").strip() and tokenizer.decode([id]).strip()
        )
        self._kept_out = frozenset(id for id in (*self._special.values(), *named, *ends) if id is not None)
        self._lone = frozenset(self._special.values())
        self._special[IMAGE_MARK] = None
        self._lengths = sorted(set(map(len, self._special)), reverse=True)
        self._known: dict[tuple[str, tuple[tuple[int, int], ...]], list[int]] = {}
        self._beginnings = re.compile("[" + "".join(map(re.escape, {word[0] for word in self._special if word})) + "]")

    def encode(self, pieces: Iterable[Piece]) -> list[int | None]:
        """Token ids, None for each image mark.

        Plain text is joined over the borders of pieces, since a tokenizer may merge across them.
        """
        ids: list[int | None] = []
        plain = _Plain()
        for piece in pieces:
            for text, tokens in self._divided(piece):
                plain.add(text, piece.author)
                if tokens is not None:
                    ids += self._encode_plain(plain)
                    ids += tokens
                    plain = _Plain()
        return ids + self._encode_plain(plain)

    def _divided(self, piece: Piece) -> Iterator[tuple[str, list[int | None] | None]]:
        """Plain texts, each with the tokens or the mark behind it, or None behind the last."""
        if isinstance(piece.text, AnswerText):
            yield "", list(piece.text.ids)
        elif piece.author is Author.TEMPLATE:
            yield from self._divided_by_special(piece.text)
        elif piece.author is Author.USER:
            *texts, last = piece.text.split(IMAGE_MARK)
            for text in texts:
                yield text, [None]
            yield last, None
        else:
            yield piece.text, None

    def _divided_by_special(self, text: str) -> Iterator[tuple[str, list[int | None] | None]]:
        """The longest special token at each place counts."""
        start = 0
        for match in self._beginnings.finditer(text):
            place = match.start()
            if place < start:
                continue
            for length in self._lengths:
                word = text[place : place + length]
                if word in self._special:
                    yield text[start:place], [self._special[word]]
                    start = place + length
                    break
        yield text[start:], None

    def _encode_plain(self, plain: _Plain) -> list[int]:
        """Short texts are remembered: a turn is encoded again with each turn that follows it."""
        if not plain.text:
            return []
        key = plain.text, tuple(plain.said)
        ids = self._known.get(key)
        if ids is None:
            ids = self._encode_anew(plain, _LEVELS)
            if len(plain.text) <= _SHORT:
                if len(self._known) >= _KEPT:
                    self._known.clear()
                self._known[key] = ids
        return ids

    def _encode_anew(self, plain: _Plain, levels: int) -> list[int]:
        try:
            encoding = self._tokenizer.encode(plain.text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):  # bytes of a command line or a file name that are no UTF-8
            raise ValueError("A text holds characters that are not valid Unicode; give it as UTF-8.") from None
        except Exception as error:  # `tokenizers` raises plain ones; this is about its files, not the text
            raise ValueError(
                f"The checkpoint's tokenizer can't write a text ({one_line(str(error))}); download its files again."
            ) from None
        if self._kept_out.isdisjoint(encoding.ids):
            return encoding.ids
        cuts = self._cuts(plain, encoding.ids, encoding.offsets)
        if not cuts:
            return encoding.ids
        if not levels:
            raise ValueError("A text can't be written without a special token of this tokenizer; change it.")
        bounds = [0, *cuts, len(plain.text)]
        parts = [plain.part(start, stop) for start, stop in pairwise(bounds)]
        return [id for part in parts for id in self._encode_anew(part, levels - 1)]

    def _cuts(self, plain: _Plain, ids: list[int], offsets: list[tuple[int, int]]) -> list[int]:
        """Places inside of what was said that spells a special token."""
        cuts = set()
        for id, (start, stop) in zip(ids, offsets):
            if id not in self._kept_out or not plain.is_said(start, stop):
                continue
            if stop - start > 1:
                cuts.add((start + stop) // 2)
            elif id in self._lone:
                raise ValueError(
                    f"A text holds {plain.text[start:stop]!r}, a special token of this tokenizer; leave it out."
                )
        return sorted(cuts)


def _mark_special(tokenizer: Tokenizer, eos_token_ids: frozenset[int]) -> None:
    """What ends a turn is special, whatever the files call it, or a user could type it."""
    added = tokenizer.get_added_tokens_decoder().items()
    turns = [token for id, token in added if id in eos_token_ids or token.content.startswith("<|")]
    tokenizer.add_special_tokens(
        [AddedToken(t.content, normalized=False, special=True) for t in turns if not t.special]
    )
