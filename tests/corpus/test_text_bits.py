"""The same bits from other instructions of the processor, and from other hash seeds."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from tests.support.text_digest import digest

LIMITS = {"NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR", "OPENBLAS_CORETYPE": "Nehalem"}


@pytest.mark.whole
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="numpy's names of instructions are x86's")
def test_other_instructions_and_hash_seeds_change_no_bit():
    environment = {**os.environ, **LIMITS, "PYTHONHASHSEED": "7", "PYTHONWARNINGS": "ignore"}
    program = [sys.executable, "-m", "tests.support.text_digest"]
    done = subprocess.run(program, check=True, capture_output=True, text=True, env=environment, timeout=300)
    assert done.stdout.strip() == digest()
