"""What stands beside a tokenizer.json: transformers makes the same ids of the same folder, and has the same roles."""

from __future__ import annotations

import inspect
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import tokenization_utils_base as their_base
from transformers import tokenization_utils_tokenizers as their_fast

from coretrain.base.errors import UserError
from coretrain.formats.huggingface.tokenizer import write_tokenizer
from coretrain.tokenizers.added_tokens import OBEYED, REFUSED, ROLES, WITHOUT_EFFECT
from coretrain.tokenizers.chat_template import Template
from coretrain.tokenizers.chat_template_file import read_chat_template
from coretrain.tokenizers.conversation import Conversation
from coretrain.tokenizers.huggingface import read_tokenizer
from coretrain.tokenizers.tokenizer import GPT2_PATTERN, Tokenizer
from coretrain.tokenizers.train import train_tokenizer
from tests.support.refusal import refused

TEXTS = [
    "hello <new> world",
    "  <new>\n z",
    "tail<new>",
    "a </s> b<s>q",
    "def f(x):\n  é 12345",
    "<|endoftext|>a [SEP]",
]
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    """A small byte-level BPE."""
    found = train_tokenizer([inspect.getsource(json)], 400)
    return Tokenizer("plain", found.ranks, GPT2_PATTERN, found.eot)


def added(number: int, **flags: bool) -> dict[str, Any]:
    """An entry for `<new>`."""
    return {"added_tokens_decoder": {str(number): {"content": "<new>", **FLAGS, **flags}}}


def folder_of(folder: Path, tokenizer: Tokenizer, said: dict[str, Any], **files: Any) -> Path:
    """A folder of Hugging Face's with more in its tokenizer_config.json, and with further files."""
    folder.mkdir()
    write_tokenizer(folder, tokenizer, 40)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(json.loads((folder / "tokenizer_config.json").read_text()) | said)
    )
    if "json" in files:
        raw = json.loads((folder / "tokenizer.json").read_text())
        raw["added_tokens"].append(files.pop("json"))
        (folder / "tokenizer.json").write_text(json.dumps(raw))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


N = 400
IN_JSON = {"id": N, "content": "<new>", **FLAGS}


