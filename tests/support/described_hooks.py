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
# What each address must be asked, where the body lacks it.
ASKED = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/decisions": {"question": "Red?", "choices": ["Yes", "No"]},
}
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
    return body if chance % 2 else _mended(body, ASKED[context.operation.path], chance)


def _mended(body, asked, chance):
    mended = {name: _right(value) for name, value in body.items() if value is not None and name != "model"}
    for group in GROUPS:
        for name in [name for name in group if name in mended][1:]:
            del mended[name]
    for i, name in enumerate(APART):
        if chance >> i & 2:
            mended.pop(name, None)
    missing = {} if mended.get("messages") else {name: value for name, value in asked.items() if not mended.get(name)}
    return {**mended, **missing, "image_size": 64}  # which is soon answered


def _right(value):
    """Addresses that lead to an image, messages that say something, images in those of the user."""
    if isinstance(value, list):
        return [_right(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("type") == "video_url":
        return {"type": "text", "text": "Hi"}
    right = {name: IMAGE if _is_address(name, item) else _right(item) for name, item in value.items()}
    if "role" in value:
        right["content"] = right.get("content") or "Hi"
        right["role"] = "user" if isinstance(right["content"], list) else right["role"]
    return right


def _is_address(name, value):
    return name in ADDRESSES and isinstance(value, str)
