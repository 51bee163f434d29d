"""A video -> some of its frames as upright RGB images, each with its time."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any, BinaryIO

from PIL import Image

from ..errors import UsageError, one_line, require, require_whole
from .images import MAX_PIXELS, iter_frames
from .sources import open_source

# FFmpeg's other readers stay shut: playlists and scripts among them lead to further files and addresses.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,flv,ogg,gif"
MAX_DECODED_PIXELS = 4 * 10**10  # of a video, on the way to the frames that are wanted: ten minutes at 1080p
MAX_DECODED_FRAMES = 200_000
LATE = 1.0  # seconds that a video may go on for, by its own account, after its last frame's end
# Frames further apart than so many seconds are sought: FFmpeg then decodes from the key frame before.
SEEK = 5.0

VideoSource = Any  # a path, URL, data: URI, bytes or open file, as for images; or a list of images, in order


def load_video(source: VideoSource, fps: float = 1.0, max_frames: int = 8) -> list[tuple[float, Image.Image]]:
    """Some frames of a video with their times in seconds; see :func:`iter_video`."""
    return list(iter_video(source, fps, max_frames))


def iter_video(
    source: VideoSource, fps: float = 1.0, max_frames: int = 8, max_pixels: int | None = None
) -> Iterator[tuple[float, Image.Image]]:
    """Some frames of a video, one at a time.

    Args:
        source: a path, an http(s) URL, a ``data:`` URI, the bytes or an open file of a video: mp4, mov, webm and others
            that FFmpeg decodes, which needs the package ``av``. Or a list of images; then ``fps`` is how fast they were
            taken.
        fps: how many frames a second to take. Of a longer video they are further apart, so that they span all of it.
        max_frames: at most so many.
        max_pixels: of a frame as it comes; larger ones are refused before they are decoded. None is the library's own
            limit, ``processing.images.MAX_PIXELS``.

    Returns:
        Pairs of seconds since the video's first frame and a PIL image of mode RGB, in order: of each time, the frame
        that is nearest to it, with its own time.

    Raises:
        UsageError: for an impossible ``fps`` or ``max_frames``, or where ``av`` is missing.
        FileNotFoundError, OSError: it could not be read or fetched.
        ValueError: it is no video, broken, or too long to be decoded.
    """
    require(_is_positive(fps), "fps must be a positive number", fps)
    require_whole("max_frames", max_frames)
    require(max_frames >= 1, "max_frames must be at least 1", max_frames)
    if isinstance(source, (list, tuple)):
        return _listed(source, fps, max_frames, max_pixels)
    file, name = open_source(source, "video")
    return _decoded(file, name, fps, max_frames, MAX_PIXELS if max_pixels is None else max_pixels)


def _is_positive(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def _listed(images: Any, fps: float, max_frames: int, max_pixels: int | None) -> Iterator[tuple[float, Image.Image]]:
    require(len(images) > 0, "a list of frames must not be empty", images)
    for i in _spread(len(images), max_frames):
        yield i / fps, next(iter_frames(images[i], 1, max_pixels))


def _spread(count: int, most: int) -> list[int]:
    """At most so many of ``count`` places, evenly spaced from the first to the last."""
    taken = min(count, most)
    return [round(i * (count - 1) / (taken - 1)) for i in range(taken)] if taken > 1 else [0]


def _decoded(
    file: BinaryIO, name: str, fps: float, max_frames: int, max_pixels: int
) -> Iterator[tuple[float, Image.Image]]:
    av = _av()
    with file, _one_sentence(name), av.open(file, options={"format_whitelist": CONTAINERS}) as container:
        if not container.streams.video:
            raise _VideoError(f"{name} has no moving images; give a video.")
        yield from _Film(container, name, max_pixels).frames_at(fps, max_frames)


class _Film:
    """The first video stream of an open file."""

    def __init__(self, container: Any, name: str, max_pixels: int) -> None:
        self._container, self._stream, self._name = container, container.streams.video[0], name
        self._max_pixels = max_pixels
        self._frames_decoded = self._pixels_decoded = 0

    def frames_at(self, fps: float, max_frames: int) -> Iterator[tuple[float, Image.Image]]:
        """The frames at times 1/fps apart, or further, so that so many span all of the video."""
        duration = self._duration()
        frames = self._frames()
        shown, after = next(frames, None), next(frames, None)
        if shown is None:
            raise _VideoError(f"{self._name} has no frames; give a video.")
        last = None
        for time in _times(duration, fps, max_frames):
            if after is not None and time - after[0] > SEEK and self._stream.duration:
                shown, frames = self._sought(time, after)
                after = next(frames, None)
            while after is not None and (shown[0] + after[0]) / 2 <= time:
                shown, after = after, next(frames, None)
            if after is None and time > self._end(shown):
                if duration is None:
                    return  # it has ended
                if duration > self._end(shown) + LATE:
                    raise _VideoError(
                        f"{self._name} ends after {self._end(shown):.1f} of {duration:.1f} seconds, so it is cut off; "
                        "give all of it."
                    )
            if shown[0] != last:  # it may have fewer frames a second than asked for
                last = shown[0]
                yield last, _upright(shown[1])

    def _duration(self) -> float | None:
        """Seconds from the first frame to the end; None where the file does not say."""
        if self._stream.duration:
            return float(self._stream.duration * self._stream.time_base)
        return self._container.duration / 1e6 if self._container.duration else None

    def _end(self, frame: tuple[float, Any]) -> float:
        """When a frame is over."""
        return frame[0] + float((frame[1].duration or 0) * self._stream.time_base)

    def _sought(self, time: float, otherwise: Any) -> tuple[Any, Iterator[tuple[float, Any]]]:
        """A frame before ``time``, not long before, and those behind it.

        Files without an index lead to later places; then it is tried further back, and at last from the beginning.
        """
        for back in (0.0, 2 * SEEK, time):
            frames = self._frames(max(0.0, time - back))
            first = next(frames, None)
            if first is not None and first[0] <= time:
                return first, frames
        return otherwise if first is None else first, frames

    def _frames(self, time: float | None = None) -> Iterator[tuple[float, Any]]:
        """The frames from the first one on, or from the last before ``time`` that can be decoded alone."""
        stream = self._stream
        start = stream.start_time or 0
        if time is not None:
            self._container.seek(start + int(time / stream.time_base), stream=stream)
        self._check(getattr(stream, "width", 0) * getattr(stream, "height", 0))
        for frame in self._container.decode(stream):
            self._check(frame.width * frame.height)
            if frame.pts is not None:
                yield float((frame.pts - start) * stream.time_base), frame

    def _check(self, pixels: int) -> None:
        self._frames_decoded += 1
        self._pixels_decoded += pixels
        if pixels > self._max_pixels:
            raise _VideoError(f"{self._name} has too many pixels to be decoded safely; scale it down first.")
        if self._pixels_decoded > MAX_DECODED_PIXELS or self._frames_decoded > MAX_DECODED_FRAMES:
            raise _VideoError(f"{self._name} takes too long to be decoded; cut it or scale it down.")


def _times(duration: float | None, fps: float, most: int) -> list[float]:
    """When frames are to be taken: every 1/fps seconds from the beginning on, or in the middle of so many parts."""
    if duration is None:
        return [i / fps for i in range(most)]
    count = max(1, math.ceil(duration * fps - 1e-6))
    return [i / fps for i in range(count)] if count <= most else [duration * (i + 0.5) / most for i in range(most)]


def _upright(frame: Any) -> Image.Image:
    """A frame as a PIL image, turned as the video asks."""
    image: Image.Image = frame.to_image()
    turn = round(getattr(frame, "rotation", 0) or 0) % 360
    return image.rotate(turn, expand=True) if turn else image


def _av() -> Any:
    try:
        import av  # noqa: PLC0415  an extra
    except ImportError:
        raise UsageError('Video files need one more package: pip install "mlx-fastvlm[video]".') from None
    # FFmpeg would write to the terminal; and its threads would wait for Python's lock to say so, perhaps for ever.
    av.logging.restore_default_callback()
    av.logging.set_libav_level(-8)  # AV_LOG_QUIET
    return av


class _VideoError(ValueError):
    """A whole sentence about a video."""


@contextlib.contextmanager
def _one_sentence(name: str) -> Iterator[None]:
    """Whatever FFmpeg raises, as one sentence."""
    try:
        yield
    except _VideoError:
        raise
    except Exception as error:  # of FFmpeg, or of its wrapper for a damaged file
        reason = one_line(getattr(error, "strerror", None) or str(error) or type(error).__name__)
        raise ValueError(f"{name} can't be decoded ({reason}); give an mp4, mov or webm.") from None
