"""The command `twintrain`: its verbs and their help, what each imports, and the names that programs give themselves."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import json
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

import jaxtrain.run
import torchtrain.generate
import twintrain.command
import twintrain.loading
from coretrain.base.errors import UserError, exits_cleanly
from coretrain.base.help import fitted
from coretrain.formats.gguf import file as gguf_file
from coretrain.inference.generate_options import options as generate_options
from coretrain.processes.world import World
from coretrain.training.command_line import FLAGS, PLACES, SHORT, parse
from coretrain.training.spawn import line_that_goes_on
from parity import plugin
from parity.localize.command import OPTIONS
from parity.pairs.command import PAIR
from tests.support.commands import ROOT, environment
from tests.support.whole_runs import arguments, rows
from twintrain import convert, judge, localize, stacks
from twintrain.verbs import ANY, SWITCH, VERBS

WITHOUT = """
import sys
class Block:
    packages = {packages!r}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.packages:
            raise ImportError(f"no {{name}} here")
sys.meta_path.insert(0, Block())
from twintrain.command import main
"""


def without(packages: tuple[str, ...], code: str, *words: object) -> str:
    """What `code` prints where the packages can't be imported."""
    command = [sys.executable, "-c", WITHOUT.format(packages=packages) + code, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refused(*words: str) -> str:
    with pytest.raises(UserError) as caught:
        twintrain.command.main(words)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_overview_has_every_verb_on_a_line_and_fits_a_terminal(capsys):
    assert twintrain.command.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for name, verb in VERBS.items():
        assert [line.split(None, 1) for line in out.splitlines() if line.startswith(f"  {name} ")] == [
            [name, verb.summary]
        ]
    assert twintrain.command.main([]) == 2, "a script that lost its verb must not go on"
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "unknown verb trian: did you mean train?"),
        (["localise", "tiny"], "unknown verb localise: did you mean localize?"),
        (["zzz"], f"unknown verb zzz: verbs are {', '.join(VERBS)}"),
        (["--versoin"], "unknown option --versoin: did you mean --version?"),
        (["--stack", "jax", "train"], "unknown option --stack: the verb comes first"),
    ],
)
def test_an_unknown_verb_is_a_sentence(words, sentence):
    assert refused(*words) == f"{sentence} (twintrain --help says what each does)"


@pytest.mark.whole
def test_the_program_ends_with_two_on_a_mistake():
    done = subprocess.run(
        [sys.executable, "-m", "twintrain", "trian"], capture_output=True, text=True, cwd=ROOT, env=environment()
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: unknown verb trian")


@pytest.mark.whole
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["completion", "zsh"]])
def test_a_reader_who_has_seen_enough_gets_no_traceback(words, unbuffered):
    """As of `twintrain --help | head -1`, also where the output waits in a buffer for the end."""
    command, pipe = [sys.executable, "-m", "twintrain", *words], subprocess.PIPE
    told = environment(PYTHONUNBUFFERED=unbuffered)
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, cwd=ROOT, env=told) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_another_pipe_that_breaks_is_an_error():
    def work() -> None:
        raise BrokenPipeError(32, "a data loader's")

    with pytest.raises(BrokenPipeError, match="a data loader's"):
        exits_cleanly(work)()


def test_the_version_is_the_packages(capsys, monkeypatch):
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(twintrain.command.importlib.metadata, "version", lambda name: f"7.8 of {name}")
    assert twintrain.command.main(["--version"]) == 0
    assert capsys.readouterr().out == "twintrain 7.8 of twintrain\n"
    monkeypatch.setattr(twintrain.command.importlib.metadata, "version", missing)
    twintrain.command.main(["--version"])
    (line,) = (line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("version = "))
    assert capsys.readouterr().out == f"twintrain {json.loads(line.partition(' = ')[2])}\n"


@pytest.mark.whole
def test_help_and_completion_need_no_framework():
    """And the overview no config: it is there at once."""
    out = without(("torch", "jax", "flax", "pydantic", "numpy"), "main(['--help']); main(['--version'])")
    assert "train a GPT" in out
    verbs = list(VERBS)
    out = without(
        ("torch", "jax", "flax", "numpy", "safetensors", "tiktoken", "tokenizers", "jinja2", "matplotlib"),
        """
import importlib
for program in ("torchtrain.run", "torchtrain.generate", "jaxtrain.run", "jaxtrain.generate"):
    assert importlib.import_module(program).main(["--help"]) == 0
for verb in sys.argv[1:]:
    print("==", verb)
    try:
        main([verb, "--help"])
    except SystemExit as end:
        assert not end.code
print("== shells")
sys.meta_path[0].packages = ("torch", "jax", "flax")
for shell in ("bash", "zsh", "fish"):
    main(["completion", shell])
import pkgutil, twintrain
for module in pkgutil.iter_modules(twintrain.__path__):
    if module.name != "__main__":
        importlib.import_module(f"twintrain.{module.name}")
""",
        *verbs,
    )
    for verb in verbs:
        said = out.partition(f"== {verb}\n")[2].partition("== ")[0]
        assert f"twintrain {verb} " in said, verb
        assert "python" not in said.partition("\n\n")[0], "it names itself otherwise"
    assert "[--stack torch|jax]" in out
    for program in ("torchtrain.run [CONFIG]", "jaxtrain.run [CONFIG]", "torchtrain.generate [-h]"):
        assert f"python -m {program}" in out
    assert out.count("\n  --stack {torch,jax}") == 5
    assert "--model.layers" in out.partition("== shells")[2]


