"""Chat templates render as transformers renders them, and none takes all memory or time."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from idefics_cli.core.types import LoadSpec
from idefics_cli.models.families.bounded_template import BoundedTemplate, TemplateTooLarge
from idefics_cli.models.families.protocols import Processor
from idefics_cli.models.loading.loader import load

CONVERSATION: list[dict[str, object]] = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief, 12345 times."}]},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What {is} 100%?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "  A cat.\n"}]},
]
ORDINARY = [
    "{{ bos_token }}{% for m in messages %}{{ m.role | capitalize ~ ': ' ~ loop.index }}"
    "{% for c in m.content %}{{ '<image>' if c.type == 'image' else c['text'] | trim }}{% endfor %}"
    "\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant' + ':' }}{% endif %}",
    "{% set ns = namespace(last='', n=0) %}{% for m in messages[1:] %}{% set ns.last = m.role %}"
    "{% set ns.n = ns.n + loop.length * 2 %}{% endfor %}{{ ns.last }}{{ ns.n }}{{ '-' * 20 }}",
    "{% macro show(c) %}[{{ c | tojson(indent=2) }}]{% endmacro %}"
    "{% for m in messages if m.role != 'system' %}{{ show(m.content) | indent(4) }}{% endfor %}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}"
    "{% generation %}{{ m.content[0].text }}{% endgeneration %}{% endfor %}",
    "{{ messages | map(attribute='role') | join(', ') }} {{ '%s of %02d' % ('x', 3) }}"
    "{{ '{:>8}'.format('y') }}{{ messages | selectattr('role', 'eq', 'user') | list | length }}",
    "{{ messages[1].content[1].text.replace('is', 'was').split(' ') | join('/') }}"
    "{{ ', '.join(['a', 'b']) }}{{ 'abc'.center(9, '*') }}{{ [1, 2] * 2 }}{{ 2 ** 10 }}",
    "{% set text %}{% for m in messages %}{{ m.role }};{% endfor %}{% endset %}{{ text | upper }}",
    "{{ strftime_now('%Y') }}{{ dict(a=1) }}{{ range(3) | list }}{{ none }}{{ undefined_name }}",
]  # fmt: skip


@pytest.mark.parametrize("template", ORDINARY)
def test_ordinary_templates_render_as_in_the_library(
    template: str, checkpoint: Callable[[str], Path]
) -> None:
    processor = load(LoadSpec(str(checkpoint("idefics3")), "idefics3")).family.processor
    processor.chat_template = template
    for asks in (True, False):
        ours, library = (
            renderer.apply_chat_template(CONVERSATION, add_generation_prompt=asks)
            for renderer in (BoundedTemplate(processor), processor)
        )
        assert ours == library != ""


DOUBLED = (
    "{{% set ns = namespace(s={0}) %}}{{% for i in range(99) %}}{1}{{% endfor %}}{{{{ ns.s }}}}"
)
LONG_LOOP = (
    "{{% for i in range(100000) %}}{{% for j in range(100000) %}}{0}{{% endfor %}}{{% endfor %}}"
)
BOMBS = [
    "{{ 'x' * 10**10 }}",
    "{{ 10**10 * [0] }}",
    "{{ 10**(10**10) }}",
    LONG_LOOP.format("x" * 4000),
    DOUBLED.format("'xx'", "{% set ns.s = ns.s ~ ns.s %}"),
    DOUBLED.format("'xx'", "{% set ns.s = ns.s + ns.s %}"),
    DOUBLED.format("'xx'", "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}"),
    DOUBLED.format("['xx']", "{% set ns.s = [ns.s, ns.s] %}"),
    DOUBLED.format("['xx']", "{% set ns.s = ns.s * 100 %}") + "{{ ns }}",
    "{{ 'x' | center(10**10) }}",
    "{{ 'x'.ljust(10**10) }}",
    "{{ 'a' | indent(10**10, true) }}",
    "{{ '%10000000000d' % 5 }}",
    "{{ '%*d' % (10**10, 5) }}",
    "{{ '%10000000000d' | format(5) }}",
    "{{ '{:10000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=10**10) }}",
    "{{ ('x' * 1000000).replace('x', 'x' * 1000000) }}",
    "{{ ('x' * 1000000) | replace('x', 'x' * 1000000) }}",
    "{{ ('x' * 1000000).translate({120: 'y' * 1000000}) }}",
    "{{ ('x' * 1000000).join(['x'] * 1000000) }}",
    "{{ (['x' * 1000000] * 10) | map('center', 2000000) | join }}",
    "{{ [['x' * 100000] * 1000] * 1000 }}",
    "{{ messages | tojson(indent=10**10) }}",
    "{{ strftime_now('%10000000000Y') }}",
    "{{ (5).to_bytes(10**10, 'big') }}",
    "{{ 'x' | batch(10**9, 'y') | list | length }}",
    "{{ ('x' * 15000000) | batch(1) | list | length }}",
    "{{ ('x' * 15000000) | groupby(0) | length }}",
    "{{ ('x' * 15000000) | map('upper') | list | length }}",
    "{{ ('xy ' * 5000000).split() | length }}",
    "{{ ('x,' * 7000000).split(',') | length }}",
    "{{ ('x\\n' * 7000000).splitlines() | length }}",
    "{{ ('x ' * 7000000) | title }}",
]  # fmt: skip


def processor_of(template: str) -> Processor:
    tokenizer = SimpleNamespace(special_tokens_map={})
    processor: Processor = SimpleNamespace(chat_template=template, tokenizer=tokenizer)
    return processor


@pytest.mark.parametrize("template", BOMBS)
def test_a_template_that_takes_too_much_is_refused_in_little_memory(template: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TemplateTooLarge):
        BoundedTemplate(processor_of(template)).apply_chat_template(
            CONVERSATION, add_generation_prompt=True
        )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize(
    "template",
    [
        LONG_LOOP.format(""),
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
        "{{ m(60) }}",
    ],
)
def test_steps_without_output_spend_the_budget_too(template: str) -> None:
    bounded = BoundedTemplate(processor_of(template), budget=10**7)
    with pytest.raises(TemplateTooLarge, match="too many steps"):
        bounded.apply_chat_template(CONVERSATION, add_generation_prompt=True)
