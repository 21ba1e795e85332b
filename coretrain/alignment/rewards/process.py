"""A reward that runs in a worker process with a time limit, and is killed where it hangs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.alignment.rewards.reward import Answer, Fault, Floats, described
from coretrain.base.errors import UserError

LOADING = 120.0
"""Seconds at least in which a module must be imported: it may import torch."""
PACKAGES = Path(__file__).resolve().parents[3]


class Late(Exception):
    """The worker didn't reply in time."""


class Died(Exception):
    """The worker's process ended."""


class Worker:
    """A process that is started when it is needed, and again after it was killed."""

    def __init__(self, setup: dict[str, Any], seconds: float) -> None:
        self.setup, self.seconds = setup, seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._pipes: list[Connection] = []
        self._life = -1

    def start(self) -> dict[str, Any]:
        """Start it, if it isn't there: what it says of the code that it has loaded. Raises `Late` or `Died`."""
        if self._process is not None:
            return {}
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        theirs_life, self._life = os.pipe()
        theirs = (theirs_in, theirs_out, theirs_life)
        paths = [str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"}
        command = [sys.executable, "-P", "-m", "coretrain.alignment.rewards.worker"]
        self._process = subprocess.Popen(
            [*command, *map(str, theirs), str(self.seconds)],
            stdin=subprocess.DEVNULL,
            pass_fds=theirs,
            env=environment,
            start_new_session=True,  # a terminal's Ctrl-C is for the run; and what it starts is killed with it
        )
        for handle in theirs:
            os.close(handle)
        self._pipes = [Connection(ours_out, readable=False), Connection(ours_in, writable=False)]
        return self._asked(self.setup, max(LOADING, self.seconds))

    def ask(self, answers: Sequence[Answer], seconds: float | None = None) -> dict[str, Any]:
        """What it replies for these answers. Raises `Late` or `Died`; it is gone then."""
        self.start()
        return self._asked([_written(one) for one in answers], self.seconds if seconds is None else seconds)

    def _asked(self, request: Any, seconds: float) -> dict[str, Any]:
        requests, replies = self._pipes
        try:
            requests.send_bytes(json.dumps(request).encode())
            if not replies.poll(seconds):
                self.close()
                raise Late
            reply: dict[str, Any] = json.loads(replies.recv_bytes())
        except (EOFError, OSError):
            self.close()
            raise Died from None
        except BaseException:
            self.close()
            raise
        return reply

    def close(self) -> None:
        """Kill it, and what it has started."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in self._pipes:
            pipe.close()
        os.close(self._life)
        self._process, self._pipes = None, []


def _written(answer: Answer) -> dict[str, Any]:
    said = answer.ids[len(answer.ids) - answer.tokens :] if answer.ids else None
    prompt = answer.fields.get("prompt", answer.prompt)
    return {
        "prompt": prompt,
        "completion": answer.completion,
        "fields": dict(answer.fields),
        "ended": answer.ended,
        "tokens": answer.tokens,
        "ids": said,
    }


class Guarded:
    """A term of a reward whose code runs in a `Worker`."""

    def __init__(self, name: str, word: str, kind: str, seconds: float) -> None:
        """`kind` is function, or single for a rule or a task. The code is loaded now: raises `UserError` where it can't
        be.
        """
        self.name, self.word, self.seconds = name, word, seconds
        self._worker = Worker({"word": word, "kind": kind, "folder": os.getcwd()}, seconds)
        try:
            reply = self._worker.start()
        except (Late, Died) as error:
            what = "takes more than two minutes" if isinstance(error, Late) else "ends its process"
            raise UserError(
                "alignment/reward-not-loaded", f"align.reward = {word}: {what} while it is loaded: mend it"
            ) from None
        self._refuse(reply)
        if "raised" in reply:
            raise UserError(
                "alignment/reward-not-loadable", f"align.reward = {word} can't be loaded ({reply['raised']}): mend it"
            )
        self.source: str = reply["source"]
        """A hash of the file with the user's function; '' for what is ours."""

    def score(self, answers: Sequence[Answer]) -> dict[str, Floats]:
        """Named parts [N]. Raises `Fault` where the code raises, hangs, ends its process or gives something else."""
        try:
            reply = self._worker.ask(answers)
        except (Late, Died) as error:
            raise self._failed(error, answers) from None
        self._refuse(reply)
        if "raised" in reply:
            raise self._failed(reply["raised"], answers)
        return {name: self._numbers(values, answers) for name, values in reply["parts"].items()}

    def _numbers(self, values: Sequence[Any], answers: Sequence[Answer]) -> Floats:
        for value, answer in zip(values, answers, strict=False):  # how many there are is looked at for all rewards
            if not isinstance(value, float):
                raise Fault(
                    "alignment/reward-not-a-number",
                    f"reward {self.word} gave {value['kind']}, which is no number, for {described(answer)}",
                )
        return np.array(values, np.float64)

    def _refuse(self, reply: dict[str, Any]) -> None:
        if "refused" in reply:
            code, text = reply["refused"]
            raise UserError(code, text)

    def _failed(self, what: Exception | str, answers: Sequence[Answer]) -> Fault:
        """The fault, with the first answer that alone has it too."""
        culprit = self._culprit(answers)
        if culprit is None:
            whose = f"{len(answers)} answers together, the first to the prompt {answers[0].prompt!r}" if answers else ""
        else:
            whose = described(answers[culprit])
        if isinstance(what, str):
            return Fault("alignment/reward-raised", f"reward {self.word} raised {what}, for {whose}")
        if isinstance(what, Died):
            return Fault("alignment/reward-process-ended", f"reward {self.word} ended its process, for {whose}")
        return Fault(
            "alignment/reward-too-slow",
            f"reward {self.word} took longer than align.reward_timeout = {self.seconds:g} seconds, for {whose}",
        )

    def _culprit(self, answers: Sequence[Answer]) -> int | None:
        """The first answer that fails by itself, looked for no longer than two time limits."""
        deadline = time.monotonic() + 2 * self.seconds
        for number, answer in enumerate(answers):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                if "raised" in self._worker.ask([answer], min(left, self.seconds)):
                    return number
            except (Late, Died):
                return number
        return None

    def close(self) -> None:
        """End the worker."""
        self._worker.close()
