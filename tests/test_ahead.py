"""Pairs that are compiled ahead: each config once, by whoever comes first, and none while a stack is patched."""

import threading

import pytest

from parity import ahead
from parity.pair import VARIANTS, make_config


@pytest.fixture
def made(monkeypatch):
    """Names of the configs whose pairs are made, by a stand-in that is quick."""
    names = []

    def make(config):
        names.append(config.name)
        return config.name

    monkeypatch.setattr(ahead, "_pairs", {})
    monkeypatch.setattr(ahead, "make_pair", make)
    monkeypatch.setattr(ahead, "compiled", lambda pair: pair)
    monkeypatch.setattr(ahead.os, "cpu_count", lambda: 2)
    yield names
    ahead.stop()


def configs(*names):
    return [make_config(VARIANTS["gpt2-like"]).model_copy(update={"name": name}) for name in names]


def wait_for_threads():
    for thread in threading.enumerate():
        if thread.name == "pairs ahead":
            thread.join(10)


def test_each_pair_is_made_once(made):
    first, second = configs("first", "second")
    assert ahead.shared(first) == "first"
    ahead.start([first, second])
    wait_for_threads()
    assert ahead.shared(second) == "second"
    assert sorted(made) == ["first", "second"]


def test_nothing_is_made_while_a_stack_is_patched(made):
    (config,) = configs("patched")
    with ahead.alone():
        ahead.start([config])
        threading.Event().wait(0.2)
        assert made == []
    wait_for_threads()
    assert made == ["patched"]


def test_nothing_is_made_after_the_session(made):
    ahead.stop()
    ahead._make_all(configs("late"))
    assert made == []
