"""Frames of animations come one at a time, and what they would take is known before any is decoded."""

import io
import struct
import weakref

import numpy as np
import pytest
from PIL import GifImagePlugin, Image, TiffImagePlugin

from mlx_fastvlm import load_frames, load_image
from mlx_fastvlm.processing import images
from mlx_fastvlm.processing.images import MAX_FRAMES, iter_frames
from tests.support.images import encoded

COLOURS = [Image.new("RGB", (40, 30), (level, 0, 0)) for level in range(0, 250, 25)]


def animation(kind, frames=COLOURS, **options):
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def gif_of_dots(width, height, frames, last=None):
    """A GIF of one-pixel frames, 15 bytes each, on a canvas of any size; the last at another place if wanted."""
    places = [(i % (width - 1), 0) for i in range(frames)]
    places[-1] = last or places[-1]
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes([0, 0, 0, 255, 255, 255])
    dots = (b"," + struct.pack("<HHHHB", x, y, 1, 1, 0) + b"\x02\x02\x4c\x01\x00" for x, y in places)
    return head + b"".join(dots) + b";"


@pytest.fixture
def decoded(monkeypatch):
    """Sizes of what Pillow decodes."""
    seen = []
    for kind in (GifImagePlugin.GifImageFile, TiffImagePlugin.TiffImageFile):

        def load(self, real=kind.load):
            if self.tile:
                seen.append(self.size)
            return real(self)

        monkeypatch.setattr(kind, "load", load)
    return seen


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_frames_are_those_of_the_list_and_none_is_kept(kind):
    data = animation(kind, **({"lossless": True} if kind == "WEBP" else {}))
    expected = [np.asarray(frame) for frame in load_frames(data, 4)]
    assert [frame[0, 0, 0] for frame in expected] == [0, 75, 150, 225]
    seen = []
    for frame in iter_frames(data, 4):
        assert all(earlier() is None for earlier in seen[:-1])  # the last one is the loop's until now
        assert np.array_equal(frame, expected[len(seen)])
        seen.append(weakref.ref(frame))
    assert len(seen) == 4


def test_a_frame_that_was_given_out_stays_as_it_is():
    frames = load_frames(animation("TIFF"), 10)
    assert [np.asarray(frame)[0, 0, 0] for frame in frames] == [*range(0, 250, 25)]


def test_frames_lie_the_right_way_up():
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("TIFF", "WEBP"):
        assert [frame.size for frame in load_frames(animation(kind, exif=exif), 2)] == [(30, 40)] * 2, kind


def test_nothing_is_decoded_before_it_is_asked_for(decoded):
    frames = iter_frames(animation("TIFF"), 3)
    assert decoded == []
    next(frames)
    assert len(decoded) == 1
    frames.close()
    assert len(decoded) == 1


def test_a_file_is_closed_when_nobody_goes_on(tmp_path, monkeypatch):
    path, opened = tmp_path / "a.tiff", []
    path.write_bytes(animation("TIFF"))
    real = type(path).open
    monkeypatch.setattr(type(path), "open", lambda *arguments: opened.append(real(*arguments)) or opened[-1])
    frames = iter_frames(path, 3)
    next(frames)
    assert not opened[0].closed
    frames.close()
    assert opened[0].closed


def test_a_pil_image_goes_back_to_its_frame():
    for kind in ("GIF", "PNG", "TIFF"):
        image = Image.open(io.BytesIO(animation(kind)))
        image.seek(3)
        frames = iter_frames(image, 2)
        next(frames)
        frames.close()
        assert image.tell() == 3
        assert len(load_frames(image, 99)) == 10
        assert image.tell() == 3


@pytest.mark.parametrize("frames", [0, -1, 1.5, "3", True, None])
def test_numbers_of_frames_that_are_none(frames):
    with pytest.raises(ValueError, match="frames must be a whole number from 1"):
        load_frames(COLOURS[0], frames)


def test_too_many_frames_are_refused_before_one_is_decoded(decoded):
    data = gif_of_dots(10, 10, MAX_FRAMES + 1)
    with pytest.raises(ValueError, match="more than 10000 frames"):
        load_frames(data, 2)
    assert decoded == []
    assert load_image(data).size == (10, 10)  # its first frame is like any other image
    assert len(load_frames(gif_of_dots(10, 10, MAX_FRAMES), 3)) == 3


def test_pages_are_counted_no_further_than_they_may(decoded, monkeypatch):
    monkeypatch.setattr(images, "MAX_FRAMES", 9)
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "n_frames", property(lambda _: pytest.fail("counts them all")))
    with pytest.raises(ValueError, match="more than 9 frames"):
        load_frames(animation("TIFF"), 2)
    assert decoded == []


def test_as_many_pages_as_may_be(monkeypatch):
    monkeypatch.setattr(images, "MAX_FRAMES", 10)
    assert len(load_frames(animation("TIFF"), 99)) == 10


def test_a_few_bytes_that_would_take_gigabytes_are_refused(decoded):
    with pytest.raises(ValueError, match="too many pixels in its 100 frames"):
        load_frames(gif_of_dots(5000, 5000, 100), 20)
    assert decoded == []


def test_only_pages_that_are_decoded_count(decoded, monkeypatch):
    monkeypatch.setattr(images, "MAX_ANIMATION_PIXELS", 3 * 40 * 30)
    assert len(load_frames(animation("TIFF"), 3)) == 3
    assert len(decoded) == 3
    with pytest.raises(ValueError, match="too many pixels in its 10 frames"):
        load_frames(animation("TIFF"), 4)
    with pytest.raises(ValueError, match="too many pixels in its 10 frames"):  # each one is decoded on the way
        load_frames(animation("GIF"), 2)


@pytest.mark.parametrize("size", [(100, 100), (3000, 2)])
def test_a_later_page_is_checked_before_it_is_decoded(decoded, monkeypatch, size):
    monkeypatch.setattr(images, "MAX_PIXELS", 9999)
    data = animation("TIFF", [*COLOURS[:2], Image.new("RGB", size), COLOURS[2]])
    with pytest.raises(ValueError, match=r"too many pixels|too narrow"):
        load_frames(data, 4)
    assert size not in decoded
    assert len(load_frames(data, 2)) == 2  # which leave that page out


def test_a_later_frame_that_widens_the_canvas(decoded, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 9999)
    with pytest.raises(ValueError, match="too many pixels"):
        load_frames(gif_of_dots(10, 10, 5, last=(200, 200)), 2)
    assert (201, 201) not in decoded


def test_images_in_memory_may_have_any_size(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    assert load_image(COLOURS[0]).size == load_image(np.asarray(COLOURS[0])).size == (40, 30)
    with pytest.raises(ValueError, match="too many pixels"):
        load_image(animation("PNG", COLOURS[:1]))
