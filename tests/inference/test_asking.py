"""`twintrain chat`: questions on the line, questions that are piped in, and what ends them."""

from __future__ import annotations

import shutil
import sys

import pytest

from coretrain.base.files import sha256_of
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.interchange import interchange_of, save_interchange
from coretrain.checkpoint.manifest import Progress, seal
from coretrain.contract.parameters import initial_parameters
from coretrain.inference.generate import generate_text
from coretrain.runs.chat import template_changed
from coretrain.tokenizers.registry import bytes_tokenizer
from tests.support.refusal import refused
from torchtrain.generate import generate_each
from torchtrain.trainer import Trainer

TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}?"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.fixture
def folder(small_config, tmp_path):
    """A run's folder with random weights and a chat template."""
    config = small_config(model__vocab=257, model__context=48)
    weights = {name: 5 * value for name, value in initial_parameters(config.model, 5).items()}
    place = interchange_of(tmp_path / "run", "update-00000000")
    save_interchange(place, config, {"parameters": weights}, Progress(), "import")
    (tmp_path / "run" / "config.json").write_text(config.to_json())
    (tmp_path / "run" / "chat_template.jinja").write_text(TEMPLATE)
    bytes_tokenizer().save(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def chat(folder, capsys, monkeypatch):
    """A function: what is said, and what is complained of, to these words and piped lines; None is their end."""

    def run(*words: str, typed: tuple[str | None, ...] = ()) -> tuple[str, str]:
        lines, marks = list(typed), []

        def line(mark: str = "") -> str:
            marks.append(mark)
            found = lines.pop(0)
            if found is None:
                raise EOFError
            return found

        monkeypatch.setattr("builtins.input", line)
        monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
        options = ["--temperature", "0", "--tokens", "6"]
        generate_text([str(folder), *words, *options], "torch", Trainer, generate_each, "twintrain chat", True)
        assert not lines
        assert set(marks) <= {""}
        said = capsys.readouterr()
        return said.out, said.err

    return run


def test_each_piped_line_is_a_question_by_itself(chat):
    answers = [chat(text)[0] for text in ("one", "two")]
    assert [text.partition("\n")[0] for text in answers] == ["one", "two"]
    alone = [text.partition("\n")[2] for text in answers]
    assert alone[0] != alone[1]
    assert chat(typed=("one", "two", "one", "")) == ("".join([*alone, alone[0]]), "")


def test_an_empty_line_or_the_end_of_input_ends(chat):
    alone = chat("one")[0].partition("\n")[2]
    assert chat(typed=("one", "  ")) == (alone, "")
    assert chat(typed=("one", None)) == (alone + "\n", "")


def test_a_question_that_does_not_fit_ends_nothing(chat):
    alone = chat("one")[0].partition("\n")[2]
    out, err = chat(typed=("long " * 20, "one", ""))
    assert out == alone
    assert err.startswith("error: a prompt of ")
    assert err.count("\n") == 1


def test_what_cannot_be_asked_is_said_before_a_model_is_opened(folder):
    def ask(*words: str) -> None:
        make = lambda *_: pytest.fail("the model is opened")  # noqa: E731  # as short as what it stands for
        generate_text([str(folder), *words], "torch", make, generate_each, "twintrain chat", True)

    with refused("inference/several-adapters-without-line"):
        ask("--adapter", "a", "--adapter", "b")
    with refused("inference/history-without-conversation"):
        ask("one", "--history", "lines")
    (folder / "chat_template.jinja").unlink()
    with refused("runs/chat-template-missing", "run"):
        ask()


def test_a_template_that_was_changed_since_training_is_said(folder, small_config):
    kept = CheckpointFolder(folder / "checkpoints")
    for update, beside in ((1, None), (2, {"chat_template.jinja": sha256_of(folder / "chat_template.jinja")})):
        temporary = kept.begin(update)
        seal(temporary, Progress(update=update), small_config(), "torch", beside=beside)
        kept.commit(temporary, update)
        assert template_changed(folder) == ""
    (folder / "chat_template.jinja").write_text(TEMPLATE + "!")
    said = template_changed(folder)
    assert "chat_template.jinja was changed since update-00000002" in said
    shutil.rmtree(kept.final(2))  # what older versions wrote doesn't say
    assert template_changed(folder) == ""


def test_bytes_that_are_no_text_are_replacements(chat):
    """As the command line and the terminal hand them on, where their encoding has no such text."""
    assert chat("caf\udce9")[0].startswith("caf\ufffd\n")
    assert chat(typed=("caf\udce9", None))[1] == ""
