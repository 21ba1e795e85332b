"""Tokenizers in GGUF files: ranks, specials and ends of turns come back, and other merges are noticed."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import transformers
from tokenizers import pre_tokenizers

from coretrain.config.model import ModelConfig
from coretrain.formats.gguf.file import GGUFFile
from coretrain.formats.gguf.tokenizer import PATTERNS, gguf_chat_template, read_gguf_tokenizer
from coretrain.formats.gguf.weights import export_gguf
from coretrain.formats.huggingface.weights import export_huggingface
from coretrain.tokenizers.chat_template import Template
from coretrain.tokenizers.conversation import Conversation
from coretrain.tokenizers.merges import DIGITS_PATTERN, SAMPLES
from coretrain.tokenizers.registry import bytes_tokenizer, gpt2_tokenizer, load_tokenizer
from coretrain.tokenizers.tokenizer import GPT2_PATTERN, Tokenizer
from tests.support.gguf_files import TEMPLATE, rewrite
from tests.support.models import LLAMA, MODELS, SMALL, perturbed
from tests.support.refusal import refused


@pytest.mark.parametrize(
    ("kind", "name"),
    [("trained", "llama-bpe"), ("pretrained", "smollm"), pytest.param("gpt2", "gpt-2", marks=pytest.mark.whole)],
)
def test_tokenizers_there_and_back(
    tmp_path: Path, kind: str, name: str, trained: Tokenizer, pretrained: Tokenizer
) -> None:
    tokenizer = {"trained": trained, "pretrained": pretrained}.get(kind) or gpt2_tokenizer()
    model = ModelConfig(**SMALL | {"vocab": tokenizer.vocab + 5, "width": 8}, **LLAMA)
    path = tmp_path / "m.gguf"
    remark = export_gguf(path, "m", model, perturbed(model), tokenizer, TEMPLATE)
    assert ("no name for how tokenizer trained" in (remark or "")) == (kind == "trained")
    assert GGUFFile(path).facts["tokenizer.ggml.pre"] == name
    back = read_gguf_tokenizer(GGUFFile(path))
    assert (back.fingerprint, back.vocab) == (tokenizer.fingerprint, tokenizer.vocab)
    assert gguf_chat_template(GGUFFile(path)) == TEMPLATE


def test_a_tokenizer_without_merges_is_refused(tmp_path: Path) -> None:
    with refused("formats/gguf-export-without-merges"):
        export_gguf(tmp_path / "b.gguf", "m", MODELS["llama"], perturbed(MODELS["llama"]), bytes_tokenizer())


def test_exports_tell_where_a_turn_ends(tmp_path: Path, pretrained: Tokenizer) -> None:
    """As `--chat` stops: at the end of a document, and at the template's end of a turn, which no role names here."""
    p = pretrained
    base = Tokenizer("base", p.ranks, p.pattern, 0, p.specials, {"bos": 0, "eos": 0}, True)
    base.save(tmp_path / "run")
    model = ModelConfig(**SMALL | {"vocab": base.vocab}, **LLAMA)
    for number, (template, ends) in enumerate([(TEMPLATE, [0, 2]), ("{{ messages }}", 0), (None, 0)]):
        if template:
            (tmp_path / "run" / "chat_template.jinja").write_text(template)
        else:
            (tmp_path / "run" / "chat_template.jinja").unlink()
        export_huggingface(tmp_path / f"{number}", model, perturbed(model), tmp_path / "run")
        assert transformers.GenerationConfig.from_pretrained(tmp_path / f"{number}").eos_token_id == ends
        export_gguf(tmp_path / f"{number}.gguf", "m", model, perturbed(model), base, template)
        turn = GGUFFile(tmp_path / f"{number}.gguf").facts.get("tokenizer.ggml.eot_token_id")
        assert turn == (2 if ends else None)


def test_other_merges_are_noticed(tmp_path: Path, trained: Tokenizer) -> None:
    export_gguf(tmp_path / "m.gguf", "m", MODELS["llama"], perturbed(MODELS["llama"]), trained)
    merges = GGUFFile(tmp_path / "m.gguf").facts["tokenizer.ggml.merges"]
    rewrite(tmp_path / "m.gguf", tmp_path / "x.gguf", {"tokenizer.ggml.merges": [merges[1], merges[0], *merges[2:]]})
    with refused("tokenizers/ids-not-merge-order"):
        read_gguf_tokenizer(GGUFFile(tmp_path / "x.gguf"))


def test_one_pattern_splits_as_digits_and_then_gpt2(pretrained: Tokenizer) -> None:
    """The pattern for smollm against the two steps that it stands for."""
    two = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    from tokenizers import Regex

    one = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(DIGITS_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    draw = random.Random(1)
    alphabet = " 1 a'\n\tsé½,²٣東"
    for text in [*SAMPLES, *("".join(draw.choices(alphabet, k=12)) for _ in range(3000))]:
        assert one.pre_tokenize_str(text) == two.pre_tokenize_str(text), repr(text)
    assert len(set(PATTERNS.values())) == len(PATTERNS)
    assert PATTERNS["gpt-2"] == GPT2_PATTERN


def test_a_partial_tokenizer_drops_what_it_lacks_and_is_saved_whole(tmp_path: Path, pretrained: Tokenizer) -> None:
    assert pretrained.encode("12").tolist() == [pretrained.ranks[b"1"], pretrained.ranks[b"2"]]
    assert max(pretrained.encode("".join(map(chr, range(0, 0x250)))).tolist()) < pretrained.vocab
    assert pretrained.decode([1, pretrained.ranks[b"a"], 2]) == "<|im_start|>a<|im_end|>"
    assert (pretrained.eot, pretrained.ends) == (0, (0, 2))
    pretrained.save(tmp_path)
    back = load_tokenizer(tmp_path)
    assert (back.fingerprint, back.specials, back.roles) == (
        pretrained.fingerprint,
        pretrained.specials,
        pretrained.roles,
    )
    with refused("tokenizers/byte-without-token", "192"):
        Tokenizer("x", pretrained.ranks, DIGITS_PATTERN, 0)


def test_the_template_for_tools_is_kept_with_the_default_one() -> None:
    """As llama.cpp takes it where there are tools."""
    keys = {"tokenizer.chat_template": "plain", "tokenizer.chat_template.tool_use": "{{ tools[0].a }}"}
    template = gguf_chat_template(cast(GGUFFile, SimpleNamespace(facts=keys)))
    both = Template(template or "", "it", gpt2_tokenizer())
    talk = [{"role": "user", "content": "x"}]
    assert [both.render(Conversation(talk, tools)) for tools in (None, [{"a": 7}])] == ["plain", "7"]
    assert gguf_chat_template(cast(GGUFFile, SimpleNamespace(facts={}))) is None
