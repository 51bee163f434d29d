"""Templates that want to run code, to read files, or never to end: each is refused in one sentence."""

import dataclasses

import pytest

from mlx_fastvlm.processing import template as templates
from mlx_fastvlm.processing.provenance import Author, written_by
from mlx_fastvlm.processing.template import ChatTemplate

DOUBLING = "{% set n = namespace(x=['a'], y=['a'], t='aaaa') %}{% for i in range(60) %}%s{% endfor %}"
LISTS = DOUBLING.replace("%s", "{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}")

GREEDY = {
    "a format's width": ("{{ '{:>2000000000}'.format('a') }}", "uses format()"),
    "a format's width from a map": ("{{ '{a:>2000000000}'.format_map({'a': 1}) }}", "uses format_map()"),
    "the filter format": ("{{ '%2000000000d' | format(1) }}", "the filter format"),
    "the operator %": ("{{ '%2000000000d' % 1 }}", "uses % on texts"),
    "a number's bytes": ("{% if (1).to_bytes(3500000000, 'big') %}{% endif %}", "uses to_bytes()"),
    "a text many times": ("{{ 'a' * 10000000000 }}", "uses * on texts"),
    "a list many times": ("{{ ([0] * 10000000000) | length }}", "uses * on texts or lists"),
    "a power": ("{{ 9 ** 9 ** 9 }}", "uses pow"),
    "squares": (DOUBLING.replace("%s", "{% set n.i = (n.i or 7) * (n.i or 7) %}"), "too large a number"),
    "a shift by rounding": ("{{ 5 | round(-1000000000) }}", "rounds to something else"),
    "a date's width": ("{{ strftime_now('%2000000000d') }}", "such a form of a date"),
    "padding": ("{{ 'a'.ljust(2000000000) }}", "uses ljust()"),
    "zeros": ("{{ 'a'.zfill(2000000000) }}", "uses zfill()"),
    "tabs": ("{{ '\t'.expandtabs(2000000000) }}", "uses expandtabs()"),
    "the filter center": ("{{ 'a' | center(2000000000) }}", "the filter center"),
    "an indent": ("{{ 'a\nb' | indent(2000000000) }}", "indents by more than"),
    "JSON's indent": ("{{ [1] | tojson(indent=2000000000) }}", "indents JSON by more"),
    "lists of lists, written": (LISTS + "{{ n.x }}", "too many steps"),
    "lists of lists, as a text": (LISTS + "{{ n.x | string | length }}", "too many steps"),
    "lists of lists, as JSON": (LISTS + "{{ n.x | tojson }}", "too many steps"),
    "lists of lists, compared": (LISTS + "{{ n.x == n.y }}", "too many steps"),
    "lists of lists, looked for": (LISTS + "{{ n.x in [n.y] }}", "too many steps"),
    "tuples of tuples as a key": (
        DOUBLING.replace("%s", "{% set n.x = (n.x, n.x) %}") + "{{ {n.x: 1} | length }}",
        "as a key",
    ),
    "the sum of lists": (
        "{% set n = namespace(x=range(99999) | list) %}{% for i in range(60) %}"
        "{% set n.x = [n.x, n.x] | sum(start=[]) %}{% endfor %}",
        "computes with a list",
    ),
    "lists added": (DOUBLING.replace("%s", "{% set n.x = n.x + n.x %}"), "too many steps"),
    "texts added": (DOUBLING.replace("%s", "{% set n.t = n.t + n.t %}"), "too long a text"),
    "texts joined": (DOUBLING.replace("%s", "{% set n.t = [n.t, n.t] | join %}"), "too long a text"),
    "texts joined by a method": (DOUBLING.replace("%s", "{% set n.t = n.t.join([n.t, n.t]) %}"), "too long a text"),
    "texts replaced": (DOUBLING.replace("%s", "{% set n.t = n.t.replace('a', 'aaaa') %}"), "too many steps"),
    "texts in a block": (
        DOUBLING.replace("%s", "{% set x %}{{ n.t }}{{ n.t }}{% endset %}{% set n.t = x %}"), "too long a text",
    ),
    "a recursive loop": (
        "{% for a in range(99999) recursive %}{% if loop.depth0 < 1 %}{% if loop(range(99999)) %}{% endif %}{% endif %}"
        "{% endfor %}",
        "uses recursive loops",
    ),
    "loops in loops": (
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "too many steps",
    ),
    "a long expression in a loop": (
        "{% for i in range(99999) %}{% if [" + "1," * 50_000 + "] %}{% endif %}{% endfor %}", "too many steps",
    ),
    "a long range": ("{% for a in range(10 ** 9) %}{% endfor %}", "uses pow"),
    "a longer range": ("{% for a in range(1000000000) %}{% endfor %}", "too many steps"),
    "filters in a loop": (
        "{% for i in range(99999) %}{% if range(99999) | list | length %}{% endif %}{% endfor %}",
        "too many steps",
    ),
    "sorting in a loop": (
        "{% for i in range(99999) %}{% if range(9999) | list | sort %}{% endif %}{% endfor %}",
        "too many steps",
    ),
    "a list in a list in a loop": (
        "{% set r = range(9999) | list %}{{ r | select('in', r) | list | length }}",
        "too many steps",
    ),
    "a long text searched in a loop": (
        "{% for i in range(99999) %}{% if 'yz' in messages[0].content %}{% endif %}{% endfor %}",
        "reads one too often",
    ),
    "a macro that calls itself": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "too many steps",
    ),
    "a macro without an end": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested too deeply"),
    "a deep list": (
        "{% set n = namespace(x=0) %}{% for i in range(9999) %}{% set n.x = [n.x] %}{% endfor %}{{ n.x }}",
        "nested too deeply",
    ),
    "a long template": (" " * 300_000, "don't trust it"),
    "a deep expression": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deeply"),
    "deep blocks": ("{% if 1 %}" * 5000, "nested too deeply"),
    "a number of many digits": ("{{ 0x" + "f" * 100_000 + " }}", "too large a number"),
    "an int of a long text": (
        "{{ ('9' ~ messages[0].content[:4000] | replace('x', '9')) | int }}", "too large a number",
    ),
    "stripping": ("{{ messages[0].content.strip(messages[0].content) }}", "strips more than"),
}  # fmt: skip


