"""Pairs that a session will need, compiled on a second core while the first one judges.

Nearly all of a session's time is JAX's compiler, one function at a time. A test that takes the shared pair of a config
says so (`needs`); once the session's tests are known, a thread makes those pairs in the tests' order. Whoever comes
first makes a pair, and the other waits for it. Nothing is made while a test has a patched stack (`alone`).
"""

from __future__ import annotations

import contextlib
import inspect
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from coretrain.config import RunConfig
from coretrain.schedule import clip_factor
from parity.pair import VARIANTS, Pair, batches, jax_logits, make_config, make_pair

_pairs: dict[RunConfig, Future[Pair]] = {}
_claims = threading.Lock()
_making = threading.RLock()
_turn = threading.Lock()
"""Held while waiting for `_making`: a thread that takes a lock again at once would keep the others from it."""
_ended = threading.Event()


def shared(config: RunConfig) -> Pair:
    """The one pair of `config` in this session, so that it's compiled once; whoever takes it resets it first."""
    return _claim(config) or _pairs[config].result()


def needs(config_of: Callable[..., RunConfig | None]) -> Callable[[Any], Any]:
    """Say of a test which config's shared pair it takes, from its parameters (None: no pair)."""

    def mark(test: Any) -> Any:
        test.pair_of = config_of
        return test

    return mark


def in_float64(variant: str) -> RunConfig:
    """The config of a variant as most tests take it."""
    return make_config(VARIANTS[variant])


def needed(items: Iterable[pytest.Item]) -> list[RunConfig]:
    """The configs whose pairs the tests take, in order, each once: by `needs`, or by a fixture `pair` of a variant."""
    found: dict[RunConfig, None] = {}
    for item in items:
        given = item.callspec.params if hasattr(item, "callspec") else {}
        config_of = getattr(getattr(item, "function", None), "pair_of", in_float64 if "pair" in given else None)
        if config_of is not None:
            given = {"variant": given.get("pair"), **given}
            config = config_of(**{name: given[name] for name in inspect.signature(config_of).parameters})
            if config is not None:
                found.setdefault(config)
    return list(found)


def start(configs: list[RunConfig]) -> None:
    """Begin to make the pairs of `configs`, if there is a second core to do it on."""
    _ended.clear()
    if (os.cpu_count() or 1) > 1:
        threading.Thread(target=_make_all, args=(configs,), name="pairs ahead", daemon=True).start()


def stop() -> None:
    """Make no more than the pair under way, and wait for that one."""
    _ended.set()
    with _making:
        pass


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within, nothing is made ahead: what is patched is seen by the test alone."""
    _turn.acquire()
    with _making:
        _turn.release()
        yield


def _make_all(configs: list[RunConfig]) -> None:
    for config in configs:
        with _turn:
            pass
        with _making:
            if _ended.is_set():
                return
            with contextlib.suppress(Exception):  # the test that asks for the pair meets it too
                _claim(config, compiled)


def compiled(pair: Pair) -> Pair:
    """`pair` with JAX's gradients, update and logits compiled."""
    batch = batches(pair.config, 1)[0]
    _, norm = pair.jax.gradients(batch, 3, 1.0)
    jax_logits(pair.jax, batch[:, :-1], 3)
    pair.jax.apply(0.0, clip_factor(norm, pair.config.optimizer.clip), 0)
    return pair


def _claim(config: RunConfig, finish: Callable[[Pair], Pair] = lambda pair: pair) -> Pair | None:
    """The pair of `config`, made here; None where somebody else makes or has made it."""
    with _claims:
        if config in _pairs:
            return None
        future: Future[Pair] = Future()
        _pairs[config] = future
    try:
        future.set_result(finish(make_pair(config)))
    except BaseException as error:
        future.set_exception(error)
        raise
    return future.result()
