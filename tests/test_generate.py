"""The generator: every option does what it says, and nothing runs on a bad one."""

import dataclasses

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

import small
from mlx_fastvlm import generate, load, stream_generate
from mlx_fastvlm.cache import make_cache

PICTURE = Image.fromarray(small.odd_picture(70, 50))
OTHER = Image.new("RGB", (40, 60), "white")
PROMPT = "What is this?"


@pytest.fixture(scope="module")
def small_model(checkpoint):
    """Model and processor with a head of their own: with tied random weights every answer repeats its first token."""
    return load(checkpoint("apple", head="own"))


@pytest.fixture
def ask(small_model):
    """Ids of the answer of the small model, which rambles: 12 tokens unless it is told otherwise."""
    model, processor = small_model
    processor = dataclasses.replace(processor, eos_token_ids=frozenset())

    def ask(prompt=PROMPT, image=PICTURE, **options):
        options = {"max_tokens": 12, **options}
        return [response.token for response in stream_generate(model, processor, prompt, image, **options)]

    return ask


@pytest.fixture
def first_logits(ask):
    """The logits that the first token is chosen from."""

    def first_logits(*arguments, **options):
        seen = []

        def watch(_, logits):
            seen.append(np.array(logits[0]))
            return logits

        ask(*arguments, max_tokens=1, logits_processors=[watch], **options)
        return seen[0]

    return first_logits


def same(a, b):
    return np.abs(a - b).max() < 1e-5 * a.std()


def test_greedy_is_the_argmax_of_the_whole_context(small_model, ask):
    """Without a cache and in one piece, each token again."""
    model, processor = small_model
    answer = ask()
    ids = processor.encode_chat([{"role": "user", "content": f"<image>\n{PROMPT}"}])
    pixels = processor.preprocess(PICTURE)
    for i, token in enumerate(answer):
        logits = model(mx.array([ids + answer[:i]]), pixels).logits
        assert mx.argmax(logits[0, -1]).item() == token


def test_streaming_gives_what_generate_does(small_model):
    model, processor = small_model
    pieces = list(stream_generate(model, processor, PROMPT, PICTURE, max_tokens=40))
    assert "".join(piece.text for piece in pieces) == generate(model, processor, PROMPT, PICTURE, max_tokens=40)
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason in ("stop", "length")


def test_statistics(small_model):
    model, processor = small_model
    processor = dataclasses.replace(processor, eos_token_ids=frozenset())
    pieces = list(stream_generate(model, processor, PROMPT, PICTURE, max_tokens=5))
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
    pieces = list(stream_generate(model, processor, PROMPT, PICTURE, max_tokens=12))
    assert [piece.token for piece in pieces] == answer[: end + 1]
    assert pieces[-1].finish_reason == "stop"
    assert "".join(piece.text for piece in pieces) == processor.decode(answer[:end]).rstrip("\ufffd")


def test_sampling(ask):
    greedy = ask()
    hot = {"temperature": 5.0}
    assert ask(**hot, seed=1) == ask(**hot, seed=1)
    assert ask(**hot, seed=1) != ask(**hot, seed=2)
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert ask(**hot, **narrow, seed=1) == greedy


def test_temperature_samples_the_softmax(small_model):
    """The first token's frequencies over many seeds, against the probabilities."""
    model, processor = small_model
    ids = processor.encode_chat([{"role": "user", "content": "a"}])
    expected = np.array(mx.softmax(model(mx.array([ids])).logits[0, -1] / 0.3))
    counts = np.zeros_like(expected)
    for seed in range(400):
        step = next(stream_generate(model, processor, "a", temperature=0.3, max_tokens=1, seed=seed))
        counts[step.token] += 1
    likely = expected > 0.02
    assert likely.sum() >= 3
    assert np.abs(counts / 400 - expected)[likely].max() < 0.08


def test_repetition_penalty_and_its_window(ask):
    plain = ask(max_tokens=30)
    assert len(set(plain)) < 30
    strong = ask(max_tokens=30, repetition_penalty=1e9, repetition_context_size=1000)
    assert len(set(strong)) == 30
    assert ask(max_tokens=30, repetition_penalty=1e9, repetition_context_size=1) != strong


def test_logits_processors_see_the_tokens_and_change_the_logits(ask):
    seen = []

    def only_seven(tokens, logits):
        seen.append(tokens.size)
        return mx.where(mx.arange(logits.shape[-1]) == 7, logits, -mx.inf)

    assert ask(logits_processors=[only_seven], max_tokens=4) == [7] * 4
    assert seen == list(range(seen[0], seen[0] + 4))


