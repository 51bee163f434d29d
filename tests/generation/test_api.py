"""The generator: every option does what it says, and nothing runs on a bad one."""

import base64
import dataclasses
import io
import re

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlx_fastvlm import generate, stream_generate
from tests.support.images import IMAGE, PROMPT
from tests.support.models import wide_model

OTHER = Image.new("RGB", (40, 60), "white")


@pytest.fixture
def small_model(untied_model):
    return untied_model


def same(a, b):
    return np.abs(a - b).max() < 1e-5 * a.std()


def test_greedy_is_the_argmax_of_the_whole_context(small_model, ask):
    """Without a cache and in one piece, each token again."""
    model, processor = small_model
    answer = ask()
    ids = processor.encode_chat([{"role": "user", "content": f"<image>\n{PROMPT}"}])
    pixels = processor.preprocess(IMAGE)
    for i, token in enumerate(answer):
        logits = model(mx.array([ids + answer[:i]]), pixels).logits
        assert mx.argmax(logits[0, -1]).item() == token


def test_streaming_gives_what_generate_does(small_model):
    model, processor = small_model
    pieces = list(stream_generate(model, processor, PROMPT, IMAGE, max_tokens=40))
    assert "".join(piece.text for piece in pieces) == generate(model, processor, PROMPT, IMAGE, max_tokens=40)
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason in ("stop", "length")


def test_statistics(small_model):
    model, processor = small_model
    processor = dataclasses.replace(processor, eos_token_ids=frozenset())
    pieces = list(stream_generate(model, processor, PROMPT, IMAGE, max_tokens=5))
    last = pieces[-1]
    ids = processor.encode_chat([{"role": "user", "content": f"<image>\n{PROMPT}"}])
    assert [piece.generation_tokens for piece in pieces] == [1, 2, 3, 4, 5]
    assert last.prompt_tokens == len(ids)
    assert last.finish_reason == "length"
    assert min(last.prompt_tps, last.generation_tps, last.time_to_first_token, last.peak_memory) > 0


def test_every_end_of_sequence_id_ends_the_answer(small_model, ask):
    model, processor = small_model
    answer = ask()
    end = next(i for i in range(2, 12) if answer[i] not in answer[:i])
    processor = dataclasses.replace(processor, eos_token_ids=frozenset({999, answer[end]}))
    pieces = list(stream_generate(model, processor, PROMPT, IMAGE, max_tokens=12))
    assert [piece.token for piece in pieces] == answer[: end + 1]
    assert pieces[-1].finish_reason == "stop"
    assert "".join(piece.text for piece in pieces) == processor.decode(answer[:end]).rstrip("\ufffd")


def test_system_image_and_prompt_matter(first_logits):
    plain = first_logits()
    assert same(first_logits(), plain)
    assert not same(first_logits(system="Be brief."), plain)
    assert not same(first_logits(image=OTHER), plain)
    assert not same(first_logits("Why?"), plain)
    assert not same(first_logits(image=None), plain)


def test_image_size_sets_the_token_count(small_model):
    model, processor = small_model
    tokens = [
        next(stream_generate(model, processor, PROMPT, IMAGE, image_size=size, max_tokens=1)).prompt_tokens
        for size in (64, 128, 192)
    ]
    assert tokens[1] - tokens[0] == 3
    assert tokens[2] - tokens[0] == 8


def test_several_images_at_their_places(first_logits, small_model):
    before = first_logits("a", [IMAGE, OTHER])
    assert same(before, first_logits("<image>\n<image>\na", [IMAGE, OTHER]))
    assert not same(before, first_logits("<image>\n<image>\na", [OTHER, IMAGE]))
    assert not same(before, first_logits("<image>\na<image>\n", [IMAGE, OTHER]))
    model, processor = small_model
    ids = mx.array([processor.encode("<image>a<image>b")])
    pixels = processor.preprocess([IMAGE, OTHER])
    one_by_one = mx.concatenate([model.get_image_features(pixels[i : i + 1]) for i in range(2)])
    embedded = model.embed(ids, one_by_one)
    places = np.flatnonzero(np.array(ids[0]) == processor.image_token_id)
    assert np.array_equal(np.array(embedded[0])[places], np.array(one_by_one).reshape(len(places), -1))


def as_data(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_messages_that_bring_their_images(first_logits):
    expected = first_logits("<image>\na<image>\nb", [IMAGE, OTHER])
    uri = f"data:image/png;base64,{as_data(OTHER)}"
    ours = [{"type": "image", "image": IMAGE}, {"type": "image", "base64": as_data(IMAGE)}]
    theirs = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "image", "url": uri}]
    for own in ours:
        for other in theirs:
            # The template without parts puts a newline between parts, so these texts have none.
            parts = [own, {"type": "text", "text": "a"}, other, {"type": "text", "text": "b"}]
            messages = [{"role": "user", "content": parts}]
            reference = first_logits("<image>\na\n<image>\nb", [IMAGE, OTHER])
            assert same(first_logits(messages, None), reference)
            # Marks without an image take theirs from the list beside.
            mixed = [{"role": "user", "content": [own, parts[1], {"type": "image"}, parts[3]]}]
            assert same(first_logits(mixed, [OTHER]), reference)
    assert not same(expected, first_logits("<image>\na<image>\nb", [OTHER, IMAGE]))
    with pytest.raises(ValueError, match="image_url"):
        first_logits([{"role": "user", "content": [{"type": "image_url"}]}], None)


