"""The training loop, written once for both stacks, so that what isn't a framework's business can't differ between them.

A stack brings the update, evaluation and its own checkpoints (`Stack`); the loop owns the order of events: batch,
update, health check, journal, evaluate, save.

An update is begun, and ended later: where the stack doesn't read its figures itself, `health.lag` more are begun before
the figures of the first are read, so that the device need not wait for the host. Before an evaluation, a save and the
end, all that was begun is ended.
"""

from __future__ import annotations

import math
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from coretrain.alignment.figures import counted, named
from coretrain.alignment.planes import as_read
from coretrain.alignment.sources import Source
from coretrain.base.errors import UserError
from coretrain.checkpoint.folder import CheckpointFolder
from coretrain.checkpoint.manifest import Progress
from coretrain.config.run import RunConfig
from coretrain.contract.health import HealthMonitor, Verdict
from coretrain.contract.sampling import Sampling
from coretrain.contract.schedule import learning_rate
from coretrain.contract.update import Figures, Orders, Read, Standing
from coretrain.data.batch import Batch, batch_hash
from coretrain.data.splits import Data
from coretrain.journal.journal import Journal
from coretrain.processes.world import World
from coretrain.training.asking import Asking
from coretrain.training.saver import Saver, kept_arrays
from coretrain.training.stack import Stack
from coretrain.training.text import Text

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


@dataclass(frozen=True)
class Begun:
    """An update that is under way."""

    started: float
    lr: float
    batch_hash: str
    read: Read
    fault: str
    """Why its batch isn't to be learnt from, or ''."""
    said: Mapping[str, float]
    """What the source says of the batch."""
    totals: Mapping[str, float]
    """What the batch's shares add up to."""
    related: bool
    """Whether the batch has a reference, without which there is no KL to tell."""


