"""Chat templates: the usual ones, and what strangers may write."""

import dataclasses

import pytest

from mlx_fastvlm.processing.messages import user_message
from mlx_fastvlm.processing.template import DEFAULT_TEMPLATE

QUESTION = [{"role": "user", "content": "Hi"}]


def test_apples_and_transformers_templates_agree(qwen, facts):
    template = (facts / "configs" / "transformers.chat_template.jinja").read_text()
    other = dataclasses.replace(qwen, chat_template=template)
    plain = dataclasses.replace(qwen, chat_template=DEFAULT_TEMPLATE)
    messages = user_message("What are these?", images=1)
    parts = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What are these?"}]}]
    expected = qwen.encode_chat(messages)
    for processor in (qwen, other, plain):
        assert processor.encode_chat(messages) == processor.encode_chat(parts) == expected


def test_a_checkpoints_template_runs_no_code(processor):
    for template in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('no') }}",
        "{% broken",
    ):
        with pytest.raises(ValueError, match="chat template failed"):
            dataclasses.replace(processor, chat_template=template).apply_chat_template(QUESTION)


def test_what_templates_commonly_use_works(processor):
    """Macros, namespaces, loops with an else, slices, filters, tests and texts that are put together."""
    template = """\
{%- set state = namespace(count=0, last='') -%}
{%- macro show(message) -%}
{%- if message.content is string -%}{{ message.content | trim }}
{%- else -%}{%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- for message in messages[::-1] -%}{%- set state.last = state.last or message.role -%}{%- endfor -%}
{%- for message in messages -%}
{%- set state.count = state.count + 1 -%}
{{- '<|im_start|>' ~ message['role'] + '\\n' -}}{{- show(message) }}{{ '<|im_end|>' }}
{% else %}{{ raise_exception('nothing') }}{%- endfor -%}
{{ ['a', 'b'] | join(', ') }}{{ {'x': 1} | tojson }}{{ state.count * 2 }}{{ state.last.upper() }}{{ 7 % 4 }}
{%- if add_generation_prompt and not tools and tools is not defined %}!{% endif -%}
"""
    written = dataclasses.replace(processor, chat_template=template).apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    )
    assert written == ('<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\na, b{"x": 1}4USER3!')