def test_system_picture_and_prompt_matter(first_logits):
    plain = first_logits()
    assert same(first_logits(), plain)
    assert not same(first_logits(system="Be brief."), plain)
    assert not same(first_logits(image=OTHER), plain)
    assert not same(first_logits("Why?"), plain)
    assert not same(first_logits(image=None), plain)


def test_image_size_sets_the_token_count(small_model):
    model, processor = small_model
    tokens = [
        next(stream_generate(model, processor, PROMPT, PICTURE, image_size=size, max_tokens=1)).prompt_tokens
        for size in (64, 128, 192)
    ]
    assert tokens[1] - tokens[0] == 3
    assert tokens[2] - tokens[0] == 8


def test_several_pictures_at_their_places(first_logits, small_model):
    before = first_logits("a", [PICTURE, OTHER])
    assert same(before, first_logits("<image>\n<image>\na", [PICTURE, OTHER]))
    assert not same(before, first_logits("<image>\n<image>\na", [OTHER, PICTURE]))
    assert not same(before, first_logits("<image>\na<image>\n", [PICTURE, OTHER]))
    model, processor = small_model
    ids = mx.array([processor.encode("<image>a<image>b")])
    pixels = processor.preprocess([PICTURE, OTHER])
    one_by_one = mx.concatenate([model.get_image_features(pixels[i : i + 1]) for i in range(2)])
    embedded = model.embed(ids, one_by_one)
    places = np.flatnonzero(np.array(ids[0]) == processor.image_token_id)
    assert np.array_equal(np.array(embedded[0])[places], np.array(one_by_one).reshape(len(places), -1))


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


def test_a_bounded_cache_sees_the_prompt_and_the_latest_tokens(small_model):
    """Its logits are those of full attention over the tokens it keeps, at the places they had."""
    model, _ = small_model
    prompt, bound = 10, 16
    tokens = mx.array(np.random.RandomState(0).randint(0, 256, (1, 40)))
    cache = make_cache(model, bound, keep=prompt)
    model(tokens[:, :prompt], past_key_values=cache)
    for i in range(prompt, 40):
        bounded = model(tokens[:, i : i + 1], past_key_values=cache).logits[0, -1]
    # In one layer a key depends on nothing but its own token, so that layer alone can be compared exactly.
    first = model.language_model.layers[0].self_attn
    embedded = model.language_model.layers[0].input_layernorm(model.get_input_embeddings()(tokens))
    kept = mx.array([*range(prompt), *range(40 - (bound - prompt), 40)])
    keys = first._rope(first.k_proj(embedded).reshape(1, 40, 2, -1).transpose(0, 2, 1, 3), None, None)[:, :, kept]
    ours = np.array(cache[0].keys[0])
    assert ours.shape[1] == bound
    for key in np.array(keys[0]).transpose(1, 0, 2):
        assert np.abs(ours.transpose(1, 0, 2) - key).max(axis=(1, 2)).min() < 1e-5
    assert mx.isfinite(bounded).all()


BAD_OPTIONS = {
    "max_tokens": [0, -1],
    "temperature": [-0.1],
    "top_p": [0, 1.1],
    "top_k": [-1],
    "min_p": [-0.1, 1.1],
    "repetition_penalty": [0],
    "repetition_context_size": [0],
    "image_size": [0, 100],
}


@pytest.mark.parametrize(("option", "value"), [(o, v) for o, values in BAD_OPTIONS.items() for v in values])
def test_bad_options_are_refused_before_anything_runs(small_model, monkeypatch, option, value):
    model, processor = small_model
    monkeypatch.setattr(type(model), "get_image_features", lambda *_: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=f"{option}.*got {value}"):
        stream_generate(model, processor, PROMPT, PICTURE, **{option: value})


def test_pictures_and_marks_must_match(small_model):
    model, processor = small_model
    for prompt, images in (("<image> or <image>", PICTURE), ("<image>", None), ("a <image>", [PICTURE, OTHER])):
        with pytest.raises(ValueError, match="one mark for each picture"):
            stream_generate(model, processor, prompt, images)
    with pytest.raises(ValueError, match="no messages"):
        stream_generate(model, processor, [])
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(ValueError, match="begin with a system prompt"):
        stream_generate(model, processor, messages, system="c")


def test_weights_that_are_not_finite_are_an_error(checkpoint):
    model, processor = load(checkpoint("apple"))
    norm = model.language_model.norm
    norm.weight = norm.weight * mx.nan
    with pytest.raises(ValueError, match="not finite"):
        generate(model, processor, PROMPT, PICTURE)
