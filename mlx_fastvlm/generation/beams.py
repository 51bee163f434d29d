"""Beam search as transformers does it (from 4.50 on), scores and stopping included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from .stepping import Decoder, Record, TensorOptions, stopped

if TYPE_CHECKING:
    from .logits import LogitsChain

NEVER = -1e9  # a score that loses to every real one


class _Beams:
    """The running and the finished sequences of a batch; all arrays are numpy's, (rows, beams, ...).

    Attributes:
        running: ids of those that go on; ``scores`` are their log-probabilities.
        finished: ids of the best that ended, with ``finished_scores``, and ``ended`` where there is one.
        hopeful: (rows, 1), whether a running one may still beat the finished ones.
    """

    def __init__(self, ids: np.ndarray, beams: int, most: int, fill: int, options: TensorOptions) -> None:
        rows, self.prompt = ids.shape
        self.beams, self.length, self._most, self._options = beams, self.prompt, most, options
        self.running = np.full((rows, beams, most), fill, np.int32)
        self.running[:, :, : self.prompt] = ids[:, None]
        self.finished = self.running.copy()
        self.finished_lengths = np.full((rows, beams), self.prompt)
        self.scores = np.full((rows, beams), NEVER, np.float32)
        self.scores[:, 0] = 0  # all beams of a row begin the same; the first alone is asked
        self.finished_scores = np.full((rows, beams), NEVER, np.float32)
        self.ended = np.zeros((rows, beams), bool)
        self.hopeful = np.ones((rows, 1), bool)
        self.open = True

    def advance(self, scores: np.ndarray, parents: np.ndarray, tokens: np.ndarray, stops: Any) -> np.ndarray:
        """Take the best continuations, (rows, candidates) of each, best first.

        Returns:
            (rows, beams), which beam each running one goes on from.
        """
        options, length = self._options, self.length
        sequences = np.take_along_axis(self.running, parents[:, :, None], axis=1)
        sequences[:, :, length] = tokens
        done = stops(sequences[:, :, : length + 1])
        self._finish(sequences, scores, done)
        lasting = scores + done * np.float32(NEVER)
        best = np.argsort(-lasting, axis=1, kind="stable")[:, : self.beams]
        self.running = np.take_along_axis(sequences, best[:, :, None], axis=1)
        self.scores = np.take_along_axis(lasting, best, axis=1)
        self.length += 1
        self._judge()
        full = self.ended.all() and options.early_stopping is True
        self.open = bool(self.hopeful.any() and not full and not done.all())
        return np.take_along_axis(parents, best, axis=1)

    def _finish(self, sequences: np.ndarray, scores: np.ndarray, done: np.ndarray) -> None:
        """Keep what ended, where it is better than what is kept."""
        options, size = self._options, self.length + 1 - self.prompt
        ended = done & (np.arange(scores.shape[1]) < self.beams)  # the others are there to fill gaps only
        scores = scores / np.float32(size**options.length_penalty)
        full = self.ended.all(axis=1, keepdims=True) & (options.early_stopping is True)
        barred = full.astype(int) + ~self.hopeful + ~ended  # each of the three reasons counts, as there
        scores = scores + barred.astype(np.float32) * np.float32(NEVER)
        merged = np.concatenate([self.finished_scores, scores], axis=1)
        best = np.argsort(-merged, axis=1, kind="stable")[:, : self.beams]
        lengths = np.concatenate([self.finished_lengths, np.full(scores.shape, self.length + 1)], axis=1)
        self.finished_scores = np.take_along_axis(merged, best, axis=1)
        self.finished_lengths = np.take_along_axis(lengths, best, axis=1)
        all_sequences = np.concatenate([self.finished, sequences], axis=1)
        self.finished = np.take_along_axis(all_sequences, best[:, :, None], axis=1)
        self.ended = np.take_along_axis(np.concatenate([self.ended, ended], axis=1), best, axis=1)

    def _judge(self) -> None:
        """Whether the best running sequence of a row could still beat its worst finished one."""
        options = self._options
        longest = options.early_stopping == "never" and options.length_penalty > 0
        size = (self._most if longest else self.length) - self.prompt
        possible = self.scores[:, :1] / np.float32(size**options.length_penalty)
        worst = np.where(self.ended, self.finished_scores.min(axis=1, keepdims=True), NEVER)
        self.hopeful &= (possible > worst).any(axis=1, keepdims=True)


def beam_search(
    decoder: Decoder, chain: LogitsChain, options: TensorOptions, ends: list[int], pad: int
) -> tuple[mx.array, Record]:
    """The best ``num_return_sequences`` of each row's beams, best first."""
    record = Record([], [])
    beams, most = options.num_beams, decoder.prompt + options.new_tokens(decoder.prompt)
    state = _Beams(np.array(decoder.ids), beams, most, pad, options)
    logits = mx.repeat(decoder.read(), beams, axis=0)
    decoder.repeat(beams)
    rows, candidates = state.scores.shape[0], max(2, 1 + len(ends)) * beams

    def stops(sequences: np.ndarray) -> np.ndarray:
        flat = mx.array(sequences.reshape(-1, sequences.shape[-1]))
        done = np.array(stopped(flat, ends, options, record)).reshape(sequences.shape[:2])
        ended: np.ndarray = done | (sequences.shape[-1] >= most)
        return ended

    while True:
        scores = chain(decoder.ids, logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        record.scores += [scores] if options.output_scores else []
        record.logits += [logits] if options.output_logits else []
        total = scores.reshape(rows, beams, -1) + mx.array(state.scores)[:, :, None]
        flat = total.reshape(rows, -1)
        ranked = flat + mx.random.gumbel(flat.shape) if options.do_sample else flat  # draws without replacement
        best = mx.argpartition(-ranked, candidates - 1, axis=-1)[:, :candidates]
        values, places = np.array(mx.take_along_axis(flat, best, axis=-1)), np.array(best)
        order = np.argsort(-values, axis=1, kind="stable")
        values, places = np.take_along_axis(values, order, axis=1), np.take_along_axis(places, order, axis=1)
        size = scores.shape[-1]
        parents = state.advance(values, places // size, places % size, stops)
        if not state.open:
            break
        decoder.take(mx.array((parents + np.arange(rows)[:, None] * beams).reshape(-1)))
        decoder.ids = mx.array(state.running[:, :, : state.length].reshape(rows * beams, -1))
        logits = decoder.step(decoder.ids[:, -1])
    chosen = slice(None, options.num_return_sequences)
    sequences = state.finished[:, chosen].reshape(-1, most)[:, : state.finished_lengths[:, chosen].max()]
    record.sequences_scores = mx.array(state.finished_scores[:, chosen].reshape(-1))
    return mx.array(sequences), record
