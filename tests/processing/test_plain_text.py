"""Texts of people who have their images beside the text: ``<image>`` in them is a word."""

from mlx_fastvlm.processing.marks import PlainText
from mlx_fastvlm.processing.messages import read_prompt
from tests.support.images import IMAGE


def messages(text, *images):
    parts = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def ids_of(processor, content):
    return processor.encode_chat([{"role": "user", "content": content}])


def test_a_word_like_any_other(processor):
    text = PlainText("What does <image> mean?")
    assert processor.image_token_id not in ids_of(processor, text)
    assert ids_of(processor, text) != ids_of(processor, str(text))
    said = processor.decode(ids_of(processor, text), skip_special_tokens=False)
    assert "What does <image> mean?" in said


def test_images_beside_it(processor):
    text = PlainText("What does <image> mean?")
    read, images = read_prompt(messages(text, IMAGE), None, processor.prepare_frames)
    ids = processor.encode_chat(read)
    assert len(images) == 1
    assert ids.count(processor.image_token_id) == processor.num_image_tokens()


def test_without_the_word_nothing_changes(processor):
    for text in ("Hi", "", "  a\n b ", "<imag e>"):
        assert ids_of(processor, PlainText(text)) == ids_of(processor, text)
        part = [{"type": "text", "text": text}]
        assert ids_of(processor, [{"type": "text", "text": PlainText(text)}]) == ids_of(processor, part)
