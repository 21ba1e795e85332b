"""The training loop, written once for both stacks, so that what isn't a framework's business can't differ between them.

A stack brings gradients, the update, evaluation and its own checkpoints (`Stack`); the loop owns the order of events:
batch, gradients, health check, clip, learning rate, update, journal, evaluate, save.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.manifest import Progress
from coretrain.config.run import RunConfig
from coretrain.contract.health import HealthMonitor
from coretrain.contract.sampling import Sampling
from coretrain.contract.schedule import clip_factor, learning_rate
from coretrain.data.batch import Batch, batch_hash
from coretrain.data.batches import validation_batches, validation_bytes_per_token
from coretrain.data.splits import Data
from coretrain.journal.journal import Journal
from coretrain.processes.world import World
from coretrain.training.saver import Saver
from coretrain.training.stack import Stack

SCALE_GROWS_AFTER = 2000


@dataclass
class LossScale:
    """Dynamic loss scale of float16 (Micikevicius et al. 2018): halved on overflow, doubled after many good updates."""

    scale: float
    good: int = 0

    def overflowed(self) -> None:
        """Halve, after a non-finite gradient norm."""
        self.scale, self.good = max(self.scale / 2, 1.0), 0

    def went_well(self) -> None:
        """Count a good update; double after `SCALE_GROWS_AFTER` in a row."""
        self.good += 1
        if self.good >= SCALE_GROWS_AFTER:
            self.scale, self.good = self.scale * 2, 0


class Preemption:
    """SIGTERM and SIGINT ask the loop to save and leave; a second SIGINT leaves at once."""

    def __init__(self) -> None:
        self.requested: str | None = None
        self._old: dict[int, object] = {}

    def __enter__(self) -> Preemption:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._old[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal itself returned

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name


class Loop:
    """One run of one stack in one folder."""

    def __init__(
        self,
        config: RunConfig,
        stack: Stack,
        data: Data,
        folder: Path,
        journal: Journal,
        progress: Progress,
        world: World | None = None,
        at: Callable[[str], None] = lambda place: None,
    ) -> None:
        """`world` are the processes that run this loop in step; all of them see the same loss and norm.

        `at` is told what the loop is about to do.
        """
        self.config, self.stack, self.data, self.folder, self.journal = config, stack, data, folder, journal
        self.progress, self.world, self.at = progress, world or World(), at
        self.health = HealthMonitor(config.health)
        if progress.health:
            self.health.load(progress.health)
        scaled = config.precision.compute == "float16"
        self.scale = LossScale(**(progress.loss_scale or {"scale": config.precision.loss_scale})) if scaled else None
        self.checkpoints = CheckpointFolder(folder / "checkpoints")
        self.saver = Saver(config, stack, self.checkpoints, journal, self.world, at)

    def train(self) -> str:
        """Run to the last update, or to a preemption; returns how it ended: finished, preempted or stopped."""
        config, stack = self.config, self.stack
        batches = self.batches()
        if "rollback" in (config.health.nonfinite, config.health.spike) and self.progress.update == 0:
            self.save()  # something to roll back to
        with Preemption() as preemption:
            while self.progress.update < config.train.updates:
                started = time.perf_counter()
                update = self.progress.update

                self.at(f"the batch of update {update}")
                batch = next(batches)
                self.at(f"the gradients of update {update}")
                loss, norm = stack.gradients(batch, update, self.scale.scale if self.scale else 1.0)

                if self.scale and not math.isfinite(norm) and math.isfinite(loss) and self.scale.scale > 1:
                    self.scale.overflowed()
                    action, reason = "skip", f"float16 overflow: loss scale halved to {self.scale.scale:g}"
                else:
                    verdict = self.health.decide(update, loss, norm)
                    action, reason = verdict.action, verdict.reason
                if action in ("stop", "rollback"):
                    self.journal.event(update, action, reason)
                    if action == "stop":
                        self.save(wait=True)
                        return "stopped"
                    batches = self.roll_back()
                    continue

                self.saver.make_way()
                self.at(f"the end of update {update}")
                lr = learning_rate(config, update)
                if action == "apply":
                    scale = self.scale.scale if self.scale else 1.0
                    stack.apply(lr, clip_factor(norm, config.optimizer.clip) / scale, self.progress.applied)
                    if self.scale:
                        self.scale.went_well()
                else:
                    self.journal.event(update, action, reason)

                self.advance(applied=action == "apply")
                row = {
                    "update": update,
                    "loss": loss,
                    "grad_norm": norm,
                    "lr": lr,
                    "tokens": self.progress.tokens,
                    "batch_hash": batch_hash(batch),
                    "seconds": time.perf_counter() - started,
                }
                done, preempted = self.progress.update, self.report(row, preemption)
                last = done == config.train.updates
                value = self.evaluate() if last or done % config.train.eval_interval == 0 else None
                if last or preempted or done % config.checkpoint.interval == 0:
                    self.save(value, wait=last or bool(preempted))
                self.saver.finish(wait=False)
                if preempted and not last:
                    self.journal.event(done, "preempted", f"{preempted}: saved after update {done}")
                    return "preempted"
        return "finished"

    def report(self, row: Mapping[str, Any], preemption: Preemption) -> str:
        """Journal an update; the signal that asked any of the processes to end, or nothing."""

        def told() -> str:
            self.journal.update(**row)
            return preemption.requested or ""

        return next(filter(None, self.world.gather_results(told)), "")

    def batches(self) -> Iterator[Batch]:
        """The batches that are left, from the data cursor on."""
        start, left = self.progress.data_index, self.config.train.updates - self.progress.update
        return self.stack.batches(self.data, start, start + left)

    def advance(self, applied: bool) -> None:
        """Count one update, applied or skipped: either way its data is used up."""
        p = self.progress
        self.progress = replace(
            p,
            update=p.update + 1,
            applied=p.applied + int(applied),
            data_index=p.data_index + 1,
            tokens=p.tokens + self.config.tokens_per_update,
        )

    def evaluate(self) -> float:
        """Validation loss in nats a token, journalled with bits per byte."""
        self.at(f"the evaluation after update {self.progress.update}")
        total, weight = 0.0, 0.0
        for batch in validation_batches(self.data, self.config):
            total += self.stack.evaluate(batch)
            weight += batch.target_weight
        loss = total / weight
        bits = loss / math.log(2) / validation_bytes_per_token(self.data, self.config)
        self.journal.evaluation(self.progress.update, loss, bits)
        return loss

    def save(self, validation: float | None = None, wait: bool = False) -> None:
        """Start a checkpoint of the present state; with `wait`, finish it too."""
        best = self.progress.best
        if validation is not None and math.isfinite(validation) and (not best or validation < best["val_loss"]):
            self.progress = replace(self.progress, best={"update": self.progress.update, "val_loss": validation})
        self.progress = replace(
            self.progress, health=self.health.state(), loss_scale=dict(vars(self.scale)) if self.scale else {}
        )
        self.saver.start(self.progress)
        if wait:
            self.saver.finish()

    def roll_back(self) -> Iterator[Batch]:
        """Return to the newest checkpoint and skip past the data that did the damage."""
        self.at(f"the way back from update {self.progress.update}")
        self.saver.finish()
        bad = self.progress.data_index
        folder, progress = self.checkpoints.first_that_loads(self._load, self._warn, self.world)
        self.health.roll_back_to(progress.health)
        self.progress = replace(progress, data_index=bad + 1)
        self.journal.rewind(progress.update)
        self.journal.event(progress.update, "rollback", f"back to {folder.name}, data goes on at index {bad + 1}")
        return self.batches()

    def _load(self, folder: Path, progress: Progress) -> Progress:
        self.stack.load(folder, progress.applied)
        return progress

    def _warn(self, text: str) -> None:
        self.journal.event(self.progress.update, "warning", text)

    def sample(self) -> None:
        """Show a sample of generated text."""
        train = self.config.train
        if train.sample_tokens == 0:
            return
        tokenizer, template = self.data.tokenizer, self.data.template
        prompt, stop = (
            [int(token) for token in tokenizer.encode(train.sample_prompt)] or [tokenizer.eot],
            tokenizer.ends,
        )
        if template:
            prompt, stop = template.question(train.sample_prompt), (*stop, template.end())
        budget = max(0, min(train.sample_tokens, self.config.model.context - len(prompt)))
        ids = self.stack.generate([prompt], budget, Sampling(0.7, 0, 0.9, self.config.train.seed), stop)[0]
        self.journal.sample(train.sample_prompt + ("\n" if template else ""), tokenizer.decode(ids))
