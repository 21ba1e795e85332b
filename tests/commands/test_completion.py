"""What `twintrain completion` prints, in each shell that is here: verbs, presets, fields, and their values."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from coretrain.config.load import describe_type, fields, presets
from twintrain.command import main
from twintrain.completion import choices
from twintrain.verbs import SHELLS, STACKS, VERBS

ASK = {
    "bash": r"""
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); _twintrain; printf '%s\n' "${COMPREPLY[@]}"
""",
    # the functions of zsh's completion stand in by what they would offer, less what doesn't begin as typed
    "zsh": r"""
compdef() { :; }
_files() { :; }
compset() { PREFIX=${PREFIX#*=}; }
offer() { local word; for word; do [[ $word == ${PREFIX}* ]] && print -r -- $word; done; }
compadd() { shift; offer $@; }
_describe() { local all=(${(P)@[-1]}); offer ${all%%:*}; }
source "$1"; shift
words=("$@"); CURRENT=$#; PREFIX=$words[-1]; _twintrain
""",
    "fish": 'source "$argv[1]"; complete -C (string join " " -- $argv[2..])',
}


@pytest.fixture(scope="module", params=SHELLS)
def offered(request, tmp_path_factory):
    """A function: what the shell offers after these words, the last of which has just begun."""
    if shutil.which(request.param) is None:
        pytest.skip(f"no {request.param} here")
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda text, end: printed.append(text))
        assert main(["completion", request.param]) == 0
    (folder / "script").write_text(printed[0])
    (folder / "ask").write_text(ASK[request.param])
    quiet = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["-N"]}[request.param]

    def ask(*words: str) -> list[str]:
        command = [request.param, *quiet, "./ask", "./script", "twintrain", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=60)
        assert not done.stderr
        found = [line.partition("\t")[0] for line in done.stdout.splitlines()]
        mine = {"ask", "script"}  # fish offers files beside words
        return sorted(word for word in found if word and word not in mine)

    ask.shell = request.param
    return ask


def test_verbs_and_options_of_the_command(offered):
    assert offered("") == sorted(VERBS)
    assert offered("tr") == ["train"]
    assert offered("p") == ["parity", "plan", "prepare"]
    assert offered("--v") == ["--version"]


@pytest.mark.parametrize("verb", ["train", "plan", "prepare", "localize"])
def test_presets_and_every_field(offered, verb):
    assert offered(verb, "") == presets()
    assert offered(verb, "gpt2-1") == ["gpt2-124m", "gpt2-1558m"]
    assert offered(verb, "--") == sorted([f"--{name}" for name in fields()] + ["--help", *VERBS[verb].options])
    assert offered(verb, "--model.l") == ["--model.layers"]
    assert offered(verb, "tiny", "--checkpoint.i") == ["--checkpoint.interval"]


def test_values_of_fields_and_options(offered):
    assert offered("train", "--stack", "") == sorted(STACKS)
    assert offered("chat", "runs/x", "--stack", "j") == ["jax"]
    assert offered("train", "--optimizer.name", "") == ["adam", "adamw", "muon"]
    assert offered("prepare", "--model.bias", "t") == ["true"]
    assert offered("convert", "runs/x", "--to", "g") == ["gguf"]
    assert offered("parity", "--device", "c") == ["cpu", "cuda"]
    assert offered("parity", "--config", "ti") == ["tiny"]
    assert offered("parity", "-m", "") == ["mutation", "scale"]
    assert offered("completion", "") == sorted(SHELLS)
    assert offered("train", "--spawn", "ti") == ["tiny"], "a switch takes no value"


def test_what_is_not_known_is_left_to_files(offered):
    for words in (["train", "--output", ""], ["generate", ""], ["train", "--train.updates", ""], ["no-verb", ""]):
        assert offered(*words) == []


def test_a_value_after_an_equals_sign(offered):
    words = {"bash": ["--schedule.kind", "=", "c"]}.get(offered.shell, ["--schedule.kind=c"])
    before = "--schedule.kind=" if offered.shell == "fish" else ""
    assert offered("train", *words) == [f"{before}constant", f"{before}cosine"]


def test_values_are_those_of_the_config():
    """As --help lists them, which reads the fields' types and not their schemas."""
    listed = {name: choices(*place) for name, place in fields().items()}
    assert listed["model.norm"] == ("layernorm", "rmsnorm")
    assert listed["checkpoint.keep_best"] == ("true", "false")
    assert listed["parallel.zero"] == ("0", "1", "2", "3")
    assert listed["train.updates"] == listed["data.source"] == ()
    assert listed["train.objective"][0] == "cross_entropy"
    for name, place in fields().items():
        words = describe_type(*place)
        if words == "bool":
            assert listed[name] == ("true", "false")
        elif name != "parallel.zero":  # whose words are numbers
            assert listed[name] == (tuple(words.split(" | ")) if " | " in words else ())
