"""What a run on one device doesn't import: a second for torch's schedules of stages, three for DeepSpeed."""

import subprocess
import sys

HEAVY = ("torch.distributed.pipelining", "deepspeed")


def test_a_run_on_one_device_starts_without_what_many_need():
    code = f"import sys, torchtrain.run; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
