"""For schemathesis: mends half of the bodies where a JSON schema can't say what is right."""

import base64
import io
import json
import zlib

import schemathesis
from PIL import Image

_FILE = io.BytesIO()
Image.new("RGB", (20, 12), "red").save(_FILE, "PNG")
IMAGE = "data:image/png;base64," + base64.b64encode(_FILE.getvalue()).decode()
ADDRESSES = ("url", "image_url", "image")
# Of each group one at most may be given, or they must agree: the first stays.
GROUPS = (("max_completion_tokens", "max_tokens"), ("messages", "question"), ("messages", "images", "image"))
# What has conditions of its own stays now and then.
APART = ("logit_bias", "repetition_penalty", "temperature", "min_tokens", "fps", "max_frames", "response_format")


@schemathesis.hook
def map_body(context, body):
    """By its bytes, so that the same body is always treated alike."""
    if not isinstance(body, dict):
        return body
    chance = zlib.crc32(json.dumps(body, sort_keys=True, default=str).encode())
    return body if chance % 2 else _mended(body, chance)


def _mended(body, chance):
    mended = _with_images(body)
    mended.pop("model", None)
    mended["image_size"] = 64  # which is soon answered
    for group in GROUPS:
        for name in [name for name in group if name in mended][1:]:
            del mended[name]
    for i, name in enumerate(APART):
        if chance >> i & 2:
            mended.pop(name, None)
    return mended


def _with_images(value):
    if isinstance(value, list):
        return [_with_images(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {name: IMAGE if _is_address(name, item) else _with_images(item) for name, item in value.items()}


def _is_address(name, value):
    return name in ADDRESSES and isinstance(value, str)
