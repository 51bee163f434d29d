"""A slow stand-in for the parts of llguidance that the package calls, for machines that lack it.

It knows regular expressions only, by ``regex``'s partial matches over bytes, and byte-level tokenizers. What it shows
is how grammars and the engine work together; what llguidance itself makes of schemas and grammars it can't show.
"""

import importlib.util
import json
import sys
from functools import lru_cache
from types import ModuleType

import numpy as np
import regex
from tokenizers import Tokenizer

# How byte-level tokenizers write bytes: what can be seen as it is, the others in order from U+0100.
SEEN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = {chr(byte): byte for byte in SEEN}
BYTES |= {chr(0x100 + i): byte for i, byte in enumerate(byte for byte in range(256) if byte not in SEEN)}


class LLTokenizer:
    def __init__(self, tokenizer, n_vocab, eos_token):
        read = Tokenizer.from_str(tokenizer)
        special = {id for id, token in read.get_added_tokens_decoder().items() if token.special}
        ordinary = (id for id in range(read.get_vocab_size()) if id not in special and id != eos_token)
        self.bytes = {id: bytes(map(BYTES.__getitem__, read.id_to_token(id))) for id in ordinary}
        self.n_vocab, self.end = n_vocab, eos_token
        if read.get_vocab_size() > n_vocab:
            raise ValueError("the vocabulary is too small for the tokenizer")


class LLMatcher:
    def __init__(self, tokenizer, grammar, log_level=1, limits=None):
        self._tokenizer, self._said, self._error, self._ended = tokenizer, b"", "", False
        try:
            self._pattern = _compiled(grammar)
        except (regex.error, ValueError) as error:
            self._error = f"invalid regex: {error}"

    @staticmethod
    def grammar_from_regex(text):
        return json.dumps({"regex": text})

    @staticmethod
    def grammar_from_json_schema(schema, overrides):
        assert overrides == {"whitespace_flexible": False}
        return json.dumps({"json_schema": json.loads(schema)})

    @staticmethod
    def grammar_from_lark(text):
        return json.dumps({"lark": text})

    def deep_copy(self):
        copy = object.__new__(LLMatcher)
        copy.__dict__.update(self.__dict__)
        return copy

    def is_error(self):
        return self._error != ""

    def get_error(self):
        return self._error

    def consume_token(self, token):
        if token == self._tokenizer.end and self._complete and not self._ended:
            self._ended = True
        elif self._possible(token):
            self._said += self._tokenizer.bytes[token]
        else:
            self._error = f"token {token} is not allowed"
        return not self.is_error()

    @property
    def _complete(self):
        return self._pattern.fullmatch(self._said) is not None

    def _possible(self, token):
        more = self._tokenizer.bytes.get(token)
        return more is not None and not self._ended and _goes_on(self._pattern, self._said + more)

    def fill(self, words):
        if self.is_error():
            return
        bits = np.zeros(words.size * 32, bool)
        for token in self._tokenizer.bytes:
            bits[token] = self._possible(token)
        bits[self._tokenizer.end] = self._complete
        if not bits.any():
            self._error = "no token"
        words[:] = np.packbits(bits, bitorder="little").view(np.int32)


@lru_cache
def _compiled(grammar):
    described = json.loads(grammar)
    if "regex" not in described:
        raise ValueError("the stand-in knows regular expressions only")
    return regex.compile(described["regex"].encode())


@lru_cache(maxsize=2**16)
def _goes_on(pattern, said):
    return pattern.fullmatch(said, partial=True) is not None


def modules():
    """The stand-in as ``sys.modules`` would have it."""
    top, arrays = ModuleType("llguidance"), ModuleType("llguidance.numpy")
    top.LLTokenizer, top.LLMatcher, top.numpy = LLTokenizer, LLMatcher, arrays
    top.LLParserLimits = dict
    arrays.fill_next_token_bitmask = lambda matcher, words, index: matcher.fill(words[index])
    return {top.__name__: top, arrays.__name__: arrays}


REAL = importlib.util.find_spec("llguidance") is not None


def install():
    """Put the stand-in where imports find it, unless the real one is here."""
    if not REAL:
        sys.modules.update(modules())
