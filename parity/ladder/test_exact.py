"""What must be equal bit for bit: names and shapes, initial weights, rows of tokens, learning rates, masks, decay."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxtrain.data
import jaxtrain.layers
import jaxtrain.model
import torchtrain.data
import torchtrain.layers
import torchtrain.model
from coretrain.checkpoint.interchange import load_interchange, save_interchange
from coretrain.checkpoint.manifest import Progress
from coretrain.config.load import load_config
from coretrain.contract.dropout import dropout_keys
from coretrain.contract.parameters import initial_parameters, padded_vocab, parameter_table
from coretrain.contract.randomness import dropout_mask
from coretrain.contract.schedule import clip_factor, learning_rate
from coretrain.data.batch import batch_hash, windows
from coretrain.data.batches import global_batch
from coretrain.data.open import open_data
from coretrain.journal.journal import Journal
from coretrain.training.loop import Loop
from coretrain.training.stack import InStep
from parity.errors import mismatches
from parity.gates import (
    CLIP,
    DECAY,
    INITIAL,
    MASKS,
    RATE,
    RATE_USED,
    ROUND_TRIP,
    ROWS,
    TABLE,
)
from parity.marks import whole_but
from parity.outcomes import hold
from parity.pair import (
    BASIC,
    VARIANTS,
    batches,
    make_config,
    make_pair,
    perturbed,
    shared,
)
from parity.probes import PROBES, unmutated
from parity.probes.contract import KINDS, others_rates


@pytest.mark.parametrize("variant", BASIC)
def test_the_table_against_both_trees(variant):
    """And the layout, said without the table's help: a kernel is the transpose, and layers are stacked in order."""
    config = make_config(VARIANTS[variant])
    rows = padded_vocab(config.model, config.execution.vocab_multiple)
    assert rows > config.model.vocabulary, "the padding must be at work in this test"
    for stack in ("torch", "jax"):
        seen = unmutated(stack, "table", variant, "perturbed")
        hold(TABLE, PROBES["table"].judge(seen, seen, variant, "perturbed")[TABLE], f"{stack}, {variant}")