@pytest.mark.parametrize("name", GREEDY)
def test_what_never_ends_or_fills_the_memory_is_refused(name):
    source, reason = GREEDY[name]
    messages = [{"role": "user", "content": written_by(Author.USER, "x" * 10_000)}]
    with pytest.raises(ValueError, match=r"^The checkpoint's chat template [^\n]*\.$") as refused:
        ChatTemplate(source).render(messages, True)
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 300


ESCAPES = [
    "''.__class__",
    "''['__class__']",
    "''.__class__.__mro__[1].__subclasses__()",
    "messages.__class__.__base__",
    "messages[0].__class__",
    "messages[0]['__class__']",
    "(1).__class__.__init__.__globals__",
    "range.__self__",
    "range(1).__class__",
    "namespace.__init__.__globals__",
    "namespace(a=1).__class__",
    "dict.__init__",
    "raise_exception.__globals__",
    "raise_exception.call",
    "range.call.__globals__",
    "strftime_now.__code__",
    "''.upper.__self__",
    "''.join.call",
    "messages[0].get.call.__closure__",
    "messages[0].items().mapping",
    "messages.append(1)",
    "messages.clear()",
    "messages[0].update({})",
    "messages[0].setdefault('a', 1)",
    "messages[0].pop('role')",
    "messages | attr('append')",
    "'' | attr('__class__')",
    "messages | map(attribute='__class__') | list",
    "messages | map('attr', '__class__') | list",
    "messages | selectattr('__class__') | list",
    "messages | sort(attribute='__class__')",
    "messages | groupby('role')",
    "messages | random",
    "messages | pprint",
    "'{0.__class__}'.format(messages)",
    "'%s' % messages",
    "'{a.__class__}'.format_map({'a': 1})",
    "self.__init__",
    "self._TemplateReference__context",
    "caller()",
    "varargs",
    "lipsum.__globals__",
    "cycler('a').__class__",
    "joiner.__init__.__globals__",
    "f.call",
    "f.__call__.__globals__",
    "loop.__class__",
    "loop._iterator",
    "loop._budget",
    "loop('x')",
    "(messages | map('upper')).gi_frame",
    "(messages | select).__class__",
    "none.__class__",
    "undefined.__class__",
    "f(*messages)",
    "f(**messages[0])",
    "range(budget=1)",
    "'a'.split(budget=1)",
    "'a' | trim(value=1)",
    "f",
    "range",
    "messages[0].items()",
    "namespace(a=1)",
    "x.y.z",
    "1()",
    "''()",
    "'a' | e",
    "('a' | safe) + 'b'",
    "'a' | xmlattr",
    "'a' | urlize",
    "messages is filter",
    "1 / 0",
    "[] + ''",
    "{[]: 1}",
    "'a' + 1",
    "'a'.index('b')",
    "1 < 'a'",
]  # fmt: skip