def test_frames_of_an_animation(ask, first_logits):
    frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "lime", "blue", "white")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    animation = buffer.getvalue()
    assert same(first_logits(image=animation), first_logits(image=frames[0]))
    assert same(first_logits(image=[animation, OTHER], frames=2), first_logits(image=[frames[0], frames[3], OTHER]))
    prompt = "a <image> b <image> c"
    three = "a <image>\n<image>\n<image> b <image> c"
    images = [frames[0], frames[2], frames[3], OTHER]
    assert same(first_logits(prompt, [animation, OTHER], frames=3), first_logits(three, images))
    assert ask(image=OTHER, frames=5) == ask(image=OTHER)


@settings(max_examples=20)
@given(
    parts=st.lists(st.text("ab ", max_size=9) | st.sampled_from([IMAGE, OTHER]), min_size=1, max_size=7),
    step=st.integers(1, 60),
)
def test_chunked_prefill_equals_one_pass(parts, step):
    """Any number of images, at any places, in pieces that cut through them."""
    model, processor = wide_model()
    prompt = "".join(part if isinstance(part, str) else "<image>" for part in parts)
    images = [part for part in parts if not isinstance(part, str)]
    seen = []
    options = {"max_tokens": 4, "logprobs": True}
    one = list(stream_generate(model, processor, prompt, images, **options))
    options |= {"prefill_step_size": step, "progress": lambda *counts: seen.append(counts)}
    many = list(stream_generate(model, processor, prompt, images, **options))
    assert [piece.token for piece in many] == [piece.token for piece in one]
    assert np.allclose([piece.logprob for piece in many], [piece.logprob for piece in one], atol=1e-4)
    total = one[0].prompt_tokens
    assert seen == [(min(done, total), total) for done in range(step, total + step, step)]


@settings(max_examples=20)
@given(parts=st.lists(st.text("ab ", max_size=9) | st.sampled_from([IMAGE, OTHER]), max_size=7))
def test_features_stand_at_exactly_their_places(parts):
    model, processor = wide_model()
    prompt = "".join(part if isinstance(part, str) else "<image>" for part in parts)
    images = [part for part in parts if not isinstance(part, str)]
    ids = mx.array([processor.encode(f"x{prompt}", image_size=64)])
    features = [model.get_image_features(processor.preprocess(image, 64)) for image in images]
    embedded = model.embed(ids, mx.concatenate(features) if features else None)[0]
    expected = [model.get_input_embeddings()(mx.array(processor.encode("x")))]
    rest = iter(features)
    for part in parts:
        if not isinstance(part, str):
            expected.append(next(rest)[0])
        elif part:
            expected.append(model.get_input_embeddings()(mx.array(processor.encode(part))))
    assert mx.abs(embedded - mx.concatenate(expected)).max() < 1e-6


def test_messages_instead_of_a_question(ask, first_logits):
    messages = [{"role": "user", "content": PROMPT}]
    assert ask(messages) == ask()
    assert ask([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]) == ask()
    assert messages == [{"role": "user", "content": PROMPT}]
    longer = [*messages, {"role": "assistant", "content": "This."}, {"role": "user", "content": "Sure?"}]
    assert not same(first_logits(longer), first_logits())
    assert ask(messages, system="Be brief.") == ask(system="Be brief.")


def test_max_kv_size(ask, small_model):
    _, processor = small_model
    plain = ask(max_tokens=60)
    length = len(processor.encode_chat([{"role": "user", "content": f"<image>\n{PROMPT}"}]))
    assert ask(max_tokens=60, max_kv_size=length + 60) == plain
    assert ask(max_tokens=60, max_kv_size=length + 4) != plain
    with pytest.raises(ValueError, match=f"at least {length + 1}"):
        ask(max_kv_size=length)


BAD_OPTIONS = {
    "max_tokens": [0, -1],
    "temperature": [-0.1],
    "top_p": [0, 1.1],
    "top_k": [-1],
    "min_p": [-0.1, 1.1],
    "repetition_penalty": [0],
    "repetition_context_size": [0],
    "image_size": [0, 100],
    "frames": [0],
    "vision_batch_size": [0],
    "prefill_step_size": [0],
    "kv_bits": [5],
    "stop": ["", ["a", ""]],
}


@pytest.mark.parametrize(("option", "value"), [(o, v) for o, values in BAD_OPTIONS.items() for v in values])
def test_bad_options_are_refused_before_anything_runs(small_model, monkeypatch, option, value):
    model, processor = small_model
    monkeypatch.setattr(type(model), "get_image_features", lambda *_: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=f"{option}.*got {re.escape(repr(value))}"):
        stream_generate(model, processor, PROMPT, IMAGE, **{option: value})


def test_an_unknown_option_is_refused(small_model):
    with pytest.raises(TypeError, match="tempreature"):
        stream_generate(*small_model, PROMPT, tempreature=1)


def test_images_and_marks_must_match(small_model):
    model, processor = small_model
    for prompt, images in (("<image> or <image>", IMAGE), ("<image>", None), ("a <image>", [IMAGE, OTHER])):
        with pytest.raises(ValueError, match="one mark for each image"):
            stream_generate(model, processor, prompt, images)
    with pytest.raises(ValueError, match="no messages"):
        stream_generate(model, processor, [])
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(ValueError, match="begin with a system prompt"):
        stream_generate(model, processor, messages, system="c")
