"""Configs, rows of data, chat templates and tokenizers that few expect: each is taken, or refused in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coretrain.config.load import load_config
from coretrain.data.chat import chat_source, open_encoder
from coretrain.data.sources import open_source
from coretrain.formats.huggingface.tokenizer import write_tokenizer
from coretrain.planning.accelerators import TABLE, accelerators, machine
from coretrain.runs.folder import open_run
from coretrain.tokenizers.chat_template import CHATML, PLAIN, Template, checked, open_template
from coretrain.tokenizers.chat_template_file import read_chat_template
from coretrain.tokenizers.conversation import Conversation
from coretrain.tokenizers.huggingface import read_tokenizer
from coretrain.tokenizers.json_tokenizer import JsonTokenizer
from coretrain.tokenizers.registry import bytes_tokenizer, load_tokenizer, named_tokenizer
from coretrain.tokenizers.tokenizer import Tokenizer
from tests.support.corpora import chat_rows, configure, write_rows
from tests.support.fuzzing import as_json, as_toml, damaged, ends_well, fuzzed, mutated, mutated_bytes, odd, replaced

PIECES = (
    *("{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ m['role'] }}", "{% if m.role == 'user' %}"),
    *("{% endif %}", "{% for i in range(99999) %}", "{{ 'a' * 999999999 }}", "{% set x = x ~ x %}", "{{ x }}", "{{"),
    *("{% set ns = namespace(x='aa') %}", "{% set ns.x = ns.x + ns.x %}", "{% macro f() %}", "{% endmacro %}", "}}"),
    *("{{ f() }}", "{{ messages[0].__class__.__mro__ }}", "{{ 10 ** 10 ** 7 }}", "{{ '%9999999d' % 1 }}", "{% else %}"),
    *(
        "{{ eos_token }}",
        "{{ raise_exception('no') }}",
        "{{ strftime_now('%Y') }}",
        "{{ messages | tojson }}",
        "\n",
        "{#",
    ),
    *(
        "{% generation %}",
        "{% endgeneration %}",
        "{% break %}",
        "{{ 'a' | center(10**9) }}",
        "<|im_start|>",
        "#}",
        "\ud800",
    ),
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    """What takes long is given up sooner."""
    monkeypatch.setattr("coretrain.tokenizers.template_limits.SECONDS", 0.3)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder to write into."""
    return tmp_path_factory.mktemp("texts")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    """A tokenizer as a run keeps it, and in `hf` as Hugging Face has it; one that ranks describe, and in `kept` not."""
    folder = tmp_path_factory.mktemp("tokenizer")
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"abab": 257}
    specials = {"<|endoftext|>": 258, "<|im_start|>": 259, "<|im_end|>": 260}
    tokenizer = Tokenizer("small", ranks, r"\w+|\W", 258, specials, {"bos": 259, "eos": 258})
    tokenizer.save(folder)
    (folder / "hf").mkdir()
    write_tokenizer(folder / "hf", tokenizer, 40, CHATML)
    raw = json.loads((folder / "hf" / "tokenizer.json").read_text())
    kept = JsonTokenizer("kept", json.dumps(raw | {"normalizer": {"type": "NFC"}}), 258, {"eos": 258})
    kept.save(folder / "kept")
    return folder


@fuzzed(6)
def test_toml(place, random):
    raw = load_config("tiny").model_dump(mode="json", exclude_none=True)
    raw["data"]["mixture"] = [{"source": "a", "weight": 1.0}, {"source": "b", "weight": 2}]
    text = as_toml(mutated(random, raw))
    (place / "x.toml").write_bytes(mutated_bytes(random, text) if random.random() < 0.2 else text)
    ends_well("TOML", lambda: load_config(str(place / "x.toml"), [("train.updates", "300")]))


@fuzzed(5)
def test_config_json(place, random):
    (place / "config.json").write_text(load_config("tiny").to_json())
    (place / "config.json").write_bytes(damaged(random, place / "config.json"))
    ends_well("config.json", lambda: open_run(place))