@pytest.mark.parametrize("expression", ESCAPES)
def test_expressions_reach_no_python(expression):
    """What would be a Python object, or an attribute of one, is refused or written as nothing."""
    source = "{% macro f(a) %}{{ a }}{% endmacro %}{% for one in [1] %}{{ " + expression + " }}{% endfor %}"
    refused = ""
    try:
        pieces = ChatTemplate(source).render([{"role": "user", "content": "Hi"}], True)
    except ValueError as error:
        pieces, refused = (), str(error)
    assert "\n" not in refused
    assert "".join(piece.text for piece in pieces) in ("", "[]", "[Undefined]")  # jinja2's undefined


STATEMENTS = [
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% from 'os' import system %}",
    "{% extends 'x' %}",
    "{% block a %}{{ self }}{% endblock %}",
    "{% call f() %}{% endcall %}",
    "{% do messages.append(1) %}",
    "{% set messages[0] = 1 %}",
    "{% set messages.x = 1 %}",
    "{% set range.x = 1 %}",
    "{% autoescape true %}a{% endautoescape %}",
    "{% trans %}a{% endtrans %}",
    "{% debug %}",
    "{% python %}",
    "{% for a, b in [1] %}{% endfor %}",
    "{% for a in 5 %}{% endfor %}",
    "{% broken",
    "{{",
]


@pytest.mark.parametrize("statement", STATEMENTS)
def test_statements_that_chat_templates_have_not(statement):
    with pytest.raises(ValueError, match=r"^The checkpoint's chat template failed \([^\n]*\)\.$"):
        ChatTemplate(statement).render([{"role": "user", "content": "Hi"}], True)


def test_a_templates_own_refusal_is_one_short_printable_line(processor):
    template = "{{ raise_exception('no\n\x1b[31m' ~ messages[0].content ~ 'x') }}"
    with pytest.raises(ValueError, match="failed") as refused:
        dataclasses.replace(processor, chat_template=template).encode_chat([{"role": "user", "content": "y" * 10**6}])
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300


def test_the_budget_grows_with_the_conversation(processor):
    """What is said may be long, and turns many; the usual template is far from its limits."""
    messages = [{"role": role, "content": "word " * 200} for role in ("user", "assistant")] * 500
    assert len(processor.apply_chat_template(messages)) > 10**6


def test_a_template_is_parsed_once(processor, monkeypatch):
    parsed = []
    environment = templates._environment()
    original = environment.parse
    monkeypatch.setattr(environment, "parse", lambda source: parsed.append(source) or original(source))
    once = dataclasses.replace(processor, chat_template=processor.chat_template + "{# once #}")
    for _ in range(3):
        once.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert len(parsed) == 1
