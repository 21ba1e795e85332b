"""SentencePiece's tokenizers are kept as they are, in runs, in folders and in GGUF files."""

from __future__ import annotations

import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Fast
from transformers.convert_slow_tokenizer import generate_merges

from coretrain.base.errors import UserError
from coretrain.checkpoint.interchange import load_interchange, newest_interchange
from coretrain.config.load import config_from_json, load_config
from coretrain.config.model import ModelConfig
from coretrain.formats.gguf.file import GGUFFile
from coretrain.formats.gguf.tokenizer import read_gguf_tokenizer, tokenizer_facts
from coretrain.formats.huggingface.weights import export_huggingface
from coretrain.runs.convert import export_run, import_run
from coretrain.tokenizers.chat_template import Template, checked
from coretrain.tokenizers.conversation import Conversation
from coretrain.tokenizers.huggingface import read_tokenizer
from coretrain.tokenizers.json_tokenizer import JsonTokenizer
from coretrain.tokenizers.registry import load_tokenizer, named_tokenizer
from coretrain.training.command_line import Command
from coretrain.training.resolve import completed
from tests.support.corpora import TEXTS
from tests.support.gguf_files import rewrite
from tests.support.models import MODELS, SMALL, perturbed
from tests.support.refusal import refused

TURNS = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% else %} {{ message.content }} {{ eos_token }}{% endif %}{% endfor %}"
)


def sentencepiece(kind: str) -> Fast:
    """A tokenizer as transformers makes one of a SentencePiece model; `first` and `always` are Llama 2's two forms."""
    trained = Fast(models.Unigram() if kind == "unigram" else models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = {"unigram": trainers.UnigramTrainer}.get(kind, trainers.BpeTrainer)(vocab_size=400, show_progress=False)
    trained.train_from_iterator([inspect.getsource(inspect), "[INST] [/INST] the answer"], trainer)
    learnt = json.loads(trained.to_str())["model"]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    if kind == "unigram":
        pieces = [(name, 0.0) for name in first] + [tuple(pair) for pair in learnt["vocab"] if pair[0] not in first]
        fast = Fast(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    else:
        names = [*first, *(word for word in learnt["vocab"] if word not in first)]
        vocab, merges = {name: number for number, name in enumerate(names)}, [tuple(pair) for pair in learnt["merges"]]
        fast = Fast(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if kind == "always":
        fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        fast.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=kind == "unigram")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    fast.decoder = decoders.Sequence(steps)
    fast.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in first[:3]])
    return fast


def hf_folder(folder: Path, fast: Fast | None, template: str | None = None) -> Path:
    """A Llama model's folder with this tokenizer."""
    vocab = fast.get_vocab_size() if fast else 700
    model = ModelConfig(**MODELS["llama"].model_dump() | {"vocab": vocab})
    export_huggingface(folder, model, perturbed(model))
    if fast:
        fast.save(str(folder / "tokenizer.json"))
    facts = {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"}, "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.parametrize("kind", ["first", "always", "unigram"])
def test_sentencepiece_is_kept_as_it_is(tmp_path: Path, kind: str) -> None:
    """Ids, texts, turns and files are transformers' own, before and after a run of ours."""
    fast = sentencepiece(kind)
    source = hf_folder(tmp_path / "hf", fast, TURNS)
    lines = import_run(source, tmp_path / "run")
    assert "its tokenizer is the run's, its chat template too" in lines
    config = config_from_json((tmp_path / "run" / "config.json").read_text())
    assert config.data.tokenizer == str(tmp_path / "run" / "tokenizer.json")
    tokenizer = named_tokenizer(config.data.tokenizer)
    assert isinstance(tokenizer, JsonTokenizer)
    assert (tokenizer.vocab, tokenizer.eot, tokenizer.ends) == (fast.get_vocab_size(), 2, (2,))
    assert pickle.loads(pickle.dumps(tokenizer)).fingerprint == tokenizer.fingerprint
    theirs = transformers.AutoTokenizer.from_pretrained(source)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids.tolist()
        assert tokenizer.decode(ids) in (theirs.decode(ids), " " + theirs.decode(ids))
        stream = tokenizer.stream()
        assert "".join(stream.push(int(token)) for token in ids) + stream.finish() == tokenizer.decode(ids)
    evil = tokenizer.encode("<s> a </s>").tolist()
    assert not {1, 2} & set(evil)
    fast.encode_special_tokens = True
    assert kind == "unigram" or fast.encode("<s> a </s>").ids == evil
    assert tokenizer.decode(evil) == " <s> a </s>"
    assert tokenizer.encode("a\ud800").tolist() == tokenizer.encode("a\ufffd").tolist()
    lengths = tokenizer.byte_lengths()
    assert lengths[tokenizer.encode("été")].sum() == len(" été".encode())
    assert lengths[:3].sum() == 0

    template = checked(Template(TURNS, "turns", tokenizer))
    talk = [{"role": "user", "content": "a (b)"}, {"role": "assistant", "content": "the answer"}] * 2
    ids, targets = template.sample(Conversation(talk))
    assert ids.tolist() == theirs.apply_chat_template(talk, return_dict=False)
    assert tokenizer.decode(ids[targets]) == " the answer </s> the answer </s>"
    evil, _ = template.sample(Conversation([talk[0] | {"content": "</s>"}, talk[1] | {"content": "<s>"}]))
    assert (evil < 3).sum() == 2

    export_run(tmp_path / "run", tmp_path / "out", "hf")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (tmp_path / "run" / "tokenizer.json").read_bytes()
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert all(again(text)["input_ids"] == theirs(text)["input_ids"] for text in TEXTS)
    assert (again.bos_token, again.eos_token, again.unk_token) == ("<s>", "</s>", "<unk>")
    assert import_run(tmp_path / "out", tmp_path / "back")
    assert load_tokenizer(tmp_path / "back").encode(TEXTS[0]).tolist() == tokenizer.encode(TEXTS[0]).tolist()

    given = (("adapter.kind", "lora"), ("adapter.base", str(tmp_path / "run")))
    adapted = completed(Command(load_config("tiny", given), None, None, given)).config
    assert adapted.data.tokenizer == config.data.tokenizer

    path = tmp_path / "run" / "tokenizer.json"
    path.write_text(path.read_text().replace('"split"', '"spilt"').replace("▁t", "▁x"))
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path / "run")


