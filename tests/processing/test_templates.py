"""Templates as models bring them: jinja2's text, and who wrote what of it."""

import dataclasses

import pytest

from mlx_fastvlm.processing.marks import AnswerText
from mlx_fastvlm.processing.provenance import Author, written_by
from mlx_fastvlm.processing.template import ChatTemplate
from tests.support.templates import REAL, plainly

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHATS = {
    "a question": [("user", "What is this?")],
    "a system prompt": [("system", " Be brief.\n"), ("user", "Hi\nthere")],
    "turns": [
        ("user", "  What? <|im_end|> \n"),
        ("assistant", "<think>\nhm\n</think>\n\nA star."),
        ("user", "And </s> now?"),
        ("assistant", "Nothing."),
        ("user", "ÄÖ '\"{{ 1 }}' 東京"),
    ],
    "nothing said": [("user", ""), ("assistant", ""), ("user", "")],
}


def prepared(chat, parts, text):
    """Messages, their texts made by ``text(role, words)``."""
    return [
        {
            "role": role,
            "content": [{"type": "image"}, {"type": "text", "text": text(role, words)}] if parts else text(role, words),
        }
        for role, words in chat
    ]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", REAL)
def test_real_templates_give_jinja2s_text(name, chat):
    template = ChatTemplate(REAL[name], TOKENS)
    said = prepared(CHATS[chat], template.wants_parts, lambda role, words: written_by(Author.USER, words))
    plain = prepared(CHATS[chat], template.wants_parts, lambda role, words: words)
    for ask in (True, False):
        pieces = template.render(said, ask)
        assert "".join(piece.text for piece in pieces) == plainly(REAL[name], plain, ask, **TOKENS)
        written = "".join(piece.text for piece in pieces if piece.author is Author.TEMPLATE)
        assert not any(word in written for word in ("What", "東", "Hi"))


CORNERS = [
    "{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = 2 %}{{ x }}{% endfor %}{{ x }}",
    "{% for i in [1] %}{% endfor %}{{ loop is defined }}{{ i is defined }}",
    "{% if true %}{% set x = 1 %}{% endif %}{{ x }}",
    "{% with x = 1 %}{% set y = x %}{% endwith %}{{ x is defined }}{{ y is defined }}",
    "{% set y %}{% set x = 1 %}{{ x }}{% endset %}{{ y }}{{ x is defined }}",
    "{% macro f(a, b=a) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }}{% set c = 3 %}{{ f(1, 2) }}{{ f(b=4, a=1) }}",
    "{% for i in [3, 1, 2] | map('string') %}{{ loop.last }}{{ loop.length }}{{ loop.revindex }}{% endfor %}",
    "{% for i in [3, 1, 2] | select %}{{ loop.nextitem }}{{ loop.previtem }}{{ loop.length }}{% endfor %}",
    "{% for i in [1, 2, 3, 4] if i is even %}{{ loop.index }}{{ loop.last }}{% else %}none{% endfor %}",
    "{% for i in [] %}{% else %}none{% endfor %}{% for i in 'ab' %}{{ i }}{% endfor %}",
    "{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %}",
    "{% set g = [1, 2] | map('string') %}{{ g | list }}{{ g | list }}{{ true if g }}",
    "{{ messages | selectattr('role', 'in', ['tool']) | first is defined }}{{ [] | first }}{{ [1] | last }}",
    "{{ {'items': 1}['items'] }}{{ {'a': 1}.items() | list }}{{ {'a': 1}.a }}{{ {'a': 1}.b is defined }}",
    "{{ 'abc'[0] }}{{ 'abc'[-1] }}{{ 'abc'[5] is defined }}{{ 'abc'['x'] is defined }}{{ [1, 2][1:] }}",
    "{{ 7 / 2 }}{{ 7 // 2 }}{{ -7 % 3 }}{{ 7.0 }}{{ 1 == 1.0 }}{{ true + 1 }}{{ 3 | float }}{{ '4.7' | int }}",
    "{{ 2.5 | round }}{{ 2.567 | round(2) }}{{ 2.1 | round(0, 'ceil') }}{{ 'x' | int(5) }}{{ -3 | abs }}",
    "{{ 1 < 2 < 3 }}{{ 1 in [1] }}{{ 'a' not in 'b' }}{{ none is none }}{{ [1, [2]] == [1, [2]] }}{{ (1,) == [1] }}",
    "{{ ['b', 'A'] | sort }}{{ ['b', 'A'] | sort(case_sensitive=true, reverse=true) }}{{ [1, 1] | unique | list }}",
    "{{ [{'a': {'b': 2}}, {'a': {'b': 1}}] | map(attribute='a.b') | sum }}{{ [3, 1] | max }}{{ ['b', 'A'] | min }}",
    "{{ ['a', none, 1] | join('-') }}{{ [{'x': 1}] | join(attribute='x') }}{{ {'a': [1, 'b\"c']} | tojson }}",
    "{{ {'b': [], 'a': {}} | tojson(indent=2, sort_keys=true) }}{{ [1, 'é'] | tojson(ensure_ascii=true) }}",
    "{{ [1, [2, {'a': (3,)}], 'it\\'s', none, true] }}{{ x }}{{ x | default('d') }}{{ '' | default('e', true) }}",
    "{{ 'a,b,c'.split(',', 1) }}{{ ' a  b '.split() }}{{ 'a b c'.rsplit(' ', 1) }}{{ 'a=b'.partition('=') }}",
    "{{ 'a\nb\r\nc'.splitlines() }}{{ 'a\n'.splitlines(true) }}{{ 'xxaxx'.strip('x') }}{{ 'aXb'.swapcase() }}",
    "{{ 'a\n\nb' | indent(2) }}{{ 'a\nb' | indent(1, true, true) }}{{ 'it is-so (ok)' | title }}{{ 'ab' | reverse }}",
    "{{ 'x' ~ 1 ~ none }}{{ 'a' if false }}{{ not x }}{{ x ~ 'y' }}{{ 'q' | safe }}{{ [1, 2] | reverse | list }}",
    "{{ 'aaa'.replace('a', '', 2) }}{{ 'a' | replace('a', 'b') }}{{ 'abc'.find('c') }}{{ 'a'.endswith(('b', 'a')) }}",
    "{%- for i in range(2, 8, 3) -%} {{ i }} {%- endfor %}{{ range(3) | list }}{{ dict(a=1) }}{{ 3 in range(3) }}",
    "{% raw %}{{ x }}{% endraw %}{# a comment #}  \n  {% if true %}  \n a{% endif %}\n",
    "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% set ns = namespace(a=1) %}{% for i in [1, 2] %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.b }}",
]


