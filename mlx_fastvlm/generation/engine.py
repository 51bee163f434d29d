"""The engine: one loop that answers any number of prompts at once, each as if it were alone.

A row, which is one answer in the making, waits until there is room; then its prompt is read, a piece between two steps
of the others; then each step gives it a token, until it ends and leaves. One row runs on caches of its own. From the
second on, rows decode together in slots of a batch cache (``cache/batch.py``), except those with a caller's prompt
cache, which run beside them in the same loop.

The device always computes one token ahead: while the caller handles this one, the next is on its way.

There is no thread in here, no decision by the clock and no I/O: given the same arrivals, the same steps.
"""

from __future__ import annotations

import functools
import time
import weakref
from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..cache.prompt import PromptCache
from ..errors import require, require_whole
from ..models import wired
from ..models.memory import free_memory, give_back
from ..models.threads import end_streams_with_thread
from .answer import Answer
from .constraints import Grammar
from .crowd import Crowd, step_alone
from .options import GenerationOptions, Options, lists_options
from .reading import PromptReader, images_together
from .request import Request, make_request
from .row import Row
from .shared import SharedPrompt

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing since Python 3.11

    from ..cache.prefix import PrefixCache
    from ..cache.vision import VisionCache
    from ..models.fastvlm import FastVlmForConditionalGeneration
    from ..processing.images import ImageSource
    from ..processing.messages import Prompt
    from ..processing.processor import FastVlmProcessor

# Buffers that outgrown caches left behind go back to the system after so many steps.
TIDY = 256