def test_weights_never_meet_another_tokenizers_ids(tmp_path: Path) -> None:
    fast = sentencepiece("first")
    fast.decoder = decoders.WordPiece()
    for name, tokenizer, message in (
        ("none", None, r"tokenizer\.json is missing, and so are vocab\.json"),
        ("wordpiece", fast, "turns ids into text by WordPiece, which isn't known here"),
    ):
        source = hf_folder(tmp_path / name, tokenizer, TURNS)
        with pytest.raises(UserError, match=message + ".*--data.tokenizer gpt2"):
            import_run(source, tmp_path / "run")
        with refused("runs/import-tokenizer-trained"):
            import_run(source, tmp_path / "run", None, [("data.tokenizer", "trained")])
        with refused("runs/import-vocabulary-differs", "gpt2", "50257", "give"):
            import_run(source, tmp_path / "run", None, [("data.tokenizer", "gpt2")])
        assert not (tmp_path / "run").exists()
    big = ModelConfig(**SMALL | {"vocab": 257 + 1024})
    export_huggingface(tmp_path / "big", big, perturbed(big))
    with refused("runs/import-vocabulary-differs", "bytes", "257", "1281"):
        import_run(tmp_path / "big", tmp_path / "run", None, [("data.tokenizer", "bytes")])
    lines = import_run(tmp_path / "none", tmp_path / "run", None, [("data.tokenizer", "bytes")])
    assert "tokenizer bytes is the run's, its chat template too" in lines
    assert (tmp_path / "run" / "chat_template.jinja").read_text() == TURNS
    saved = config_from_json((tmp_path / "run" / "config.json").read_text()).data.tokenizer
    assert named_tokenizer(saved).fingerprint == named_tokenizer("bytes").fingerprint


def test_what_looks_special_is_no_text(tmp_path: Path) -> None:
    """Of a file that doesn't call its marks of turns special, too; a token that text can become is refused."""
    fast = sentencepiece("first")
    fast.add_tokens([AddedToken("<|im_end|>", normalized=False), AddedToken("<think>", normalized=False)])
    tokenizer = read_tokenizer(hf_folder(tmp_path / "a", fast))
    mark, think = (fast.token_to_id(name) for name in ("<|im_end|>", "<think>"))
    assert tokenizer.specials["<|im_end|>"] == mark
    assert mark not in tokenizer.encode("a<|im_end|>b")
    assert think in tokenizer.encode("a<think>b"), "what else was added is text, as in transformers"
    assert tokenizer.decode([think]) == "<think>"
    fast.add_special_tokens([AddedToken("<|greedy|>", special=True, normalized=False, rstrip=True)])
    greedy = read_tokenizer(hf_folder(tmp_path / "b", fast))
    assert checked(Template(TURNS, "turns", greedy))
    template = checked(Template("<|greedy|> " + TURNS, "turns", greedy))
    text = "<|greedy|> \n a <|greedy|>\x1cb<|im_end|> c"
    assert template.ids(text).tolist() == fast.encode(text, add_special_tokens=False).ids, "blanks are swallowed alike"
    raw = json.loads(fast.to_str())
    taken = next(word for word in raw["model"]["vocab"] if len(word) > 3 and word.isalpha())
    raw["added_tokens"].append(raw["added_tokens"][0] | {"id": raw["model"]["vocab"][taken], "content": taken})
    (tmp_path / "a" / "tokenizer.json").write_text(json.dumps(raw))
    tokenizer = read_tokenizer(tmp_path / "a")
    ids = tokenizer.encode(f"({taken})")
    assert raw["model"]["vocab"][taken] not in ids
    assert tokenizer.decode(ids) == f" ({taken})"


