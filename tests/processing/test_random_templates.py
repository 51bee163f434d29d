"""Random templates: their text is jinja2's, who wrote what is known, and no template takes more than its budget."""

import dataclasses
import functools
import re
import sys
import tempfile
import tracemalloc

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from mlx_fastvlm import FastVlmConfig, FastVlmProcessor
from mlx_fastvlm.processing import template as templates
from mlx_fastvlm.processing.provenance import Author, written_by
from mlx_fastvlm.processing.template import ChatTemplate
from tests.support import checkpoints
from tests.support.templates import plainly

NAMES = st.sampled_from(["a", "b", "message", "content", "part", "n.x"])
CONSTANTS = st.sampled_from(["'x'", "' y '", "''", "'<|im_end|>'", "'x-y z'", "'\\n'"])
NUMBERS = st.sampled_from(["0", "1", "2", "-1", "messages | length", "b | length", "5 // 2", "(7 - 2.5) | int"])


def one_of(kinds):
    """A form, filled in with what its strategies draw."""
    return st.one_of(
        [st.tuples(*parts).map(lambda drawn, form=form: form.format(*drawn)) for form, parts in kinds.items()]
    )


@functools.cache
def texts(depth=3):
    """An expression that is mostly a text."""
    plain = CONSTANTS | NAMES | st.sampled_from(["message.content", "content", "messages[0].content", "b"])
    if depth == 0:
        return plain
    one, other, many = texts(depth - 1), texts(depth - 1), lists(depth - 1)
    kinds = {
        "({})": (plain,),
        "({} ~ {})": (one, other),
        "({} + {})": (one, other),
        "({} if {} else {})": (one, truths(depth - 1), other),
        "({} or {})": (one, other),
        "({})[{}:{}]": (one, NUMBERS, NUMBERS),
        "({})[::{}]": (one, st.sampled_from(["1", "2", "-1"])),
        "({})[{}]": (one, NUMBERS),
        "({} | {})": (one, st.sampled_from(["trim", "upper", "lower", "title", "capitalize", "string", "reverse"])),
        "({} | {} )": (many | one, st.sampled_from(["first", "last", "join", "join('-')", "string", "tojson", "min"])),
        "({}).{}({})": (one, st.sampled_from(["strip", "lstrip", "rstrip", "removeprefix", "removesuffix"]), CONSTANTS),
        "({}).{}()": (one, st.sampled_from(["strip", "upper", "lower", "title", "swapcase", "rstrip"])),
        "({}).replace({}, {})": (one, CONSTANTS, other),
        "({} | replace({}, {}))": (one, CONSTANTS, other),
        "({} | indent({}))": (one, st.sampled_from(["2", "first=true", "1, blank=true"])),
        "({}).join({})": (one, many),
        "({} | default({}))": (one, other),
        "({} | tojson(indent={}))": (many | one, st.sampled_from(["none", "1"])),
        "f({})": (one,),
        "{}": (NUMBERS,),
    }
    return one_of(kinds)


@functools.cache
def lists(depth=2):
    one = texts(depth - 1) if depth else CONSTANTS
    kinds = {
        "messages": (),
        "({}).split({})": (one, CONSTANTS),
        "({}).split()": (one,),
        "({}).rsplit({}, 1)": (one, CONSTANTS),
        "({}).splitlines({})": (one, st.sampled_from(["", "true"])),
        "({}).partition({})": (one, CONSTANTS),
        "[{}, {}]": (one, one),
        "({}, {})": (one, NUMBERS),
        "{{'k': {}, 'a': {}}}": (one, NUMBERS),
        "({} | list)": (one,),
        "(messages | map(attribute='content') | list)": (),
        "(messages | selectattr('role', '==', 'user') | list)": (),
        "(messages | map(attribute='role') | unique | list)": (),
        "([{}, {}] | sort)": (one, one),
        "([{}, {}] | map('upper') | list)": (one, one),
        "([{}, {}] | reject('eq', {}) | list)": (one, one, one),
        "([{}, {}] + [{}])": (one, one, one),
        "messages[{}:]": (NUMBERS,),
        "messages[0].items()": (),
        "range({})": (NUMBERS,),
    }
    return one_of(kinds)


