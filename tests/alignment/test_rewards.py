"""Rewards by the words of a config: functions of users in a process of their own, which raise, hang or end; models."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from coretrain.alignment.rewards.open import open_reward
from coretrain.alignment.rewards.process import Guarded
from tests.support.refusal import refused
from tests.support.rewarding import answers, asking, scored

FUNCTIONS = """
import os, random, time
import random_helper
from beside import HALF

def exact(prompts, completions, answer, **more):
    print("a function may print")
    return [HALF * (one == right) for one, right in zip(completions, answer)]

def raises(completions):
    if "bad" in completions:
        raise ValueError("no digit\\nand a second line")
    return [1] * len(completions)

def hangs(completions):
    while "bad" in completions:
        time.sleep(1)
    return [True] * len(completions)

def hangs_in_c(completions):
    import re
    return [bool(re.match("(a+)+$", "a" * 40 + "b")) if one == "bad" else 1 for one in completions]

def ends(completions):
    if "bad" in completions:
        os._exit(0)
    return [1] * len(completions)

def leaves(completions):
    raise SystemExit(3)

def starts_others(completions):
    import subprocess
    child = subprocess.Popen(["sleep", "600"])
    open("child", "w").write(str(child.pid))
    while True:
        time.sleep(1)

def nan(completions):
    return [float("nan") if one == "bad" else 1 for one in completions]

def huge(completions):
    return [10 ** 400] * len(completions)

def nothing(completions):
    return None

def holes(completions):
    return [None if one == "bad" else 1 for one in completions]

def words(completions):
    return ["1.0"] * len(completions)

def short(completions):
    return [1.0] * (len(completions) - 1)

def wants_more(completions, gold):
    return gold

def drawn(completions):
    return [random.random() for _ in completions]

def hashed(completions):
    return [hash(one) % 1000 for one in completions]

async def waits(completions):
    return [0.25] * len(completions)

def arrays(completions):
    import numpy
    return numpy.arange(len(completions), dtype=numpy.float32) / 4

def place(completions):
    return [os.path.exists("my_rewards.py")] * len(completions)

NO_FUNCTION = 3
"""
BAD = ("012345", "bad", "12")


@pytest.fixture(scope="module", autouse=True)
def working_folder(tmp_path_factory):
    """Where a user works, beside files that have the names of Python's own modules."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "my_rewards.py").write_text(FUNCTIONS)
    (folder / "beside.py").write_text("HALF = 0.5\n")
    (folder / "random_helper.py").write_text("")
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "lacking.py").write_text("import no_such_package\n")
    (folder / "leaving.py").write_text("import sys\nsys.exit('bye')\n")
    for name in ("random", "json", "subprocess", "numpy"):
        (folder / f"{name}.py").write_text("raise RuntimeError('taken for the one of the same name')\n")
    (folder / "pack").mkdir()
    (folder / "pack" / "__init__.py").write_text("")
    (folder / "pack" / "inner.py").write_text("from pack.other import one\n")
    (folder / "pack" / "other.py").write_text("def one(completions):\n    return [1] * len(completions)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("my_rewards:exact", [0.5, 0, 0]),
        ("my_rewards:waits", [0.25, 0.25, 0.25]),
        ("my_rewards:arrays", [0, 0.25, 0.5]),
        ("my_rewards:place", [1, 1, 1]),
        ("pack.inner:one", [1, 1, 1]),
        ("0.5*exact + -2*my_rewards:exact", [-0.5, 0, 0]),
        ("format?pattern=[0-9]+", [1, 0, 1]),
    ],
)
def test_functions_of_the_working_folder(tmp_path, word, wanted):
    found = scored(tmp_path, word, answers(*BAD))
    assert found.rewards.tolist() == wanted
    assert found.fault is None