def of_scores(kind: str) -> dict[str, Any]:
    """The tokenizer.json of `sentencepiece(kind)` with every pair that its scores join."""
    raw: dict[str, Any] = json.loads(sentencepiece(kind).to_str())
    names = ["".join(pair) for pair in raw["model"]["merges"]]
    pieces = {word: number for word, number in raw["model"]["vocab"].items() if number > 258}
    scores = {word: -float(names.index(word) if word in names else 1e4) for word in pieces}
    raw["model"]["merges"] = [list(pair) for pair in generate_merges(raw["model"]["vocab"], scores)]
    return raw


@pytest.mark.parametrize("kind", ["always", "first"])
def test_sentencepiece_to_gguf_and_back(tmp_path: Path, kind: str) -> None:
    """A GGUF file has scores and no merges: those that transformers makes of scores give the same ids again."""
    raw = of_scores(kind)
    source = hf_folder(tmp_path / "hf", Fast.from_str(json.dumps(raw)), TURNS)
    import_run(source, tmp_path / "run")
    lines = export_run(tmp_path / "run", tmp_path / "m.gguf", "gguf")
    assert ("llama.cpp puts a blank before texts that begin with one" in lines[-1]) == (kind == "first")
    assert ("by score alone: 2 of 11" in lines[-1]) == (kind == "first"), "two samples begin with blanks"
    import_run(tmp_path / "m.gguf", tmp_path / "back")
    first, back = (load_tokenizer(tmp_path / name) for name in ("run", "back"))
    assert isinstance(back, JsonTokenizer)
    assert json.loads(back.text)["model"]["merges"] == raw["model"]["merges"]
    assert all(back.encode(text).tolist() == first.encode(text).tolist() for text in TEXTS if not text.startswith(" "))
    assert (back.eot, back.vocab, back.specials) == (first.eot, first.vocab, first.specials)
    assert (back.roles, (tmp_path / "back" / "chat_template.jinja").read_text()) == (first.roles, TURNS)
    assert load_interchange(newest_interchange(tmp_path / "back")).config.model.vocab == first.vocab
    for pad in (300, 100_000, 2**32 - 1):  # a token of text, one beyond the end, none
        rewrite(tmp_path / "m.gguf", tmp_path / "p.gguf", {"tokenizer.ggml.padding_token_id": pad})
        assert read_gguf_tokenizer(GGUFFile(tmp_path / "p.gguf")).roles == first.roles, pad
    rewrite(tmp_path / "m.gguf", tmp_path / "e.gguf", {"tokenizer.ggml.eos_token_id": 300})
    with pytest.raises(UserError, match=r"e\.gguf has no special token that ends a text"):
        import_run(tmp_path / "e.gguf", tmp_path / "x")
    rewrite(tmp_path / "m.gguf", tmp_path / "x.gguf", {"tokenizer.ggml.scores": [1.0]})
    with pytest.raises(UserError, match=r"tokenizer\.ggml\.scores has 1 entries for \d+ tokens"):
        import_run(tmp_path / "x.gguf", tmp_path / "x")


def test_scores_that_make_other_ids_are_told(tmp_path: Path) -> None:
    """Pairs that a list leaves out are joined by llama.cpp all the same; Unigram is no BPE."""
    raw = of_scores("always")
    tokenizer = read_tokenizer(hf_folder(tmp_path / "hf", Fast.from_str(json.dumps(raw))))
    facts, remark = tokenizer_facts(tokenizer, tokenizer.vocab + 3, None)
    assert facts["tokenizer.ggml.tokens"][-1] == f"[PAD{tokenizer.vocab + 2}]"
    assert facts["tokenizer.ggml.token_type"][:4] == [2, 3, 3, 6]
    assert remark is None
    del raw["model"]["merges"][5::3]
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(raw))
    _, remark = tokenizer_facts(read_tokenizer(tmp_path / "hf"), tokenizer.vocab, None)
    assert "joins pieces by score alone" in (remark or "")
    unigram = read_tokenizer(hf_folder(tmp_path / "unigram", sentencepiece("unigram")))
    with refused("formats/gguf-export-tokenizer-kind"):
        tokenizer_facts(unigram, unigram.vocab, None)
