"""Pages that make their process hang, die or take too much: they are named, and no other page is lost or moved.

What such pages do is planted: an extractor that obeys words in the page, put into the process by Python's own
`sitecustomize`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from coretrain.corpus.document import Document, Page, Trouble
from coretrain.corpus.extract import process as process_module
from coretrain.corpus.extract.extract import Extractor
from coretrain.corpus.extract.guarded import guarded
from tests.support.refusal import refused

OBEDIENT = """
import os, signal, sys, time
from coretrain.corpus.extract import text

def obey(html):
    word = html.partition(" ")[0]
    if word == "HANG":
        while True:
            pass
    if word == "SLEEP":
        time.sleep(1000)
    if word == "DIE":
        os.kill(os.getpid(), signal.SIGSEGV)
    if word == "KILLED":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "ONCE" and not os.path.exists(html.split()[1]):
        open(html.split()[1], "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "LEAVE":
        os._exit(3)
    if word == "EAT":
        return "x" * 10**9
    if word == "RAISE":
        raise KeyError("odd page")
    if word == "PRINT":
        print("noise", flush=True)
        os.write(1, b"more noise")
    return html.lower()

text._EXTRACTORS["none"] = obey
"""


@pytest.fixture
def obedient(tmp_path, monkeypatch):
    """A function: what these pages come to under an extractor that does what they say."""
    (tmp_path / "sitecustomize.py").write_text(OBEDIENT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(*words, deadline_s=0.15, memory_mb=256):
        pages = [Page(str(n), word.encode(), "", "", {"file": "f", "offset": n}) for n, word in enumerate(words)]
        return list(guarded(pages, Extractor("none", deadline_s, memory_mb)))

    return run


def told(found):
    """Each item in short."""
    return [one.text if isinstance(one, Document) else (one.kind, one.offset) for one in found]


def test_it_gives_what_the_bare_function_gives():
    one = Extractor()
    pages = [Page(str(n), f"<p>Seite {n} für uns {'x ' * (n * 37 % 3000)}".encode(), "utf-8") for n in range(1500)]
    assert list(guarded(pages, one)) == [one.document(page) for page in pages]


def test_what_is_no_page_comes_through_in_its_place():
    one, items = Extractor(), list[Page | Document | Trouble]()
    for n in range(3000):
        items += [Document(f"d{n}", "x"), Trouble("status", "f", n)] if n % 500 else [Page(f"p{n}", b"<p>page")]
    expected = [one.document(item) if isinstance(item, Page) else item for item in items]
    assert list(guarded(iter(items), one)) == expected
    assert list(guarded([], one)) == []


def test_nothing_is_held_that_needs_no_process(monkeypatch):
    """Documents without a page among them start no process, and come before all of them were read."""
    monkeypatch.setattr(subprocess, "Popen", None)
    endless = (Document(str(n), "x") for n in range(10**9))
    found = guarded(endless, Extractor())
    assert [next(found).id for _ in range(3000)] == [str(n) for n in range(3000)]
    assert next(endless).id == "3000"  # none was read ahead: a thousand large ones would fill the memory


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("HANG", "timeout"),
        ("DIE", "crashed"),
        ("KILLED", "memory"),
        ("LEAVE", "crashed"),
        ("EAT", "memory"),
        ("RAISE", "failed"),
    ],
)
def test_a_page_that_is_bad_for_its_process(obedient, word, kind):
    assert told(obedient("A", "B", f"{word} now", "C", "D")) == ["a", "b", (kind, 2), "c", "d"]
    assert told(obedient(word)) == [(kind, 0)]
    assert told(obedient("A", word)) == ["a", (kind, 1)]


def test_several_bad_pages_in_a_row(obedient):
    found = obedient("HANG", "DIE", "A", "EAT", "RAISE", "HANG", "B")
    assert told(found) == [("timeout", 0), ("crashed", 1), "a", ("memory", 3), ("failed", 4), ("timeout", 5), "b"]
    assert [one.words for one in found if isinstance(one, Trouble)][:2] == [
        "0: it took longer than deadline_s",
        "1: the process ended by SIGSEGV",
    ]


def test_what_a_library_prints_does_not_come_between(obedient):
    assert told(obedient("A", "PRINT x", "B")) == ["a", "print x", "b"]


def test_a_process_that_was_killed_from_outside_is_no_fault_of_the_page(obedient, tmp_path):
    path = tmp_path / "was-here"
    assert told(obedient("A", f"ONCE {path} ", "B")) == ["a", f"once {path}".lower(), "b"]
    assert path.exists()


def test_a_page_that_waits_for_nothing(obedient, monkeypatch):
    """It takes no time of a processor, so that only the clock tells."""
    monkeypatch.setattr(process_module, "PATIENCE", 1.0)
    assert told(obedient("A", "SLEEP", "B", deadline_s=0.05)) == ["a", ("timeout", 1), "b"]


def test_a_reader_that_takes_its_time_is_no_fault_of_the_page(obedient, monkeypatch):
    """An hour goes by between two pages that it takes."""
    ahead = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead[0])
    monkeypatch.setattr(process_module, "time", clock)
    found = guarded((Page(str(n), b"A", "") for n in range(3000)), Extractor("none"))
    texts = []
    for one in found:
        texts += told([one])
        ahead[0] += 3600.0 * (len(texts) % 500 == 1)
    assert texts == ["a"] * 3000


def test_random_kills_change_nothing():
    """The process is killed again and again from outside: each page comes once, in its place."""
    one, found = Extractor("none"), []
    pages = [Page(str(n), b"<p>%d " % n + b"x" * 20000) for n in range(2000)]
    for document in guarded(pages, one):
        found.append(document)
        if len(found) % 250 == 10:
            for process in _workers():
                process.kill()
    assert found == [one.document(page) for page in pages]


def test_a_process_that_is_killed_while_it_starts(monkeypatch):
    """Twice; the third one comes up."""
    started, popen = [], subprocess.Popen

    def start(*arguments, **more):
        process = popen(*arguments, **more)
        started.append(process)
        if len(started) < 3:
            process.kill()
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    assert [one.text for one in guarded([Page("1", b"<p>x")], Extractor())] == ["x"]
    assert len(started) == 3


def test_a_page_larger_than_the_memory_that_it_may_take():
    """It ends the process before anything of it is looked at."""
    pages = [Page("0", b"<p>a"), Page("1", bytes(70 * 2**20)), Page("2", b"<p>b")]
    assert told(guarded(pages, Extractor(memory_mb=64))) == ["a", ("memory", 0), "b"]


def test_a_reader_that_stops_leaves_no_process():
    found = guarded([Page(str(n), b"<p>x") for n in range(5000)], Extractor())
    next(found)
    (process,) = _workers()
    found.close()
    assert not process.is_running()


def _workers():
    """The processes that find texts for this one."""
    return [one for one in psutil.Process().children() if "extract.worker" in " ".join(_command(one))]


def _command(process):
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def test_it_ends_with_the_process_that_waits_for_it(tmp_path, monkeypatch):
    """Which is killed while a page sleeps, and can't tell it anything."""
    (tmp_path / "sitecustomize.py").write_text(OBEDIENT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(process_module.ROOT), str(tmp_path)]))
    code = (
        "from coretrain.corpus.document import Page; from coretrain.corpus.extract.extract import Extractor; "
        "from coretrain.corpus.extract.guarded import guarded; "
        "list(guarded([Page('1', b'SLEEP')], Extractor('none')))"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as waiting:
        process = psutil.Process(waiting.pid)
        while not (found := process.children()):
            time.sleep(0.02)
        waiting.kill()
    _, alive = psutil.wait_procs(found, timeout=30)
    assert alive == []


def test_a_process_that_does_not_start_is_told(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['resiliparse'] = None")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with refused("corpus/extractor-does-not-start", "resiliparse"):
        list(guarded([Page("1", b"<p>x")], Extractor()))


def test_the_process_knows_no_framework():
    """Each task starts one: it must come up quickly."""
    code = (
        "import sys, coretrain.corpus.extract.worker as w; w.text_of(b'<p>x', '', 'resiliparse'); "
        "print([m for m in ('torch', 'jax', 'numpy', 'tiktoken', 'pyarrow') if m in sys.modules])"
    )
    root = str(process_module.ROOT)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert ran.stdout.strip() == "[]"
