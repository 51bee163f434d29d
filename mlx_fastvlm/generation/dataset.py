"""A data set's images -> a record for each, by an engine that is kept full; a second run goes on where one ended."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..cache.fingerprint import model_fingerprint
from ..data.items import SAMPLE_LIMIT, Item
from ..data.prefetch import Prefetch
from ..data.sinks import Destination, Records, open_records
from ..data.sources import Dataset
from ..errors import UsageError, require, require_whole
from ..processing.prepared import Image
from ..processing.sources import open_source
from .batch import check_batch_size
from .decision import decision_options
from .engine import Engine, engine_for_all
from .options import GenerationOptions, Options, lists_options_but_video
from .outcomes import Decisions, Texts, outcome_of_error

if TYPE_CHECKING:
    from typing_extensions import Unpack  # in typing since Python 3.11

    from ..data.lines import Record
    from ..models.fastvlm import FastVlmForConditionalGeneration
    from ..processing.processor import FastVlmProcessor
    from .outcomes import Outcome, Pending

# Options that change how an answer is computed, and not which it is.
_WITHOUT_EFFECT = ("vision_batch_size", "vision_cache", "prefill_step_size", "progress")
# So many records wait at most for one before them, so that they come in the order of their images.
WINDOW = 1024


@dataclass(frozen=True)
class Job:
    """What is asked about which images, and where the records go.

    Attributes:
        sources: see :class:`mlx_fastvlm.data.sources.Dataset`.
        prompt: asked about each image that brings none of its own.
        decide_among: choose among these instead of writing a text; see :func:`mlx_fastvlm.decide`.
        batch_size: how many answers run at a time.
        threads: how many images are opened at a time, ahead of the engine.
        dedupe: ask once about images with the same pixels.
    """

    sources: list[str | Path]
    destination: Destination
    prompt: str
    decide_among: list[str] | None = None
    batch_size: int = 16
    threads: int = 4
    dedupe: bool = False

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        require_whole("threads", self.threads)
        require(self.threads >= 1, "threads must be at least 1", self.threads)
        if not self.prompt.strip():
            raise UsageError("The prompt is empty; ask something.")


@dataclass
class Summary:
    """What a run has done so far.

    Attributes:
        total: about how many images there are; None while that can't be told.
        skipped: images whose records were there.
        failed_before: records that were there and are errors.
        answered: images that were answered, among them ``hits`` by the answer to the same pixels.
        errors: images that were not.
        duplicates: images left out because their key had come before.
        first_duplicate: the first such key.
        seconds: since the first image was asked for.
        waited: of them, those in which nothing ran because no image was ready.
    """

    total: int | None = None
    skipped: int = 0
    failed_before: int = 0
    answered: int = 0
    hits: int = 0
    errors: int = 0
    duplicates: int = 0
    first_duplicate: str | None = None
    seconds: float = 0.0
    waited: float = 0.0


Report = Callable[[Summary], None]


@lists_options_but_video
def caption_dataset(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    job: Job,
    report: Report = lambda _: None,
    **options: Unpack[Options],
) -> Summary:
    """Ask about every image of a data set. Each gets one record, also where it can't be read; see docs/captions.md.

    Args:
        report: called with the summary so far, after each record.
        options: as for :func:`mlx_fastvlm.batch_generate`.

    Raises:
        UsageError: for a bad option, or where the output was made with others.
        ValueError, OSError: for sources or outputs that can't be read or written.
    """
    return write_records(model, processor, job, GenerationOptions(**options), report)


def write_records(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    job: Job,
    options: GenerationOptions,
    report: Report = lambda _: None,
    dataset: Source | None = None,
) -> Summary:
    """:func:`caption_dataset` for whoever holds the options already, or has the items that ``job.sources`` name."""
    run = _prepared(model, processor, job, options, report)
    if dataset is None:
        dataset = Dataset(job.sources, job.destination.shard)
    settings = {"model": model_fingerprint(model), "prompt": job.prompt, **run.settings}
    with open_records(job.destination, job.sources, settings) as records:
        return run.all(dataset, records, settings["model"])


def caption_items(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    items: list[Item],
    job: Job,
    options: GenerationOptions,
) -> list[Record]:
    """Records of a few images for whoever stores them: one for each item, in their order. Keys need not differ.

    The job's sources and its destination are not looked at.
    """
    run = _prepared(model, processor, job, options, lambda _: None)
    numbered = [replace(item, key=str(number)) for number, item in enumerate(items)]
    written: dict[str, Record] = {}
    run.all(_Items(numbered), _Collected(written), model_fingerprint(model))
    return [{**written[str(number)], "key": item.key} for number, item in enumerate(items)]


class Source(Protocol):
    """What is read of a data set; :class:`mlx_fastvlm.data.sources.Dataset` is one.

    Attributes:
        duplicates: how many items were left out, because an earlier one has their key.
        first_duplicate: the first such key.
    """

    duplicates: int
    first_duplicate: str | None

    def __iter__(self) -> Iterator[Item]: ...

    def estimate(self) -> int | None:
        """About how many items there are."""


class _Items(list[Item]):
    """A data set in memory."""

    duplicates = 0
    first_duplicate: str | None = None

    def estimate(self) -> int:
        return len(self)


class _Collected:
    """Records in memory, by their keys; nothing was there before."""

    failed = 0
    keeps_images = False

    def __init__(self, written: dict[str, Record]) -> None:
        self._written = written
        self.done: dict[str, str] = {}
        self.sink = self

    def mine(self) -> Iterator[Record]:
        return iter(())

    def write(self, item: Item, record: Record) -> None:
        self._written[item.key] = record


def _prepared(
    model: FastVlmForConditionalGeneration,
    processor: FastVlmProcessor,
    job: Job,
    options: GenerationOptions,
    report: Report,
) -> _Run:
    """A run whose options are known to be right, before anything is written."""
    if options.video is not None:
        raise UsageError("Captions are of images; ask about a video with generate.")
    if options.prompt_cache is not None:
        raise UsageError("A prompt_cache holds one conversation, and here are many; leave it out.")
    engine = engine_for_all(model, processor, options, job.batch_size)
    asker: Texts | Decisions = Texts(engine, options)
    if job.decide_among:
        options = GenerationOptions(max_tokens=1, **decision_options(options))
        asker = Decisions(engine, model, processor, options, job.decide_among)
    run = _Run(engine, processor, job, options, asker, report)
    # What is wrong with them shows here, with an image of nothing.
    run.request(Item(""), [_blank(processor, options.image_size)])
    return run


def _blank(processor: FastVlmProcessor, image_size: int | None) -> Image:
    settings = replace(processor.image_settings, size=processor.check_image_size(image_size))
    return Image(np.zeros((settings.size, settings.size, 3), np.uint8), "blank", settings)


@dataclass
class _Asked:
    """An image on its way: its place in the order, and the others with the same pixels that wait for its outcome."""

    number: int
    item: Item
    mark: str
    pending: Pending
    same: list[tuple[int, Item]] = field(default_factory=list)


class _Run:
    """One pass over a data set."""

    def __init__(
        self,
        engine: Engine,
        processor: FastVlmProcessor,
        job: Job,
        options: GenerationOptions,
        asker: Texts | Decisions,
        report: Report,
    ) -> None:
        self._engine, self._processor, self._job, self._options = engine, processor, job, options
        self._asker, self._report = asker, report
        self.summary = Summary()
        self._asked: list[_Asked] = []
        self._known: dict[str, Outcome] = {}  # by the images' and the prompt's fingerprint, for dedupe

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides an answer, but for model and prompt."""
        given = {f.name: getattr(self._options, f.name) for f in fields(self._options) if f.name not in _WITHOUT_EFFECT}
        return {"decide_among": self._job.decide_among, **given}

    def prompt_fingerprint(self, prompt: str) -> str:
        asked = json.dumps([prompt, self.settings], default=lambda value: getattr(value, "__qualname__", "object"))
        return hashlib.sha256(asked.encode("utf-8", "backslashreplace")).hexdigest()[:16]

    def request(self, item: Item, images: list[Image]) -> Any:
        return self._engine.request(item.prompt or self._job.prompt, [*images], self._options)

    def all(self, dataset: Source, records: Records | _Collected, model: str) -> Summary:
        self._records, self._model, self._dataset = records, model, dataset
        self._writer = _InOrder(self._write)
        self._fingerprints: dict[str, str] = {}
        self.summary.failed_before = records.failed
        if self._job.dedupe:
            self._known = {r["image"]: _outcome(r) for r in records.mine() if "image" in r and "error" not in r}
        start = time.perf_counter()
        ahead = self._job.batch_size + 2 * self._job.threads
        with Prefetch(self._to_do(dataset), self._prepare, threads=self._job.threads, ahead=ahead) as ready:
            self._ready, self._start = ready, start
            while not ready.ended or self._asked:
                self._fill()
                if self._asked:
                    self._engine.step()
                    self._collect()
        self._writer.flush()
        self._update()
        ready.check()
        return self.summary

    def _to_do(self, dataset: Source) -> Iterator[Item]:
        done = self._records.done
        for item in dataset:
            mark = done.get(item.key)
            if mark is None:
                item.load()
                yield item
            elif mark != self._mark(item):
                raise UsageError(
                    f"{item.key} was answered with another prompt of its own; give --overwrite, --append-as NAME or "
                    "another --output."
                )
            else:
                self.summary.skipped += 1

    def _mark(self, item: Item) -> str:
        prompt = item.prompt or self._job.prompt
        if item.prompt is not None:
            return self.prompt_fingerprint(prompt)
        if prompt not in self._fingerprints:
            self._fingerprints[prompt] = self.prompt_fingerprint(prompt)
        return self._fingerprints[prompt]

    def _prepare(self, item: Item) -> list[Image]:
        """In a thread: an image's file -> the image as the model sees it."""
        if item.error is not None:
            raise ValueError(item.error)
        source = item.opened()
        if self._records.sink.keeps_images and not item.files:
            file, name = open_source(source)
            with file:
                data = file.read(SAMPLE_LIMIT + 1)
            if len(data) > SAMPLE_LIMIT:
                raise ValueError(f"{name} has more than {SAMPLE_LIMIT >> 20} MB; scale it down first.")
            item.source = source = data
        images = self._processor.prepare_frames(source, self._options.frames, self._options.image_size)
        if not self._records.sink.keeps_images and isinstance(item.source, bytes):
            item.source, item.files = None, {}  # or its bytes would be held until the record is written
        for other in item.more:
            images += self._prepare(other)
        return images

    def _fill(self) -> None:
        """Ask about what is ready, as long as there is room; wait only where nothing runs."""
        while self._engine.room:
            found = self._ready.take(wait=not self._asked)
            if found is None:
                return
            number, item, images = found
            if isinstance(images, Exception):
                self._writer.add(number, item, outcome_of_error(images))
            else:
                self._ask(number, item, images)

    def _ask(self, number: int, item: Item, images: list[Image]) -> None:
        mark = ""
        if self._job.dedupe:
            mark = _short([image.fingerprint for image in images], self._mark(item))
            if mark in self._known:
                self._writer.add(number, item, self._hit(self._known[mark], mark))
                return
            if twin := next((asked for asked in self._asked if asked.mark == mark), None):
                twin.same.append((number, item))
                return
        try:
            pending = self._asker.ask(self.request(item, images))
        except Exception as error:  # of this image and its prompt: the options were checked before
            self._writer.add(number, item, outcome_of_error(error))
        else:
            self._asked.append(_Asked(number, item, mark, pending))

    def _hit(self, outcome: Outcome, mark: str) -> Outcome:
        self.summary.hits += "error" not in outcome
        return {**outcome, "image": mark}

    def _collect(self) -> None:
        for asked in list(self._asked):
            outcome = self._asker.outcome(asked.pending)
            if outcome is None:
                continue
            self._asked.remove(asked)
            if asked.mark and "error" not in outcome:
                self._known[asked.mark] = outcome
            self._writer.add(asked.number, asked.item, {**outcome, **({"image": asked.mark} if asked.mark else {})})
            for number, item in asked.same:
                self._writer.add(number, item, self._hit(outcome, asked.mark))

    def _write(self, item: Item, outcome: Outcome) -> None:
        record: Record = {"key": item.key, **outcome, "model": self._model, "prompt": self._mark(item)}
        self._records.write(item, record)
        if "error" in outcome:
            self.summary.errors += 1
        else:
            self.summary.answered += 1
        self._update()

    def _update(self) -> None:
        summary = self.summary
        summary.total, summary.seconds = self._dataset.estimate(), time.perf_counter() - self._start
        summary.waited = self._ready.waited
        summary.duplicates, summary.first_duplicate = self._dataset.duplicates, self._dataset.first_duplicate
        self._report(summary)


