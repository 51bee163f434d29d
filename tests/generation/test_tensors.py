"""``model.generate``: transformers' sequences, beams and scores on the small model; sampling; refusals."""

import json

import mlx.core as mx
import numpy as np
import pytest

from mlx_fastvlm import Engine, FastVlmForConditionalGeneration, GenerateOutput, generate_ids, load
from mlx_fastvlm.errors import UsageError
from tests.support import small
from tests.support.differences import deviations
from tests.support.paths import REFERENCE, ROOT
from tests.support.reference.generation import CASES, LENGTH, SAMPLING

RECORDED = json.loads((REFERENCE / "generation.json").read_text())


@pytest.fixture(scope="module")
def model(checkpoint):
    return FastVlmForConditionalGeneration.from_pretrained(checkpoint("transformers"), dtype="float32")


@pytest.fixture(scope="module")
def inputs():
    ids, mask, _ = small.batch()
    pixels = mx.array(small.pixels(3).transpose(0, 2, 3, 1))
    return {"input_ids": mx.array(ids), "attention_mask": mx.array(mask), "pixel_values": pixels}


@pytest.mark.parametrize("name", CASES)
def test_sequences_and_scores_are_transformers(model, inputs, name):
    expected = RECORDED["cases"][name]
    options = {"max_new_tokens": LENGTH, "return_dict_in_generate": True, "output_scores": True, **CASES[name]}
    out = model.generate(**inputs, **options)
    assert isinstance(out, GenerateOutput)
    assert out.sequences.tolist() == expected["sequences"]
    assert len(out.scores) == expected["steps"]
    first = np.array(out.scores[0].reshape(-1))
    rows = first.shape[0] // small.TEXT["vocab_size"]
    assert rows == 2 * CASES[name].get("num_beams", 1)
    assert deviations(np.maximum(small.sample(first), -1e4), np.array(expected["first"])) < 1e-4
    if expected["beams"] is None:
        assert out.sequences_scores is None
    else:
        assert np.allclose(out.sequences_scores, expected["beams"], atol=1e-4)


@pytest.mark.parametrize("name", SAMPLING)
def test_what_sampling_draws_from(model, inputs, name):
    """Pearson's chi-square of 4,000 draws against transformers' probabilities, tokens that are rare put together."""
    count, one = 4000, {key: value[:1] for key, value in inputs.items() if key != "pixel_values"}
    mx.random.seed(sum(map(ord, name)))
    drawn = model.generate(
        **one,
        pixel_values=inputs["pixel_values"][:2],
        do_sample=True,
        max_new_tokens=1,
        num_return_sequences=count,
        **SAMPLING[name],
    )[:, -1]
    expected = np.array(RECORDED["sampling"][name]) * count
    seen = np.bincount(np.array(drawn), minlength=len(expected))
    assert not seen[expected == 0].any()
    often = expected >= 5
    pairs = [*zip(seen[often], expected[often]), (seen[~often].sum(), expected[~often].sum())]
    pairs = [(a, b) for a, b in pairs if b > 0.5]
    chi, freedom = sum((a - b) ** 2 / b for a, b in pairs), len(pairs) - 1
    assert chi < freedom + 4 * np.sqrt(2 * freedom) + 8  # beyond four deviations; the seed is fixed


def test_beams_can_be_drawn(model, inputs):
    how = {**inputs, "num_beams": 3, "do_sample": True, "max_new_tokens": 6, "temperature": 4.0, "top_k": 0}
    mx.random.seed(0)
    first, second = (model.generate(**how).tolist() for _ in range(2))
    mx.random.seed(0)
    assert model.generate(**how).tolist() == first != second


def test_a_row_alone_is_the_row_in_the_batch(model, inputs):
    whole = model.generate(**inputs, max_new_tokens=6, num_beams=2)
    padding = int((inputs["attention_mask"][1] == 0).sum().item())
    ids = inputs["input_ids"][1:, padding:]
    alone = model.generate(ids, pixel_values=inputs["pixel_values"][2:], max_new_tokens=6, num_beams=2)
    assert alone[0, -6:].tolist() == whole[1, -6:].tolist()


