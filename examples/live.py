"""Caption what moves: a folder of frames, an animated image, a video, or a camera.

    python examples/live.py frames/                     # every image of a folder, in order
    python examples/live.py animation.gif               # every frame
    python examples/live.py film.mp4 --every 0.5        # a frame for each half second of the film
    python examples/live.py 0 --model apple/FastVLM-0.5B --image-size 512 --prompt "What is happening? One sentence."

A number is a camera; of its frames the newest is taken each time, so that captions do not fall behind. Cameras need
`pip install ".[camera]"`, films `".[video]"`. Speed: a smaller --image-size, fewer --max-tokens.
"""

import argparse
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageSequence

from mlx_fastvlm import load, stream_generate
from mlx_fastvlm.data.folders import find_images
from mlx_fastvlm.processing.video import iter_video


def frames(source: str, every: float) -> Iterator[Image.Image]:
    """The images of any source, each when it is asked for."""
    if source.isdigit():
        yield from camera(int(source))
    elif Path(source).is_dir():
        yield from map(Image.open, find_images(Path(source)))
    elif Path(source).suffix.lower() in Image.registered_extensions():
        yield from ImageSequence.Iterator(Image.open(source))
    else:
        yield from film(source, every)


def film(source: str, every: float) -> Iterator[Image.Image]:
    """A frame for each ``every`` seconds of a film."""
    try:
        for _, frame in iter_video(source, 1 / every, max_frames=10**6):
            yield frame
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None


def camera(number: int) -> Iterator[Image.Image]:
    """The newest frame each time. A thread reads on meanwhile: OpenCV would hand out the oldest one it has."""
    cv2 = opencv()
    device = cv2.VideoCapture(number)
    if not device.isOpened():
        raise SystemExit(f"error: there is no camera {number}, or this terminal may not use it")
    newest, arrived = device.read(), threading.Event()

    def read():
        nonlocal newest
        while newest[0]:
            newest = device.read()
            arrived.set()

    threading.Thread(target=read, daemon=True).start()
    while True:
        there, frame = newest
        if not there:
            return
        yield from_opencv(frame)
        arrived.wait()
        arrived.clear()


def opencv():
    try:
        import cv2  # noqa: PLC0415  optional
    except ImportError:
        raise SystemExit('error: a camera needs OpenCV: pip install ".[camera]"') from None
    return cv2


def from_opencv(frame) -> Image.Image:
    return Image.fromarray(frame[..., ::-1])  # OpenCV's channels are blue, green, red


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a folder, an animated image, a video, or a camera's number, such as 0")
    parser.add_argument("--model", default="demo", help="a folder, a hub id or demo (%(default)s)")
    parser.add_argument("--prompt", default="What are these?", help="the question (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=40, help="stop after this many tokens (%(default)s)")
    parser.add_argument("--image-size", type=int, help="side to scale frames to, a multiple of 64; smaller is faster")
    parser.add_argument("--every", type=float, default=1.0, help="seconds of a video between frames (%(default)s)")
    arguments = parser.parse_args()

    model, processor = load(arguments.model)
    options = {"max_tokens": arguments.max_tokens, "image_size": arguments.image_size}
    times = deque([time.perf_counter()], maxlen=10)  # of the latest frames: the first is slower than the others
    for count, frame in enumerate(frames(arguments.source, arguments.every), 1):
        print(f"{count:4}  ", end="")
        for response in stream_generate(model, processor, arguments.prompt, frame, **options):
            print(response.text, end="", flush=True)
        times.append(time.perf_counter())
        print(f"   [{(len(times) - 1) / (times[-1] - times[0]):.1f} frames/s]", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print()  # a camera never ends by itself
