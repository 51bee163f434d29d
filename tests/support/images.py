"""The image that most tests ask about, their question, and images as the bytes of a file."""

import io

from PIL import Image

from tests.support import small

IMAGE = Image.fromarray(small.odd_image(70, 50))
PROMPT = "What is this?"


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
