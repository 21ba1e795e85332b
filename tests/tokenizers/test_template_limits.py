"""Chat templates of strangers: none runs for ever, fills memory or sees more than it is given."""

from __future__ import annotations

import time

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from coretrain.base.errors import UserError
from coretrain.tokenizers import template_limits
from coretrain.tokenizers.chat_template import LONGEST, Template, checked
from coretrain.tokenizers.registry import bytes_tokenizer
from tests.support.refusal import refused

GROWING = "{% set ns = namespace(x='aaaa') %}{% for i in range(99) %}{% set ns.x = EXPRESSION %}{% endfor %}"
MUCH = "{% set x = 'a' * 9999999 %}"
WHOLE = (
    "{% for message in messages %}{{ message['role'] ~ ': ' ~ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(template_limits, "SECONDS", 0.2)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    ],
)
def test_no_template_runs_for_ever(source):
    began = time.process_time()
    with refused("tokenizers/template-trial-failed", "it takes longer than 0.2 seconds"):
        checked(Template(WHOLE + source, "T", bytes_tokenizer()))
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**11 }}",
        "{{ (1,) * 10**11 }}",
        "{{ 9 ** (9 ** 9) }}",
        GROWING.replace("EXPRESSION", "ns.x ~ ns.x"),
        GROWING.replace("EXPRESSION", "ns.x + ns.x"),
        GROWING.replace("{% set ns.x = EXPRESSION %}", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
        MUCH + "{{ x.replace('a', x) }}",
        MUCH + "{{ x | replace('a', x) }}",
        MUCH + "{{ x.join(x) }}",
        MUCH + "{{ ([x] * 9999) | join }}",
        MUCH + "{{ ([1] * 9999) | join(x) }}",
        MUCH + "{% for i in range(9999) %}{{ x }}{% endfor %}",
        "{{ '%99999999999d' % 1 }}",
        "{{ '%*d' % (10**11, 1) }}",
        "{{ '{:99999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10**11) }}",
        "{{ '%9999999999d' | format(1) }}",
        "{{ 'a'.ljust(10**11) }}",
        "{{ 'a' | center(10**11) }}",
        "{{ 'a' | indent(10**11, true) }}",
        "{{ [1] | batch(10**10, 0) | list }}",
        "{{ [1, 2] | tojson(indent=10**10) }}",
        "{{ 1 | round(-10**10) }}",
        "{{ lipsum(n=10**10) }}",
        "{{ '\t'.expandtabs(10**11) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
    ],
)
def test_none_makes_much_of_little_or_looks_outside(source):
    with refused("tokenizers/template-trial-failed", "T refuses it"):
        checked(Template(WHOLE + source, "T", bytes_tokenizer()))


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'Today is {} of %d'.format(2024) }}{{ '{:>6}|{a}'.format('ab', a=12345) }}",
        "{{ '%d items {}' % 123456 }}{{ '%-6s|' % 'ab' }}{{ '%s of %s' % (1234, 5678) }}",
        "{{ '%-6s|%s' | format('ab', 123456) }}",
        "{{ 'a' ~ 1 ~ none ~ [2] ~ 0.5 }}",
        "{{ 'ab' * 3 + 'c' }}{{ 7 % 4 }}{{ 2 ** 10 }}{{ 3 * 4 }}{{ [1] * 2 + [3] }}",
        "{{ ['a', 1] | join('-') }}{{ '-'.join(['a', 'b']) }}{{ messages | join(', ', attribute='role') }}",
        "{{ 'aXa'.replace('X', 'yy') }}{{ 'aXa' | replace('X', '') }}{{ 'aa'.replace('a', 'b', 1) }}",
        "{{ 'a\nb' | indent(4) }}{{ 'x' | center(5) }}{{ 'x'.ljust(5) }}|{{ '7'.zfill(3) }}",
        "{{ {'a': [1, 'b']} | tojson }}{{ [1] | tojson(indent=2) }}{{ 'abc' | truncate(2000) }}",
        "{{ messages | map(attribute='role') | list | length }}{{ 3.14159 | round(2) }}{{ 'b,a'.split(',') | sort }}",
        "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('a') }}{% set y %}{{ f('b') }}{% endset %}{{ y | upper }}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + loop.index %}{% endfor %}{{ ns.n }}",
    ],
)
def test_what_templates_do_is_as_in_jinjas_own_sandbox(source):
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
    ours, theirs = (
        make(trim_blocks=True, lstrip_blocks=True).from_string(source).render(messages=said)
        for make in (template_limits.LimitedEnvironment, ImmutableSandboxedEnvironment)
    )
    assert ours == theirs != ""


def test_each_rendering_has_the_whole_of_its_room(monkeypatch):
    monkeypatch.setattr(template_limits, "LARGEST", 100)
    template = checked(Template(WHOLE, "T", bytes_tokenizer()))
    for _ in range(20):
        template.question("how are you today?")
    with pytest.raises(Exception, match="more than"):
        template.question("a" * 101)


def test_a_template_of_a_megabyte_is_none():
    with refused("tokenizers/template-too-long", "T"):
        checked(Template(WHOLE + " " * LONGEST, "T", bytes_tokenizer()))


@pytest.mark.parametrize("source", ["{{ (" * 3000, "{% if a %}" * 3000, "{{ " + "(" * 900 + "1" + ")" * 900 + " }}"])
def test_a_template_that_is_nested_for_ever(source):
    with pytest.raises(UserError) as caught:
        checked(Template(source, "T", bytes_tokenizer()))
    assert caught.value.code in ("tokenizers/template-not-compiled", "tokenizers/template-not-jinja")
