"""Chat templates: the usual one, and strangers', rendered so that they can do no harm."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path
from typing import Any

from jinja2 import Environment, nodes

from ..files import read_optional_json, read_text
from .jinja.interpreter import EXTENSIONS, Interpreter
from .jinja.values import Budget
from .provenance import Author, Piece, pieces_of, written_by

# ChatML with Qwen2's default system prompt, which FastVLM was trained with (conv_mode "qwen_2" of Apple's predict.py).
# Used where a checkpoint brings no template of its own.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# What a rendering may take: nodes of the template and elements of lists, for each message some more; and characters
# that it reads or makes, for each that is said some more. The longest templates in use take a few hundred a message.
STEPS, STEPS_PER_MESSAGE = 200_000, 5_000
CHARACTERS, CHARACTERS_PER_MESSAGE, READINGS = 10**6, 20_000, 50
MAX_LENGTH = 2**18  # characters of a template; the longest in use have some 30,000


class ChatTemplate:
    """A template, parsed once.

    Args:
        source: what the checkpoint brings.
        variables: what it may ask for beside the messages, such as ``bos_token``.
    """

    def __init__(self, source: str, variables: dict[str, str] | None = None) -> None:
        if len(source) > MAX_LENGTH:
            raise ValueError(f"The checkpoint's chat template has {len(source)} characters; don't trust it.")
        self._variables = variables or {}
        try:
            self._tree: nodes.Template = _environment().parse(source)
        except Exception as error:  # whatever is wrong with it
            raise _failed(error) from None

    @functools.cached_property
    def wants_parts(self) -> bool:
        """Whether contents have to be lists of parts: a question that is a string does not come out, or fails.

        Raises:
            ValueError: it fails in either form; the string's reason.
        """
        probe = written_by(Author.USER, "probe")
        try:
            return not self._says(probe)
        except ValueError:
            with contextlib.suppress(ValueError):
                return self._says([{"type": "text", "text": probe}])
            raise

    def _says(self, content: Any) -> bool:
        """Whether a question comes out."""
        pieces = self.render([{"role": "user", "content": content}], False)
        return any(piece.author is not Author.TEMPLATE for piece in pieces)

    def render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> tuple[Piece, ...]:
        """The prompt, in pieces of the template's, the users' and the model's words.

        Args:
            messages: their contents are texts of :mod:`.provenance`, or lists of parts with such texts.

        Raises:
            ValueError: in one sentence, where it fails, takes too much, or leaves open who wrote what.
        """
        variables = {**self._variables, "messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            return pieces_of(Interpreter(_budget(messages)).render(self._tree, variables))
        except Exception as error:  # a template may fail in any way
            raise _failed(error) from None


@functools.lru_cache(maxsize=8)
def compile_template(source: str, variables: tuple[tuple[str, str], ...] = ()) -> ChatTemplate:
    """A template, ready to be rendered."""
    return ChatTemplate(source, dict(variables))


@functools.cache
def _environment() -> Environment:
    return Environment(trim_blocks=True, lstrip_blocks=True, extensions=EXTENSIONS)


def _budget(messages: list[dict[str, Any]]) -> Budget:
    said = sum(len(text) for message in messages for text in _texts(message["content"]))
    return Budget(
        STEPS + STEPS_PER_MESSAGE * len(messages),
        CHARACTERS + CHARACTERS_PER_MESSAGE * len(messages) + READINGS * said,
    )


def _texts(content: Any) -> list[str]:
    return [content] if isinstance(content, str) else [part.get("text", "") for part in content]


def _failed(error: Exception) -> ValueError:
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
    shown = "".join(character if character.isprintable() else "\ufffd" for character in reason[:200])
    return ValueError(f"The checkpoint's chat template failed ({shown}).")


def read_template(folder: Path, settings: dict[str, Any], processor: dict[str, Any]) -> str:
    """A checkpoint's template, from the places where transformers writes one; of several, the one called "default".

    Args:
        settings: ``tokenizer_config.json``.
        processor: ``processor_config.json``.
    """
    file = folder / "chat_template.jinja"
    if file.is_file():
        return read_text(file)
    places = {
        "chat_template.json": read_optional_json(folder / "chat_template.json"),
        "processor_config.json": processor,
        "tokenizer_config.json": settings,
    }
    for place, content in places.items():
        if content.get("chat_template") is not None:
            return _default_of(content["chat_template"], place)
    others = sorted(path.stem for path in (folder / "additional_chat_templates").glob("*.jinja"))
    if others:
        raise ValueError(f"{folder} has chat templates ({', '.join(others)[:200]}) and no default one; {_CHOOSE}")
    return DEFAULT_TEMPLATE


_CHOOSE = "write the one to use into chat_template.jinja."


def _default_of(templates: Any, place: str) -> str:
    """The default of one or several templates: a text, {name: text}, or [{"name": ..., "template": ...}]."""
    if isinstance(templates, str):
        return templates
    if isinstance(templates, list):
        templates = {entry["name"]: entry["template"] for entry in templates}
    chosen = templates.get("default")
    if not isinstance(chosen, str):
        raise ValueError(f"{place} has no chat template called default; {_CHOOSE}")
    return chosen