@pytest.mark.parametrize("source", CORNERS)
def test_corners_of_the_language(source):
    messages = [{"role": "user", "content": "Hi"}]
    pieces = ChatTemplate(source).render(messages, True)
    assert "".join(piece.text for piece in pieces) == plainly(source, messages)


def test_which_templates_want_parts():
    assert {name for name, source in REAL.items() if ChatTemplate(source, TOKENS).wants_parts} == {
        "images first, then texts",
        "USER and ASSISTANT",
    }


def test_an_answer_keeps_its_ids_where_nothing_is_cut_from_it(processor):
    answer = AnswerText(" Yes. ", [1, 2, 3])
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    for content in ("message.content", "message['content'] ~ ''", "([message.content] | join)", "message.content[:]"):
        template = "{% for message in messages %}{{ 'x' + " + content + " }}{% endfor %}"
        assert dataclasses.replace(processor, chat_template=template).encode_chat(messages)[-3:] == [1, 2, 3]
    cut = "{% for message in messages %}{{ message.content | trim }}{% endfor %}"
    ids = dataclasses.replace(processor, chat_template=cut).encode_chat(messages)
    assert ids == processor.encode("aYes.")


def test_what_the_model_said_shows_no_image(processor):
    template = "{% for message in messages %}{{ message.content | trim }}{% endfor %}"
    processor = dataclasses.replace(processor, chat_template=template)
    messages = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": AnswerText("<image> ", [1])}]
    assert processor.encode_chat(messages, image_size=64).count(processor.image_token_id) == 1


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ messages[0].content | upper }}", "HI <|IM_END|>"),
        ("{{ messages[0].content[:4] }}", "Hi <"),
        ("{{ messages[0].content[::-1] }}", ">|dne_mi|< iH"),
        ("{{ messages[0].content | tojson }}", '"Hi <|im_end|>"'),
        ("{{ messages[0].content | length }}{{ messages[0].content }}", "13Hi <|im_end|>"),
        ("{{ 'yes' if 'im_end' in messages[0].content }}{{ messages[0].content[0] }}", "yesH"),
        ("{{ messages[0].content.split(' ') | last }}", "<|im_end|>"),
        ("{{ messages[0].content.split(' ') }}", "['Hi', '<|im_end|>']"),
        ("{{ messages }}", "[{'role': 'user', 'content': 'Hi <|im_end|>'}]"),
        ("{% for c in messages[0].content %}{{ c }}{% endfor %}", "Hi <|im_end|>"),
        ("{{ messages[0].content.replace('Hi', '<|im_start|>') }}", "<|im_start|> <|im_end|>"),
    ],
)
def test_templates_see_what_users_say_and_it_stays_theirs(processor, template, expected):
    processor = dataclasses.replace(processor, chat_template=template)
    messages = [{"role": "user", "content": "Hi <|im_end|>"}]
    assert processor.apply_chat_template(messages) == plainly(template, messages) == expected
    ids = processor.encode_chat(messages)
    assert ids.count(258) == 0
    assert ids.count(257) == expected.count("<|im_start|>")  # which the template wrote
    assert processor.decode(ids, skip_special_tokens=False) == expected


def test_a_template_that_leaves_open_who_wrote_what_is_refused(processor):
    template = "{{ ('<|im_start|>' + messages[0].content) | upper }}"
    with pytest.raises(ValueError, match=r"changes a text after putting what users say into it\)\.$"):
        dataclasses.replace(processor, chat_template=template).encode_chat([{"role": "user", "content": "Hi"}])


def test_special_tokens_that_a_template_asks_for(processor):
    """``eos_token`` is in the small checkpoint's tokenizer_config.json."""
    template = "{% for message in messages %}{{ message.content + eos_token }}{{ bos_token }}{% endfor %}"
    asking = dataclasses.replace(processor, chat_template=template)
    assert asking.encode_chat([{"role": "user", "content": "a"}]) == [*processor.encode("a"), 258]


def test_an_empty_question_has_a_line_after_its_image(processor):
    """As Apple's predict.py puts it."""
    for content in ("<image>\n", [{"type": "image"}, {"type": "text", "text": ""}]):
        assert "<|im_start|>user\n<image>\n<|im_end|>" in processor.apply_chat_template(
            [{"role": "user", "content": content}]
        )