@pytest.mark.parametrize(
    ("function", "code", "names"),
    [
        (
            "raises",
            "alignment/reward-raised",
            ("ValueError", "no digit", "line 12", "my_rewards.py", "'bad'", "351204>"),
        ),
        ("hangs", "alignment/reward-too-slow", ("align.reward_timeout = 1 seconds", "'bad'", "351204>")),
        ("hangs_in_c", "alignment/reward-too-slow", ("align.reward_timeout = 1 seconds", "'bad'")),
        ("ends", "alignment/reward-process-ended", ("'bad'",)),
        ("leaves", "alignment/reward-raised", ("SystemExit", "'012345'")),
        ("nan", "alignment/reward-not-finite", ("nan", "'bad'", "351204>")),
        ("huge", "alignment/reward-not-finite", ("inf", "'012345'")),
        ("nothing", "alignment/reward-raised", ("NoneType",)),
        ("holes", "alignment/reward-not-a-number", ("None", "'bad'")),
        ("words", "alignment/reward-not-a-number", ("str", "'012345'")),
        ("short", "alignment/reward-count-wrong", ("2 numbers", "3 answers")),
    ],
)
def test_what_fails_is_told_with_its_prompt_and_is_skipped(tmp_path, function, code, names):
    # a second is much for functions that answer at once, on a busy machine too
    seconds = 1 if function.startswith("hangs") else 60
    config = asking(tmp_path, "task:sort", align__reward=f"my_rewards:{function}", align__reward_timeout=seconds)
    reward = open_reward(config.changed(align=config.align.model_copy(update={"reward_failure": "skip"})))
    found = reward.score(answers(*BAD))
    assert found.rewards.tolist() == [0, 0, 0]
    assert found.parts == {}
    assert all(name in found.fault for name in (function, *names)), found.fault
    if function in ("raises", "hangs", "ends"):  # and it goes on, in a new process where the old one is gone
        assert reward.score(answers("7", "8")).rewards.tolist() == [1, 1]
    reward.close()
    if function not in ("hangs", "hangs_in_c"):  # once is enough
        with refused(code, function, "align.reward_failure = skip", *names):
            scored(tmp_path, f"my_rewards:{function}", answers(*BAD), align__reward_timeout=seconds)


def test_what_hangs_stops_the_run(tmp_path):
    with refused("alignment/reward-too-slow", "align.reward_timeout = 0.2", "align.reward_failure = skip"):
        scored(tmp_path, "my_rewards:hangs", answers("bad"), align__reward_timeout=0.2)


@pytest.mark.parametrize(
    ("word", "code", "names"),
    [
        ("my_rewards:exactly", "alignment/reward-function-missing", ("exactly", "raises")),
        ("my_rewards:NO_FUNCTION", "alignment/reward-function-missing", ()),
        ("your_rewards:exact", "alignment/reward-module-missing", ("your_rewards.py",)),
        ("pack.missing:one", "alignment/reward-module-missing", ("pack/missing.py",)),
        ("broken:f", "alignment/reward-module-broken", ("ZeroDivisionError",)),
        ("lacking:f", "alignment/reward-module-broken", ("no_such_package",)),
        ("leaving:f", "alignment/reward-module-broken", ("SystemExit",)),
        ("random:f", "alignment/reward-module-hidden", ("random",)),
        ("my rewards:exact", "alignment/reward-function-malformed", ("module:function",)),
        ("my_rewards.py:exact", "alignment/reward-module-missing", ("my_rewards/py.py",)),
        (":exact", "alignment/reward-unknown", ()),
        ("srot", "alignment/reward-unknown", ("sort",)),
        ("sort+exact", "alignment/reward-unknown", ("blanks",)),
        ("sort + ", "alignment/reward-term-empty", ()),
        (" ", "alignment/reward-term-empty", ()),
        ("0*sort", "alignment/reward-weight-wrong", ("0",)),
        ("nan*sort", "alignment/reward-weight-wrong", ("nan",)),
        ("much*sort", "alignment/reward-weight-wrong", ("much",)),
        ("exact?fields=x", "tasks/option-unknown", ("fields", "field")),
        ("format", "tasks/option-missing", ("pattern",)),
        ("format?pattern=(", "tasks/option-value-wrong", ("pattern",)),
        ("length?limit=8", "tasks/option-missing", ("buffer",)),
        ("run:runs/none", "alignment/reward-run-missing", ("runs/none",)),
        ("./none", "alignment/reward-run-missing", ("./none",)),
        ("reasoning_gym/chain_sum", "alignment/reward-of-other-task", ("task:reasoning_gym/chain_sum",)),
    ],
)
def test_what_is_no_reward_is_refused_before_anything_is_sampled(tmp_path, word, code, names):
    with refused(code, *names):
        open_reward(asking(tmp_path, "task:sort", align__reward=word))


