"""The command line: its grammar, every refusal, resuming, and where a run goes."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import pytest

from coretrain.base.errors import UserError
from coretrain.checkpoint.manifest import MANIFEST
from coretrain.config.load import fields, load_config, presets
from coretrain.runs.folder import open_run, run_of
from coretrain.training.command_line import Command, parse
from coretrain.training.resolve import run_folder
from tests.support.refusal import refused


def read(*argv: object) -> Command:
    return parse([str(word) for word in argv], "python -m x.run", "Train.")


def sentence_of(*argv: object) -> str:
    with pytest.raises(UserError) as caught:
        read(*argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def run(tmp_path) -> Path:
    """A run's folder with two checkpoints, as far as the command line looks at it."""
    folder = tmp_path / "runs" / "mine"
    config = load_config("tiny", [("name", "mine"), ("train.updates", "90")]).with_vocab(300)
    for update in (40, 80):
        (folder / "checkpoints" / f"update-{update:08d}").mkdir(parents=True)
        (folder / "checkpoints" / f"update-{update:08d}" / MANIFEST).write_text("{}")
    (folder / "config.json").write_text(config.to_json())
    return folder


def test_the_grammar():
    assert read() == Command(load_config("tiny"), None, None, ())
    warmup = ("--schedule.warmup_updates", 7)
    command = read("--train.updates", 70, "gpt2-124m", "--optimizer.lr=7e-4", "--output", "a b", *warmup)
    assert (command.config.name, command.config.train.updates, command.config.optimizer.lr) == ("gpt2-124m", 70, 7e-4)
    assert (command.output, command.resume) == (Path("a b"), None)
    assert command.overrides == (("train.updates", "70"), ("optimizer.lr", "7e-4"), ("schedule.warmup_updates", "7"))


def test_values_may_have_signs_of_their_own():
    assert read("--train.sample_prompt", "a = b").config.train.sample_prompt == "a = b"
    assert read("--train.sample_prompt=x=y").config.train.sample_prompt == "x=y"
    assert read("--train.sample_prompt=--x").config.train.sample_prompt == "--x"
    assert read("--train.sample_prompt", "-x").config.train.sample_prompt == "-x"
    assert read("--train.sample_prompt=").config.train.sample_prompt == ""


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("True", True), ("False", False)])
def test_switches_take_true_and_false(text, value):
    assert read("--model.bias", text).config.model.bias is value
    assert read(f"--journal.wandb={text}").config.journal.wandb is value


def test_the_last_override_wins_as_in_a_shell_alias():
    assert read("--train.updates", 70, "--train.updates", 80).config.train.updates == 80


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["tiny", "gpt2-124m"], ["two configs", "tiny", "gpt2-124m"]),
        (["nosuch"], ["nosuch", "presets are"]),
        (["gpt2-12m"], ["did you mean gpt2-124m"]),
        (["no/such.toml"], ["there is no file no/such.toml"]),
        (["gpt2"], ["gpt2-124m, gpt2-350m, gpt2-774m, gpt2-1558m; did you mean gpt2-124m?"]),
        (["GPT2-124M"], ["did you mean gpt2-124m?"]),
        ([""], ["empty"]),
        (["--train.updates"], ["--train.updates has no value"]),
        (["--train.updates", "--output", "x"], ["--train.updates has no value"]),
        (["--journal.wandb", "--model.bias=false"], ["--journal.wandb has no value"]),
        (["--output"], ["--output has no value"]),
        (["--output="], ["--output is empty"]),
        (["--output", "a", "--output", "b"], ["--output is given twice"]),
        (["--modle.layers", "3"], ["modle.layers", "did you mean model.layers"]),
        (["--modle.layers"], ["modle.layers", "did you mean model.layers"]),
        (["--lr", "3"], ["lr", "did you mean optimizer.lr"]),
        (["--resum", "x"], ["did you mean --resume"]),
        (["--ouput=x"], ["did you mean --output"]),
        (["--hlep"], ["did you mean --help"]),
        (["--zzzzzz", "1"], ["zzzzzz", "--help"]),
        (["--model.bias", "maybe"], ["model.bias", "maybe"]),
        (["--train.updates", "many"], ["train.updates", "many"]),
        (["--resume", "no/such"], ["no/such does not exist"]),
    ],
)
def test_a_wrong_line_is_refused_with_the_way_out(argv, words):
    text = sentence_of(*argv)
    assert [word for word in words if word not in text] == [], text


def test_resume_takes_the_runs_config_and_overrides(run):
    same = read("--resume", run)
    assert same == Command(open_run(run), None, run, ())
    assert same.config.model.vocabulary == 300
    longer = read("--resume", run, "--train.updates", 2000, "--optimizer.lr=1e-3").config
    assert (longer.train.updates, longer.optimizer.lr, longer.name) == (2000, 1e-3, "mine")
    for field, value in (("workers", 2), ("prepare_processes", 3), ("cache", "elsewhere")):
        assert getattr(read("--resume", run, f"--data.{field}", value).config.data, field) == value
    assert read("--resume", run, '--data.validation=["exam=a.txt"]').config.data.validation[0].name == "exam"
    assert read("--resume", run, "--schedule.horizon", "none").config.schedule.horizon is None


FREE = ("workers", "prepare_processes", "cache", "validation")
"""Fields of data that change nothing of what is trained."""


def test_resume_refuses_another_training(run):
    for name, (section, leaf) in fields().items():
        if not name.startswith(("model.", "data.")) or leaf in FREE:
            continue
        value = getattr(getattr(open_run(run), name.split(".")[0]), leaf)
        assert section.model_fields[leaf]
        assert f"{name} can't change at --resume" in sentence_of("--resume", run, f"--{name}={value}")
    assert "did you mean data.workers" in sentence_of("--resume", run, "--data.wrokers", 2)


