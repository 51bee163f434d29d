"""The chat in the terminal: lines in, answers out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import atomic_file, write_json
from .terminal import printable, shown, statistics

if TYPE_CHECKING:
    from ..generation.session import ChatSession

HELP = """\
/image IMAGE     show an image with the next question (a path or URL; more than once for several)
/reset           begin a new conversation
/save FILE       write the conversation to a JSON file
/help            this list
/quit            leave (or Ctrl-D); Ctrl-C stops an answer"""


class Repl:
    """The chat in the terminal: lines in, answers out.

    Args:
        images: sources of images for the first question.
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
            self._ask(line)

    def _ask(self, question: str):
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
            raise ValueError("/image needs an image: a path or a URL.")
        self._images += self._session.prepare(source)  # at once, so that a wrong path is told at once
        print(f"{source} goes with the next question.", file=sys.stderr)

    def _reset(self, _: str):
        self._session.reset()
        self._images = []

    def _save(self, file: str):
        if not file:
            raise ValueError("/save needs a file to write to.")
        try:
            path = Path(file).expanduser()
        except RuntimeError:
            raise ValueError(f"{file}: there is no such user; give another path.") from None
        with atomic_file(path) as unfinished:
            write_json(unfinished, self._session.messages)

    def _help(self, _: str):
        print(HELP, file=sys.stderr)
