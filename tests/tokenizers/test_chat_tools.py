"""Templates with tools, calls and reasoning: texts and ids as transformers makes them, and what they leave out."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coretrain.base.errors import UserError
from coretrain.data.chat_rows import conversation_of
from coretrain.tokenizers.chat_template import SampleError, Template, checked
from coretrain.tokenizers.jinja import TemplateError
from coretrain.tokenizers.tokenizer import Tokenizer

# Of the kinds that models for tools and reasoning have: Qwen's, Llama's, and one that only writes JSON.
TOOLED = {
    "tags": """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
""",
    "headers": """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}
{%- set messages = messages[1:] %}{%- else %}{%- set system = "" %}{%- endif %}
{{- "<|head|>system<|/head|>\\n\\n" }}{{- "Date: " + date_string | default("26 Jul 2024") + "\\n" }}
{%- if tools is not none %}{%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}{%- endif %}
{{- system }}{{- "<|eot|>" }}
{%- for message in messages %}
    {%- if message.tool_calls is defined and message.tool_calls | length != 0 %}
        {%- if not message.tool_calls | length == 1 %}{{- raise_exception("one call at once!") }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|head|>assistant<|/head|>\\n\\n' + (message.content or '') -}}
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{- call.arguments | tojson }}{{- "}<|eot|>" }}
    {%- elif message.role == "tool" %}
        {{- "<|head|>ipython<|/head|>\\n\\n" }}{{- message.content | tojson }}{{- "<|eot|>" }}
    {%- else %}
        {{- '<|head|>' + message['role'] + '<|/head|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|head|>assistant<|/head|>\\n\\n' }}{%- endif %}
""",
    "json": "{{ [tools, documents] | tojson(ensure_ascii=true, separators=(',', ':'), sort_keys=true) }}"
    "{% for m in messages %}<|im_start|>{{ m | tojson }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}",
}
TEXT = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\t'\"{}\\</>|é漢🙂\u2028\ufdd0"), max_size=20
)
SAYS = TEXT.filter(str.strip)
ARGUMENTS = st.dictionaries(TEXT, TEXT | st.integers() | st.none() | st.lists(TEXT, max_size=2), max_size=2)
FUNCTION = st.fixed_dictionaries({"name": SAYS, "arguments": ARGUMENTS})
CALLS = st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": FUNCTION}), min_size=1, max_size=2)
VARIABLES = st.fixed_dictionaries({}, optional={"enable_thinking": st.booleans(), "date_string": SAYS})
ANSWER = st.one_of(
    st.fixed_dictionaries({"content": SAYS}, optional={"reasoning_content": SAYS, "tool_calls": CALLS, "name": SAYS}),
    st.fixed_dictionaries({"thinking": SAYS, "content": SAYS}),
    st.fixed_dictionaries({"tool_calls": CALLS, "content": st.none()}),
)
TURNS = st.lists(
    st.tuples(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "tool"]), "content": SAYS}, optional={"name": SAYS}),
        ANSWER.map(lambda message: {"role": "assistant"} | message),
    ),
    min_size=1, max_size=3,
)  # fmt: skip
ROWS = st.builds(
    lambda system, turns, row: {"messages": [*system, *(one for pair in turns for one in pair)]} | row,
    st.lists(st.fixed_dictionaries({"role": st.just("system"), "content": SAYS}), max_size=1),
    TURNS,
    st.fixed_dictionaries(
        {},
        optional={
            "tools": st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": ARGUMENTS}), max_size=2),
            "documents": st.lists(st.fixed_dictionaries({"title": TEXT, "text": TEXT}), max_size=1),
            "chat_template_kwargs": VARIABLES,
        },
    ),
)  # fmt: skip


def compare(kind: str, row: dict, tokenizer: Tokenizer, theirs) -> bool:
    """Render a row by both, and encode it; whether it can be learnt from. A refusal is one by both."""
    try:
        talk = conversation_of(row, "row")
    except UserError:
        return False
    template = Template(TOOLED[kind], kind, tokenizer)
    told = {"tools": row.get("tools"), "documents": row.get("documents"), "chat_template": template.source}
    told |= row.get("chat_template_kwargs", {})
    for prompt in (False, True):
        try:
            text = theirs.apply_chat_template(row["messages"], add_generation_prompt=prompt, tokenize=False, **told)
        except Exception:
            with pytest.raises(TemplateError):
                template.render(talk, prompt)
            return False
        assert template.render(talk, prompt) == text
        assert template.ids(text).tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    try:
        ids, targets = template.sample(talk)
    except SampleError:
        return False
    whole = theirs.apply_chat_template(row["messages"], **told)["input_ids"]
    assert ids.tolist() == whole[: len(ids)]
    assert targets.any()
    return True


@pytest.mark.parametrize("kind", sorted(TOOLED))
@given(row=ROWS)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_random_rows_are_written_as_transformers_writes_them(kind, row, tokenizer, theirs):
    compare(kind, row, tokenizer, theirs)


def test_the_random_rows_are_mostly_of_use(tokenizer, theirs):
    """What the test before sees isn't all refused: rows as tools and reasoning come in are learnt from."""
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": [1, None], "é": "<|im_end|>" * 0}}}
    talk = [
        {"role": "system", "content": "s"}, {"role": "user", "content": "4 + 4?"},
        {"role": "assistant", "content": "I add.", "tool_calls": [call]},
        {"role": "tool", "content": "8", "name": "add", "tool_call_id": "a"}, {"role": "assistant", "content": "8."},
    ]  # fmt: skip
    row = {"messages": talk, "tools": [{"type": "function", "function": {"name": "add"}}]}
    assert all(compare(kind, row, tokenizer, theirs) for kind in TOOLED)
    thought = {"messages": [talk[1], {"role": "assistant", "thinking": "4, 4", "content": "8"}]}
    assert compare("tags", thought, tokenizer, theirs)
    template = checked(Template(TOOLED["headers"], "headers", tokenizer))
    with pytest.raises(SampleError, match=r"leaves out thinking of message 2 \(assistant\)"):
        template.sample(conversation_of(thought, ""))
    forgetful = "{% for m in messages %}{{ m.thinking if loop.last }}{{ m.content }}<|im_end|>{% endfor %}"
    again = {"messages": [*thought["messages"], *thought["messages"]]}
    with pytest.raises(SampleError, match=r"forgetful leaves out thinking of message 2 \(assistant\)"):
        Template(forgetful, "forgetful", tokenizer).sample(conversation_of(again, ""))
    with pytest.raises(SampleError, match=r"refuses it \(one call at once!\)"):
        template.sample(conversation_of({"messages": [talk[1], talk[2] | {"tool_calls": [call, call]}]}, ""))


def test_special_tokens_in_any_field_are_text(tokenizer):
    """In calls, tools and their names too; where a template writes them in JSON's ASCII form, the row is refused."""
    evil = "<|im_end|>"
    call = {"type": "function", "function": {"name": evil, "arguments": {evil: evil}}}
    row = {
        "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": evil, "tool_calls": [call]}],
        "tools": [{"type": evil}],
    }
    template = Template(TOOLED["tags"], "tags", tokenizer)
    ids, _ = template.sample(conversation_of(row, ""))
    text = tokenizer.decode(ids)
    assert text.count(evil) == 3 + 5
    assert (ids == tokenizer.specials[evil]).sum() == 3
    with pytest.raises(SampleError, match="ASCII form"):
        Template(TOOLED["json"], "json", tokenizer).sample(conversation_of(row, ""))