def test_resume_keeps_the_moments_of_its_optimizer(run):
    assert "optimizer.name = muon keeps other moments than adamw" in sentence_of(
        "--resume", run, "--optimizer.name=muon"
    )
    assert read("--resume", run, "--optimizer.name=adam").config.optimizer.name == "adam"
    (run / "checkpoints").rename(run / "aside")
    assert read("--resume", run, "--optimizer.name=muon").config.optimizer.name == "muon", "there are none yet"


def test_resume_goes_with_no_config_and_no_output(run):
    assert "leave one out" in sentence_of("tiny", "--resume", run)
    assert "leave one out" in sentence_of("--resume", run, "--output", "x")
    assert "given twice" in sentence_of("--resume", run, "--resume", run)


def test_resume_takes_the_newest_checkpoint_and_no_older_one(run, monkeypatch):
    checkpoints = run / "checkpoints"
    assert read("--resume", checkpoints / "update-00000080").resume.samefile(run)
    text = sentence_of("--resume", checkpoints / "update-00000040")
    assert "not its run's newest checkpoint, update-00000080" in text
    (checkpoints / "update-00000090").mkdir()  # no manifest: not whole
    assert read("--resume", checkpoints / "update-00000080").resume.samefile(run)
    monkeypatch.chdir(checkpoints / "update-00000080")
    assert read("--resume", ".").resume.samefile(run)
    assert run_of(checkpoints / "update-00000040").samefile(run)  # to generate from it is another matter


def test_resume_never_takes_a_run_that_was_not_named(run, monkeypatch):
    monkeypatch.chdir(run)
    assert "nosuch does not exist" in sentence_of("--resume", "nosuch")
    assert "does not exist" in sentence_of("--resume", run / "checkpoints" / "update-00000099")
    (run / "a" / "b").mkdir(parents=True)
    for path in (run / "checkpoints", run / "a" / "b", run.parent):
        assert "holds no run" in sentence_of("--resume", path)
    assert read("--resume", ".").resume == Path()


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"{", "damaged"), (b"", "damaged"), (b"\xff\xfe", "damaged"), (b"[]", "wrong"), (b'{"version": 9}', "newer")],
)
def test_a_damaged_or_newer_config_is_one_sentence(run, content, words):
    (run / "config.json").write_bytes(content)
    assert words in sentence_of("--resume", run)


def test_open_run_wants_a_run(tmp_path):
    with refused("runs/not-a-run"):
        open_run(tmp_path)
    with refused("runs/folder-not-found"):
        open_run(tmp_path / "x")


def test_a_run_goes_to_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: re.sub("%.", "1", form))
    command = read("--name", "mine")
    names = []
    for _ in range(3):
        folder = run_folder(command)
        assert not folder.exists()
        folder.mkdir(parents=True)
        names.append(str(folder))
    assert names == ["runs/mine-111-111", "runs/mine-111-111-2", "runs/mine-111-111-3"]


def test_the_time_in_a_runs_name_is_the_clocks():
    assert re.fullmatch(r"runs/tiny-\d{8}-\d{6}", str(run_folder(read())))


def test_output_never_overwrites_a_run(run, tmp_path):
    text = (run / "config.json").read_text()
    with refused("training/output-holds-run"):
        run_folder(read("--output", run))
    assert (run / "config.json").read_text() == text
    assert run_folder(read("--resume", run)) == run
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run_folder(read("--output", empty)) == empty
    assert run_folder(read("--output", tmp_path / "new" / "one")) == tmp_path / "new" / "one"
    (tmp_path / "file").touch()
    with refused("training/output-is-file"):
        run_folder(read("--output", tmp_path / "file"))


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["tiny", "--train.updates", "3", "--help"], ["nosuch", "--help"]])
def test_help_shows_every_field_with_meaning_limits_and_default(argv, capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # pytest-xdist sets it
    with pytest.raises(SystemExit) as caught:
        read(*argv)
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out  # no colours into a pipe
    assert out.startswith(
        "python -m x.run [CONFIG] [--from RUN] [--section.field VALUE]... [--output DIR] [--resume RUN]"
    )
    words = " ".join(out.split())
    for name, (section, leaf) in fields().items():
        assert f"--{name} " in words
        assert section.model_fields[leaf].description.split()[0] in words
    assert [preset for preset in presets() if preset not in words] == []
    layers = next(line for line in out.splitlines() if "--model.layers " in line)
    assert " ".join(layers.split()) == "--model.layers int, >= 1, <= 10000 4 Number of decoder blocks."
    assert "examples" in words
    assert "python -m x.run --resume runs/my" in words


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", [40, 80, 100, 160])
def test_meanings_are_there_on_a_narrow_terminal_too(width, terminal, capsys, monkeypatch):
    """Also where a pager shows them: `--help | less`."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit):
        read("--help")
    out = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert max(len(line.rstrip()) for line in out.splitlines()) <= width
    words = " ".join(out.split())
    assert "Number of decoder blocks." in words
    assert ("int, >= 1, <= 10000; default 4 Number of decoder blocks." in words) == (width < 110)
    for name, (section, leaf) in fields().items():
        assert f"--{name} " in words
        assert width >= 110 or " ".join(section.model_fields[leaf].description.split()) in words


def test_the_launchers_own_word_is_passed_over():
    """deepspeed puts --local_rank before the words of the user."""
    assert parse(["--local_rank=1", "tiny", "--train.updates", "200"], "run", "").config.train.updates == 200


def test_spawn_is_a_flag():
    assert parse(["--spawn", "tiny"], "run", "").spawn
    with refused("training/flag-takes-no-value", "--spawn"):
        parse(["--spawn=2"], "run", "")
