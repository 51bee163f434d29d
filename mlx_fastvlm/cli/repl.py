"""The chat in the terminal: lines in, answers out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import atomic_file, write_json
from .inline import inline, protocol
from .lines import read_line
from .sources import dragged, expanded
from .terminal import CUT, printable, shown, statistics

if TYPE_CHECKING:
    from ..generation.session import ChatSession

HELP = """\
/image IMAGE ... add images to the next question; dragging them here, or pasting a path or URL, does the same
/reset, /clear   begin a new conversation
/save FILE       write the conversation to a new JSON file
/stats           show or hide the statistics of answers
/help            show this list
/quit            leave (also exit, quit, q, or Ctrl-D); Ctrl-C stops an answer"""
COMMANDS = ("/image", "/reset", "/clear", "/save", "/stats", "/help", "/quit")
_ENDS = ("/quit", "/exit", "exit", "quit", "q")


class Repl:
    """The chat in the terminal: lines in, answers out.

    Args:
        images: sources of images for the first question.
    """

    def __init__(self, session: ChatSession, images: list[str]) -> None:
        self._session = session
        self._images: list[Any] = []
        self._statistics = False
        self._protocol = protocol()
        self._commands = {
            "/image": self._image,
            "/reset": self._reset,
            "/clear": self._reset,
            "/save": self._save,
            "/stats": self._stats,
            "/help": self._help,
        }
        self._show([file for source in images for file in expanded(source)])

    def run(self) -> None:
        """Until /quit or the end of the input."""
        print("/help lists the commands.", file=sys.stderr)
        while True:
            try:
                line = read_line("> ")
            except EOFError:
                if sys.stdin.isatty():
                    print()  # the shell's prompt begins a line of its own
                return
            except KeyboardInterrupt:  # drops the line, as in a shell
                print()
                continue
            except UnicodeDecodeError:  # the line is gone; the next one may be better
                print("error: that was not UTF-8; type it again.", file=sys.stderr)
                continue
            if line in _ENDS:
                return
            try:
                self._handle(line)
            except (ValueError, OSError) as error:
                print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)

    def _handle(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word in self._commands:
            return self._commands[word](rest.strip())
        images, question = dragged(line)
        self._show(images)
        if question.startswith("/") and not images:
            what = f"{word}: no such file" if "/" in word[1:] else f"There is no command {word}"
            print(f"{printable(what)}; /help lists the commands.", file=sys.stderr)
        elif question:
            self._ask(question)

    def _ask(self, question: str) -> None:
        images, last = self._images, None
        responses = self._session.stream(question, images)
        self._images = []
        try:
            for last in responses:
                print(shown(last.text), end="", flush=True)
        except KeyboardInterrupt:
            print(" [stopped]", end="")
        finally:
            responses.close()
            if last is None:  # nothing was said, so the conversation is as it was
                self._images = images
        print(flush=True)
        if last is None and images:
            print("Nothing was answered; the image goes with the next question.", file=sys.stderr)
        elif last and (told := statistics(last) if self._statistics else CUT * (last.finish_reason == "length")):
            print(told, file=sys.stderr)

    def _image(self, sources: str) -> None:
        if not sources:
            raise ValueError("/image needs an image: a path or a URL.")
        found, rest = dragged(sources)
        self._show(found if found and not rest else expanded(sources))

    def _show(self, sources: list[str]) -> None:
        """Images for the next question, opened at once, so that a wrong path is told at once."""
        for source in sources:
            prepared = self._session.prepare(source)
            self._images += prepared
            if self._protocol:
                print(inline(prepared[0], self._protocol), end="", file=sys.stderr)
            print(f"{printable(source)} goes with the next question.", file=sys.stderr)

    def _reset(self, _: str) -> None:
        self._session.reset()
        self._images = []
        print("A new conversation begins.", file=sys.stderr)

    def _save(self, file: str) -> None:
        if not file:
            raise ValueError("/save needs a file to write to.")
        try:
            path = Path(file).expanduser()
        except RuntimeError:
            raise ValueError(f"{file}: there is no such user; give another path.") from None
        if path.exists():
            raise ValueError(f"{file} already exists; give another name.")
        with atomic_file(path) as unfinished:
            write_json(unfinished, self._session.messages)
        print(f"Saved {len(self._session.messages)} messages to {printable(file)}.", file=sys.stderr)

    def _stats(self, _: str) -> None:
        self._statistics = not self._statistics
        print(f"Statistics are {'shown' if self._statistics else 'hidden'} from now on.", file=sys.stderr)

    def _help(self, _: str) -> None:
        print(HELP, file=sys.stderr)
