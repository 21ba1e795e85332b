"""From numbers to a verdict, its reasons, and what to change next.

The limits are for decisions, not for science: each says what it was set against.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from coretrain.config.run import RunConfig
from coretrain.diagnosis.curves import Curves

RISE = 0.01
"""A validation loss this far above its lowest has turned: overfitted. The same rows are scored each time, so that noise
of the sample cancels; what is left is the weights' own unrest."""
GAP = 0.03
"""A validation loss this far above the training loss is more than the sample's noise: 3%, and three standard errors."""
STEEP = 0.05
"""A run that gains this share while its updates double is still learning. By the law of Hoffmann et al. 2022, as fitted
again by Besiroglu et al. 2024, 124 million parameters gain 6.6% when their tokens double to 20 a parameter, and 3.3% to
200 a parameter."""
FLAT = 0.01
"""A run that gains less than this has learnt what it can from here."""
NEARLY_FREE = 4.0
"""Epochs up to which data read again is worth nearly as much as new data (Muennighoff et al. 2023)."""
SKIPPED = 0.01
"""Share of updates passed over, or spiking, that is no accident."""
LEAPT = 1.2
"""A loss that rises so far above that of untrained weights: the rate is too high."""
STUCK, ENOUGH = 0.95, 200
"""A loss that after `ENOUGH` updates isn't below this share of the entropy of the tokens' frequencies: of what stands
before a token next to nothing is used. With a rate of 0.5 a small run stood at 0.948 after 400 updates, with 0.001 at
0.84 after 150."""
KNOWN = 3.0
"""Standard errors by which the loss falls when rows are read again that makes them known by heart."""


@dataclass(frozen=True)
class Verdict:
    """How a run went: a name, the reasons for it, and what to do next, the most promising thing first."""

    name: str
    """unstable, stuck, overfitted, short of data, underfitted, fits, at its limit, or too short to say."""
    reasons: tuple[str, ...]
    next: tuple[str, ...]


def diagnose(curves: Curves, config: RunConfig) -> Verdict:
    """The first verdict that holds, from the worst on."""
    for look in (_too_short, _unstable, _stuck, _overfitted, _short_of_data, _underfitted, _at_its_limit):
        if found := look(curves, config):
            return found
    return Verdict("fits", _learning(curves) + _apart(curves), _fits(curves, config))


Look = Callable[[Curves, RunConfig], Verdict | None]


