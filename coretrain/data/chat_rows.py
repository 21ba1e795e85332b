"""Rows of conversations as people's files hold them: which fields are read, which are refused, and the rest.

The fields of a row are those that transformers' `apply_chat_template`, TRL, OpenAI's fine-tuning and axolotl read.
Those of a message but its role, content and mark all go to the template, as in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.parse import from_json
from coretrain.tokenizers.conversation import LABELS, NOTES, REASONING, Conversation, Message

ROLES = ("system", "developer", "user", "assistant", "tool")
SPEAKERS = {"human": "user", "gpt": "assistant"}
"""Names of roles where a message is `{from, value}`."""
MARKS = ("weight", "train")
"""Whether an answer is learnt: OpenAI's name for it, and axolotl's."""
READ = ("messages", "conversations", "prompt", "completion", "system", "tools", "documents", "chat_template_kwargs")
"""Fields of a row that are read."""
REFUSED = {
    "functions": "write them as tools",
    "function_call": "write an assistant's message with tool_calls",
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), "models of text alone are trained here"),
    **dict.fromkeys(
        ("input_ids", "labels", "assistant_masks", "completion_mask", "loss_mask"),
        "tokens and targets are made here; give the messages alone, and mark answers that aren't learnt with weight 0",
    ),
    **dict.fromkeys(MARKS, "mark the answers themselves"),
    "chat_template": "give one for all rows, as data.chat_template",
    **dict.fromkeys(("add_generation_prompt", "continue_final_message"), "every answer is learnt to its end"),
}
"""Fields of a row by which a trainer would learn something else, each with the way out."""
ARGUMENTS = (
    "conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length",
    "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
)  # fmt: skip
"""What `apply_chat_template` takes besides variables of the template: no names for `chat_template_kwargs`."""
MISFITS = frozenset(
    f"data/{code}"
    for code in (
        "messages-not-a-list", "prompt-not-text", "message-not-an-object", "message-field-missing",
        "message-field-not-text", "message-role-unknown", "message-mark-unusable", "message-mark-not-an-answers",
        "message-marks-contradict", "no-assistant-message", "no-answer-to-learn", "answer-empty", "tools-unusable",
        "row-not-json",
    )
)  # fmt: skip
"""Faults of a single conversation, which `data.misfits` = drop leaves out."""


def conversation_of(row: Any, where: str) -> Conversation:
    """The conversation of one row. Raises `UserError` that says `where` and what the row lacks."""
    if not isinstance(row, dict):
        raise UserError("data/row-not-an-object", f"{where} is no object: write messages, or prompt and completion")
    row = {name: value for name, value in row.items() if value is not None}  # a column of a table that has both forms
    for name, way_out in REFUSED.items():
        if name in row and not _says_nothing(name, row[name]):
            raise UserError("data/row-field-refused", f"{where} has {name}, which isn't read: {way_out}")
    messages, marks = _messages(row, where)
    messages, marks = _with_system(row, messages, marks, where)
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise UserError(
            "data/no-assistant-message",
            f"{where} has no message of the assistant: there is nothing to learn; leave the row out, or all such rows "
            "with data.misfits = drop",
        )
    learnt = [number for number in answers if marks[number] is not False]
    if not learnt:
        raise UserError(
            "data/no-answer-to-learn",
            f"{where} marks every answer as not to be learnt: leave the row out, or all such rows with data.misfits = "
            "drop",
        )
    if not all(_answers(messages[number]) for number in learnt):
        raise UserError(
            "data/answer-empty",
            f"{where} has an empty answer: fill it, or leave the row out, or all such rows with data.misfits = drop",
        )
    return Conversation(
        messages,
        _objects(row, "tools", where),
        _objects(row, "documents", where),
        _variables(row, where),
        tuple(number for number in answers if number not in learnt),
    )


def unread_fields(row: Mapping[str, Any], talk: Conversation) -> set[str]:
    """Fields of a row that nothing reads; and what templates may pass over: labels of a tool's message, as `tool.NAME`,
    and notes of any, as `message.NAME`."""
    found = {name for name, value in row.items() if name not in READ and name not in REFUSED and value is not None}
    if any(row.get(name) is not None for name in ("messages", "conversations")):
        found |= {name for name in ("prompt", "completion") if row.get(name) is not None}
    said = {name for message in talk.messages if message["role"] == "tool" for name in message if name in LABELS}
    noted = {name for message in talk.messages for name in message if name in NOTES}
    return found | {f"tool.{name}" for name in said} | {f"message.{name}" for name in noted}


def _says_nothing(name: str, value: Any) -> bool:
    return value in (1, "") if name in MARKS else not value


Marked = tuple[list[Message], list[bool | None]]


def _messages(row: dict[str, Any], where: str) -> Marked:
    """The messages of a row in any of its forms, each with whether it says that it is, or isn't, to be learnt."""
    forms = [name for name in ("messages", "conversations") if name in row]
    pair = "prompt" in row and "completion" in row
    if len(forms) + pair > 1:
        found = " and ".join([*forms, *(["prompt, completion"] if pair else [])])
        raise UserError("data/row-of-two-forms", f"{where} is a conversation twice, as {found}: give one of the two")
    if forms:
        return _listed(row[forms[0]], forms[0], where)
    if not pair:
        found = ", ".join(map(str, row)) or "nothing"
        raise UserError(
            "data/row-without-messages",
            f"{where} has neither messages nor prompt and completion, only {found}: give one of the two",
        )
    if isinstance(row["prompt"], list) and isinstance(row["completion"], list):
        asked, marks = _listed(row["prompt"], "prompt", where)
        answered, more = _listed(row["completion"], "completion", where)
        unlearnt: list[bool | None] = [
            False if message["role"] == "assistant" and mark is None else mark
            for message, mark in zip(asked, marks, strict=True)
        ]
        return [*asked, *answered], [*unlearnt, *more]
    for name in ("prompt", "completion"):
        if not isinstance(row[name], str):
            raise UserError(
                "data/prompt-not-text",
                f"{where}: {name} is no text: write a string, or both as lists of messages",
            )
    said = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
    return said, [None, None]


