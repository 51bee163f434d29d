"""Inputs of tests, damaged at random: bytes, and values of JSON."""

import copy
import json
import random
import struct

ODD = [
    None, True, False, 0, 1, -1, 2, 7, 63, 64, 255, 2**31, 2**63, 2**64, 10**400, -(10**18), 0.5, -0.0, 1e308,
    float("nan"), float("inf"), "", "a", "64", "\x00", "\ud800", "é" * 300, "<image>", "<|im_end|>", "../..",
    [], [[]], [0], [1, 2, 3], {},
    {"": ""}, {"content": 3}, [None] * 5, "{{ 7 * 7 }}", "{% for", "(a+)+$",
]  # fmt: skip


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, cut out, put in, repeated, or numbers made huge."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(7):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(data):
                data[at] = rng.randrange(256)
            case 2:
                del data[at : at + rng.choice((1, 4, 50, 10**6))]
            case 3:
                data[at:at] = rng.randbytes(rng.choice((1, 4, 50)))
            case 4:
                data[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 10**8)))
            case 5:
                data[at:at] = data[at : at + 64] * rng.choice((1, 20))
            case 6:
                data[at : at + 8] = struct.pack("<Q", rng.choice((0, 2**63, 2**64 - 1, len(data), len(data) * 2)))
    return bytes(data)


def disturbed(value, rng: random.Random):
    """JSON with a few of its values, or keys, replaced by odd ones, at any depth."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(value))
        holder, key = rng.choice(places)
        match rng.randrange(6):
            case 0 | 1 | 2:
                holder[key] = copy.deepcopy(rng.choice(ODD))  # it may be disturbed next
            case 3:
                del holder[key]
            case 4 if isinstance(holder, dict):
                holder[rng.choice(("", "type", "content", "id", "vocab", str(rng.choice(ODD))[:50]))] = holder[key]
            case _:
                other, place = rng.choice(places)
                holder[key] = json.loads(json.dumps(other[place])) if not _within(other, place) else None
        if not value:
            return value
    return value


def _places(value):
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        if len(value) < 1000 or not isinstance(value[key], (int, str)):
            yield from _places(value[key])


def _within(holder, key) -> bool:
    """Whether a place is gone, or so large that copying it again and again would take over."""
    try:
        return len(json.dumps(holder[key])) > 10**5
    except (KeyError, IndexError):
        return True