@pytest.mark.parametrize("word", ["my_rewards:wants_more", "exact?field=gold", "0.5*sort + number?field=gold"])
def test_a_field_that_rows_lack_stops_the_run_whatever_is_said_of_failures(tmp_path, word):
    with pytest.raises(Exception, match="gold"):
        scored(tmp_path, word, answers("7"), align__reward_failure="skip")


def test_the_task_of_the_source_where_nothing_is_said(tmp_path):
    config = asking(tmp_path, "task:sort").changed(align__reward=None)
    assert open_reward(config).score(answers("012345", "1")).rewards.tolist() == [1, 0]
    with refused("alignment/reward-missing", "rows.jsonl", "align.reward"):
        open_reward(config.changed(data__source="rows.jsonl"))


def test_lengths_are_not_punished_twice(tmp_path):
    with refused("alignment/length-punished-twice", "overlong_buffer = 2"):
        word = "sort + length?limit=8&buffer=2"
        open_reward(asking(tmp_path, "task:sort", align__reward=word, align__overlong_buffer=2))


def test_a_reward_models_scores_are_taken_as_they_are(tmp_path):
    (tmp_path / "judge").mkdir()
    asked = []

    def scorer(folder):
        asked.append(folder)
        return lambda given: np.array([len(one.completion) / 3 for one in given], np.float32)

    folder = str(tmp_path / "judge")
    config = asking(tmp_path, "task:sort", align__reward=f"2*run:{folder} + sort")
    found = open_reward(config, scorer).score(answers("012345", "7"))
    assert asked == [folder]
    assert found.rewards.tolist() == [2 * 2 + 1, 2 * float(np.float32(1 / 3))]
    assert found.parts["judge"].tolist() == [2, float(np.float32(1 / 3))]
    with refused("alignment/reward-run-missing", folder):
        open_reward(config)


def test_what_is_drawn_or_hashed_is_the_same_in_every_run(tmp_path):
    for function in ("drawn", "hashed"):
        rewards = [open_reward(asking(tmp_path, "task:sort", align__reward=f"my_rewards:{function}")) for _ in "ab"]
        rewards[0].score(answers("something", "else"))  # one of them has been asked before
        first, second = (reward.score(answers(*BAD)).rewards.tolist() for reward in rewards)
        assert first == second
        assert len(set(first)) == 3
        for reward in rewards:
            reward.close()


def test_the_functions_file_is_known_by_its_hash(working_folder):
    one = Guarded("exact", "my_rewards:exact", "function", 5)
    one.close()
    (working_folder / "my_rewards.py").write_text(FUNCTIONS + "\n")
    two = Guarded("exact", "my_rewards:exact", "function", 5)
    two.close()
    assert len(one.source) == len(two.source) == 16
    assert one.source != two.source


def test_a_process_that_hangs_is_killed_with_what_it_has_started(tmp_path, working_folder):
    with refused("alignment/reward-too-slow"):
        scored(tmp_path, "my_rewards:starts_others", answers("7"), align__reward_timeout=0.4)
    assert _ends(int((working_folder / "child").read_text()))


def test_no_worker_outlives_its_run(tmp_path, working_folder):
    program = (
        "import os, signal\n"
        "from coretrain.alignment.rewards.process import Guarded\n"
        "one = Guarded('hangs', 'my_rewards:hangs', 'function', 60)\n"
        "print(one._worker._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = os.environ.get("PYTHONPATH", "")
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": root}
    )
    assert done.returncode == -9, done.stderr
    assert _ends(int(done.stdout))


def _ends(process: int) -> bool:
    """Whether a process is gone, or only its number is left, within some seconds."""
    for _ in range(200):
        try:
            with open(f"/proc/{process}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False