def test_greedy_rows_are_the_engines_answers():
    """The loop here and the engine's, on the demo: an image and none, prompts of several lengths, ends of their own."""
    model, processor = load("demo")
    image = ROOT / "examples" / "images" / "shapes-1.png"
    prompts = ["<image>\nWhat are these?", "Hello", "<image>\nHow many shapes are there?"]
    chats = [[{"role": "user", "content": text}] for text in prompts]
    inputs = processor.pad([processor.encode_chat(chat) for chat in chats])
    inputs["pixel_values"] = processor.preprocess([image, image])
    engine = Engine(model, processor)
    answers = [engine.submit(text.removeprefix("<image>\n"), image if "<image>" in text else None) for text in prompts]
    said = [[response.token for response in answer] for answer in answers]
    rows = model.generate(**inputs, max_new_tokens=256)[:, inputs["input_ids"].shape[1] :].tolist()
    assert [row[: len(tokens)] for row, tokens in zip(rows, said)] == said
    assert {token for row, tokens in zip(rows, said) for token in row[len(tokens) :]} <= processor.eos_token_ids


def test_from_embeddings_only_what_is_new_comes_back(model):
    ids = mx.array([[5, 9, 12, 7]])
    embeds = model.get_input_embeddings()(ids)
    assert model.generate(inputs_embeds=embeds).tolist() == model.generate(ids)[:, 4:].tolist()
    beams = model.generate(inputs_embeds=embeds, num_beams=2, max_new_tokens=5)
    assert beams.tolist() == model.generate(ids, num_beams=2, max_new_tokens=5)[:, 4:].tolist()


def test_stopping_criteria_and_processors(model):
    ids = mx.array([[5, 9, 12, 7], [5, 9, 12, 8]])
    seen = []

    def after_three(ids, scores):
        seen.append((ids.shape, scores))
        return ids.shape[1] >= 7

    out = model.generate(ids, stopping_criteria=[after_three])
    assert out.shape == (2, 7)
    assert seen == [((2, 5), None), ((2, 6), None), ((2, 7), None)]

    def only_nine(ids, logits):
        return mx.where(mx.arange(logits.shape[-1]) == 9, logits, -mx.inf)

    assert (model.generate(ids, logits_processor=[only_nine], max_new_tokens=3)[:, 4:] == 9).all().item()
    rows = model.generate(ids, stopping_criteria=[lambda ids, _: ids[:, 3] == 8], pad_token_id=0, max_new_tokens=4)
    assert (rows[1, 5:] == 0).all().item()
    assert rows[0, 5:].any().item()


def test_what_comes_back_beside_ids(model):
    out = model.generate(mx.array([[5, 9, 12, 7]]), max_length=6, return_dict_in_generate=True, output_logits=True)
    assert out.sequences.shape == (1, 6)
    assert out.scores is None
    assert [logits.shape for logits in out.logits] == [(1, 320), (1, 320)]
    assert out.past_key_values[0].offset == 5  # the last token was not read


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "exactly one of input_ids"),
        ({"input_ids": mx.array([[1]]), "max_tokens": 5}, "no max_tokens=5; did you mean"),
        ({"input_ids": mx.array([[1]]), "streamer": object()}, "stream_generate"),
        ({"input_ids": mx.array([[1]]), "stop_strings": ["x"]}, "stop="),
        ({"input_ids": mx.array([[1]]), "use_cache": False}, "no use_cache=False"),
        ({"input_ids": mx.array([[1]]), "num_return_sequences": 2}, "do_sample or num_beams"),
        ({"input_ids": mx.array([[1]]), "num_return_sequences": 3, "num_beams": 2}, "more than num_beams"),
        ({"input_ids": mx.array([[1]]), "num_beams": 0}, "num_beams must be at least 1"),
        ({"input_ids": mx.array([[1, 2]]), "max_length": 2}, "max_length must be above"),
        ({"input_ids": mx.array([[1, 2]]), "temperature": 0.0}, "temperature must be"),
        ({"input_ids": mx.array([[1, 2]]), "top_p": 1.5}, "top_p must be"),
        ({"input_ids": mx.array([[1, 2]]), "early_stopping": "soon"}, "early_stopping must be"),
        ({"input_ids": mx.array([[1, 2]]), "attention_mask": mx.array([[1, 0]])}, "padded on the right"),
        ({"input_ids": mx.array([[1, 2]]), "attention_mask": mx.array([[1]])}, "attention_mask must have shape"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_refusals(model, arguments, said):
    with pytest.raises(UsageError, match=said):
        generate_ids(model, **arguments)