@fuzzed(3)
def test_accelerators(place, random):
    row = accelerators()["h100"].model_dump(mode="json", exclude={"name"}, exclude_none=True)
    text = as_toml({"mine": mutated(random, row)})
    text = mutated_bytes(random, TABLE.read_bytes() + text) if random.random() < 0.3 else text
    (place / "machines.toml").write_bytes(text)
    accelerators.cache_clear()
    ends_well("accelerators.toml", lambda: machine("minex8", place / "machines.toml"))


@fuzzed(6)
def test_rows_of_text(place, random):
    rows = [{"text": f"one {n}\n\ntwo", "more": [n]} for n in range(3)]
    if random.random() < 0.3:
        path = place / "rows.parquet"
        try:
            table = pa.Table.from_pylist(mutated(random, rows))
        except Exception:  # what arrow can't hold is no file either
            table = pa.table({"text": ["a"], "more": [None]})
        pq.write_table(table, path)
        path.write_bytes(mutated_bytes(random, path.read_bytes()) if random.random() < 0.5 else path.read_bytes())
    else:
        path = place / random.choice(("rows.jsonl", "rows.txt"))
        lines = b"\n".join(map(as_json, mutated(random, rows)))
        path.write_bytes(mutated_bytes(random, lines) if random.random() < 0.3 else lines)
    tokenizer = bytes_tokenizer()
    ends_well("rows of text", lambda: [tokenizer.encode(text) for text in open_source(str(path)).documents()])


@fuzzed(8)
def test_rows_of_chat(place, random):
    rows = write_rows(place / "chat.jsonl", chat_rows(2))
    config = configure(place, rows, **{"data.format": "chat", "data.misfits": random.choice(("refuse", "drop"))})

    def read() -> None:
        coder = open_encoder(config, bytes_tokenizer())
        for document in chat_source(str(rows)).documents():
            try:
                coder.encode(document)
            except Exception as error:  # which `located` gives a line
                if type(error).__name__ != "TemplateError":
                    raise

    with replaced(rows, damaged(random, rows)):
        ends_well("rows of chat", read)


@fuzzed(8)
def test_chat_templates(place, tokenizer_folder, random):
    source = random.choice((CHATML, PLAIN))
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.choice([n for n in range(len(source) + 1) if source[n : n + 1] in ("{", "")])
        source = source[:at] + random.choice(PIECES) * random.choice((1, 1, 2, 300)) + source[at:]
    (place / "x.jinja").write_bytes(source.encode(errors="surrogatepass"))
    said = [{"role": "user", "content": "<|im_end|> hi"}, {"role": "assistant", "content": "ho"}]

    def read() -> None:
        template = open_template(str(place / "x.jinja"), load_tokenizer(tokenizer_folder))
        template.sample(Conversation(said))
        template.question("what?")

    ends_well("chat template", read)


@fuzzed(6)
def test_tokenizers_of_hugging_face(tokenizer_folder, random):
    name = random.choice(("tokenizer.json", "tokenizer.json", "tokenizer_config.json"))
    path = tokenizer_folder / "hf" / name

    def read() -> None:
        tokenizer = read_tokenizer(path.parent)
        tokenizer.decode(tokenizer.encode("abab c\u00e9\ud800 <|im_end|>"))
        if template := read_chat_template(path.parent):
            checked(Template(template, "its template", tokenizer)).question("a")

    with replaced(path, damaged(random, path)):
        ends_well(name, read)


@fuzzed(6)
def test_tokenizers_of_runs(tokenizer_folder, random):
    path = random.choice(sorted(path for path in tokenizer_folder.glob("*") if path.is_file()))
    path = random.choice((path, *sorted((tokenizer_folder / "kept").iterdir())))

    def read() -> None:
        load_tokenizer(path.parent).encode("abab")
        if path.suffix == ".tiktoken":
            named_tokenizer(str(path)).encode("abab")

    with replaced(path, damaged(random, path)):
        ends_well(f"a run's {path.name}", read)


@fuzzed(2)
def test_ranks_alone(place, random):
    ranks = b"".join(b"%s %d\n" % (token, n) for n, token in enumerate((b"YQ==", b"Yg==", b"YWI=")))
    (place / "x.tiktoken").write_bytes(mutated_bytes(random, ranks + str(odd(random)).encode(errors="replace")[:99]))
    ends_well("ranks", lambda: named_tokenizer(str(place / "x.tiktoken")).encode("abab"))
