"""Conversations as a user gives them: rows, faults, packing, runs."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

import jaxtrain.attention
import jaxtrain.loss
import torchtrain.attention
import torchtrain.loss
from coretrain.base.errors import UserError
from coretrain.data.batch import IGNORED, stacked
from coretrain.data.batches import global_batch, updates_of, validation_bytes_per_token
from coretrain.data.chat import chat_source, open_encoder, said_in
from coretrain.data.chat_rows import conversation_of
from coretrain.data.open import open_data
from coretrain.data.packing import pack
from coretrain.data.prepare import documents_of
from coretrain.journal.metrics import read_metrics
from coretrain.processes.supported import check_combination
from coretrain.runs.chat import chat_prompts
from coretrain.tokenizers.chat_template import PLAIN
from coretrain.tokenizers.registry import bytes_tokenizer
from coretrain.tokenizers.train import train_tokenizer
from tests.support.batches import arrays_of, same
from tests.support.corpora import chat_rows
from tests.support.refusal import refused
from tests.support.whole_runs import run


def test_rows_are_packed_and_nothing_is_lost(chat_config):
    config = chat_config(chat_rows(40))
    data = open_data(config, lambda _: None)
    coder = open_encoder(config, data.tokenizer)
    wanted = sorted(tuple(coder.encode(conversation_of(row, "").dump())) for row in chat_rows(40))
    found = []
    for split in (data.train, data.validation):
        for window in range(split.windows(96)):
            row = split.read(window, 96)
            tokens, labels, positions = row.tokens, row.labels, row.positions
            begins = np.flatnonzero(positions == 0)
            for start, stop in zip(begins, [*begins[1:], 96], strict=True):
                own = labels[start:stop]
                assert positions[start:stop].tolist() == list(range(stop - start))
                if (own != IGNORED).any():
                    ids = np.append(tokens[start:stop], own[-1])
                    assert (ids[1:][own != IGNORED] == own[own != IGNORED]).all()
                    found.append(tuple(2 * ids + np.append(False, own != IGNORED)))
                else:
                    assert stop == 96, "only what is left of a row has no target"
    assert sorted(found) == wanted
    assert len(data.train.shards) == 1
    assert "samples" in dict(data.summary())["train"]
    assert validation_bytes_per_token(data, config) < 1
    assert open_data(config, lambda _: None).fingerprint == data.fingerprint
    other = open_data(config.changed(model__context=97))
    assert other.fingerprint != data.fingerprint


def test_batches_are_the_same_however_they_are_shared(chat_config):
    config = chat_config(chat_rows(20), data__shard_tokens=1024)
    data = open_data(config, lambda _: None)
    assert len(data.train.shards) > 1
    whole = global_batch(data, config, 3)
    assert {name: (array.shape, array.dtype) for name, array in arrays_of(whole).items()} == dict.fromkeys(
        ("tokens", "labels", "positions"), ((4, 96), np.int32)
    )
    halves = [updates_of(data, config, process, 2)[3] for process in (0, 1)]
    assert same(stacked([half.rows(row) for half in halves for row in range(2)]), whole)
    assert whole.labels.min() == IGNORED == torchtrain.loss.IGNORED == jaxtrain.loss.IGNORED


def test_rows_shorter_than_the_context(chat_config):
    config = chat_config(chat_rows(10), model__context=256, data__row_tokens=80)
    data = open_data(config, lambda _: None)
    assert global_batch(data, config, 0).positions.shape == (4, 80)
    assert config.tokens_per_update == 4 * 80
    with refused("data/row-tokens-exceed-context", "300", "256"):
        open_data(chat_config(chat_rows(10), model__context=256, data__row_tokens=300), lambda _: None)


def test_best_fit():
    assert pack([3, 9, 5, 2, 7, 1], 10) == [[0, 2, 3], [1, 5], [4]]
    assert pack([10, 10, 1], 10) == [[0], [1], [2]]
    assert pack([], 10) == []
    draw = random.Random(1)
    lengths = [draw.randrange(1, 200) for _ in range(5000)]
    rows = pack(lengths, 512)
    assert sorted(sample for row in rows for sample in row) == list(range(5000))
    sums = [sum(lengths[sample] for sample in row) for row in rows]
    assert max(sums) <= 512
    assert sum(sums) / (512 * len(rows)) > 0.99


def test_samples_that_do_not_fit_are_refused_by_their_line_or_dropped(chat_config):
    rows = [*chat_rows(10), {"prompt": "long " * 40, "completion": "x"}]
    with pytest.raises(UserError, match=r"rows\.jsonl, line 21: 2\d\d tokens are more than a row's 96: .*drop"):
        open_data(chat_config(rows), lambda _: None)
    data = open_data(chat_config(rows, data__misfits="drop"), lambda _: None)
    counts = [dict(data.summary())[split] for split in ("train", "validation")]
    assert sum("samples dropped: 1 too long" in text for text in counts) == 1
    with refused("data/row-tokens-too-few", "train"):
        open_data(chat_config(rows, data__misfits="drop", model__context=2), lambda _: None)


def test_a_tokenizer_is_trained_on_what_is_said_in_training(chat_config):
    config = chat_config(
        chat_rows(20), data__tokenizer="trained", data__tokenizer_vocab=280, data__validation_fraction=0.3
    )
    data = open_data(config, lambda _: None)
    assert 257 < data.tokenizer.vocab <= 280
    source = chat_source(config.data.source)
    splits = {document.text: document.split for document in documents_of(source, config.data, {})}
    seen = [said_in(text) for text, split in splits.items() if split == "train"]
    assert data.tokenizer.fingerprint == train_tokenizer(seen, 280).fingerprint
    assert data.tokenizer.fingerprint != train_tokenizer(map(said_in, splits), 280).fingerprint
    assert (global_batch(data, config, 0).labels == data.tokenizer.eot).any(), "an answer ends with the end of text"


def test_axes_that_cut_rows_or_layers_are_refused(chat_config):
    for axis in ("pipeline", "context"):
        config = chat_config(chat_rows(2), **{f"parallel__{axis}": 2, "train__accumulation": 2})
        for stack in ("torch", "jax"):
            with pytest.raises(UserError, match=rf"parallel\.{axis} = 2 .*"):
                check_combination(config, stack)


def test_kernels_without_packed_rows_say_so(chat_config, monkeypatch):
    """On a GPU the kernels that would be taken for text are passed over, and refused where they are asked for."""
    gpu, cuda = types.SimpleNamespace(platform="gpu"), torch.device("cuda")
    torch_side, jax_side = torchtrain.attention, jaxtrain.attention
    monkeypatch.setattr(torch_side.importlib.util, "find_spec", lambda name: name == "flash_attn" or None)
    for module, device, passed, taken in ((torch_side, cuda, "flash_attn", "sdpa"), (jax_side, gpu, "cudnn", "xla")):
        config = chat_config(chat_rows(2), execution__attention="auto", precision__compute="bfloat16")
        assert module.choose_kernel(with_format(config, "text"), device).name == passed
        choice = module.choose_kernel(config, device)
        assert choice.name == taken
        assert f"{passed}: it keeps no samples of a packed row apart" in choice.reason
        forced = chat_config(chat_rows(2), execution__attention=passed, precision__compute="bfloat16")
        with pytest.raises(UserError, match=f"{passed} can't run here: it keeps no samples of a packed row apart"):
            module.choose_kernel(forced, device)


def with_format(config, form):
    """The same run on rows of another format."""
    return config.changed(data__format=form)


SMALL_RUN = {
    "model.layers": 1, "model.width": 32, "model.heads": 2, "model.context": 96, "data.tokenizer": "bytes",
    "train.updates": 6, "train.batch_size": 4, "train.eval_interval": 3, "train.sample_tokens": 4,
    "schedule.warmup_updates": 2, "checkpoint.interval": 3, "journal.tensorboard": "false",
}  # fmt: skip


@pytest.mark.whole
def test_whole_runs_of_both_stacks(tmp_path):
    """A base on conversations in torch; an adapter on it in JAX, resumed in torch; the same batches; questions."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat_rows(30)))
    (tmp_path / "t.jinja").write_text(PLAIN.replace("###", "##"))
    common = [f"--data.source={tmp_path / 'rows.jsonl'}", f"--data.cache={tmp_path / 'c'}", "--data.format=chat"]
    small = [f"--{key}={value}" for key, value in SMALL_RUN.items()]
    base, adapted = tmp_path / "base", tmp_path / "adapted"
    small.append("--data.row_tokens=80")
    out = run("torch", *common, *small, f"--data.chat_template={tmp_path / 't.jinja'}", "--output", base)
    assert "samples" in out
    assert "targets" in out
    assert (base / "chat_template.jinja").read_text() == PLAIN.replace("###", "##")
    (tmp_path / "t.jinja").unlink()  # a base's template is its run's own
    small = [word for word in small if not word.startswith("--model.")]
    lora = ["--adapter.kind=lora", f"--adapter.base={base}", "--train.accumulation=2"]
    run("jax", *common, *small, *lora, "--output", adapted)
    base = base.rename(tmp_path / "moved")  # an adapter's run has a template and a tokenizer of its own
    run("torch", "--resume", adapted, "--adapter.base", base, "--train.updates", 8)
    hashes = [[row["batch_hash"] for row in read_metrics(folder)[0]] for folder in (base, adapted)]
    assert len(hashes[1]) == 8
    assert hashes[0] == hashes[1][:6]
    rows = read_metrics(adapted)
    assert all(np.isfinite(row["loss"]) for row in rows[0])
    assert rows[1][-1]["bits_per_byte"] > 0
    told, ends = chat_prompts(adapted, bytes_tokenizer(), ["Is it?"])
    assert bytes_tokenizer().decode(told[0]) == "## User:\nIs it?\n\n## Assistant:\n"
    assert ends == (256,)
    said = subprocess.run(
        [sys.executable, "-m", "jaxtrain.generate", base, "--adapter", adapted, "--chat", "Is it?", "--tokens", "3"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.startswith("Is it?\n")
    (adapted / "chat_template.jinja").unlink()
    with refused("runs/chat-template-missing", "adapted"):
        chat_prompts(adapted, bytes_tokenizer(), ["Is it?"])
    (tmp_path / "bad.jsonl").write_text('{"messages": [{"role": "user"}]}\n')
    bad = [word.replace("rows.jsonl", "bad.jsonl") for word in common]
    err = run("torch", *bad, *small, "--output", tmp_path / "bad", code=2)
    assert err.strip().count("\n") == 0
    assert "bad.jsonl, line 1, message 1 has no content" in err
