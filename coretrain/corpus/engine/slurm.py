"""Tasks on a cluster by Slurm: a stage becomes an array of jobs, and the same command goes on with the next stage.

Nothing is submitted here: the user looks at the scripts and starts them. All machines must see the output folder, the
input and this installation under the same paths.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from coretrain.base.files import write_atomically
from coretrain.corpus.engine.task import Result, Task, perform

HERE_BELOW = 2
"""Stages of fewer tasks are carried out by the command itself."""
MOST_JOBS = 1000
"""Of an array, as Slurm has it where nobody set it otherwise; larger stages have several tasks a job."""
GO = "slurm/go.sh"


class Submit(Exception):
    """A stage waits to be submitted; the text says how."""


@dataclass
class Slurm:
    """Writes the script of each stage, and stops."""

    folder: Path
    workers: int
    """Jobs at the same time, at most."""
    command: Sequence[str]
    """What goes on afterwards: this program's own words."""

    def __enter__(self) -> Slurm:
        (self.folder / GO).unlink(missing_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        """The results of a small stage. Raises `Submit` for another."""
        todo = list(tasks)
        if len(todo) >= HERE_BELOW:
            raise Submit(self._write(todo))
        for task in todo:
            yield task, perform(self.folder, task)

    def _write(self, todo: list[Task]) -> str:
        """The scripts of a stage; how to start them."""
        stage = todo[0].stage.replace(" ", "-")
        place = self.folder / "slurm"
        place.mkdir(exist_ok=True)
        tasks, array = place / f"{stage}.jsonl", place / f"{stage}.sh"
        write_atomically(tasks, *(f"{task.to_json()}\n" for task in todo))
        each = -(-len(todo) // MOST_JOBS)
        jobs = -(-len(todo) // each)
        worker = [sys.executable, "-m", "coretrain.corpus.engine.worker", str(self.folder), str(tasks), str(each)]
        path = f"export PYTHONPATH={shlex.quote(os.environ['PYTHONPATH'])}\n" if "PYTHONPATH" in os.environ else ""
        head = f"cd {shlex.quote(os.getcwd())}\n{path}"
        limit = f"%{self.workers}" if self.workers else ""
        write_atomically(
            array,
            f"#!/bin/bash\n#SBATCH --job-name=corpus-{stage}\n#SBATCH --array=0-{jobs - 1}{limit}\n"
            f"#SBATCH --cpus-per-task=1\n#SBATCH --output={place}/{stage}-%a.out\n{head}exec {shlex.join(worker)} "
            '"$SLURM_ARRAY_TASK_ID"\n',
        )
        go = self.folder / GO
        again = f"{shlex.join(self.command)} && if [ -e {shlex.quote(str(go))} ]; then bash {shlex.quote(str(go))}; fi"
        write_atomically(
            go,
            "#!/bin/bash\n# Submits the stage, and behind it the command that goes on, which submits the next one.\n"
            f"set -e\n{head}job=$(sbatch --parsable {shlex.quote(str(array))})\n"
            f"sbatch --dependency=afterok:$job --job-name=corpus-next --output={place}/next.out --wrap "
            f"{shlex.quote(again)}\n",
        )
        return (
            f"{todo[0].stage}: {len(todo):,} tasks wait as an array of {jobs:,} jobs; start them, and all that follow, "
            f"by\n  bash {go}\nor submit {array} (add your cluster's own options), and when it has ended run the same "
            "command again"
        )