class Engine:
    """Answers prompts, ``max_rows`` of them at a time.

    Args:
        max_rows: answers that run at once; others wait for their turn.
        prefill_step_size: how many tokens of prompts are read between two steps.
        prefix_cache: what prompts have in common is read once, for answers that have no prompt cache.
        vision_cache: for answers without the option of this name.
        ahead: so many of the answers that wait for a row get their images encoded with those of others, where that
            takes a call less: :func:`.reading.images_together` less one. Not with a cache for several answers.

    Attributes:
        processor: the model's.
        steps: how many steps have been made.
    """

    def __init__(
        self,
        model: FastVlmForConditionalGeneration,
        processor: FastVlmProcessor,
        *,
        max_rows: int = 16,
        prefill_step_size: int = 2048,
        prefix_cache: PrefixCache | None = None,
        vision_cache: VisionCache | None = None,
        ahead: int = 0,
    ) -> None:
        for name, value in (("max_rows", max_rows), ("prefill_step_size", prefill_step_size)):
            require_whole(name, value)
            require(value >= 1, f"{name} must be at least 1", value)
        self._model, self.processor, self._max_rows = model, processor, max_rows
        self._ahead = min(ahead, max_rows)
        self._prefill_step_size = prefill_step_size
        self._reader = PromptReader(model, processor, prefill_step_size, vision_cache, prefix_cache)
        self._waiting: deque[Row] = deque()
        self._rows: list[Row] = []  # in the order of their arrival; all else about them can be made again from these
        self._crowds: dict[Any, Crowd] = {}
        self._unfinished = False  # whether a step was begun that has not come to its end
        self._wired: weakref.finalize[..., Any] | None = None
        self.steps = 0

    @lists_options
    def submit(
        self,
        prompt: Prompt,
        image: ImageSource | list[ImageSource] | None = None,
        **options: Unpack[Options],
    ) -> Answer:
        """Ask for an answer; arguments as for :func:`mlx_fastvlm.stream_generate`. Nothing runs yet.

        Raises:
            ValueError, OSError: for a bad argument or image.
        """
        given = GenerationOptions(**options)
        start = time.perf_counter()
        return self.enqueue(self.request(prompt, image, given), given, start)

    @lists_options
    def submit_n(
        self,
        n: int,
        prompt: Prompt,
        image: ImageSource | list[ImageSource] | None = None,
        **options: Unpack[Options],
    ) -> list[Answer]:
        """Ask for ``n`` answers to one prompt, which is read once; arguments and errors as for :meth:`submit`.

        The i-th, from 0, is what :meth:`submit` gives for the seed ``seed + i``; without a seed, each has one of its
        own.
        """
        given = GenerationOptions(**options)
        start = time.perf_counter()
        return self.enqueue_n(n, self.request(prompt, image, given), given, start)

    def request(
        self, prompt: Prompt, image: ImageSource | list[ImageSource] | None, options: GenerationOptions
    ) -> Request:
        """A prompt that is checked, and its images opened, but not asked yet; errors as for :meth:`submit`."""
        options.check(self._model)
        policy = options.cache_policy if options.prompt_cache is None else options.prompt_cache.policy
        request = make_request(self.processor, prompt, image, options)
        request.check(self._model, bounded=policy.max_kv_size is not None)
        self._cache(options).check(self._model, request.tokens)
        if options.constraint is not None:
            size = self._model.config.text_config.vocab_size
            request.grammar = Grammar(*options.constraint, self.processor, size)
        return request

    def enqueue(self, request: Request, options: GenerationOptions, start: float | None = None) -> Answer:
        """Ask for the answer to what :meth:`request` gave, with the same options."""
        return self._enqueue(request, options, start)

    def enqueue_n(
        self, n: int, request: Request, options: GenerationOptions, start: float | None = None
    ) -> list[Answer]:
        """The same for ``n`` answers, as :meth:`submit_n` gives them."""
        require_whole("n", n)
        require(n >= 1, "n must be at least 1", n)
        require(options.prompt_cache is None or n == 1, "a prompt_cache holds one answer, so n must be 1", n)
        shared = SharedPrompt() if n > 1 else None
        seeds = [None] * n if options.seed is None else [options.seed + i for i in range(n)]
        each = [options.with_seed(seed) for seed in seeds]  # checks them, before any is asked
        return [self._enqueue(request, own, start, shared) for own in each]

    def _enqueue(
        self, request: Request, options: GenerationOptions, start: float | None, shared: SharedPrompt | None = None
    ) -> Answer:
        answer = Answer(self, len(request.ids))
        start = time.perf_counter() if start is None else start
        self._waiting.append(Row(self.processor, request, options, self._cache(options), answer, start, shared))
        return answer

    @staticmethod
    def _cache(options: GenerationOptions) -> PromptCache:
        return options.prompt_cache or PromptCache.from_policy(options.cache_policy)

    @property
    def room(self) -> int:
        """How many more answers could run at once, or have their images encoded ahead."""
        return max(0, self._max_rows + self._ahead - len(self._rows) - len(self._waiting))

    def step(self) -> bool:
        """Admit rows; read at most one piece of prompts; give every running row a token. False if there was nothing.

        An error that belongs to one answer ends that answer. Any other, and Ctrl-C, comes out of here, and the next
        step goes on from what the answers have so far.
        """
        end_streams_with_thread()  # whichever it is by now
        if self._unfinished:
            self._begin_again()
        if not self._rows and not self._waiting:
            return False
        self._keep_wired()
        self._unfinished = True
        self._admit()
        self._read()
        self._decode()
        self._unfinished = False
        self.steps += 1
        if self.steps % TIDY == 0:
            give_back()
        return True

    def cancel(self, answer: Answer) -> None:
        """End an answer between two steps; one that has ended already is left as it is."""
        if self._unfinished:
            self._crowds.clear()  # an interrupt has left them in any state; the next step makes them again
        for row in [*self._rows, *self._waiting]:
            if row.answer is answer:
                self._end(row)

    def _end(self, row: Row, error: Exception | None = None) -> None:
        """Let a row go, and everything that was its own."""
        row.answer.end(error)
        if row in self._waiting:
            self._waiting.remove(row)
        if row in self._rows:
            self._leave_crowd(row)
            self._rows.remove(row)
        self._forget_features()
        self._keep_wired()

    def _keep_wired(self) -> None:
        """The weights stay in memory while there is anything to answer, and as long as somebody has the engine."""
        busy = bool(self._rows or self._waiting)
        if busy and self._wired is None:
            wired.hold(self._model)
            self._wired = weakref.finalize(self, wired.release, id(self._model))
            self._wired.atexit = False
        elif not busy and self._wired is not None:
            self._wired()
            self._wired = None

    def _leave_crowd(self, row: Row) -> None:
        crowd = self._crowds.get(Crowd.kind(row)) if row.merged else None
        if crowd is None:
            return
        row.merged = False
        crowd.leave(row)
        if not crowd.rows:
            del self._crowds[Crowd.kind(row)]

    def _begin_again(self) -> None:
        """After a step that did not come to its end: what was delivered stands, all else is computed again."""
        self._crowds.clear()
        self._waiting = deque(row for row in self._waiting if row not in self._rows)
        for row in list(self._rows):
            if row.answer.ended or row.answer.finish_reason is not None:
                self._end(row)
            else:
                self._try(row, self._reader.begin_again)

    def _try(self, row: Row, action: Any) -> bool:
        """``action(row)``; an error ends the row."""
        try:
            action(row)
            return True
        except Exception as error:
            self._end(row, error)
            return False

    # Admission

    def _admit(self) -> None:
        """Each row that there is memory for; a single one is tried in any case."""
        free = functools.cache(free_memory)  # slow to ask, and no row takes any before it is read
        while len(self._rows) < self._max_rows:
            row = self._next()
            if row is None:
                return
            if self._rows and (left := free()) is not None and self._size(row) > left:
                return
            self._rows.append(row)
            self._waiting.remove(row)
            self._try(row, self._reader.begin)

    def _next(self) -> Row | None:
        """The first waiting row whose prompt cache no running one uses, and whose prompt none is reading."""
        caches = {id(row.cache) for row in self._rows}
        prompts = {id(row.shared) for row in self._rows if row.shared is not None}
        free = (row for row in self._waiting if id(row.cache) not in caches and id(row.shared) not in prompts)
        return next(free, None)

    def _size(self, row: Row) -> int:
        """Bytes that a row's keys and values will take."""
        config, policy = self._model.config.text_config, row.cache.policy
        tokens = min(len(row.request.ids) + row.options.max_tokens, policy.max_kv_size or 2**62)
        bits = policy.kv_bits or 8 * self._model.get_input_embeddings().weight.dtype.size
        return tokens * config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim * bits // 8

    # Reading

    def _read(self) -> None:
        """One piece: a few images, or so many tokens of one prompt or of several short ones."""
        left = self._prefill_step_size
        while reading := [row for row in self._rows if row.pick is None]:
            if self._reader.lacks_features(reading[0]):
                if left == self._prefill_step_size:
                    lacking = [row for row in reading if self._reader.lacks_features(row)] + self._soon()
                    self._try(reading[0], lambda _, rows=lacking: self._reader.encode(rows))
                return
            if left < self._prefill_step_size and self._reader.cost(reading[0]) > left:
                return
            left -= self._read_some(self._reader.together(reading, left), reading[0])
            self._forget_features()
            if left <= 0:
                return

    def _soon(self) -> list[Row]:
        """Waiting rows whose images may go through the tower with those of others."""
        return [row for row in islice(self._waiting, self._ahead) if self._reader.may_be_early(row)]

    def _forget_features(self) -> None:
        self._reader.keep_only([row for row in self._rows if row.pick is None] + self._soon())

    def _read_some(self, group: list[Row], first: Row) -> int:
        """Read whole prompts together, or a piece of one; returns how many tokens that was."""
        if len(group) > 1:
            try:
                cost = sum(len(row.ids) - row.read for row in group)
                self._reader.read_together(group)
                return cost
            except Exception:  # whose fault it is shows when each is read alone
                for row in group:
                    if not self._try(row, self._reader.begin_again):
                        return 0
        cost = self._reader.cost(first)
        self._try(first, self._reader.read)
        return cost

    # Decoding

    def _decode(self) -> None:
        """Send the next token of every running row on its way, and deliver the ones before."""
        on_their_way = []
        for row in list(self._rows):
            if isinstance(row.pick, Exception):
                self._end(row, row.pick)
            elif row.pick is not None:
                on_their_way.append((row, row.pick))
                if row.last:
                    self._leave_crowd(row)
        going = [row for row, _ in on_their_way if not row.last]
        self._merge(going)
        for crowd in self._crowds.values():
            crowd.step()
        for row in going:
            if not row.merged:
                self._try(row, lambda row: step_alone(self._model, row))
        for row, pick in on_their_way:
            if row.answer.ended:
                continue
            pick.choice.read  # noqa: B018  # waits; an error of the device is no row's own
            if row.encoded:
                self._reader.put_features(row)
            if self._try(row, lambda row, pick=pick: row.deliver(pick, self._model)) and row.answer.finish_reason:
                self._end(row)

    def _merge(self, going: Iterable[Row]) -> None:
        """Let rows that can share a batch join it, once there are two."""
        alone: dict[Any, list[Row]] = {}
        for row in going:
            if row.shares and not row.merged:
                alone.setdefault(Crowd.kind(row), []).append(row)
        for kind, rows in alone.items():
            if len(rows) == 1 and kind not in self._crowds:
                continue
            if kind not in self._crowds:
                self._crowds[kind] = Crowd(self._model, self._max_rows, rows[0].cache.policy)
            for row in rows:
                self._crowds[kind].join(row)


def engine_for_all(
    model: FastVlmForConditionalGeneration, processor: FastVlmProcessor, options: GenerationOptions, max_rows: int
) -> Engine:
    """An engine for many answers with the same options, whose small images go through the tower together."""
    ahead = images_together(processor, options) - 1
    return Engine(model, processor, max_rows=max_rows, prefill_step_size=options.prefill_step_size, ahead=ahead)
