"""Answers that keep to a regular expression, choices, a JSON schema: whatever else they are told, and who runs beside.

Where llguidance is missing, tests/support/guidance.py stands in, which knows regular expressions alone.
"""

import dataclasses
import json
import os
import re
import sys

import mlx.core as mx
import numpy as np
import pytest
import regex
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_fastvlm import Engine, batch_generate, generate, stream_generate
from mlx_fastvlm.errors import UsageError
from mlx_fastvlm.generation.constraints import DESCRIPTIONS, Grammar, json_schema
from mlx_fastvlm.generation.filters import keep_allowed
from tests.support import guidance
from tests.support.images import IMAGE

EXAMPLES = int(os.environ.get("FASTVLM_GRAMMARS", 30))
real = pytest.mark.skipif(not guidance.REAL, reason="needs llguidance, of the extra constraints")


def whole(responses):
    """Text and finish reason of an answer."""
    pieces = list(responses)
    return "".join(piece.text for piece in pieces), pieces[-1].finish_reason


# Not \d: Rust and Python know the digits of different versions of Unicode.
ATOM = st.sampled_from([*"abcxyz", "[a-f]", "[0-9]", "[A-Z]", "[^a-z]", "[a-z ]", r"\.", "é", "(yes|no)"])


def patterns():
    """Regular expressions that mean the same to Python and to Rust."""
    repeated = st.builds(
        lambda atom, times: f"(?:{atom}){times}", ATOM, st.sampled_from(["", "?", "*", "+", "{2}", "{1,3}"])
    )
    joined = st.lists(repeated, min_size=1, max_size=4).map("".join)
    return st.lists(joined, min_size=1, max_size=3).map(lambda parts: "|".join(f"(?:{part})" for part in parts))


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(pattern=patterns(), seed=st.integers(0, 99), beside=st.integers(0, 2))
def test_a_finished_answer_matches_and_those_beside_it_are_as_alone(demo, pattern, seed, beside):
    engine = Engine(*demo)
    others = [engine.submit("Describe the image.", IMAGE, max_tokens=12, temperature=t) for t in [0.0] * beside]
    answer = engine.submit("What is this?", regex=pattern, temperature=1.5, seed=seed, max_tokens=40)
    text, reason = whole(answer)
    if reason == "stop":
        assert re.fullmatch(pattern, text)
    else:
        assert regex.fullmatch(pattern, text.rstrip("\ufffd"), partial=True)
    alone = generate(*demo, "Describe the image.", IMAGE, max_tokens=12)
    assert all(whole(other)[0] == alone for other in others)


HARD = {
    "sampled": {"temperature": 1.5, "seed": 3, "top_p": 0.9, "top_k": 7, "min_p": 0.01},
    "bounded": {"max_kv_size": 64, "temperature": 1.0, "seed": 1},
    "quantized": {"kv_bits": 8, "temperature": 1.0, "seed": 1},
    "penalised": {"repetition_penalty": 1.8, "presence_penalty": 1.5},
    "biased": {"logit_bias": {65: 30.0, 66: 30.0}},
    "pieces": {"prefill_step_size": 3},
    "processed": {"logits_processors": [lambda tokens, logits: logits * 0 + 1.0]},
}


@pytest.mark.parametrize("name", HARD)
def test_with_every_other_option(demo, name):
    pattern = "[A-Z][a-z]{1,5}( [a-z]{1,5}){0,3}[.!]"
    for image in (None, IMAGE):
        text, reason = whole(stream_generate(*demo, "What?", image, regex=pattern, max_tokens=60, **HARD[name]))
        assert reason == "stop"
        assert re.fullmatch(pattern, text)


def test_choices_of_which_one_begins_another(demo):
    choices = ["Red", "Red cross", "Re.d", "Blue (dark)", "[x]", "a\\b", "日本", "two\nlines"]
    seen = {generate(*demo, "Which?", choices=choices, temperature=3.0, seed=seed) for seed in range(40)}
    assert seen <= set(choices)
    assert len(seen) > 2


def test_a_batch_of_constrained_answers(demo):
    texts = batch_generate(*demo, ["a", "b", "c"], [IMAGE, None, IMAGE], regex="[a-z]{3}", temperature=1.5, seed=0)
    alone = [
        generate(*demo, q, i, regex="[a-z]{3}", temperature=1.5, seed=0) for q, i in zip("abc", [IMAGE, None, IMAGE])
    ]
    assert texts == alone
    assert all(re.fullmatch("[a-z]{3}", text) for text in texts)


