"""What the judge says of the processor, and the flags of XLA that it shares with its user."""

from __future__ import annotations

import pytest

from parity import machine


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "--a=1 --b=2"),
        ("--xla_cpu_max_isa=AVX2", "--a=1 --xla_cpu_max_isa=AVX2 --b=2"),
        ("--a=32", "--a=1 --a=32 --b=2"),  # of two, XLA takes the last
        ("flags.txt", "--a=1 --xla_cpu_max_isa=SSE4_2 --c --b=2"),
    ],
)
def test_a_users_flags_of_xla_stay(given, expected, monkeypatch, tmp_path):
    (tmp_path / "flags.txt").write_text("--xla_cpu_max_isa=SSE4_2\n--c\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XLA_FLAGS", given)
    assert machine.xla_flags(unless_set="--a=1", always="--b=2") == expected


def test_what_is_set_is_said(monkeypatch):
    """Limits by name and value; the judge's own flag isn't one."""
    for name in machine.LIMITS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XLA_FLAGS", machine.ONE_PIECE)
    assert machine.limits() == {}
    monkeypatch.setenv("XLA_FLAGS", f"{machine.ONE_PIECE} --xla_cpu_max_isa=AVX2")
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    assert machine.facts()["limits"] == {"DNNL_MAX_CPU_ISA": "AVX2", "XLA_FLAGS": "--xla_cpu_max_isa=AVX2"}
    assert not machine.facts()["bfloat16_units"], "oneDNN is held below them"
    text = "\n".join(machine.lines())
    assert machine.processor() in text
    monkeypatch.delenv("DNNL_MAX_CPU_ISA")
    assert "DNNL_MAX_CPU_ISA" not in machine.facts()["limits"], "what a test sets is no fact of the session"
    assert "DNNL_MAX_CPU_ISA=AVX2" in text


def test_what_xla_compiles_for():
    found = machine.facts()["xla_instructions"]
    assert found, "it is read from what XLA made: another version may put it elsewhere"
    assert set(found) <= set(machine.TOLD.values())


def test_what_xla_cannot_compute(monkeypatch):
    """Without F16C its float16 needs functions that it doesn't have: shown with XLA held to SSE4.2."""
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(machine, "_features", lambda: frozenset({"sse4.2"}))
    assert "F16C" in machine.no_float16()
    for features in ({"sse4.2", "avx2", "f16c"}, {}):  # where XLA doesn't say, it is tried
        monkeypatch.setattr(machine, "_features", lambda features=features: frozenset(features))
        assert machine.no_float16() is None
    monkeypatch.setattr(machine.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(machine, "_features", lambda: frozenset({"neon"}))
    assert machine.no_float16() is None
