"""A policy's answers to prompts, with their rewards: for rollouts, and to see what a model has come to."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from coretrain.alignment.rewards.reward import Answer, Reward
from coretrain.config.run import RunConfig
from coretrain.contract.decoding import Sampled
from coretrain.contract.sampling import Sampling
from coretrain.data.batch import Batch
from coretrain.data.prompts.open import Prompts
from coretrain.processes.world import World


class Policy(Protocol):
    """What is asked of a stack."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        tokens: int,
        sampling: Sampling,
        stop: Collection[int],
        numbers: Sequence[int] | None = None,
    ) -> list[Sampled]:
        """As in `coretrain.training.stack.Stack`."""

    def token_logprobs(self, batch: Batch, temperature: float = 1.0) -> NDArray[np.generic]:
        """As in `coretrain.training.stack.Stack`."""

    def values(self, batch: Batch) -> NDArray[np.generic]:
        """As in `coretrain.training.stack.Stack`."""


@dataclass(frozen=True)
class Answers:
    """Prompts that were answered, one for each row."""

    prompts: list[list[int]]
    sampled: list[Sampled]
    texts: list[tuple[str, str]]
    """Prompt and answer of each row, as text."""
    answers: list[Answer]
    """What the reward was asked about."""
    rewards: NDArray[np.float64]
    """[N]; zeros where there is a fault."""
    parts: dict[str, float]
    """Mean of each part of the reward, by name; empty where it has one part alone."""
    fault: str
    """Why the rewards can't be used, or ''."""


class Answering:
    """Has a policy answer prompts and a reward score the answers, the same on every process.

    The first process alone asks the reward; `at` is told what is about to be done.
    """

    def __init__(
        self,
        config: RunConfig,
        prompts: Prompts,
        reward: Reward,
        policy: Policy,
        world: World | None = None,
        at: Callable[[str], None] = lambda place: None,
        prepare: Callable[[Sequence[Sequence[int]]], None] = lambda rows: None,
        truth: Reward | None = None,
    ) -> None:
        """`prepare` is given each row's ids, on every process, before the reward is asked about them.

        `truth` scores the sampled answers of evaluations besides, where the reward may be gamed.
        """
        self.prepare, self.truth = prepare, truth
        self.config, self.prompts, self.reward, self.policy = config, prompts, reward, policy
        self.world, self.at = world or World(), at

    def ask(self, numbers: Sequence[int], tokens: int, sampling: Sampling) -> Answers:
        """Answers of at most so many tokens to the prompts of these numbers. Raises `UserError` as the reward does."""
        found = [self.prompts.prompt(int(number)) for number in numbers]
        ids = [list(one) for one, _ in found]
        sampled = self.policy.sample(ids, tokens, sampling, self.prompts.stop)
        texts = [
            (self.prompts.decoded(one), self.prompts.decoded(said.ids[:-1] if said.ended else said.ids))
            for one, said in zip(ids, sampled, strict=True)
        ]
        answers = [
            Answer(prompt, completion, fields, said.ended, len(said.ids), one + said.ids)
            for (prompt, completion), (_, fields), said, one in zip(texts, found, sampled, ids, strict=True)
        ]
        self.prepare([answer.ids for answer in answers])
        self.at("the rewards")
        rewards, parts, fault = self._scored(self.reward, answers)
        return Answers(ids, sampled, texts, answers, rewards, parts if len(parts) > 1 else {}, fault)

    def _scored(self, reward: Reward, answers: Sequence[Answer]) -> tuple[NDArray[np.float64], dict[str, float], str]:
        """Rewards, the means of their parts, and a fault: what the first process was given, on all of them."""

        def told() -> str:
            if not self.world.first:
                return ""
            scored = reward.score(answers)
            parts = {name: float(np.mean(values)) for name, values in scored.parts.items()}
            return json.dumps([[float(value) for value in scored.rewards], parts, scored.fault or ""])

        rewards, parts, fault = json.loads(self.world.gather_results(told)[0])
        return (np.zeros(len(answers)) if fault else np.array(rewards, np.float64)), parts, fault

    def examine(self, tokens: int, temperature: float) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Held-out prompts, answered as the policy samples and by its likeliest tokens: figures, and the answers."""
        train = self.config.train
        numbers = [int(number) for number in self.prompts.validation(train.eval_batches * train.batch_size)]
        self.at("the sampled answers of the evaluation")
        asked = self.ask(numbers, tokens, Sampling(temperature, 0, 1.0, train.seed))
        likeliest = self.ask(numbers, tokens, Sampling(0.0, 0, 1.0, train.seed))
        figures = {
            "reward": float("nan") if asked.fault else float(np.mean(asked.rewards)),
            "reward_likeliest": float("nan") if likeliest.fault else float(np.mean(likeliest.rewards)),
            "length": float(np.mean([len(one.ids) for one in asked.sampled])),
            "ended": float(np.mean([one.ended for one in asked.sampled])),
        }
        if self.truth is not None:
            rewards, _, fault = self._scored(self.truth, asked.answers)
            figures["truth"] = float("nan") if fault else float(np.mean(rewards))
        return figures, [
            {"prompt": prompt, "answer": answer, "reward": float(reward), "ended": said.ended}
            for (prompt, answer), reward, said in zip(asked.texts, asked.rewards, asked.sampled, strict=True)
        ]