def _too_short(curves: Curves, config: RunConfig) -> Verdict | None:
    if curves.done >= 20 and (len(curves.validation) >= 2 or curves.lost):
        return None
    updates, looks = curves.done, len(curves.validation)
    told = f"{updates} update{'s' * (updates != 1)} and {looks} evaluation{'s' * (looks != 1)} are too few to judge by"
    every = max(1, curves.planned // 10)
    return Verdict("too short to say", (told,), (f"train longer, with train.eval_interval {every} or less",))


def _unstable(curves: Curves, config: RunConfig) -> Verdict | None:
    passed = curves.troubles.get("skip", 0)
    back, stopped = curves.troubles.get("rollback", 0), curves.troubles.get("stop", 0)
    low = min((loss for _, loss in curves.validation), default=math.nan)
    worse = bool(curves.train > 1.1 * low and curves.rise > 0.1 and curves.train_falls < -0.05)
    often = len(curves.spikes) + passed > max(2, SKIPPED * curves.done)
    if not (curves.lost or back or stopped or worse or often or curves.leapt > LEAPT):
        return None
    reasons = [
        *(["the last loss isn't a finite number"] if curves.lost else []),
        *([f"{_times(back)} taken back to a checkpoint"] if back else []),
        *(["stopped by its health check"] if stopped else []),
        *([f"{passed} of {curves.done:,} updates were passed over"] if passed else []),
        *([_spiked(curves)] if curves.spikes else []),
        *([f"the loss rose to {curves.leapt:.1f} times what it began with"] if curves.leapt > LEAPT else []),
        *([f"training ends at {curves.train:.3f} after a validation loss of {low:.3f}: it diverged"] if worse else []),
    ]
    rate, clip = config.optimizer.lr, config.optimizer.clip
    warmup = max(2 * config.schedule.warmup_updates, config.train.updates // 20)
    knobs = [
        f"a lower peak: --optimizer.lr {rate / 2:.2g}",
        f"a longer warm-up: --schedule.warmup_updates {warmup}",
        *([] if 0 < clip <= 1 else ["--optimizer.clip 1"]),
        *(["--optimizer.beta2 0.95"] if config.optimizer.beta2 > 0.95 and config.optimizer.name != "muon" else []),
        *(["--precision.compute bfloat16"] if config.precision.compute == "float16" else []),
        *(["--health.spike skip"] if config.health.spike == "ignore" and curves.spikes else []),
    ]
    return Verdict("unstable", tuple(reasons), tuple(knobs))


def _stuck(curves: Curves, config: RunConfig) -> Verdict | None:
    if curves.frequencies is None or curves.done < ENOUGH or curves.train < STUCK * curves.frequencies:
        return None
    told = f"training {curves.train:.3f} is no lower than {curves.frequencies:.3f}, which the tokens' frequencies give"
    rate = config.optimizer.lr
    knobs = (
        f"a lower peak, if this one was guessed: --optimizer.lr {rate / 10:.2g}",
        f"a higher one, if it is below 1e-4: --optimizer.lr {rate * 10:.2g}",
        *([] if 0 < config.optimizer.clip <= 1 else ["--optimizer.clip 1"]),
        "look at a few rows of the data: is there anything to learn from what stands before?",
    )
    return Verdict("stuck", (told, *_learning(curves)), knobs)


def _overfitted(curves: Curves, config: RunConfig) -> Verdict | None:
    best = curves.best
    if best is None or curves.rise <= RISE or curves.train_falls <= 0:
        return None
    told = (
        f"validation was lowest, {best[1]:.3f}, after {best[0]:,} updates and has risen by {curves.rise:.1%} since",
        f"training went on falling, to {curves.train:.3f}",
        *_apart(curves),
        *_read_again(curves),
    )
    return Verdict(
        "overfitted",
        told,
        (
            f"stop where validation was lowest: with --train.updates {best[0]} the rate decays by then",
            *_more_data(curves),
            *_held_back(config),
            "a smaller model",
        ),
    )


def _short_of_data(curves: Curves, config: RunConfig) -> Verdict | None:
    if not curves.epochs or curves.epochs <= 1 or not _gapes(curves):
        return None
    known = any(reread.fall > KNOWN * reread.error for reread in curves.rereads)
    if not known and curves.epochs <= NEARLY_FREE:
        return None
    told = (*_apart(curves), *_read_again(curves), *_learning(curves))
    return Verdict("short of data", told, (*_more_data(curves), *_held_back(config)))


def _underfitted(curves: Curves, config: RunConfig) -> Verdict | None:
    if curves.falls is None or curves.falls < STEEP or _gapes(curves):
        return None
    left = curves.planned - curves.done
    more = (
        f"let it finish: {left:,} updates are left" if left else f"more updates: --train.updates {2 * curves.planned}"
    )
    again = curves.epochs is not None and 2 * curves.epochs > NEARLY_FREE
    knobs = [more + (" (and more data: it would be read more than four times)" if again and not left else "")]
    if not left:
        knobs.append(f"a higher peak, if it stays stable: --optimizer.lr {2 * config.optimizer.lr:.2g}")
    if curves.rate > 0.5 and config.schedule.kind == "constant":
        knobs.append("a rate that decays: --schedule.kind cosine")
    return Verdict("underfitted", (*_learning(curves), *_apart(curves)), tuple(knobs))


def _at_its_limit(curves: Curves, config: RunConfig) -> Verdict | None:
    if curves.falls is None or curves.falls >= FLAT or _gapes(curves):
        return None
    knobs = ["a larger model: more layers or width"]
    if curves.rate > 0.5:
        knobs.insert(0, "let the learning rate decay to its end: it is still at its height")
    return Verdict("at its limit", (*_learning(curves), *_apart(curves)), tuple(knobs))


def _fits(curves: Curves, config: RunConfig) -> tuple[str, ...]:
    if _gapes(curves):
        return (*_more_data(curves), *_held_back(config))
    return ("more updates and a larger model together; `twintrain plan` says what they take",)


def _gapes(curves: Curves) -> bool:
    """Whether validation lies above training by more than noise."""
    gap = curves.gap
    if gap is None:
        return False
    error = 0.0 if math.isnan(curves.train_error) else curves.train_error
    return gap > max(GAP * curves.train, 3 * error)


def _apart(curves: Curves) -> tuple[str, ...]:
    if curves.gap is None:
        return ()
    word = "above" if curves.gap >= 0 else "below"
    end, train = curves.validation[-1][1], f"training {curves.train:.3f} (± {curves.train_error:.3f})"
    return (f"validation {end:.3f} lies {abs(curves.gap):.3f} {word} {train}",)


def _learning(curves: Curves) -> tuple[str, ...]:
    if curves.falls is None:
        return ()
    verb = "fell" if curves.falls >= 0 else "rose"
    return (f"validation {verb} by {abs(curves.falls):.1%} while the updates doubled last",)


def _read_again(curves: Curves) -> tuple[str, ...]:
    if not curves.epochs:
        return ()
    told = [f"each row was read {curves.epochs:.1f} times"]
    known = [reread for reread in curves.rereads if reread.fall > KNOWN * reread.error]
    if known:
        first = known[0]
        times = "once" if first.epoch == 1 else f"{first.epoch} times"
        told.append(
            f"rows read {times} before were known: the loss fell by {first.fall:.3f} (± {first.error:.3f}) there"
        )
    return tuple(told)


def _more_data(curves: Curves) -> tuple[str, ...]:
    return ("more data, the best help: data.source, data.mixture" if (curves.epochs or 2) > 1 else "other data",)


def _held_back(config: RunConfig) -> tuple[str, ...]:
    model, decay = config.model, config.optimizer.weight_decay
    dropout = max(model.residual_dropout, model.embedding_dropout)
    return (
        *(["dropout: --model.residual_dropout 0.1"] if dropout == 0 else []),
        *([f"more weight decay: --optimizer.weight_decay {max(0.1, 2 * decay):g}"] if decay < 0.5 else []),
    )


def _spiked(curves: Curves) -> str:
    first = ", ".join(f"{at:,}" for at in curves.spikes[:3])
    more = ", ..." if len(curves.spikes) > 3 else ""
    return f"{_times(len(curves.spikes))} the loss leapt far above its neighbours (update {first}{more})"


def _times(number: int) -> str:
    return {1: "once", 2: "twice"}.get(number, f"{number} times")