@pytest.mark.parametrize(
    ("config", "files"),
    [
        ({}, {}),
        (added(N), {}),
        (added(N, special=False), {}),
        (added(N, special=True), {"json": IN_JSON | {"special": False}}),
        (added(N, special=False), {"json": IN_JSON}),
        (added(N, lstrip=True, rstrip=True), {"json": IN_JSON}),
        ({"extra_special_tokens": ["<new>"]}, {}),
        ({"extra_special_tokens": {"image_token": "<new>"}}, {}),
        ({"additional_special_tokens": ["<new>", "</s>"]}, {}),
        ({"eos_token": "</s>"}, {}),
        ({"eos_token": "<new>"}, {"json": IN_JSON | {"special": False}}),
        ({"eos_token": {"__type": "AddedToken", "content": "</s>", **FLAGS, "lstrip": True}, "my_token": "<s>"}, {}),
        ({"sep_token": "[SEP]", "mask_token": "<new>"}, {}),
        ({}, {"special_tokens_map": {"eos_token": "</s>", "additional_special_tokens": ["<new>"]}}),
        (added(N), {"special_tokens_map": {"eos_token": "</s>"}}),
        ({}, {"added_tokens": {"<new>": N, "</s>": N + 1}, "special_tokens_map": {"eos_token": "</s>"}}),
        ({"add_prefix_space": True}, {}),
        ({"bos_token": None}, {"config": {"model_type": "llama", "bos_token_id": N - 1}}),
        ({"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}, {}),
    ],
)
def test_ids_and_roles_are_those_of_transformers(
    config: dict[str, Any], files: dict[str, Any], plain: Tokenizer, tmp_path: Path
) -> None:
    assert plain.vocab == N
    folder = folder_of(tmp_path / "hf", plain, config, **files)
    kind = getattr(transformers, config.get("tokenizer_class", "PreTrainedTokenizerFast"))  # what AutoTokenizer finds
    theirs, ours = kind.from_pretrained(folder), read_tokenizer(folder)
    template = Template("{{ 1 }}", "it", ours)
    assert ours.vocab == len(theirs)
    for text in TEXTS:
        assert template.ids(text).tolist() == theirs(text, add_special_tokens=False)["input_ids"], text
    named = {role: str(token) for role, token in theirs.special_tokens_map.items() if isinstance(token, str)}
    mine = {f"{role}_token": ours.token_bytes(token).decode() for role, token in ours.roles.items()}
    assert {**mine, "unk_token": 0} == {**named, "unk_token": 0}, "GPT-2's own class has an unk_token by itself"
    (tmp_path / "back").mkdir()
    write_tokenizer(tmp_path / "back", ours, 40)
    assert read_tokenizer(tmp_path / "back").roles == ours.roles


def test_every_token_that_generation_stops_at(plain: Tokenizer, tmp_path: Path) -> None:
    """A list of them in generation_config.json, as Llama 3 has it; they are no special tokens of a template."""
    config = {"additional_special_tokens": ["<new>", "<s>"], "eos_token": "</s>"}
    ends = {"eos_token_id": [N, N + 1, 7]}
    folder = folder_of(tmp_path / "hf", plain, config, generation_config=ends, config={"eos_token_id": [N + 2]})
    found = read_tokenizer(folder)
    assert [found.token_bytes(token).decode() for token in found.ends] == ["<|endoftext|>", "</s>", "<new>", "<s>"]
    assert found.roles["eos"] == N
    (tmp_path / "back").mkdir()
    write_tokenizer(tmp_path / "back", found, 40)
    assert "eos_2" not in (tmp_path / "back" / "tokenizer_config.json").read_text()
    assert Template("{{ eos_2_token }}", "it", found).render(Conversation(TALK)) == ""


@pytest.mark.parametrize(
    ("config", "code", "name"),
    [
        (added(N + 7), "hf-added-token-id", "407"),
        ({"id": N + 7}, "hf-added-token-id", "tokenizer.json gives token '<new>' the id 407, and transformers 400"),
        ({"split_special_tokens": True}, "hf-field-refused", "split_special_tokens"),
        ({"fix_mistral_regex": True}, "hf-field-refused", "fix_mistral_regex"),
        ({"fast_tokenizer_files": ["tokenizer.json", "tokenizer.4.0.0.json"]}, "hf-versioned-files", "fast_tokenizer"),
        ({"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}, "hf-prefix-space-differs", "add_prefix_space"),
        ({"added_tokens_decoder": {"x": {}}}, "hf-tokenizer-damaged", "hf"),
        ({"eos_token": ["</s>"]}, "hf-tokenizer-damaged", "hf"),
    ],
)
def test_files_that_contradict_each_other(
    config: dict[str, Any], code: str, name: str, plain: Tokenizer, tmp_path: Path
) -> None:
    with refused(f"tokenizers/{code}", name):
        more = {"json": IN_JSON | config} if "id" in config else {}
        read_tokenizer(folder_of(tmp_path / "hf", plain, config, **more))


def test_every_field_that_transformers_reads_has_its_place() -> None:
    """Each is obeyed, refused or on the list of those that change no id; a new version's field is noticed here."""
    base, fast = their_base.PreTrainedTokenizerBase, their_fast.TokenizersBackend
    sources = map(
        inspect.getsource,
        (base.__init__, base._from_pretrained, fast.__init__, fast.convert_to_native_format),
    )
    pattern = r"""kwargs(?:\.(?:pop|get|setdefault)\(|\[)\s*"(\w+)"|"(\w+)" in (?:init_|local_)?kwargs"""
    found = {name for source in sources for pair in re.findall(pattern, source) for name in pair if name}
    for kind in (transformers.GPT2Tokenizer, transformers.LlamaTokenizer, transformers.Qwen2Tokenizer):
        found |= inspect.signature(kind.__init__).parameters.keys() - {"self", "args", "kwargs"}
    assert len(found) > 40
    assert found - OBEYED - WITHOUT_EFFECT - REFUSED.keys() == set()
    assert set(ROLES) == set(base.SPECIAL_TOKENS_ATTRIBUTES)


TALK = [{"role": "user", "content": "x"}]
TOOLS = [{"type": "function", "function": {"name": "add"}}]
NAMED = {
    "default": "\n  {% if true %}\n d{{ messages[0].content }}  \n{% endif %}\n",
    "tool_use": "\n\n t{{ tools | tojson }} \n{%- for m in messages %}\n   {{ m.content }}{% endfor %}   ",
    "rag": "r",
}


@pytest.mark.parametrize("form", ["files", "list", "both", "one file", "no default"])
def test_templates_by_name(form: str, plain: Tokenizer, tmp_path: Path) -> None:
    """The one for tools is taken for conversations with tools, as in transformers; files go before the config."""
    listed = [{"name": name, "template": text} for name, text in NAMED.items()]
    config = {"files": {}, "one file": {"chat_template": listed}, "both": {"chat_template": "old"}}.get(
        form, {"chat_template": [one for one in listed if form == "list" or one["name"] != "default"]}
    )
    folder = folder_of(tmp_path / "hf", plain, config)
    if form in ("files", "both", "one file"):
        (folder / "chat_template.jinja").write_text(NAMED["default"])
    if form in ("files", "both"):
        (folder / "additional_chat_templates").mkdir()
        for name in ("tool_use", "rag"):
            (folder / "additional_chat_templates" / f"{name}.jinja").write_text(NAMED[name])
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    template = Template(read_chat_template(folder) or "", "it", plain)
    for tools in (None, TOOLS, []):
        if form == "no default" and tools is None:
            with pytest.raises(ValueError, match="multiple chat templates with no default"):
                theirs.apply_chat_template(TALK, tokenize=False)
            with refused("tokenizers/template-trial-failed", "rag, tool_use", "data.chat_template"):
                template.check()
            continue
        told = theirs.apply_chat_template(TALK, tools=tools, tokenize=False)
        assert template.render(Conversation(TALK, tools)) == told


def test_a_template_that_is_no_text_and_ids_that_are_drawn(plain: Tokenizer, tmp_path: Path) -> None:
    for number, bad in enumerate((5, {"default": 3}, [{"name": "default"}])):
        folder = folder_of(tmp_path / str(number), plain, {"chat_template": bad})
        with refused("tokenizers/template-not-text", "tokenizer_config.json"):
            read_chat_template(folder)
    folder = folder_of(tmp_path / "dropout", plain, {})
    raw = json.loads((folder / "tokenizer.json").read_text())
    raw["model"]["dropout"] = 0.1
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    with refused("tokenizers/hf-dropout", "dropout = 0.1"):
        read_tokenizer(folder)
    assert read_chat_template(folder_of(tmp_path / "none", plain, {"chat_template": None})) is None


POOL = ("<new>", "</s>", "<s>", "[SEP]", "def", "xy", "<|t|>", "é<>")


def random_folder(draw: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tokens named in all the ways that files have, with random flags; each file may know of others."""

    def flags() -> dict[str, bool]:
        return {name: draw.random() < 0.3 for name in ("lstrip", "rstrip", "special", "normalized")} | {
            "single_word": False
        }

    inside = draw.sample(POOL, draw.randrange(4))
    files: dict[str, Any] = {"tokens": [{"content": name, **flags()} for name in inside]}
    said: dict[str, Any] = {}
    listed = draw.sample(POOL, draw.randrange(4))
    if draw.random() < 0.5:
        said["added_tokens_decoder"] = [{"content": name, **flags()} for name in listed]
    elif draw.random() < 0.5:
        files["special_tokens_map"] = {"eos_token": draw.choice(POOL), "cls_token": {"content": draw.choice(POOL)}}
    for role in draw.sample(["eos_token", "bos_token", "mask_token", "my_token"], draw.randrange(3)):
        said[role] = draw.choice([*POOL, *([None] if role == "bos_token" else [])])
    if draw.random() < 0.4:
        key = draw.choice(["extra_special_tokens", "additional_special_tokens"])
        said[key] = draw.sample(POOL, draw.randrange(1, 3))
    return said, files


@pytest.mark.slow
def test_random_folders(plain: Tokenizer, tmp_path: Path) -> None:
    """A sweep: ids of random texts, roles and the size of the vocabulary are those of transformers in every folder."""
    draw, same, refusals = random.Random(0), 0, 0
    for number in range(400):
        said, files = random_folder(draw)
        folder = folder_of(tmp_path / str(number), plain, {})
        raw, ids = json.loads((folder / "tokenizer.json").read_text()), {}

        def numbered(name: str, ids: dict[str, int], vocab: dict[str, int]) -> int:
            return ids.setdefault(name, vocab.get(name, max([N - 1, *ids.values()]) + 1))

        for token in files.pop("tokens"):
            raw["added_tokens"].append(token | {"id": numbered(token["content"], ids, raw["model"]["vocab"])})
        raw["added_tokens"].sort(key=lambda token: token["id"])
        if "added_tokens_decoder" in said:
            listed = said["added_tokens_decoder"]
            numbers = [numbered(token["content"], ids, raw["model"]["vocab"]) for token in listed]
            said["added_tokens_decoder"] = dict(zip(map(str, numbers), listed, strict=True))
        config = json.loads((folder / "tokenizer_config.json").read_text()) | said
        (folder / "tokenizer.json").write_text(json.dumps(raw))
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        for name, content in files.items():
            (folder / f"{name}.json").write_text(json.dumps(content))
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        try:
            ours = read_tokenizer(folder)
        except UserError:
            refusals += 1
            continue
        assert ours.vocab == len(theirs), (said, files, raw["added_tokens"])
        template = Template("{{ 1 }}", "it", ours)
        for _ in range(20):
            text = "".join(draw.choices([*POOL, " ", "\n", "a", " b", "\u2003", "1"], k=12))
            told = theirs(text, add_special_tokens=False)["input_ids"]
            assert template.ids(text).tolist() == told, (text, said, files, raw["added_tokens"])
        same += 1
    assert (same, refusals) == (400, 0)