def _listed(given: Any, name: str, where: str) -> Marked:
    if not isinstance(given, list) or not given:
        raise UserError(
            "data/messages-not-a-list",
            f"{where}: {name} is no list of messages: write [{{role, content}}, ...]",
        )
    pairs = [_message(one, f"{where}, message {number}") for number, one in enumerate(given, 1)]
    return [message for message, _ in pairs], [mark for _, mark in pairs]


def _message(one: Any, where: str) -> tuple[Message, bool | None]:
    """A message without its marks, and what they say."""
    if not isinstance(one, dict):
        raise UserError("data/message-not-an-object", f"{where} is no object: a message is {{role, content}}")
    message = {name: value for name, value in one.items() if value is not None and name not in MARKS}
    for name, theirs in (("role", "from"), ("content", "value")):
        if theirs in message and name not in message:
            message[name] = message.pop(theirs)
    silent = any(message.get(name) for name in ("tool_calls", *REASONING))
    for name in ("role", "content"):
        if name not in message and not (name == "content" and silent and message["role"] == "assistant"):
            raise UserError(
                "data/message-field-missing",
                f"{where} has no {name}: a message is {{role, content}}; mend the row, or leave all such rows out with "
                "data.misfits = drop",
            )
        if not isinstance(message.get(name, ""), str):
            raise UserError("data/message-field-not-text", f"{where}: {name} is no text: write a string")
    role = message["role"] = SPEAKERS.get(message["role"], message["role"])
    if role not in ROLES:
        raise UserError("data/message-role-unknown", f"{where} has role {role!r}: use {', '.join(ROLES)}")
    return message, _mark(one, role, where)


def _mark(one: dict[str, Any], role: str, where: str) -> bool | None:
    """Whether a message says that it is to be learnt. Raises `UserError` for what can't be obeyed."""
    marks = {name: one[name] for name in MARKS if one.get(name) is not None}
    for name, value in marks.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise UserError(
                "data/message-mark-unusable",
                f"{where} has {name} = {value!r}: an answer is learnt (1 or true) or not (0 or false)",
            )
        if value and role != "assistant":
            raise UserError(
                "data/message-mark-not-an-answers",
                f"{where} has {name} = {value!r}, but is the {role}'s: the assistant's answers alone are learnt; take "
                f"{name} out",
            )
    if len(set(marks.values())) > 1:
        raise UserError(
            "data/message-marks-contradict", f"{where} has weight and train that contradict each other: take one out"
        )
    return bool(next(iter(marks.values()))) if marks else None


def _with_system(row: dict[str, Any], messages: list[Message], marks: list[bool | None], where: str) -> Marked:
    """With the row's `system` as the first message, which it may be already."""
    system = row.get("system", "")
    first = messages[0] if messages[0]["role"] == "system" else None
    if not isinstance(system, str) or (system.strip() and first and first["content"] != system):
        raise UserError(
            "data/row-system-unusable",
            f"{where}: system is no text, or another than the first message's: give one text, or the message alone",
        )
    if not system.strip() or first:
        return messages, marks
    return [{"role": "system", "content": system}, *messages], [None, *marks]


def _answers(message: Message) -> bool:
    return bool(message.get("content", "").strip() or any(message.get(name) for name in ("tool_calls", *REASONING)))


def _objects(row: dict[str, Any], name: str, where: str) -> list[dict[str, Any]] | None:
    """Tools or documents: a list of objects, or JSON of one, as TRL takes tools."""
    value = row.get(name)
    if isinstance(value, str):
        try:
            value = from_json(value) if value.strip() else None
        except ValueError:
            value = ""
    if value is not None and not (isinstance(value, list) and all(isinstance(one, dict) for one in value)):
        raise UserError("data/tools-unusable", f"{where}: {name} is no list of objects, nor JSON of one: write a list")
    return value


def _variables(row: dict[str, Any], where: str) -> dict[str, Any]:
    given = row.get("chat_template_kwargs", {})
    taken = [name for name in given if name in ARGUMENTS] if isinstance(given, dict) else ["it is no object"]
    if taken:
        raise UserError(
            "data/template-variables-unusable",
            f"{where}: chat_template_kwargs are variables of the template, by name, as enable_thinking "
            f"({taken[0]} is none): mend it",
        )
    return {name: value for name, value in given.items() if value is not None}
