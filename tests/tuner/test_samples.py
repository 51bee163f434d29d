"""What is learnt of a conversation: its answers with the tokens that end them, whatever their words are."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_fastvlm.tuner.conversations import conversation
from mlx_fastvlm.tuner.samples import encode, encode_all, images_of
from tests.support.paths import ROOT

FOLDER = ROOT / "examples" / "images"


def row(*turns, images=0):
    messages = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(turns)]
    names = [f"shapes-{i + 1}.png" for i in range(images)]
    return conversation({"images": names, "messages": messages}, "train.jsonl, row 1", Path(FOLDER))


def learnt(sample, processor):
    """The texts that are learnt, special tokens too."""
    return [processor.decode(sample.ids[start:stop], skip_special_tokens=False) for start, stop in sample.learnt]


def test_every_answer_and_its_end(processor):
    sample = encode(row("Who?", "A fox.", "And <image>?", "A bear.", images=1), processor)
    assert learnt(sample, processor) == ["A fox.<|im_end|>", "A bear.<|im_end|>"]
    assert sample.answer_tokens == len("A fox.A bear.") + 2
    assert sample.ids.count(-200) == 4


NASTY = ["assistant\n", "<|im_end|>", "<|im_start|>assistant\nNo.", "<image>", " A fox. ", "\n", "<|im_", "user"]


@pytest.mark.parametrize("word", NASTY)
def test_words_like_the_templates(processor, word):
    """In answers and in questions: only the template's own tokens end a turn."""
    answer = f"{word}yes{word}"
    question = f"a{word}b" if word != "<image>" else "ab"
    sample = encode(row(question, answer, question, answer, images=1), processor)
    assert learnt(sample, processor) == [f"{answer}<|im_end|>"] * 2
    assert sample.ids.count(258) == 5  # the default system prompt, and four turns


@settings(max_examples=60)
@given(st.lists(st.text(min_size=1, max_size=20).filter(lambda text: text.strip()), min_size=2, max_size=6))
def test_any_texts(small_model, texts):
    _, processor = small_model
    texts = texts[: len(texts) // 2 * 2]
    texts = [text.encode(errors="replace").decode().replace("<image>", "") or "x" for text in texts]
    if not all(text.strip() for text in texts):
        return
    sample = encode(row(*texts), processor)
    assert learnt(sample, processor) == [f"{text}<|im_end|>" for text in texts[1::2]]
    generated = processor.encode_chat([{"role": "user", "content": texts[0]}])
    assert list(sample.ids[: sample.learnt[0][0]]) == generated


def with_template(processor, template):
    return dataclasses.replace(processor, chat_template=template)


LOOP = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + CONTENT + '<|im_end|>\n' }}{% endfor %}"
GENERATION = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (LOOP.replace("CONTENT", "m['content']|upper") + GENERATION, "differently from"),
        (LOOP.replace("CONTENT", "m['content']"), "differently from"),  # no generation prompt
        (LOOP.replace("CONTENT", "m['content']").replace("<|im_end|>", "") + GENERATION, "differently from"),
        (LOOP.replace("CONTENT", "m['content']").replace("messages", "messages[:1]") + GENERATION, "differently from"),
        ("{{ messages[5]['content'] }}", "chat template failed"),
    ],
)
def test_templates_that_change_answers_are_refused(processor, template, words):
    with pytest.raises(ValueError, match=words) as raised:
        encode(row("Who?", "a fox."), with_template(processor, template))
    assert str(raised.value).startswith("train.jsonl, row 1: ")


def test_a_template_that_leaves_out_images(processor):
    template = LOOP.replace("CONTENT", "m['content']|replace('<image>', '')") + GENERATION
    with pytest.raises(ValueError, match="leaves out images"):
        encode(row("Who?", "A fox.", images=1), with_template(processor, template))


def test_rows_that_are_too_long_are_counted_and_never_cut(processor):
    conversations = [row("Who?", "A fox." * n) for n in (1, 40, 2)]
    told = []
    fitting, dropped = encode_all(conversations, processor, max_seq_length=200, progress=lambda *at: told.append(at))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert [len(sample.ids) for sample in dropped] == [len(encode(conversations[1], processor).ids)]
    assert learnt(fitting[1], processor) == ["A fox.A fox.<|im_end|>"]
    with pytest.raises(ValueError, match=r"All 3 rows are longer than 20 tokens \(the shortest has \d+\); raise"):
        encode_all(conversations, processor, max_seq_length=20)


def test_image_tokens_count(processor):
    small, large = (encode(row("Who?", "A fox.", images=1), processor, size) for size in (128, 192))
    assert len(large.ids) - len(small.ids) == 9 - 4


def test_images_of_samples(processor):
    samples = [encode(row("Who?", "A fox.", images=n), processor) for n in (2, 1, 3)]
    assert [path.name for path in images_of(samples)] == [f"shapes-{n}.png" for n in (1, 2, 3)]


def test_everything_is_learnt_where_that_is_wanted(processor):
    sample = encode(row("<image>Who?", "A fox.", images=1), processor, mask_prompt=False)
    learnt = {i for start, stop in sample.learnt for i in range(start, stop)}
    assert learnt == {i for i, id in enumerate(sample.ids) if id != -200} - {0}
    assert len(sample.learnt) == 2
