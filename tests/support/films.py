"""Films whose frames say when they are shown."""

import io

import numpy as np
from PIL import Image

SIZE = 64, 48


def film(seconds=30, rate=25, codec="libx264", container="mp4", size=SIZE):
    """The bytes of a film that goes from black to white."""
    import av  # noqa: PLC0415  an extra

    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        count = round(seconds * rate)
        for i in range(count):
            frame = av.VideoFrame.from_image(Image.new("RGB", size, (round(255 * i / count),) * 3))
            for packet in stream.encode(frame):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    return file.getvalue()


def shown_at(frame, seconds):
    """When a frame of such a film is shown, by its brightness."""
    return np.asarray(frame).mean() / 255 * seconds