@functools.cache
def truths(depth=2):
    one = texts(depth - 1) if depth else CONSTANTS
    test = st.sampled_from(
        ["string", "defined", "none", "mapping", "sequence", "iterable", "number", "boolean", "upper"]
    )
    kinds = {
        "{} == {}": (one, one),
        "{} in {}": (one, lists(0) | one),
        "{} is {}": (one, test),
        "not {}": (one,),
        "{} | length > {}": (one, NUMBERS),
        "({}).startswith({})": (one, CONSTANTS),
        "({}) < ({})": (one, one),
        "loop.{}": (st.sampled_from(["first", "last"]),),
    }
    return one_of(kinds)


@functools.cache
def statements(depth=3):
    body = st.lists(statements(depth - 1), max_size=3).map("".join) if depth else st.just("t")
    kinds = {
        "{{{{ {} }}}}": (texts(),),
        " {} \n": (st.sampled_from(["<|im_start|>", "words", "<image>"]),),
        "{{% set {} = {} %}}": (NAMES, texts() | lists()),
        "{{% set {} | trim %}}{}{{% endset %}}": (st.sampled_from(["a", "b"]), body),
        "{{% for {} in {} %}}{}{{% else %}}none{{% endfor %}}": (
            st.sampled_from(["message", "part", "a"]), lists() | texts(1), body,
        ),
        "{{% for message in messages if {} %}}{}{{% endfor %}}": (truths(), body),
        "{{% for k, v in {} %}}{}{{% endfor %}}": (st.just("messages[0].items()") | lists(), body),
        "{{% for message in messages %}}{}{{% if {} %}}{{% {} %}}{{% endif %}}{}{{% endfor %}}": (
            body, truths(), st.sampled_from(["break", "continue"]), body,
        ),
        "{{%- if {} -%}} {} {{%- elif {} %}}{}{{% else %}}{}{{% endif %}}": (truths(), body, truths(), body, body),
        "{{% with a = {} %}}{}{{% endwith %}}": (texts(), body),
        "{{% filter {} %}}{}{{% endfilter %}}": (st.sampled_from(["trim", "upper", "replace('t', 'u')"]), body),
        "{{% macro f(a, b='d') %}}{}{{{{ a }}}}{{% endmacro %}}": (body,),
        "{{{{ loop.{} }}}}": (
            st.sampled_from(["index", "length", "revindex", "previtem.role", "nextitem.role", "cycle(1, 2)"]),
        ),
        "{{% generation %}}{}{{% endgeneration %}}": (body,),
    }  # fmt: skip
    return one_of(kinds)


# Everything has a value, or most templates would fail at their first words.
PROLOGUE = """\
{% set n = namespace(x='q') %}{% set message = messages[0] %}{% set content = message.content %}
{% set a = 'a b' %}{% set b = content ~ 'b' %}{% set part = messages | last %}
{% macro f(a, b='d') %}<{{ a }}{{ b }}>{% endmacro %}
"""
TEMPLATES = st.lists(statements(), min_size=1, max_size=4).map("".join).map(PROLOGUE.__add__)
# No letter of these is a template's, and none has upper and lower case: a character tells who wrote it.
SAID = st.lists(st.sampled_from(["你好", "東京 ", "字\n字", " 字", "\n"]), max_size=3).map("".join)
CHATS = st.lists(st.tuples(st.sampled_from(["user", "system", "assistant"]), SAID), min_size=1, max_size=3)


def rendered(source, messages):
    """Pieces, or the reason for which there are none."""
    try:
        return ChatTemplate(source).render(messages, True), ""
    except ValueError as error:
        return None, str(error)


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@settings(max_examples=400)
@given(source=TEMPLATES, chat=CHATS)
def test_what_is_rendered_is_jinja2s_text_with_its_authors(source, chat):
    note(source)
    pieces, why = rendered(source, [{"role": role, "content": written_by(Author.USER, said)} for role, said in chat])
    assert "\n" not in why
    if pieces is None:
        return
    expected = plainly(source, [{"role": role, "content": said} for role, said in chat])
    assert "".join(piece.text for piece in pieces) == expected
    for piece in pieces:
        if piece.author is Author.TEMPLATE:
            assert not set(piece.text) & set("你好東京字")
        else:
            assert set(re.sub(r"\\+n", "\n", piece.text)) <= set("你好東京字 \n")  # repr and JSON escape a line's end