@pytest.mark.parametrize("variant", [*BASIC, "llama-like with biases, tied, muon"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_initial_weights(variant, dtype):
    config = make_config(VARIANTS[variant], precision__compute=dtype)
    start = initial_parameters(config.model, config.train.seed)
    pair = make_pair(config, start)
    for state in pair.states():
        assert list(state["parameters"]) == list(start)
        for name, value in state["parameters"].items():
            hold(INITIAL, mismatches(value, start[name].astype(dtype)), name)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_masks(rate):
    config = make_config({"model.residual_dropout": rate})
    keys, rows = dropout_keys(config.model, 7, 11), np.array([5, 0, 9, 4_000_000])
    x = np.ones((4, 20, 48), np.float32)
    masks = []
    for site in range(len(keys)):
        masks.append(mask := dropout_mask(int(keys[site]), rows, 20, 48, rate))
        ours = torchtrain.layers.Dropout(torch.from_numpy(keys.view(np.int32)), torch.from_numpy(rows.astype(np.int32)))
        theirs = jaxtrain.layers.Dropout(jnp.asarray(keys), jnp.asarray(rows))
        dropped = torchtrain.layers.drop(torch.from_numpy(x), rate, ours, site).numpy()
        hold(MASKS, mismatches(dropped > 0, mask), f"torch, site {site}, rate {rate}")
        dropped = np.asarray(jax.jit(jaxtrain.layers.drop, static_argnums=1)(jnp.asarray(x), rate, theirs, site))
        hold(MASKS, mismatches(dropped > 0, mask), f"jax, site {site}, rate {rate}")
    # five standard deviations: masks that are equal but constant would pass all of the above
    kept = np.stack(masks)
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / kept.size)
    assert all((masks[0] != mask).any() for mask in masks[1:])


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A small corpus and its config."""
    folder = tmp_path_factory.mktemp("parity")
    for n in range(40):
        (folder / f"{n}.txt").write_text(f"document {n}: " + "the quick brown fox jumps over the lazy dog. " * 8)
    places = {"data.source": str(folder), "data.cache": str(folder / "cache"), "data.tokenizer": "bytes"}
    more = {"data.validation_fraction": 0.1, "data.prepare_processes": 1, "model.context": 32, "train.batch_size": 4}
    overrides = [(key, str(value)) for key, value in (places | more | {"train.updates": 150}).items()]
    config = load_config("tiny", overrides)
    return config, open_data(config, lambda _: None)


def test_rows_of_every_update_over_an_epoch_and_across_a_resume(text):
    config, data = text
    assert data.train.windows(32) < 150 * 4, "the run must go beyond an epoch"
    expected = [batch_hash(global_batch(data, config, update)) for update in range(150)]
    for name, loader in (("torch", torchtrain.data.train_batches), ("jax", jaxtrain.data.train_batches)):
        for start in (0, 73):
            found = [batch_hash(batch) for batch in loader(data, config, start)]
            assert len(found) == 150 - start
            different = sum(a != b for a, b in zip(found, expected[start:], strict=True))
            hold(ROWS, different, f"{name} from update {start}")
    assert len(set(expected)) == 150
    swapped = global_batch(data, config, 0).rows(slice(None, None, -1))
    assert batch_hash(swapped) != expected[0], "the hash must see the order of rows"


@pytest.mark.parametrize("loader", [torchtrain.data, jaxtrain.data], ids=["torch", "jax"])
def test_an_epoch_far_into_a_run(text, loader):
    """The 41st has every window once, in an order that isn't the first's: read from there, not run to it."""
    config, data = text
    count, size = data.train.windows(32), config.train.batch_size
    every = [data.train.read(window, 32).tokens.tobytes() for window in range(count)]
    orders = []
    for epoch in (0, 40):
        start, stop = epoch * count // size, -(-(epoch + 1) * count // size)
        loaded = loader.train_batches(data, config, start, stop_update=stop)
        rows = [row.tobytes() for batch in loaded for row in batch.tokens]
        begin = epoch * count - start * size
        orders.append(rows[begin : begin + count])
        hold(ROWS, float(sorted(orders[-1]) != sorted(every)), f"{loader.__name__}, epoch {epoch}")
    assert orders[0] != orders[1]
    assert orders[0] != every


@pytest.mark.filterwarnings("ignore:os.fork", "ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", whole_but(lambda workers: workers == 1, [1, 2, 4]))
@pytest.mark.parametrize("loader", [torchtrain.data, jaxtrain.data], ids=["torch", "jax"])
def test_rows_do_not_depend_on_workers(text, loader, workers):
    config, data = text
    few = config.changed(data__workers=workers)
    start = 0 if workers == 2 else 7  # to beyond an epoch
    expected = [batch_hash(global_batch(data, config, update)) for update in range(start, 150)]
    found = [batch_hash(batch) for batch in loader.train_batches(data, few, start)]
    different = sum(a != b for a, b in zip(found, expected, strict=True))
    hold(ROWS, different, f"{workers} workers, from update {start}")


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize("kind", KINDS)
def test_learning_rate_of_every_update(kind):
    given = {"schedule.kind": kind, "schedule.warmup_updates": 7, "train.updates": 60}
    config = make_config(given | KINDS[kind])
    peak, low = config.optimizer.lr, config.schedule.min_lr
    rates = [learning_rate(config, update) for update in range(61)]
    assert 0 < rates[0] < rates[6] < rates[7] == max(rates) == peak
    for name, others in zip(("optax", "torch"), others_rates(kind, peak, low, 7, 60), strict=True):
        for update, rate in enumerate(others):
            if rate is not None:
                hold(RATE, abs(rates[update] - rate) / peak, f"{kind}, {name}, update {update}")


class Measured(InStep):
    """A trainer as the loop drives it, whose parameters are zeros and whose gradients ones before each update.

    With Adam's first moment over its second at one and no decay, a parameter of zero moves by the rate and nothing
    else: what is read here is what the optimizer did, whatever it was told. One update has a gradient norm that is not
    a number: the health policy skips it, and rates go on by update while moments go on by applied update.
    """

    def __init__(self, stack, skipped):
        self.stack, self.skipped, self.rates, self.now = stack, skipped, {}, 0
        if stack.name == "torch":
            self.ones = {name: torch.ones_like(p) for name, p in stack.model.named_parameters()}
        else:
            self.ones = jax.tree.map(jnp.ones_like, stack.params)
            self.zeros = jax.tree.map(np.zeros_like, stack.params)
        self.name, self.device_name, self.config = stack.name, stack.device_name, stack.config

    def batches(self, data, start, stop):
        """As many as the loop wants."""
        yield from (windows(np.zeros((1, 2), np.int32)) for _ in range(start, stop))

    @torch.no_grad()
    def gradients(self, batch, update, loss_scale):
        """Ones."""
        self.now = update
        if self.name == "torch":
            for name, parameter in self.stack.model.named_parameters():
                parameter.zero_()
                parameter.grad = self.ones[name].clone()
        else:
            self.stack.params, self.stack.last_gradients = jax.tree.map(jnp.asarray, self.zeros), self.ones
        return 1.0, float("nan") if update == self.skipped else 1.0

    def apply(self, lr, factor, applied):
        """One real update, and how far it went."""
        self.stack.apply(lr, factor, applied)
        if self.name == "torch":
            self.rates[self.now] = -self.stack.model.norm.weight.detach().numpy().copy()
        else:
            self.rates[self.now] = -np.asarray(self.stack.params["norm"]["scale"][...])


@pytest.mark.parametrize("kind", KINDS)
def test_learning_rate_that_each_optimizer_really_takes(kind, measured, tmp_path, monkeypatch):
    """Through the real loop, at every update of the horizon and beyond it."""
    pair = measured
    monkeypatch.setattr(Loop, "evaluate", lambda self: 5.0)
    monkeypatch.setattr(Loop, "save", lambda self, *args, **options: None)
    needs = {name.split(".")[1]: value for name, value in KINDS[kind].items()}
    schedule = pair.config.schedule.model_copy(update={"kind": kind, "warmup_updates": 7, "horizon": 60} | needs)
    config = pair.config.changed(schedule=schedule, train__updates=63)
    expected = [learning_rate(config, update) for update in range(63)]
    pair.reset(pair.start)
    for stack in pair.stacks:
        driven = Measured(stack, skipped=13)
        with Journal(tmp_path / stack.name, config, stack.name) as journal:
            assert Loop(config, driven, SimpleNamespace(), tmp_path, journal, Progress()).train() == "finished"
        assert sorted(driven.rates) == [update for update in range(63) if update != 13]
        for update, rate in driven.rates.items():
            error = float(np.abs(rate - expected[update]).max()) / expected[update]
            hold(RATE_USED, error, f"{stack.name}, {kind}, update {update}")


@pytest.fixture(scope="module")
def measured():
    """Both stacks with an optimizer that moves by the rate alone: no decay, no clip, next to no epsilon."""
    rule = {"optimizer.eps": 1e-30, "optimizer.weight_decay": 0, "optimizer.clip": 0, "journal.tensorboard": "false"}
    return make_pair(make_config(VARIANTS["llama-like"] | rule))


KEPT = [("float64", variant) for variant in (*BASIC, "llama-like with biases, tied, muon")] + [("float32", BASIC[0])]


@pytest.mark.parametrize(("dtype", "variant"), KEPT)
def test_a_checkpoint_goes_there_and_back(dtype, variant, tmp_path):
    """Torch's state to files, into JAX, to files, into torch: parameters and moments bit for bit, and the progress."""
    attention = "plain" if dtype == "float64" else "auto"  # the configs of other tests, whose pairs are compiled
    pair = shared(make_config(VARIANTS[variant], precision__compute=dtype, execution__attention=attention))
    pair.reset(perturbed(pair.config))
    for update, batch in enumerate(batches(pair.config, 2)):
        _, norm = pair.torch.gradients(batch, update, 1.0)
        pair.torch.apply(1e-3, clip_factor(norm, pair.config.optimizer.clip), update)
    before = pair.torch.export()
    assert len(before) == 1 + 2 + (pair.config.optimizer.name == "muon")
    assert all(np.any(t != 0) for group, tensors in before.items() for t in tensors.values() if group != "parameters")
    progress = Progress(update=2, applied=2, data_index=2, tokens=320)
    blank = {group: {name: np.zeros_like(t) for name, t in tensors.items()} for group, tensors in before.items()}
    state = before
    for number, stack in enumerate((pair.jax, pair.torch)):
        stack.adopt(blank, 0)
        save_interchange(tmp_path / str(number), pair.config, state, progress, stack.name)
        read = load_interchange(tmp_path / str(number))
        assert read.progress == progress
        stack.adopt(read.groups, read.progress.applied)
        state = stack.export()
        assert state.keys() == before.keys()
        for group, tensors in before.items():
            assert list(state[group]) == list(tensors)
            for name, value in tensors.items():
                hold(ROUND_TRIP, mismatches(state[group][name], value), f"{stack.name}, {group} {name}")


def test_clip_factor_is_torchs():
    """At norms below, at and above the limit; a clip without its 1e-6 is 1e-6 away."""
    seen = unmutated("torch", "clip", "gpt2-like", "initial")
    hold(CLIP, PROBES["clip"].judge(seen, seen, "gpt2-like", "initial")[CLIP], "norms around the limit")
    assert clip_factor(0.0, 1.0) == 1.0


@pytest.mark.parametrize("variant", [*BASIC, "llama-like with biases, tied, muon"])
def test_decay_reaches_what_the_table_says_and_nothing_else(variant):
    config = make_config(VARIANTS[variant])
    pair = make_pair(config)
    before = pair.torch.export()["parameters"]
    for parameter in pair.torch.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    pair.jax.last_gradients = jax.tree.map(jnp.zeros_like, pair.jax.params)
    for stack in pair.stacks:
        stack.apply(0.1, 1.0, 0)
    for name, state in zip(("torch", "jax"), pair.states(), strict=True):
        for row in parameter_table(config.model):
            decayed = (row.name.endswith("weight") and len(row.shape) == 2) or row.name.startswith("embed.")
            assert row.decay == decayed, "the table itself, by the rule's own words"
            factor = 1 - 0.1 * config.optimizer.weight_decay if decayed else 1.0
            # two roundings at most; a decay 1.001 times as high is 1e-5 here
            wrong = not np.allclose(state["parameters"][row.name], before[row.name] * factor, rtol=1e-15, atol=0)
            hold(DECAY, int(wrong), f"{name}, {row.name}")