@pytest.mark.whole
@pytest.mark.parametrize(("stack", "other"), [("torch", "jax"), ("jax", "torch")])
def test_only_the_stack_that_is_asked_for_is_imported(stack, other, corpus, tmp_path):
    code = """
run = sys.argv[1]
assert main(["train", *sys.argv[3:], "--stack", sys.argv[2], "--output", run]) == 0
assert main(["generate", run, f"--stack={sys.argv[2]}", "--tokens", "3", "A fox"]) == 0
"""
    small = arguments(corpus, "--train.updates", "4", "--execution.device", "cpu")
    out = without((other, f"{other}train"), code, tmp_path / "run", stack, *small)
    assert "A fox" in out.splitlines()[-1]
    assert [row["update"] for row in rows(tmp_path / "run") if "loss" in row] == [0, 1, 2, 3]


@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb_fits_the_terminal(verb, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    with contextlib.suppress(SystemExit):
        twintrain.command.main([verb, "--help"])
    lines = capsys.readouterr().out.splitlines()
    own = "".join(lines).partition("options:")[0]
    assert f"twintrain {verb}" in " ".join(own.split())
    # argparse indents the usage and the options by its own rules, which at 40 may take a word too many
    assert max(map(len, lines)) <= (columns if columns == 80 else 48), max(lines, key=len)


def test_a_help_that_is_too_wide_keeps_its_form():
    text = """Prose of one line.

Usage: run SOURCE TARGET [--first FIRST]
           [--second SECOND]
       run TARGET

  --one    the first of them, which is
           described at length
  --two    short

Of two lines, the second of which is
filled with the first."""
    assert fitted(text, 80) == text
    assert (
        fitted(text, 30)
        == """Prose of one line.

Usage: run SOURCE TARGET
    [--first FIRST] [--second
    SECOND]
       run TARGET

  --one    the first of them,
           which is described
           at length
  --two    short

Of two lines, the second of
which is filled with the
first."""
    )


def test_every_option_of_the_table_is_one_of_the_verbs():
    """And none is missing: the table is what shells complete, and knows nothing of the parsers."""
    for name, verb in VERBS.items():
        module = importlib.import_module(verb.module)
        if name in ("train", "localize", "parity", "prepare"):
            continue
        parser = generate_options("", name == "chat") if name in ("generate", "chat") else module.options()
        if name in ("generate", "chat"):
            stacks.add_stack(parser)
        actions = {
            option: SWITCH if action.nargs == 0 else tuple(action.choices or ANY)
            for action in parser._actions
            for option in action.option_strings
            if option not in ("-h", "--help")
        }
        assert dict(verb.options) == actions, name
    assert convert.QUANTIZATIONS == gguf_file.QUANTIZATIONS
    words = {f"--{name}": ANY for name in (*PLACES, *SHORT)}
    switches = {"--stack": stacks.STACKS, **words, **{f"--{name}": SWITCH for name in FLAGS}}
    assert dict(VERBS["train"].options) == switches
    assert set(VERBS["localize"].options) == {f"--{name}" for name in (*OPTIONS, *PAIR)}
    assert set(localize.PAIR) == set(PAIR) - set(OPTIONS)
    assert not VERBS["prepare"].options
    asked: dict[str, dict] = {}
    group = types.SimpleNamespace(addoption=lambda option, **more: asked.update({option: more}))
    plugin.pytest_addoption(types.SimpleNamespace(getgroup=lambda *_: group))
    of_pytest = {"-m", "-k", "-n"}
    assert VERBS["parity"].options.keys() == asked.keys() | of_pytest
    assert VERBS["parity"].options["--device"] == asked["--device"]["choices"]
    assert [option for option in VERBS["parity"].options if f"  {option} " not in (judge.__doc__ or "")] == []


def test_the_stack_is_taken_out_and_the_rest_left_as_it_is():
    assert stacks.chosen(["tiny", "--train.updates", "-3", "--stack", "jax", "--name=x"]) == (
        "jax",
        ["tiny", "--train.updates", "-3", "--name=x"],
    )
    assert stacks.chosen(["run", "--stack=jax", "--top-k", "3", "a b"]) == ("jax", ["run", "--top-k", "3", "a b"])
    assert stacks.chosen(["run", "--", "--stack", "jax"]) == ("torch", ["run", "--", "--stack", "jax"])
    assert stacks.chosen(["--st", "jax"]) == ("torch", ["--st", "jax"])
    for words in (["--stack"], ["--stack", "tensorflow"]):
        assert refused("train", *words).startswith("argument --stack: ")
    assert "did you mean torch? pytorch is none of torch, jax" in refused("train", "--stack", "pytorch")


def test_programs_name_themselves(capsys, monkeypatch):
    def first(main, *words: object) -> str:
        with pytest.raises(SystemExit) as ended:
            exits_cleanly(lambda: main(*words))()
        assert not ended.value.code
        return capsys.readouterr().out.splitlines()[0]

    assert first(jaxtrain.run.main, ["--help"]).startswith("python -m jaxtrain.run [CONFIG]")
    assert first(twintrain.command.main, ["train", "--help"]).startswith("twintrain train [CONFIG]")
    assert first(torchtrain.generate.main, ["-h"]).startswith("usage: python -m torchtrain.generate [-h]")
    assert first(twintrain.command.main, ["chat", "-h"]).startswith("usage: twintrain chat [-h]")
    for path in sorted((ROOT / "scripts").glob("*.py")):
        assert f'script("{path.stem}")' in path.read_text()
        monkeypatch.setattr(sys, "argv", [str(path), "--help"])
        with pytest.raises(SystemExit) as ended:
            twintrain.command.script(path.stem)
        assert not ended.value.code
        out = capsys.readouterr().out
        assert f"python scripts/{path.name} " in out
        assert f"twintrain {path.stem}" not in out


@pytest.mark.parametrize(
    ("words", "program"), [([], "twintrain train"), (["--stack", "jax"], "twintrain train --stack jax")]
)
def test_a_run_is_gone_on_with_as_it_was_started(words, program, monkeypatch):
    heard = []
    for stack in stacks.STACKS:
        fake = types.SimpleNamespace(main=lambda *given: heard.append(given) or 0)
        monkeypatch.setitem(sys.modules, f"{stack}train.run", fake)
    assert twintrain.command.main(["train", "tiny", *words]) == 0
    assert heard == [(["tiny"], program)]
    line = line_that_goes_on("xtrain.run", Path("a b"), parse(["--spawn"], "", ""), World(), program)
    assert line == f"{program} --resume 'a b' --spawn"


@pytest.mark.parametrize(
    ("missing", "error", "words"),
    [
        ("jax.numpy", UserError, "jax is not installed: pip install twintrain brings it"),
        ("torchtrain.step", ModuleNotFoundError, "No module"),  # a fault of ours, whose place must be seen
    ],
)
def test_a_package_that_is_not_there_is_named(missing, error, words, monkeypatch):
    def absent(module: str) -> None:
        raise ModuleNotFoundError("No module", name=missing)

    monkeypatch.setattr(twintrain.loading.importlib, "import_module", absent)
    with pytest.raises(error) as caught:
        twintrain.loading.loaded("torchtrain.run")
    assert str(caught.value) == words


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ((), "pytest and pytest-xdist are not installed"),
        (("pytest",), "pytest-xdist is not installed"),
        (("xdist",), "pytest is not installed"),
    ],
)
def test_the_judge_without_pytest_says_how_to_get_it(there, words, monkeypatch):
    monkeypatch.setattr(judge.importlib.util, "find_spec", lambda name: name in there or None)
    assert refused("parity") == f"{words}, and the judge is made of tests: pip install 'twintrain[parity]'"