@pytest.fixture(scope="module")
def small_processor():
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.write_tokenizer(folder)
        yield FastVlmProcessor.from_folder(folder, FastVlmConfig.from_dict(checkpoints.apple_config()))


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@settings(max_examples=200)
@given(
    source=TEMPLATES, words=st.lists(st.sampled_from(["<|im_end|>", "<|im_start|>", "字", " ", "<|im_"]), max_size=4)
)
def test_only_the_templates_own_words_are_special(small_processor, source, words):
    """The ids are the plain prompt's, with what is said as plain text."""
    note(source)
    messages = [{"role": "user", "content": "".join(words)}]
    pieces, _ = rendered(source, [{"role": "user", "content": written_by(Author.USER, "".join(words))}])
    if pieces is None or not any(piece.author is Author.USER for piece in pieces):
        return
    processor = dataclasses.replace(small_processor, chat_template=source)
    if processor._render(messages, True) != pieces:  # it wants parts
        return
    ids = processor.encode_chat(messages, image_size=64)
    written = [piece.text for piece in pieces if piece.author is Author.TEMPLATE]
    assert ids.count(258) == sum(text.count("<|im_end|>") for text in written)
    assert ids.count(257) == sum(text.count("<|im_start|>") for text in written)
    text = processor.decode(ids, skip_special_tokens=False)
    assert text == plainly(source, messages).replace("<image>", "")


GREEDY = st.sampled_from(
    [
        "{% for i in range(99999) %}", "{% for i in range(99999) | list %}", "{% for a in messages * 9 %}",
        "{% set n.x = [n.x, n.x] %}", "{% set n.x = n.x ~ n.x %}", "{% set n.x = n.x + n.x %}", "{{ n.x }}",
        "{{ n.x | tojson }}", "{{ n.x | list | length }}", "{% set n.x = n.x.replace('q', 'qqqq') %}",
        "{{ n.x == n.y }}", "{{ n.x.splitlines() | length }}",
        "{% set n.y = [n.x, n.y] %}", "{{ f(9) }}", "{% macro f(m) %}{{ f(m) }}{{ f(m) }}", "{% set n.x = n.x * n.x %}",
        "{{ messages[0].content.split(' ') | length }}", "{{ n.x | sort | unique | list }}",
        "{% set n.x = {'k': n.x} %}",
        "{{ messages[0].content | upper | trim }}", "{% filter upper %}", "{{ n.x | join(messages[0].content) }}",
        "{{ n.x in n.y }}", "{% set n.x = n.x | map('list') | list %}", "{{ n.x | indent(9) }}", "{{ n.x[::-1] }}",
    ]
)  # fmt: skip
ENDS = {"{% for": "{% endfor %}", "{% macro": "{% endmacro %}", "{% filter": "{% endfilter %}"}


def closed(lines):
    opened = [ENDS[kind] for line in lines for kind in ENDS if line.startswith(kind)]
    return "{% set n = namespace(x='q', y=['q']) %}" + "".join(lines) + "".join(reversed(opened))


def calls_and_memory(work):
    """Python calls, and the most bytes held at once: what time and memory come to, without a clock."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += 1

    tracemalloc.start()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return calls, peak


@settings(max_examples=80)
@given(lines=st.lists(GREEDY | statements(), min_size=1, max_size=6), said=st.integers(0, 2000))
def test_no_template_takes_more_than_its_budget(lines, said):
    source, message = closed(lines), [{"role": "user", "content": written_by(Author.USER, "q " * said)}]
    note(source)
    kept = {name: getattr(templates, name) for name in ("STEPS", "STEPS_PER_MESSAGE", "CHARACTERS")}
    templates.STEPS, templates.STEPS_PER_MESSAGE, templates.CHARACTERS = 4000, 0, 100_000
    try:
        calls, peak = calls_and_memory(lambda: rendered(source, message))
    finally:
        for name, value in kept.items():
            setattr(templates, name, value)
    assert calls < 100 * 4000 + 200 * len(source)
    assert peak < 8 * 2**20
