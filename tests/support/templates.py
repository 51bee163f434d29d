# ruff: noqa: E501  (templates are written as models bring them)
"""Chat templates in the shapes that models bring them, and jinja2 as transformers sets it up, to compare with."""

import json
from datetime import datetime
from typing import ClassVar

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

REAL = {
    "ChatML with a default system prompt": """\
{% for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system
Be helpful.<|im_end|>
' }}{% endif %}{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}""",
    "images first, then texts": """\
{% for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- for part in message.content | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}
{%- for part in message.content | selectattr('type', 'equalto', 'text') %}{{ '\n' + part.text }}{% endfor %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    "USER and ASSISTANT": """\
{% for message in messages %}
    {%- if message.role == 'system' %}{{ message.content[0].text ~ ' ' }}
    {%- else %}
        {{- message.role.upper() ~ ': ' }}
        {%- for part in message.content if part.type == 'image' %}{{ '<image>\n' }}{% endfor %}
        {%- for part in message.content if part.type == 'text' %}
            {%- if message.role == 'assistant' %}{% generation %}{{ part.text }}{% endgeneration %}
            {%- else %}{{ part.text }}{% endif %}
        {%- endfor %}
        {{- ' ' if message.role == 'user' else eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}""",
    "parts or a string": """\
{% macro show(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content is iterable and content is not mapping -%}
{%- for part in content -%}
{%- if part.type in ['image', 'image_url'] or 'image' in part -%}<image>{%- else -%}{{ part['text'] }}{%- endif -%}
{%- if not loop.last %}{{ '\n' }}{% endif -%}
{%- endfor -%}{%- endif -%}
{%- endmacro %}
{% for message in messages %}{{ '<|im_start|>' ~ message.role ~ '\n' ~ show(message.content) ~ '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}""",
    "tools before the first message": """\
{%- if tools %}
    {{- '<|im_start|>system\n# Tools\n' }}
    {%- for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor %}
    {{- '<|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- else %}
    {{- '<|im_start|>system\nDefault.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == 'user') or (message.role == 'system' and not loop.first) or (message.role == 'assistant' and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == 'tool' and (loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool') %}
        {{- '<|im_start|>user\n<tool_response>' ~ message.content ~ '</tool_response>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    "headers and a date": """\
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}
    {%- else %}{% set date_string = '26 Jul 2024' %}{% endif %}
{%- endif %}
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}{%- set rest = messages[1:] %}
{%- else %}{%- set system_message = '' %}{%- set rest = messages %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' + system_message + '<|eot_id|>' }}
{%- for message in rest %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}""",
    "INST, strictly in turns": """\
{%- set ns = namespace(index=0) %}
{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}{%- set chat = messages[1:] %}
{%- else %}{%- set chat = messages %}{% endif %}
{%- for message in chat %}
    {%- if (message['role'] == 'user') != (ns.index % 2 == 0) %}
        {{- raise_exception('roles must take turns') }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in chat %}
    {%- if message['role'] == 'user' %}
        {%- if loop.last and system is defined %}{{ '[INST] ' + system + '\n\n' + message['content'] + '[/INST]' }}
        {%- else %}{{ '[INST] ' + message['content'] + '[/INST]' }}{% endif %}
    {%- else %}{{ ' ' + message['content'] | trim + eos_token }}{% endif %}
{%- endfor %}""",
    "turns of a model": """\
{{ bos_token }}{% set first = '' %}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}
{%- set messages = messages[1:] %}{% endif %}
{%- for message in messages %}
{%- if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{{- '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}
{%- if message['content'] is string %}{{ message['content'] | trim }}
{%- else %}{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}
{{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}""",
    "thoughts are left out": """\
{%- set ns = namespace(last=messages | length - 1, found=false) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if not ns.found and message.role == 'user' and message.content is string and not (message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.found = true %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}{%- set thought = '' %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if loop.index0 > ns.last and (loop.last or thought) %}{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{% endif %}
    {{- content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}""",
    "roles from a dict, and JSON": """\
{%- set names = {'user': '<|USER|>', 'assistant': '<|BOT|>', 'system': '<|SYS|>'} %}
{%- macro turn(role, text, end='<|END|>') %}{{ names.get(role, '<|OTHER|>') ~ text ~ end }}{% endmacro %}
{%- for name, mark in names | dictsort %}{% if loop.first %}{{ '# ' }}{% endif %}{{ name ~ '=' ~ mark | length }}{{ ', ' if not loop.last }}{% endfor %}
{% for message in messages %}{{ turn(message.role, message.content) }}
{%- if not loop.last %}{{ turn(role='other', text={'next': messages[loop.index].role, 'left': loop.revindex0} | tojson(indent=2)) }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ names['assistant'] }}{% endif %}""",
    "blocks and filters": """\
{%- set intro %}{% for message in messages if message.role == 'system' %}{{ message.content }}{% else %}None.{% endfor %}{% endset %}
{%- filter trim %}

{{ intro }}
{% endfilter %}
{%- with last = messages | last, seen = messages | map(attribute='role') | unique | list %}
{{ seen | join('/') ~ ' ' ~ seen | length }}
{% for message in messages %}
{% if message.role == 'system' %}{% continue %}{% endif %}
{{ loop.cycle('a', 'b') ~ loop.index ~ loop.previtem is defined }}: {{ message.content | replace('\\n', ' ') | indent(2) }}
{% if loop.changed(message.role) %}*{% endif %}
{% if loop.index == 4 %}{% break %}{% endif %}
{% endfor %}
{{ last.content | default('nothing', true) }}{{ eos_token }}
{%- endwith %}""",
    "user, assistant, end": """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
}


class Generation(Extension):
    """transformers' tag, which writes what is in it."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_same"), [], [], body).set_lineno(line)

    def _same(self, caller):
        return caller()


def _complain(message):
    raise jinja2.exceptions.TemplateError(message)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def plainly(template, messages, add_generation_prompt=True, **variables):
    """What jinja2 itself makes of a template, set up as transformers does."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _complain
    environment.globals["strftime_now"] = lambda how: datetime.now().strftime(how)
    program = environment.from_string(template)
    return program.render(messages=messages, add_generation_prompt=add_generation_prompt, **variables)
