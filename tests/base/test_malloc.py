"""What the process asks of malloc, seen from outside: in a process of its own, since it can't be taken back."""

from __future__ import annotations

import ctypes
import json
import platform
import subprocess
import sys

import pytest

CODE = """
import ctypes, json, sys, threading
from coretrain.base.malloc import give_back_freed_memory, keep_freed_memory

said = None
if sys.argv[1] != "as it is":
    said = give_back_freed_memory()
if sys.argv[1] == "kept":
    said = said and keep_freed_memory()
libc = ctypes.CDLL(None)

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

libc.mallinfo2.restype = Info
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.free(libc.malloc(8 << 20))  # glibc maps none of this size anew, once one was freed
block = libc.malloc(8 << 20)
again = libc.mallinfo2().hblkhd
libc.free(block)
before = libc.mallinfo2().hblkhd
block = libc.malloc(64 << 20)
mapped = libc.mallinfo2().hblkhd - before
libc.free(block)
free = libc.mallinfo2().fordblks
barrier = threading.Barrier(4)
def allocate():
    block = libc.malloc(5000)
    barrier.wait()
    libc.free(block)
threads = [threading.Thread(target=allocate) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps({"said": said, "again": again, "mapped": mapped, "free": free}), flush=True)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def outcome(word):
    """(what the process says, its malloc's arenas)."""
    command = [sys.executable, "-c", CODE, word]
    first, _, rest = subprocess.run(command, check=True, capture_output=True, text=True).stdout.partition("\n")
    return json.loads(first), rest.count("<heap nr=")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc isn't glibc's here")
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc has mallinfo2 from 2.33 on")
def test_freed_memory_is_given_back_or_kept_and_one_arena_serves_all_threads():
    usual, arenas = outcome("as it is")
    assert usual["mapped"] >= 64 << 20, "without it a large block is mapped, or this test shows nothing"
    assert arenas > 1
    back, arenas = outcome("given back")
    assert back["said"] is True
    assert back["again"] >= usual["again"] + (8 << 20)
    assert back["mapped"] >= 64 << 20
    assert arenas == 1
    kept, arenas = outcome("kept")
    assert kept["said"] is True
    assert kept["mapped"] == 0
    assert kept["free"] >= 64 << 20
    assert arenas == 1


def test_elsewhere_nothing_is_asked(monkeypatch):
    from coretrain.base.malloc import give_back_freed_memory, keep_freed_memory

    monkeypatch.setattr(sys, "platform", "darwin")
    assert give_back_freed_memory() is keep_freed_memory() is False
