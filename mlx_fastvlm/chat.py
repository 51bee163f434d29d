"""Conversations: a session that computes nothing twice, and a chat in the terminal on top of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from . import flags
from .cli import Parser, printable, run, shown
from .files import atomic_file, write_json
from .generate import GenerationResponse, statistics, stream_generate
from .models.fastvlm import FastVlmForConditionalGeneration
from .options import GenerationOptions
from .processing.images import ImageSource, load_frames
from .processing.messages import Answer, Messages, read_prompt
from .processing.processor import FastVlmProcessor
from .prompt_cache import PromptCache, StaleCache
from .vision_cache import VisionCache


class ChatSession:
    """A conversation about pictures that keeps its KV cache: a follow-up costs its own tokens only.

    Args:
        system: a system prompt instead of the template's own.
        options: see :class:`mlx_fastvlm.GenerationOptions`. With ``max_kv_size``, the system prompt and the first
            question with its pictures stay in the cache, and of the rest the latest.

    Attributes:
        messages: what was said so far, with a mark for each picture.
        pictures: (size, size, 3), uint8, in reading order, as the model sees them.
        frames: how many frames of an animation become pictures.
        cache: the prompt cache. ``save_prompt_cache`` writes it.
    """

    def __init__(
        self,
        model: FastVlmForConditionalGeneration,
        processor: FastVlmProcessor,
        system: str | None = None,
        **options,
    ):
        chosen = GenerationOptions(**options)
        chosen.check(model)
        self._model, self._processor, self._system = model, processor, system
        max_kv_size, kv_bits = (options.pop(name, None) for name in ("max_kv_size", "kv_bits"))
        group_size = options.pop("kv_group_size", 64)
        self.cache = options.pop("prompt_cache", None) or PromptCache(max_kv_size, kv_bits, group_size)
        self._options = {"vision_cache": VisionCache(), **options}
        self.frames = self._options.pop("frames", 1)
        self.reset()

    def reset(self):
        """Begin a new conversation. Features of pictures are kept, in case they come again."""
        self.messages: Messages = [] if self._system is None else [{"role": "system", "content": self._system}]
        self.pictures: list[Any] = []

    def ask(self, text: str, image: ImageSource | list[ImageSource] | None = None) -> str:
        """The whole answer to the next question; arguments as for :meth:`stream`."""
        return "".join(response.text for response in self.stream(text, image))

    def stream(
        self, text: str, image: ImageSource | list[ImageSource] | None = None
    ) -> Generator[GenerationResponse, None, None]:
        """Answer the next question, token by token.

        If the stream is left before its end, what was said until then counts as the answer.

        Args:
            image: new pictures for this question; those of earlier ones are known.

        Raises:
            ValueError, OSError: for a bad picture, before anything runs; the conversation is then as it was.
        """
        question, new = read_prompt(text, image, frames=self.frames)
        squares = list(self._processor.squares(new, self._options.get("image_size"))) if new else []
        messages, pictures = self.messages + question, self.pictures + squares
        try:
            responses = self._generate(messages, pictures)
        except StaleCache:  # after an answer cut short, in a bounded cache: read the conversation again
            self.cache.reset(self.cache.keep if self._has_begun else 0)
            responses = self._generate(messages, pictures)
        return self._remember(responses, messages, pictures)

    @property
    def _has_begun(self) -> bool:
        return any(message["role"] == "assistant" for message in self.messages)

    def _generate(self, messages: Messages, pictures: list[Any]) -> Iterator[GenerationResponse]:
        return stream_generate(
            self._model, self._processor, messages, pictures, prompt_cache=self.cache, **self._options
        )

    def _remember(
        self, responses: Iterator[GenerationResponse], messages: Messages, pictures: list[Any]
    ) -> Generator[GenerationResponse, None, None]:
        text, ids, response = "", [], None
        try:
            for response in responses:
                text += response.text
                ids.append(response.token)
                yield response
        finally:
            if response is not None:
                if ids[-1] in self._processor.eos_token_ids:
                    ids.pop()  # the template ends the turn
                elif response.finish_reason == "stop":  # what a stop string cut off was never said
                    ids = self._processor.tokenizer.encode(text, add_special_tokens=False).ids
                self.messages = [*messages, {"role": "assistant", "content": Answer(text, ids)}]
                self.pictures = pictures


HELP = """\
/image PICTURE   show a picture with the next question (a path or URL; more than once for several)
/reset           begin a new conversation
/save FILE       write the conversation to a JSON file
/help            this list
/quit            leave (or Ctrl-D); Ctrl-C stops an answer"""


class Repl:
    """The chat in the terminal: lines in, answers out.

    Args:
        images: sources of pictures for the first question.
    """

    def __init__(self, session: ChatSession, images: list[str]):
        self._session = session
        self._images: list[Any] = []
        self._commands = {"/image": self._image, "/reset": self._reset, "/save": self._save, "/help": self._help}
        for source in images:
            self._image(source)

    def run(self):
        """Until /quit or the end of the input."""
        print("/help lists the commands.", file=sys.stderr)
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                return print()
            except KeyboardInterrupt:  # drops the line, as in a shell
                print()
                continue
            except UnicodeDecodeError:  # the line is gone; the next one may be better
                print("error: that was not UTF-8; type it again.", file=sys.stderr)
                continue
            if line == "/quit":
                return None
            try:
                self._handle(line)
            except (ValueError, OSError) as error:
                print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)

    def _handle(self, line: str):
        word, _, rest = line.partition(" ")
        if word in self._commands:
            self._commands[word](rest.strip())
        elif line.startswith("/"):
            print(f"There is no command {word}; /help lists them.", file=sys.stderr)
        elif line:
            self._answer(line)

    def _answer(self, question: str):
        responses, last = self._session.stream(question, self._images), None
        self._images = []
        try:
            for last in responses:
                print(shown(last.text), end="", flush=True)
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        finally:
            responses.close()
        print(flush=True)
        if last:
            print(statistics(last), file=sys.stderr)

    def _image(self, source: str):
        if not source:
            raise ValueError("/image needs a picture: a path or a URL.")
        self._images += load_frames(source, self._session.frames)  # at once, so that a wrong path is told at once
        print(f"{source} goes with the next question.", file=sys.stderr)

    def _reset(self, _: str):
        self._session.reset()
        self._images = []

    def _save(self, file: str):
        if not file:
            raise ValueError("/save needs a file to write to.")
        with atomic_file(Path(file).expanduser()) as unfinished:
            write_json(unfinished, self._session.messages)

    def _help(self, _: str):
        print(HELP, file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """The command line of ``python -m mlx_fastvlm.chat``."""
    parser = Parser(
        prog="python -m mlx_fastvlm.chat",
        description="Talk with FastVLM about pictures.",
        epilog="example: python -m mlx_fastvlm.chat --image photo.jpg\n\n" + HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--system", metavar="TEXT", help="a system prompt instead of the template's own")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    flags.add_picture_flags(parser)
    flags.add_model_flags(parser)
    flags.add_sampling_flags(parser)
    flags.add_cache_flags(parser)
    return parser


def _chat(arguments: argparse.Namespace):
    try:
        import readline  # noqa: F401  gives input() line editing and history
    except ImportError:  # not on every system
        pass
    options = flags.options(arguments)
    GenerationOptions(**options)  # what is wrong with the options is told before the model loads
    model, processor = flags.load_chosen_model(arguments)
    Repl(ChatSession(model, processor, **options), arguments.image or []).run()


def main(argv: list[str] | None = None) -> int:
    """Entry point of ``python -m mlx_fastvlm.chat``."""
    arguments = parser().parse_args(argv)
    return run(lambda: _chat(arguments), debug=arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
