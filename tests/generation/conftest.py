"""Folders of images, and what an engine is asked about them."""

import pytest
from PIL import Image

from tests.support import small
from tests.support.datasets import write_images
from tests.support.models import wide_model

IMAGES = [Image.fromarray(small.odd_image(70, 50)), Image.new("RGB", (40, 60), "white"), Image.new("RGB", (9, 9))]


@pytest.fixture
def wide():
    return wide_model()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(IMAGES):
        image.save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image either")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "more.png").mkdir()
    return folder


@pytest.fixture
def many(tmp_path):
    """A folder of 9 small images."""
    return write_images(tmp_path / "many", range(9), "{:02}.png")