def test_hints_name_verbs_since_an_installed_copy_has_no_scripts():
    rooms = ("coretrain", "torchtrain", "jaxtrain", "parity", "twintrain")
    texts = {path: path.read_text() for room in rooms for path in (ROOT / room).rglob("*.py")}
    del texts[Path(twintrain.command.__file__)]  # which names them
    assert [str(path) for path, text in texts.items() if "scripts/" in text] == []


@pytest.mark.whole
@pytest.mark.parametrize("words", ["torchtrain.run", "jaxtrain.generate", "parity.localize", "twintrain train"])
def test_ctrl_c_while_a_program_loads_is_no_traceback(words, tmp_path):
    """The frameworks take seconds, in which nothing has begun: it ends at once, as a shell's 130."""
    command = [sys.executable, "-X", "importtime", "-m", *words.split()]
    process = subprocess.Popen(command, stderr=-1, text=True, env=environment(), cwd=tmp_path)
    loading = []
    for line in process.stderr:
        loading.append(line)
        if line.rstrip().endswith(" numpy"):
            process.send_signal(signal.SIGINT)
            break
    _, rest = process.communicate(timeout=60)
    assert loading[-1].rstrip().endswith(" numpy"), "".join(loading)
    assert "Traceback" not in rest
    assert process.returncode in (-signal.SIGINT, 130)
    assert list(tmp_path.iterdir()) == []
