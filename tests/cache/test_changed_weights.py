"""No cache outlives a change of the weights, down to one value far from a tensor's beginning."""

import pytest

from mlx_fastvlm import (
    ChatSession,
    Engine,
    PrefixCache,
    PromptCache,
    VisionCache,
    generate,
    load_prompt_cache,
    save_prompt_cache,
    stream_generate,
)
from tests.support.images import IMAGE
from tests.support.models import wide_model

PROMPT = "What is this?"


@pytest.fixture
def wide():
    """A model of the test's own: it is changed."""
    return wide_model.__wrapped__()


def decoder(model):
    model.language_model.layers[1].mlp.down_proj.weight *= 0


def projector(model):
    model.multi_modal_projector.linear_2.weight[1:] = 0


CHANGES = pytest.mark.parametrize("change", [decoder, projector])


def ask(wide, prompt=PROMPT, **options):
    return generate(*wide, prompt, IMAGE, max_tokens=8, **options)


@CHANGES
@pytest.mark.parametrize("policy", [{}, {"kv_bits": 8}, {"max_kv_size": 120}], ids=str)
def test_a_prompt_cache(wide, change, policy):
    cache = PromptCache(**policy)
    ask(wide, prompt_cache=cache)
    change(wide[0])
    responses = list(stream_generate(*wide, PROMPT, IMAGE, max_tokens=8, prompt_cache=cache))
    assert "".join(response.text for response in responses) == ask(wide, **policy)
    assert responses[0].cached_tokens == 0
    assert next(stream_generate(*wide, PROMPT, IMAGE, prompt_cache=cache)).cached_tokens > 0


@CHANGES
def test_a_chat(wide, change):
    session = ChatSession(*wide, max_tokens=8)
    session.ask(PROMPT, IMAGE)
    change(wide[0])
    answer = session.ask("Why?")
    assert answer == generate(*wide, session.messages[:-1], IMAGE, max_tokens=8)


@CHANGES
def test_a_vision_cache(wide, change):
    cache = VisionCache()
    ask(wide, vision_cache=cache)
    change(wide[0])
    assert ask(wide, vision_cache=cache) == ask(wide)
    assert cache.hits == (1 if change is decoder else 0)  # features know nothing of the decoder


@CHANGES
def test_a_prefix_cache(wide, change):
    cache = PrefixCache()
    engine = Engine(*wide, prefix_cache=cache)

    def answer():
        return "".join(response.text for response in engine.submit(PROMPT, IMAGE, max_tokens=8))

    answer()
    assert len(cache) == 1
    change(wide[0])
    assert answer() == ask(wide)
    assert (cache.hits, len(cache)) == (0, 1)


def test_features_of_a_row_that_waits(wide):
    """One whose prompt was begun before the change may have the old ones; nobody else."""
    engine = Engine(*wide)
    first = engine.submit(PROMPT, IMAGE, max_tokens=3)
    engine.step()
    projector(wide[0])
    second = engine.submit(PROMPT, IMAGE, max_tokens=8)
    for answer in (first, second):
        text = "".join(response.text for response in answer)
    assert text == ask(wide)


@CHANGES
def test_a_prompt_caches_file(wide, change, tmp_path):
    cache = PromptCache()
    ask(wide, prompt_cache=cache)
    save_prompt_cache(tmp_path / "before.safetensors", cache)
    change(wide[0])
    with pytest.raises(ValueError, match="made with another model"):
        load_prompt_cache(tmp_path / "before.safetensors", wide[0])
    with pytest.raises(ValueError, match="weights have changed"):
        save_prompt_cache(tmp_path / "after.safetensors", cache)
    assert not (tmp_path / "after.safetensors").exists()
    ask(wide, prompt_cache=cache)
    save_prompt_cache(tmp_path / "after.safetensors", cache)
    assert load_prompt_cache(tmp_path / "after.safetensors", wide[0]).offset == cache.offset
