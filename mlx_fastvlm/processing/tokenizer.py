"""Qwen2's tokenizer, from a checkpoint's files; and its ids as text again, piece by piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.decoders import DecodeStream

from ..config import FastVlmConfig, as_ids
from ..errors import short
from ..files import check_size, read_json, read_optional_json
from .marks import IMAGE_MARK

# Qwen2's way of cutting text into words before byte-pair encoding (tokenization_qwen2, PRETOKENIZE_REGEX).
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def read_tokenizer(folder: Path, settings: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a folder: ``tokenizer.json``, or built from Qwen2's ``vocab.json`` and ``merges.txt``."""
    whole, vocab, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    for file in (whole, vocab, merges):
        if file.is_file():
            check_size(file)
    try:
        if whole.is_file():
            tokenizer = Tokenizer.from_file(str(whole))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return tokenizer
        if vocab.is_file() and merges.is_file():
            return _build_tokenizer(vocab, merges, _added_tokens(folder, settings))
    except (ValueError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # `tokenizers` raises plain Exception for what it can't parse; some of it panics
        raise ValueError(f"The tokenizer files in {folder} are broken ({error}); download them again.") from None
    raise FileNotFoundError(f"{folder} has no tokenizer: neither tokenizer.json nor vocab.json and merges.txt.")


def _build_tokenizer(vocab: Path, merges: Path, added: dict[int, AddedToken]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([token for _, token in sorted(added.items())])
    for id, token in added.items():
        if tokenizer.token_to_id(token.content) != id:
            raise ValueError(
                f"{vocab.parent}: the added token {token.content!r} should have id {id}, but the vocabulary puts it "
                f"at {tokenizer.token_to_id(token.content)}; download the tokenizer files again."
            )
    return tokenizer


def _added_tokens(folder: Path, settings: dict[str, Any]) -> dict[int, AddedToken]:
    """Tokens beside the vocabulary by id, from ``tokenizer_config.json`` or, without it, ``added_tokens.json``."""
    described = settings.get("added_tokens_decoder") or {}
    if described:
        return {
            int(id): AddedToken(token["content"], normalized=False, special=token.get("special", True))
            for id, token in described.items()
        }
    file = folder / "added_tokens.json"
    plain = read_json(file) if file.is_file() else {}
    return {id: AddedToken(content, normalized=False, special=True) for content, id in plain.items()}


class Detokenizer:
    """Token by token -> text, in whole characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._held: list[int] = []  # tokens whose text has not come out yet

    def add(self, token: int) -> str:
        """The text that this token completes; "" while a character is incomplete."""
        self._held.append(token)
        text = self._stream.step(self._tokenizer, token)
        if text is None:
            return ""
        self._held.clear()
        return text

    def finish(self) -> str:
        """What is still held back, without a character that will never be completed."""
        text = self._tokenizer.decode(self._held, skip_special_tokens=True)
        self._held.clear()
        return text.rstrip("\ufffd")


def token_bytes(tokenizer: Tokenizer, id: int) -> bytes:
    """What a token adds to a text, which may be part of a character; b"" for special tokens and unknown ids."""
    token = tokenizer.id_to_token(id) or ""
    if isinstance(tokenizer.decoder, decoders.ByteLevel) and id not in tokenizer.get_added_tokens_decoder():
        return bytes(_BYTES[character] for character in token)
    return tokenizer.decode([id], skip_special_tokens=True).encode()


def _byte_level() -> dict[str, int]:
    """The character that stands for each byte in GPT-2's vocabularies: itself if it shows, else one from 256 on."""
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_level()


def read_eos_token_ids(tokenizer: Tokenizer, config: FastVlmConfig, *files: dict[str, Any]) -> frozenset[int]:
    """Every id that any of the checkpoint's files, or ChatML itself, calls the end."""
    ids = set(config.eos_token_id)
    contents = {"<|im_end|>", "<|endoftext|>"}
    for settings in files:
        ids.update(as_ids(settings.get("eos_token_id")))
        contents.add(token_content(settings.get("eos_token")) or "")
    if not all(isinstance(id, int) for id in ids):
        raise ValueError(f"eos_token_id must be numbers, got {sorted(map(repr, ids))[:5]}; download the files again.")
    found = (tokenizer.token_to_id(content) for content in contents)
    return frozenset(ids).union(id for id in found if id is not None)


def check_image_token(tokenizer: Tokenizer, image_token_id: int, eos_token_ids: frozenset[int], template: str) -> None:
    """``ValueError`` where the id that stands for an image is also one that a text or the chat template can have."""
    token = tokenizer.id_to_token(image_token_id) if image_token_id >= 0 else None
    if token is None or token == IMAGE_MARK:
        return
    added = tokenizer.get_added_tokens_decoder().get(image_token_id)
    if added is None or not added.special or image_token_id in eos_token_ids or token in template:
        raise ValueError(
            f"config.json says that {image_token_id} stands for an image, but to the tokenizer it is {short(token)}; "
            "correct image_token_index."
        )


# transformers' names; a template may ask for them.
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_special_tokens(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """Texts of the special tokens that ``tokenizer_config.json`` or ``special_tokens_map.json`` names."""
    described = {**read_optional_json(folder / "special_tokens_map.json"), **settings}
    texts = {name: token_content(described.get(name)) for name in _NAMED}
    return {name: text for name, text in texts.items() if text is not None}


def token_content(token: str | dict[str, Any] | None) -> str | None:
    """A special token's text; configs write it plain or as a dict."""
    content = token.get("content") if isinstance(token, dict) else token
    if content is not None and not isinstance(content, str):
        raise TypeError(f"a special token must be a text, got {content!r}")
    return content
