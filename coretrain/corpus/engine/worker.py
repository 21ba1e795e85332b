"""`python -m coretrain.corpus.engine.worker FOLDER TASKS EACH JOB`: performs the tasks of one job of an array.

TASKS has a task a line; job J has the lines from J * EACH on. What is finished already isn't done again.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

from coretrain.base.errors import exits_cleanly
from coretrain.corpus.engine.task import Task, perform, result_of


def main() -> int:
    """Do it."""
    folder, tasks, each, job = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    with open(tasks, encoding="utf-8") as lines:
        for line in islice(lines, job * each, (job + 1) * each):
            task = Task.from_json(line)
            if result_of(folder, task) is None:
                perform(folder, task)
    return 0


if __name__ == "__main__":
    exits_cleanly(main)()