def _nothing() -> Figures:
    """Of an update that wasn't made."""
    return Figures(math.nan, math.nan, False)


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

    asking: Asking | None = None

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
        source: Source | None = None,
        kept: Mapping[str, Any] | None = None,
        asking: Asking | None = None,
    ) -> None:
        """`world` are the processes that run this loop in step; all of them see the same loss and norm.

        `at` is told what the loop is about to do. `source` gives the batches; by default they are the data's text.
        `kept` is remembered in checkpoints beside its state. `asking` has tasks that evaluations ask.
        """
        self.config, self.stack, self.data, self.folder, self.journal = config, stack, data, folder, journal
        self.progress, self.world, self.at = progress, world or World(), at
        self.health = HealthMonitor(config.health, wide=config.precision.compute == "float64")
        if progress.health:
            self.health.load(progress.health)
        scaled = config.precision.compute == "float16"
        self.scale = LossScale(**(progress.loss_scale or {"scale": config.precision.loss_scale})) if scaled else None
        self.checkpoints = CheckpointFolder(folder / "checkpoints")
        self.saver = Saver(config, stack, self.checkpoints, journal, self.world, at)
        self.source: Source = source or Text(config, stack, data)
        self.kept, self.asking = dict(kept or {}), asking
        self.begun: deque[Begun] = deque()
        self.ended = 0.0

    def train(self) -> str:
        """Run to the last update, or to a preemption; returns how it ended: finished, preempted or stopped."""
        config = self.config
        batches, preempted = self.batches(), ""
        if "rollback" in (config.health.nonfinite, config.health.spike) and self.progress.update == 0:
            self.save()  # something to roll back to
        starts = config.train.start or config.adapter.kind != "none"
        if starts and config.data.named_sets and self.progress.update == 0:
            self.evaluate()  # of the weights that it begins with: what is gained and forgotten is counted from here
        with Preemption() as preemption:
            while self.progress.update < config.train.updates:
                while not preempted and self.may_begin():
                    self.begin(batches)
                one = self.begun.popleft()
                figures, verdict = self.end(one)
                if verdict.action in ("stop", "rollback"):
                    self.drop_begun(verdict)
                    if verdict.action == "stop":
                        self.save(wait=True)
                        return "stopped"
                    batches, preempted = self.roll_back(), ""
                    continue

                row = self.advance(one, figures, verdict)
                preempted = self.report(row, preemption)
                self.tell_stage()
                done, leaves = self.progress.update, preempted and not self.begun
                last = done == config.train.updates
                value = self.evaluate() if last or done % config.train.eval_interval == 0 else None
                if last or leaves or done % config.checkpoint.interval == 0:
                    self.save(value, wait=last or bool(leaves))
                self.saver.finish(wait=False)
                if leaves and not last:
                    self.journal.event(done, "preempted", f"{preempted}: saved after update {done}")
                    return "preempted"
        return "finished"

    @property
    def ahead(self) -> int:
        """Updates that may be begun before the figures of the one before them are read.

        None where the stack reads them itself, nor in float16, whose next loss scale depends on them, nor where the
        next batch is made with the weights that the update leaves.
        """
        waits = self.stack.in_step or self.scale or self.source.follows_weights
        return 0 if waits else self.config.health.lag

    def may_begin(self) -> bool:
        """Whether one more update may be begun before the oldest is ended: not past what comes after an update."""
        done, train = self.progress.update, self.config.train
        stops = [(done // n + 1) * n for n in (train.eval_interval, self.config.checkpoint.interval)]
        return len(self.begun) <= self.ahead and done + len(self.begun) < min(*stops, train.updates)

    def begin(self, batches: Iterator[Batch]) -> None:
        """Begin the next update; where the stack is in step, it is done then."""
        started = time.perf_counter()
        update, ahead = self.progress.update + len(self.begun), len(self.begun)

        def change() -> None:
            self.saver.make_way()
            self.at(f"the end of update {update}")

        self.at(f"the batch of update {update}")
        batch = self._next(batches)
        self.at(f"the gradients of update {update}")
        orders = Orders(
            learning_rate(self.config, update),
            self.health.limits(ahead),
            self.scale.scale if self.scale else 1.0,
            Standing(self.progress.applied, self.health.consecutive, False),
            alone=not ahead,
        )
        fault = self.source.fault()
        read = _nothing if fault else self.stack.update(batch, update, orders, change)
        said, totals, related = self.source.figures(), counted(batch), "reference" in batch.planes
        hashed = batch_hash(as_read(batch))
        self.begun.append(Begun(started, orders.lr, hashed, read, fault, said, totals, related))

    def _next(self, batches: Iterator[Batch]) -> Batch:
        """The next batch. Where a source that follows the weights can't make one, as when a reward fails, what was
        learnt is saved before the run ends; not with other processes, of which one may be gone."""
        try:
            return next(batches)
        except UserError:
            if self.source.follows_weights and self.progress.update and self.world.size == 1:
                self.saver.finish()
                if not self.checkpoints.final(self.progress.update).exists():
                    self.save(wait=True)
            raise

    def end(self, one: Begun) -> tuple[Figures, Verdict]:
        """Read what an update came to, and judge it. Raises RuntimeError where the stack has judged it otherwise."""
        update = self.progress.update
        if not self.stack.in_step:
            self.at(f"the figures of update {update}")
        figures = one.read()
        loss, norm, applied = figures.loss, figures.norm, figures.applied
        if one.fault:
            verdict = self.health.pass_over(one.fault)
        elif self.scale and not math.isfinite(norm) and math.isfinite(loss) and self.scale.scale > 1:
            self.scale.overflowed()
            verdict = Verdict("skip", f"float16 overflow: loss scale halved to {self.scale.scale:g}")
        else:
            verdict = self.health.decide(update, loss, norm)
        if applied != (verdict.action == "apply"):
            raise RuntimeError(f"update {update} was {'' if applied else 'not '}applied, and the verdict is {verdict}")
        return figures, verdict

    def drop_begun(self, verdict: Verdict) -> None:
        """Journal a verdict that ends the run or takes it back: what was begun since has changed nothing."""
        dropped = len(self.begun)
        self.begun.clear()
        since = f"; {dropped} more that had been begun changed nothing" if dropped else ""
        self.journal.event(self.progress.update, verdict.action, verdict.reason + since)

    def advance(self, one: Begun, figures: Figures, verdict: Verdict) -> dict[str, Any]:
        """Count an update, applied or skipped: either way its data is used up. Its row of the journal."""
        p, applied = self.progress, verdict.action == "apply"
        if not applied:
            self.journal.event(p.update, verdict.action, verdict.reason)
        elif self.scale:
            self.scale.went_well()
        self.progress = replace(
            p,
            update=p.update + 1,
            applied=p.applied + int(applied),
            data_index=p.data_index + 1,
            tokens=p.tokens + self.config.tokens_per_update,
        )
        begun, self.ended = max(one.started, self.ended), time.perf_counter()
        more = named(self.config.train.objective, figures.more, one.totals) if figures.more else {}
        if not one.related:
            more.pop("kl", None)
        return {
            "update": p.update,
            "loss": figures.loss,
            "grad_norm": figures.norm,
            "lr": one.lr,
            "tokens": self.progress.tokens,
            "batch_hash": one.batch_hash,
            "seconds": self.ended - begun,
            **more,
            **one.said,
        }

    def report(self, row: Mapping[str, Any], preemption: Preemption) -> str:
        """Journal an update; the signal that asked any of the processes to end, or nothing."""

        def told() -> str:
            self.journal.update(**row)
            return preemption.requested or ""

        return next(filter(None, self.world.gather_results(told)), "")

    def tell_stage(self) -> None:
        """Journal that the next batch is of another stage of the mixture."""
        for stage in self.data.stages if self.config.data.stages else ():
            if stage.start == self.progress.data_index:
                self.journal.event(self.progress.update, "stage", self.data.shares(stage.weights))

    def batches(self) -> Iterator[Batch]:
        """The batches that are left, from the data cursor on."""
        start, left = self.progress.data_index, self.config.train.updates - self.progress.update
        return self.source.batches(start, start + left)

    def evaluate(self) -> float:
        """What the source is judged by, lower is better; journalled with its figures."""
        self.at(f"the evaluation after update {self.progress.update}")
        loss, figures = self.source.evaluate()
        if self.asking and self.asking.due(self.progress.update):
            figures = {**figures, **self.asking.figures()}
        self.journal.evaluation(self.progress.update, loss, figures)
        self.journal.answers(self.progress.update, self.source.answers())
        return loss

    def save(self, validation: float | None = None, wait: bool = False) -> None:
        """Start a checkpoint of the present state; with `wait`, finish it too."""
        best = self.progress.best
        if validation is not None and math.isfinite(validation) and (not best or validation < best["val_loss"]):
            self.progress = replace(self.progress, best={"update": self.progress.update, "val_loss": validation})
        self.progress = replace(
            self.progress,
            health=self.health.state(),
            loss_scale=dict(vars(self.scale)) if self.scale else {},
            align={**self.source.state(), **self.kept},
        )
        self.saver.start(self.progress, self.source.arrays())
        if wait:
            self.saver.finish()

    def roll_back(self) -> Iterator[Batch]:
        """Return to the newest checkpoint and skip past the data that did the damage."""
        self.at(f"the way back from update {self.progress.update}")
        self.saver.finish()
        bad = self.progress.data_index
        folder, progress = self.checkpoints.first_that_loads(self._load, self._warn, self.world)
        self.health.roll_back_to(progress.health)
        state = {name: value for name, value in progress.align.items() if name not in self.kept}
        self.source.load(state, kept_arrays(folder))
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
