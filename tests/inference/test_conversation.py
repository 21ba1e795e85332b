"""A conversation in the terminal: what is kept of it, its commands, and what ends an answer."""

from __future__ import annotations

import json
import signal

import pytest

from coretrain.contract.parameters import initial_parameters
from coretrain.contract.sampling import Sampling
from coretrain.inference import terminal
from coretrain.inference.chat import COMMANDS, Chat
from coretrain.inference.dialogue import SETTINGS, Dialogue
from coretrain.inference.terminal import PlainLines, edited_lines, harmless, open_lines
from coretrain.tokenizers.conversation import Conversation
from coretrain.tokenizers.registry import bytes_tokenizer
from jaxtrain.trainer import Trainer as JaxTrainer
from tests.support.refusal import refused
from torchtrain.trainer import Trainer as TorchTrainer

TEMPLATE = (
    "{% for message in messages %}{{ message['role'][0] }}:{{ message['content'] }};"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


class Typed:
    """Lines of a test: text, or what reading raises."""

    def __init__(self, *lines, editing=True):
        self.lines, self.editing, self.given = list(lines), editing, []

    def read(self, given=""):
        self.given.append(given)
        line = self.lines.pop(0) if self.lines else EOFError()
        if isinstance(line, BaseException):
            raise line
        return line


@pytest.fixture(scope="module")
def weights():
    from tests.support.configs import small_config

    config = small_config("/tmp", model__vocab=257, model__context=96)
    return {name: 5 * value for name, value in initial_parameters(config.model, 5).items()}


@pytest.fixture(params=["torch", "jax"])
def name(request):
    return request.param


@pytest.fixture
def chat(name, small_config, weights, tmp_path):
    """A chat with a run of random weights, greedy, 6 tokens an answer."""
    config = small_config(model__vocab=257, model__context=96)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json())
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    bytes_tokenizer().save(folder)
    stack = {"torch": TorchTrainer, "jax": JaxTrainer}[name](config, weights)
    made = Chat(stack, folder, Dialogue(Sampling(0), 6), 96)
    with made.engine:
        yield made


torch_only = pytest.mark.parametrize("name", ["torch"])


def said(chat, *lines, editing=True):
    """The chat after these lines."""
    chat.talk(Typed(*lines, editing=editing))
    return [message["content"] for message in chat.dialogue.messages]


def right(chat, *messages):
    """What `generate` says to a conversation, by itself."""
    roles = ["user", "assistant"] * len(messages)
    talk = [{"role": role, "content": text} for role, text in zip(roles, messages, strict=False)]
    if chat.dialogue.system:
        talk.insert(0, {"role": "system", "content": chat.dialogue.system})
    ids = [int(token) for token in chat.template.asked(Conversation(talk))]
    d = chat.dialogue
    return chat.tokenizer.decode(chat.engine.stack.generate([ids], d.tokens or 0, d.sampling, chat.ends)[0])


def test_what_was_said_is_part_of_the_next_question(chat, capsys):
    one = "a question of some length"
    first = right(chat, one)
    second = right(chat, one, first, "two")
    assert said(chat, one, "two") == [one, first, "two", second]
    out = capsys.readouterr().out
    assert harmless(first) in out
    assert harmless(second) in out
    assert "(cut at 6 tokens: /tokens N for more)" in out
    assert second != right(chat, "two"), "else it would be no test of history"
    assert chat.engine.statistics().reused_tokens > 10, "the earlier turn's keys and values"


@torch_only
def test_reset_undo_edit_and_retry(chat):
    alone = right(chat, "two")
    assert said(chat, "one", "/reset", "two") == ["two", alone]
    assert said(chat, "x", "/undo") == ["two", alone]
    assert said(chat, "/edit one") == ["one", right(chat, "one")]
    typed = Typed("/edit", "ones")
    chat.talk(typed)
    assert typed.given == ["", "one", ""], "the last question is handed out to be changed"
    assert [m["content"] for m in chat.dialogue.messages] == ["ones", right(chat, "ones")]
    assert said(chat, "/edit", "") == ["ones", right(chat, "ones")], "an edit that is given up changes nothing"
    said(chat, "/temperature 2", "/top_k 0", "/retry")
    assert chat.dialogue.sampling == Sampling(2.0, 0, 1.0, 1)
    assert chat.dialogue.messages[1]["content"] == right(chat, "ones")


@torch_only
def test_settings_and_what_is_wrong_about_them(chat, capsys):
    said(chat, "/temperature 0.5", "/top-p 0.9", "/top_k 7", "/seed -3", "/tokens 4", "/system Be brief.", "/system")
    assert chat.dialogue.sampling == Sampling(0.5, 7, 0.9, -3)
    assert (chat.dialogue.tokens, chat.dialogue.system) == (4, "Be brief.")
    capsys.readouterr()
    wrong = ["/temperature hot", "/top_p 2", "/top_p 0", "/tokens -1", "/nothing", "/save", "/undo", "/retry"]
    said(chat, *wrong, "/edit x", "/system -", "/tokens 0")
    err = capsys.readouterr().err
    assert err.count("error: ") == len(wrong) + 1 == err.count("\n")
    assert chat.dialogue.sampling == Sampling(0.5, 7, 0.9, -3)
    assert (chat.dialogue.tokens, chat.dialogue.system, chat.dialogue.messages) == (None, "", [])


