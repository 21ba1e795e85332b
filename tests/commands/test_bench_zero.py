"""What bench/zero.py makes of its figures; what is measured takes minutes."""

from __future__ import annotations

import pytest

from bench import zero


def test_ratios_are_taken_within_a_round(capsys):
    """Each round of the second took twice the first's time, while both became slower."""

    def rounds(factor):
        return [{"seconds": factor * n, "cpu": n, "peak": 2_000_000, "sent": None} for n in (1, 2, 10)]

    rows = zero.rows_of({"DeepSpeed 3": rounds(1), "FSDP2 3": rounds(2)}, 3)
    assert [(row["seconds"], row["seconds ratios"]) for row in rows] == [(2, [1, 1, 1]), (4, [2, 2, 2])]
    assert rows[1]["cpu ratios"] == [1, 1, 1]
    zero.show("turns", rows)
    assert "| FSDP2 3 | 4.00 | 2.00 (2.00 to 2.00) | 2.00 | 1.00 (1.00 to 1.00) | 2 |  |" in capsys.readouterr().out


@pytest.mark.parametrize(("stage", "compiled"), [(2, {"DeepSpeed", "FSDP2"}), (3, {"FSDP2"})])
def test_what_can_be_compiled_is(stage, compiled):
    found = {name.split()[0] for name, way in zero.contenders(stage).items() if "execution.compile" in way}
    assert found == compiled


@pytest.mark.whole
def test_a_fake_group_asks_for_what_is_planned():
    """Rank 0 of 4, in a process that ends: a gather and a sum for each of two blocks and what is outside of them."""
    fields = {"model.layers": 2, "model.width": 64, "model.heads": 2, "model.vocab": 320, "model.context": 4}
    (row,) = zero.calls("gpt2", fields, 4, ["FSDP2 1"])
    assert row["calls"] == {"_allgather_base_": 3, "_reduce_scatter_base_": 3, "allgather_": 1}
    assert sum(row["sent"].values()) == pytest.approx(row["planned"], rel=1e-12)
