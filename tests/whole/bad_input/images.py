"""Images that can't be read: files, data URIs, arrays."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from mlx_fastvlm.caption import main as caption
from tests.support.images import encoded

from .cases import IMAGE, Case


def png_that_says(width, height):
    """A tiny PNG whose header promises another size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def image(words, source, **how):
    return Case(words, lambda place: ["--image", source(place)], **how)


CASES = {
    "image: missing": image("no such image", lambda p: "no.png"),
    "image: a name longer than names can be": image("no such image", lambda p: "a" * 5000),
    "image: a user that is none": image("no such image", lambda p: "~nobody-here/a.png"),
    "image: empty": image("is empty", lambda p: p.file("a.png")),
    "image: cut off": image("broken", lambda p: p.file("a.png", encoded(IMAGE)[:600])),
    "image: a cut-off JPEG": image("broken", lambda p: p.file("a.jpg", encoded(IMAGE, "JPEG")[:500])),
    "image: junk": image("not an image", lambda p: p.file("a.png", b"no image" * 99)),
    "image: a folder": image("is not a file", lambda p: str(p.folder)),
    "image: a FIFO": image("is not a file", lambda p: p.fifo()),
    "image: a device": image("is not a file", lambda p: "/dev/zero"),
    "image: a bomb": image("too many pixels", lambda p: p.file("a.png", png_that_says(30_000, 30_000))),
    "image: without width": image("not an image", lambda p: p.file("a.png", png_that_says(0, 20))),
    "image: less than it promises": image("broken", lambda p: p.file("a.png", png_that_says(900, 900))),
    "image: 1 x 5000": image("too narrow", lambda p: p.file("a.png", encoded(Image.new("RGB", (1, 5000))))),
    "image: so narrow that it is not decoded": image(
        "too narrow", lambda p: p.file("a.png", png_that_says(8_000_000, 20))
    ),
    "image: PostScript": image("not an image", lambda p: p.file("a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%EOF")),
    "image: nothing on standard input": image("is empty", lambda p: "-"),
    "image: junk on standard input": image("not an image", lambda p: "-", stdin=b"junk"),
    "image: data URI without data": image("comma", lambda p: "data:image/png;base64"),
    "image: data URI with bad base64": image("not valid base64", lambda p: "data:image/png;base64,@@@"),
    "image: data URI of junk": image("not an image", lambda p: "data:text/plain,hello"),
    "image: data URI of nothing": image("is empty", lambda p: "data:image/png;base64,"),
    "image: data URI in capitals": image("not valid base64", lambda p: "DATA:IMAGE/PNG;BASE64,@"),
    "image: SVG": image("not an image", lambda p: p.file("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>")),
    "image: PDF": image("not an image", lambda p: p.file("a.pdf", b"%PDF-1.4\n%%EOF")),
    "image: HEIC that is none": image("a.heic", lambda p: p.file("a.heic", b"\0\0\0\x18ftypheic" + bytes(99))),
    "image: a GIF of its header": image("a.gif", lambda p: p.file("a.gif", b"GIF89a" + bytes(7))),
    "image: a WebP that is cut off": image("a.webp", lambda p: p.file("a.webp", encoded(IMAGE, "WEBP")[:60])),
    "image: a TIFF that is cut off": image("a.tiff", lambda p: p.file("a.tiff", encoded(IMAGE, "TIFF")[:60])),
    "image: a name of two lines": image("no such image", lambda p: "a\nb.png"),
    "image: a file URL": image("no such image", lambda p: "file:///etc/passwd"),
    "image: more than marks": Case("one mark for each", lambda p: ["--prompt", "<image> <image>"]),
    "image: a folder of none": Case(
        "no such file or folder", lambda p: [str(p.folder / "none"), "--output", "captions.jsonl"], command=caption
    ),
    "image: captions into a file of something else": Case(
        "something other than captions",
        lambda p: [str(Path(p.file("a.png", encoded(IMAGE))).parent), "--output", p.file("mine.jsonl", "precious")],
        command=caption,
    ),
}

ARRAYS = {
    "NaN": (np.full((4, 4, 3), float("nan")), "finite"),
    "infinite": (np.full((4, 4, 3), float("inf")), "finite"),
    "0 to 255 in floats": (np.full((4, 4, 3), 200.0), "divide by 255"),
    "negative": (np.full((4, 4, 3), -1), r"\[0, 255\]"),
    "above 255": (np.full((4, 4, 3), 300), r"\[0, 255\]"),
    "seven channels": (np.zeros((4, 4, 7), np.uint8), "must have shape"),
    "one dimension": (np.zeros(12, np.uint8), "must have shape"),
    "five dimensions": (np.zeros((1, 1, 4, 4, 3), np.uint8), "must have shape"),
    "channels first": (np.zeros((3, 20, 30), np.uint8), "must have shape"),
    "no rows": (np.zeros((0, 4, 3), np.uint8), "must have shape"),
    "complex": (np.zeros((4, 4, 3), complex), "not complex128"),
    "texts": (np.full((4, 4), "a"), "not <U1"),
    "objects": (np.full((4, 4), None), "not object"),
    "truth values": (np.zeros((4, 4), bool), "not bool"),
    "1 x 5000": (np.zeros((5000, 1, 3), np.uint8), "too narrow"),
    "an image without width": (Image.new("RGB", (0, 9)), "no pixels"),
    "a number": (3, "can't be read from int"),
    "a dict": ({"url": "a.png"}, "can't be read from dict"),
    "a name with a zero byte": ("a\0b.png", "no such image"),
}
