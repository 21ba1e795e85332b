"""Requests of unequal lengths, arrivals and choices, for an engine and for `generate`, which says what is right."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from coretrain.contract.parameters import initial_parameters
from coretrain.contract.sampling import Sampling
from coretrain.inference.engine import Engine

TOKENS = 12
STOP = (7, 30)


@dataclass(frozen=True)
class Request:
    """What is asked, and after how many milliseconds."""

    prompt: list[int]
    sampling: Sampling
    pause: float


LENGTHS = (1, 6, 18, 31)
"""Few, because `generate` in JAX compiles for each."""


def requests(count: int, vocabulary: int = 101, seed: int = 0) -> list[Request]:
    """Every second is greedy, every fourth goes on where an earlier one began."""
    rng, made = np.random.default_rng(seed), list[Request]()
    for number in range(count):
        prompt = rng.integers(0, vocabulary, LENGTHS[rng.integers(len(LENGTHS))]).tolist()
        if number % 4 == 3:
            prompt = [*made[number // 4 * 2].prompt[:31], 5, 6, 8]
        sampling = Sampling(0) if number % 2 else Sampling(0.9, 30, 0.95, seed=number)
        made.append(Request(prompt, sampling, float(rng.exponential(1.0))))
    return made


def large_weights(config):
    """Weights with which the likeliest token leads by far more than rounding."""
    return {name: 5 * value for name, value in initial_parameters(config.model, 5).items()}


def alone(stack, asked: list[Request]) -> list[list[int]]:
    """What `generate` says to each by itself."""
    return [stack.generate([one.prompt], TOKENS, one.sampling, STOP)[0] for one in asked]


def together(stack, asked: list[Request], rows: int, **more) -> list[list[int]]:
    """What an engine of so many rows says to them as they arrive."""
    with Engine(stack, rows=rows, **more) as engine:
        handles = []
        for one in asked:
            time.sleep(one.pause / 1000)
            handles.append(engine.submit(one.prompt, one.sampling, TOKENS, STOP))
        answers = [handle.wait(120) for handle in handles]
    for answer in answers:
        if answer.error:
            raise answer.error
    return [answer.ids for answer in answers]
