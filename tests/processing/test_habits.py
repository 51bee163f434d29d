"""What transformers' users type first on a processor."""

import mlx.core as mx
import pytest

from mlx_fastvlm import FastVlmProcessor, load
from mlx_fastvlm.errors import UsageError
from tests.support.images import IMAGE

CHAT = [{"role": "user", "content": [{"type": "image", "image": IMAGE}, {"type": "text", "text": "What?"}]}]


def test_from_and_save_pretrained(checkpoint, tmp_path):
    model, processor = load(checkpoint("apple"))
    same = FastVlmProcessor.from_pretrained(checkpoint("apple"))
    model.config.save_pretrained(tmp_path)
    same.save_pretrained(tmp_path)
    again = FastVlmProcessor.from_pretrained(tmp_path)
    for other in (same, again):
        assert other.chat_template == processor.chat_template
        assert other.image_settings == processor.image_settings
        assert other.eos_token_ids == processor.eos_token_ids
        assert mx.array_equal(
            other("<image>\nWhat?", IMAGE)["pixel_values"], processor("<image>", IMAGE)["pixel_values"]
        )


def test_a_chat_as_text_ids_and_inputs(processor):
    text = processor.apply_chat_template(CHAT)
    assert text == processor.apply_chat_template(CHAT, add_generation_prompt=False) + "<|im_start|>assistant\n"
    ids = processor.apply_chat_template(CHAT, tokenize=True)
    assert ids == processor.encode_chat(CHAT) == processor.encode(text)
    inputs = processor.apply_chat_template(CHAT, tokenize=True, return_dict=True)
    assert inputs["input_ids"].tolist() == [ids]
    assert mx.array_equal(inputs["pixel_values"], processor.preprocess(IMAGE))
    smaller = processor.apply_chat_template(CHAT, tokenize=True, return_dict=True, image_size=64)
    assert smaller["pixel_values"].shape == (1, 64, 64, 3)


def test_several_chats(processor):
    chats = [CHAT, [{"role": "user", "content": "Hello!"}]]
    assert processor.apply_chat_template(chats) == [processor.apply_chat_template(chat) for chat in chats]
    inputs = processor.apply_chat_template(chats, tokenize=True, return_dict=True)
    assert inputs["pixel_values"].shape[0] == 1
    rows = processor.apply_chat_template(chats, tokenize=True)
    masked = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist())
    assert [[id for id, there in zip(*row) if there] for row in masked] == rows
    assert inputs["attention_mask"].tolist()[1][0] == 0


def test_what_a_dict_needs(processor):
    with pytest.raises(ValueError, match="add tokenize=True"):
        processor.apply_chat_template(CHAT, return_dict=True)
    bare = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    with pytest.raises(ValueError, match="image"):
        processor.apply_chat_template(bare, tokenize=True, return_dict=True)


def test_decode_and_batch_decode(processor):
    rows = [processor.encode("Hi"), processor.encode("You<|im_end|>")]
    padded = processor.pad(rows)["input_ids"]
    assert processor.batch_decode(padded) == processor.batch_decode(rows) == ["Hi", "You"]
    assert processor.decode(mx.array(rows[1]), skip_special_tokens=False) == "You<|im_end|>"


def test_keywords_of_what_is_done_in_any_case(processor):
    inputs = processor(text=["<image>\nWhat?"], images=[IMAGE], return_tensors="mlx", padding=True, truncation=False)
    assert mx.array_equal(inputs["input_ids"], processor("<image>\nWhat?", IMAGE)["input_ids"])
    assert processor.apply_chat_template(CHAT, tools=None) == processor.apply_chat_template(CHAT)
    assert processor.decode([5], clean_up_tokenization_spaces=False) == processor.decode([5])
    assert FastVlmProcessor.from_pretrained("demo", use_fast=True, trust_remote_code=False).pad_token_id >= 0


@pytest.mark.parametrize(
    ("keywords", "advice"),
    [
        ({"return_tensors": "pt"}, "arrays are MLX's"),
        ({"padding": "max_length"}, "padded to the longest"),
        ({"truncation": True}, "shorten the prompt"),
    ],
    ids=["return_tensors", "padding", "truncation"],
)
def test_keywords_that_are_not_done_say_what_to_do(processor, keywords, advice):
    with pytest.raises(UsageError, match=advice):
        processor("What?", **keywords)
    with pytest.raises(UsageError, match=advice):
        processor.apply_chat_template(CHAT, **keywords)


def test_one_line_says_what_it_is(processor):
    assert "images pad to 256 x 256 pixels" in repr(FastVlmProcessor.from_pretrained("demo"))
    assert "\n" not in repr(processor)