@torch_only
def test_edit_without_editing_wants_the_text(chat, capsys):
    said(chat, "one", "/edit", editing=False)
    assert "/edit TEXT" in capsys.readouterr().err


@torch_only
def test_the_oldest_turns_are_left_out_and_that_is_said(chat, capsys):
    texts = said(chat, *(f"question {number}" for number in range(6)))
    out = capsys.readouterr().out
    assert "the context is full: the oldest 2 messages are left out from here on" in out
    assert texts[-2] == "question 5"
    assert 0 < len(texts) < 12
    assert texts[-1] == right(chat, *texts[:-1])
    before = list(chat.dialogue.messages)
    said(chat, "long " * 30)
    err = capsys.readouterr().err
    assert "tokens and its answer may have 6" in err
    assert "96" in err
    assert chat.dialogue.messages == before, "a question that can't be answered isn't kept"


@torch_only
def test_ctrl_c_stops_an_answer_and_keeps_what_was_said(chat, capsys, monkeypatch):
    chat.dialogue.tokens = 60
    whole, plain, count = right(chat, "one"), chat.engine._say, iter(range(1000))

    def say(row, logits):
        plain(row, logits)
        if next(count) == 4:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(chat.engine, "_say", say)
    texts = said(chat, "one")
    assert "(stopped)" in capsys.readouterr().out
    assert whole.startswith(texts[1])
    assert 0 < len(texts[1]) < len(whole)
    monkeypatch.undo()
    chat.dialogue.tokens = 6
    assert said(chat, "two")[2:] == ["two", right(chat, *texts, "two")]


@torch_only
def test_a_conversation_is_saved_as_a_row_to_train_on(chat, tmp_path, capsys):
    place = tmp_path / "talk.jsonl"
    texts = said(chat, "/system Be.", "one", f"/save {place}")
    row = json.loads(place.read_text())
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
    assert [message["content"] for message in row["messages"]] == ["Be.", *texts]
    said(chat, "two", f"/save {place}", f"/save {tmp_path / 'no' / 'x'}")
    assert json.loads(place.read_text()) == row, "nothing is overwritten"
    err = capsys.readouterr().err
    assert "is there already" in err
    assert "can't be written" in err


@torch_only
def test_lines_that_begin_with_a_slash_and_the_ends(chat):
    assert said(chat, "//one")[0] == "/one"
    typed = Typed("/quit", "never")
    chat.talk(typed)
    assert typed.lines == ["never"]
    typed = Typed(KeyboardInterrupt(), "never")
    chat.talk(typed)
    assert typed.lines == ["never"]


@torch_only
def test_a_template_that_refuses_what_the_system_says(chat, capsys):
    chat.template.__dict__.pop("_compiled", None)
    chat.template.source = "{% if messages[0].role == 'system' %}{{ 1 / 0 }}{% endif %}" + TEMPLATE
    assert said(chat, "/system Be.", "one") == []
    assert "try without /system" in capsys.readouterr().err


@torch_only
def test_help_has_every_command_in_80_columns(chat, capsys):
    said(chat, "/help")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < 80
    assert [line.split()[0] for line in lines if line.startswith("/")] == list(COMMANDS)
    assert {f"/{name}" for name in SETTINGS} <= COMMANDS.keys()
    assert len(chat.status()) < 80


def test_text_of_a_model_cannot_steer_the_terminal():
    assert harmless("a\x1b[2Jb\x07\tc\r\nd\x9b1m") == "a\ufffd[2Jb\ufffd\tc\nd\ufffd1m"


def test_without_prompt_toolkit_lines_are_plain(monkeypatch):
    monkeypatch.setattr(terminal.importlib.util, "find_spec", lambda name: None)
    with refused("inference/history-needs-prompt-toolkit", "twintrain[chat]"):
        open_lines(COMMANDS, str, "lines")
    lines = open_lines(COMMANDS, str, None)
    assert isinstance(lines, PlainLines)
    given = iter(["one", "  "])
    monkeypatch.setattr("builtins.input", lambda mark: next(given))
    assert lines.read() == "one"
    with pytest.raises(EOFError):
        lines.read()


def test_keys_of_the_edited_line(tmp_path):
    """Alt-Enter begins a line, Ctrl-C takes back what is typed, and ends where nothing is; history only where asked."""
    pytest.importorskip("prompt_toolkit")
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    history = tmp_path / "lines"
    with create_pipe_input() as keys:
        lines = edited_lines(COMMANDS, lambda: "status", history, keys, DummyOutput())
        keys.send_text("one\x1b\rtwo\r")
        assert lines.read() == "one\ntwo"
        keys.send_text("half\x03")
        assert lines.read() == ""
        keys.send_text("\x03")
        with pytest.raises(KeyboardInterrupt):
            lines.read()
        keys.send_text("\x04")
        with pytest.raises(EOFError):
            lines.read()
        keys.send_text("s\r")
        assert lines.read("question") == "questions"
    assert "one" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0
    with refused("inference/history-unwritable", "no"):
        edited_lines(COMMANDS, str, tmp_path / "no" / "lines")