def test_it_goes_on_after_an_interrupt(demo, monkeypatch):
    engine = Engine(*demo)
    options = {"regex": "[a-z]{3,9}!", "temperature": 1.5, "seed": 5}
    expected = generate(*demo, "What?", IMAGE, **options)
    answer = engine.submit("What?", IMAGE, **options)
    text = next(answer).text + next(answer).text
    with monkeypatch.context() as patched:
        patched.setattr(Engine, "_decode", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    assert text + "".join(response.text for response in answer) == expected


def test_a_stop_string_ends_it_where_it_stands(demo):
    text, reason = whole(stream_generate(*demo, "What?", regex="a{3}b{9}", stop="bb"))
    assert (text, reason) == ("aaa", "stop")


def test_probabilities_are_among_what_is_allowed(demo):
    (first, *_) = list(stream_generate(*demo, "What?", IMAGE, choices=["Yes", "No"], top_logprobs=20))
    assert sum(np.exp(alternative.logprob) for alternative in first.top_logprobs) == pytest.approx(1, abs=1e-5)
    assert all("Yes".startswith(a.text) or "No".startswith(a.text) for a in first.top_logprobs)
    assert first.logprob == first.top_logprobs[0].logprob


def test_a_cut_answer_says_so(demo):
    with pytest.warns(UserWarning, match="cut at max_tokens=4, before it kept to its regex; raise max_tokens"):
        assert re.fullmatch("a{1,4}", generate(*demo, "What?", regex="a{100}", max_tokens=4).replace("aa", "a" * 2))
    with pytest.warns(UserWarning, match="cut at max_tokens=4"):
        batch_generate(*demo, ["What?"], regex="a{100}", max_tokens=4)


def test_every_end_of_an_answer_is_allowed_where_one_is(demo):
    model, processor = demo
    ends = sorted(processor.eos_token_ids)
    grammar = Grammar("regex", "ab?", processor, model.config.text_config.vocab_size)
    answer = grammar.begin()

    def allowed():
        bits = np.unpackbits(answer.allowed().view(np.uint8), bitorder="little")
        return [bool(bits[id]) for id in ends]

    assert len(ends) > 1
    assert not any(allowed())
    answer.take(processor.tokenizer.encode("a").ids[0])
    assert all(allowed())


def test_a_token_that_may_not_come_is_an_error_of_its_row_alone(demo):
    model, processor = demo
    grammar = Grammar("regex", "a+", processor, model.config.text_config.vocab_size)
    with pytest.raises(ValueError, match="regex does not allow the token"):
        grammar.begin([processor.tokenizer.encode("b").ids[0]])


def test_a_broken_grammar_ends_its_row_only(demo, monkeypatch):
    engine = Engine(*demo)
    good = engine.submit("Describe the image.", IMAGE, max_tokens=8)
    bad = engine.submit("What?", regex="a{50}", max_tokens=20)
    next(bad)

    def fail(self, token):
        raise ValueError("too costly")

    monkeypatch.setattr("mlx_fastvlm.generation.constraints.Constraint.take", fail)
    with pytest.raises(ValueError, match="too costly"):
        list(bad)
    assert whole(good)[0] == generate(*demo, "Describe the image.", IMAGE, max_tokens=8)


def test_what_rules_out_all_that_is_allowed_says_so(demo):
    def nothing(_, logits):
        return logits - mx.inf

    with pytest.raises(ValueError, match="rule out every token that the constraint allows"):
        generate(*demo, "What?", regex="a+", logits_processors=[nothing])


REFUSED = [
    ({"regex": ""}, "regex must be a text that is not empty"),
    ({"regex": 3}, "regex must be a text"),
    ({"regex": "("}, "regex can't be compiled"),
    ({"regex": "a", "choices": ["a"]}, "regex and choices can't both hold"),
    ({"choices": []}, "choices must be a list of texts"),
    ({"choices": "ab"}, "choices must be a list of texts"),
    ({"choices": ["a", ""]}, "choices must not hold an empty text"),
    ({"grammar": " "}, "grammar must be a text in lark's notation"),
    ({"json_schema": "{"}, "json_schema is not JSON"),
    ({"json_schema": 3}, "json_schema must be a dict, JSON text or a pydantic model"),
    ({"json_schema": {"a": {1, 2}}}, "json_schema is not JSON"),
    ({"json_schema": {"a": float("nan")}}, "json_schema is not JSON"),
    ({"json_schema": "[" * 100_000}, "json_schema is not JSON"),
    ({"regex": "a", "min_tokens": 2}, "says where an answer may end, so min_tokens must be 0"),
]


@pytest.mark.parametrize(("options", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_refused_before_anything_runs(demo, options, sentence):
    with pytest.raises(UsageError, match=sentence) as caught:
        Engine(*demo).submit("What?", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_without_llguidance_it_is_named(demo, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UsageError, match=rf"{name} needs llguidance; run: pip install 'mlx-fastvlm\[constraints\]'"):
        generate(*demo, "What?", **{name: ["a"] if name == "choices" else "{}"})


def test_a_vocabulary_that_is_too_small(demo):
    with pytest.raises(UsageError, match="can't work with the checkpoint's tokenizer"):
        Grammar("regex", "a", dataclasses.replace(demo[1], eos_token_ids=frozenset({7})), 100)


def test_no_end_no_constraint(demo):
    model, processor = demo
    endless = dataclasses.replace(processor, eos_token_ids=frozenset())
    with pytest.raises(UsageError, match="needs a model with a token that ends answers"):
        generate(model, endless, "What?", regex="a")


@pytest.mark.parametrize(("rows", "width"), [(1, 512), (3, 320), (2, 33)])
def test_what_is_not_allowed_is_minus_infinity(rows, width):
    random = np.random.default_rng(rows)
    allowed = random.random((rows, width)) < 0.3
    bits = np.zeros((rows, -(-width // 32) * 32), bool)
    bits[:, :width] = allowed
    words = mx.array(np.packbits(bits, axis=1, bitorder="little").view(np.int32))
    for dtype in (mx.float32, mx.bfloat16, mx.float16):
        logits = mx.array(random.standard_normal((rows, width))).astype(dtype)
        kept = keep_allowed(logits, words)
        assert kept.dtype == dtype
        assert mx.array_equal(kept, mx.where(mx.array(allowed), logits, -mx.inf))


@dataclasses.dataclass
class Thing:
    shape: str
    count: int


def test_schemas_of_classes_are_pydantics():
    pydantic = pytest.importorskip("pydantic", reason="needs pydantic, of the extra test")

    class Model(pydantic.BaseModel):
        shape: str

    assert json.loads(json_schema(Model)) == Model.model_json_schema()
    assert json.loads(json_schema(Thing)) == pydantic.TypeAdapter(Thing).json_schema()
    with pytest.raises(UsageError, match="can't be made of Engine"):
        json_schema(Engine)


def test_a_class_without_pydantic(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(UsageError, match="json_schema of the class Thing needs pydantic"):
        json_schema(Thing)


LEAVES = st.sampled_from(
    [
        {"type": "integer", "minimum": -5, "maximum": 99},
        {"type": "number"},
        {"type": "boolean"},
        {"type": "null"},
        {"type": "string", "maxLength": 8},
        {"enum": ["red", "gr\u00fcn", "\u65e5\u672c", 3, None]},
        {"const": {"a": [1, 2]}},
        {"type": "string", "pattern": "^[a-z]{2,4}$"},
    ]
)


def objects(inner):
    names = st.lists(st.sampled_from(["a", "shape", "gr\u00f6\u00dfe", "x y"]), min_size=1, max_size=3, unique=True)
    return names.flatmap(
        lambda names: st.fixed_dictionaries(dict.fromkeys(names, inner)).map(
            lambda properties: {
                "type": "object",
                "properties": properties,
                "required": list(properties)[:2],
                "additionalProperties": False,
            }
        )
    )


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: (
        objects(inner)
        | inner.map(lambda items: {"type": "array", "items": items, "minItems": 1, "maxItems": 2})
        | st.lists(inner, min_size=1, max_size=2).map(lambda several: {"anyOf": several})
    ),
    max_leaves=4,
)


@real
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(schema=SCHEMAS, seed=st.integers(0, 99))
def test_a_finished_answer_validates(demo, schema, seed):
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema, of the extra test")
    engine = Engine(*demo)
    other = engine.submit("Describe the image.", IMAGE, max_tokens=12)
    text, reason = whole(engine.submit("What?", json_schema=schema, temperature=1.5, seed=seed, max_tokens=200))
    if reason == "stop":
        jsonschema.validate(json.loads(text), schema)
    assert whole(other)[0] == generate(*demo, "Describe the image.", IMAGE, max_tokens=12)


@real
@pytest.mark.parametrize(
    "options",
    [
        {"json_schema": {"type": "nonsense"}},
        {"json_schema": {"type": "string", "format": "nonsense"}},
        {"grammar": "start: no_such_rule"},
        {"regex": "(?=a)b"},
    ],
    ids=str,
)
def test_what_llguidance_can_not_compile_is_one_line(demo, options):
    with pytest.raises(UsageError, match="can't be compiled") as caught:
        Engine(*demo).submit("What?", **options)
    assert "\n" not in str(caught.value)


@real
def test_large_and_recursive_descriptions(demo):
    many = [f"choice {i} {'é' * (i % 5)}" for i in range(10_000)]
    assert generate(*demo, "Which?", choices=many, temperature=2.0, seed=1) in many
    assert json.loads(generate(*demo, "Which?", json_schema={"enum": many}, temperature=2.0, seed=1)) in many
    tree = {"$ref": "#/$defs/t", "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}}
    text, reason = whole(stream_generate(*demo, "What?", json_schema=tree, max_tokens=64, temperature=1.0, seed=2))
    assert reason == "length" or isinstance(json.loads(text), list)
    text, reason = whole(stream_generate(*demo, "What?", grammar='start: "(" start ")" | "x"', max_tokens=64, seed=3))
    assert reason == "length" or text.count("(") == text.count(")")
