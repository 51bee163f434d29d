"""Films: which frames come out, at which times; and what no film is."""

import io
import itertools
import struct

import numpy as np
import pytest
from PIL import Image

from mlx_fastvlm import load_video
from mlx_fastvlm.errors import UsageError
from mlx_fastvlm.processing import video
from tests.support.films import film, shown_at

pytest.importorskip("av", reason="needs PyAV, of the extra test")

KINDS = [
    ("libx264", "mp4"),
    ("libx264", "mov"),
    ("libvpx", "webm"),
    ("libx264", "matroska"),
    ("mpeg4", "avi"),
    ("libx264", "mpegts"),
]


@pytest.mark.parametrize(("codec", "container"), KINDS)
@pytest.mark.parametrize(("fps", "most", "count"), [(1, 8, 8), (1, 100, 30), (0.1, 8, 3), (3, 100, 90)])
def test_each_frame_is_the_one_of_its_time(codec, container, fps, most, count):
    found = load_video(film(codec=codec, container=container), fps, most)
    assert len(found) == count
    apart = max(1 / fps, 30 / most)
    for i, (time, frame) in enumerate(found):
        wanted = i * apart if apart == 1 / fps else (i + 0.5) * apart
        assert abs(time - wanted) <= 0.5 / 25 + 1e-3
        assert abs(shown_at(frame, 30) - time) < 0.4  # colours of a film are rounded
        assert (frame.mode, frame.size) == ("RGB", (64, 48))


def test_far_frames_are_sought(monkeypatch):
    """Not all of a long film is decoded for a few of its frames."""
    decoded = []
    check = video._Film._check
    monkeypatch.setattr(video._Film, "_check", lambda self, pixels: decoded.append(pixels) or check(self, pixels))
    found = load_video(film(600, 10), 1, 6)
    assert [round(time) for time, _ in found] == [50, 150, 250, 350, 450, 550]
    assert len(decoded) < 3000


def test_fewer_frames_than_asked_for_come_once():
    found = load_video(film(2, 2), 25, 100)
    assert [time for time, _ in found] == [0, 0.5, 1, 1.5]


def test_a_turned_film_is_upright():
    data = film(1, 5, size=(64, 48))
    place = data.index(b"tkhd") + 44  # the matrix of an ISO file: here as a phone writes it that was held upright
    turn = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    ((_, frame),) = load_video(data[:place] + turn + data[place + 36 :], 1, 1)
    assert frame.size == (48, 64)


def test_lists_of_frames_have_the_times_of_their_rate():
    images = [Image.new("L", (8, 8), level) for level in range(10)]
    found = load_video(images, fps=2, max_frames=4)
    assert [(time, np.asarray(frame)[0, 0, 0]) for time, frame in found] == [(0, 0), (1.5, 3), (3, 6), (4.5, 9)]
    assert len(load_video(images, 1, 100)) == 10
    assert [time for time, _ in load_video(images, 1, 1)] == [0]


@pytest.mark.parametrize("source", ["path", "file", "data URI"])
def test_from_anywhere_that_an_image_comes_from(tmp_path, source):
    import base64  # noqa: PLC0415  for this alone

    data = film(1, 5)
    (tmp_path / "film.mp4").write_bytes(data)
    given = {
        "path": str(tmp_path / "film.mp4"),
        "file": io.BytesIO(data),
        "data URI": "data:video/mp4;base64," + base64.b64encode(data).decode(),
    }
    assert [time for time, _ in load_video(given[source], 5, 100)] == [0, 0.2, 0.4, 0.6, 0.8]


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/hostname\n#EXT-X-ENDLIST\n"


def half(data):
    return data[: len(data) // 2]


NO_FILMS = {
    "bytes": (lambda: b"no film at all" * 100, "^The video can't be decoded"),
    "a playlist": (lambda: PLAYLIST, "^The video can't be decoded"),
    "a list of files": (lambda: b"ffconcat version 1.0\nfile /etc/hostname\n", "^The video can't be decoded"),
    "half an mp4": (lambda: half(film()), "^The video can't be decoded"),
    "half a film": (
        lambda: half(film(container="matroska")),
        "^The video ends after .* of 30.0 seconds",
    ),
    "nothing": (lambda: b"", "^The video is empty; give another video"),
}


@pytest.mark.parametrize("case", NO_FILMS)
def test_no_films(case):
    make, message = NO_FILMS[case]
    with pytest.raises(ValueError, match=message) as raised:
        load_video(make())
    assert "\n" not in str(raised.value)


def test_what_takes_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(video, "MAX_DECODED_FRAMES", 100)
    with pytest.raises(ValueError, match="takes too long to be decoded"):
        load_video(film(), 1, 100)
    monkeypatch.setattr(video, "MAX_PIXELS", 100)
    with pytest.raises(ValueError, match="too many pixels"):
        load_video(film(1), 1, 1)


def png():
    file = io.BytesIO()
    Image.new("RGB", (64, 48)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("make", [lambda: film(seconds=1), lambda: [png(), png()]], ids=["film", "list"])
def test_frames_of_too_many_pixels(make):
    """A server's own limit, which may be below the library's."""
    source = make()
    assert [frame.size for _, frame in video.iter_video(source, 1, 1, max_pixels=64 * 48)] == [(64, 48)]
    with pytest.raises(ValueError, match="too many pixels"):
        list(video.iter_video(source, 1, 1, max_pixels=64 * 48 - 1))


@pytest.mark.parametrize(("fps", "most"), [(0, 8), (-1, 8), (float("nan"), 8), ("2", 8), (1, 0), (1, 1.5), (True, 8)])
def test_impossible_rates(fps, most):
    with pytest.raises(UsageError, match=r"fps|max_frames"):
        load_video(b"", fps, most)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UsageError, match=r"pip install \"mlx-fastvlm\[video\]\""):
        load_video(b"x")


def test_random_damage_is_one_sentence():
    data = film(3, 5)
    random, said = np.random.RandomState(0), []
    for _, count in itertools.product(range(40), (1, 20)):
        damaged = bytearray(data)
        for place in random.randint(0, len(data), count):
            damaged[place] = random.randint(256)
        try:
            load_video(bytes(damaged))
        except ValueError as error:
            said.append(str(error))
    assert said
    assert not any("\n" in sentence for sentence in said)