class _InOrder:
    """Hands outcomes on in the order of their images, unless one keeps too many others waiting."""

    def __init__(self, write: Callable[[Item, Outcome], None]) -> None:
        self._write, self._next = write, 0
        self._waiting: dict[int, tuple[Item, Outcome]] = {}
        self._early: set[int] = set()  # written before their turn

    def add(self, number: int, item: Item, outcome: Outcome) -> None:
        self._waiting[number] = item, outcome
        if len(self._waiting) > WINDOW:
            first = min(self._waiting)
            self._early.add(first)
            self._write(*self._waiting.pop(first))
        while self._next in self._waiting or self._next in self._early:
            if self._next in self._early:
                self._early.remove(self._next)
            else:
                self._write(*self._waiting.pop(self._next))
            self._next += 1

    def flush(self) -> None:
        for number in sorted(self._waiting):
            self._write(*self._waiting.pop(number))


def _short(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _outcome(record: Record) -> Outcome:
    return {name: value for name, value in record.items() if name not in ("key", "as", "model", "prompt", "image")}


def as_dict(summary: Summary) -> dict[str, Any]:
    """For JSON, with images a second."""
    done = summary.answered + summary.errors
    rate = done / summary.seconds if summary.seconds else 0.0
    return {**asdict(summary), "images_per_second": round(rate, 3)}
