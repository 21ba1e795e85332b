"""Accelerators by name, and a table of one's own."""

from __future__ import annotations

import pytest

from coretrain.base.errors import UserError
from coretrain.planning.accelerators import accelerators, machine
from tests.support.commands import ROOT
from tests.support.refusal import refused


def test_machines_by_name():
    four = machine("4090x8")
    assert (four.devices, four.nodes, four.flops) == (8, 1, 8 * 165e12)
    pod = machine("V5E:16x16")
    assert (pod.devices, pod.topology, str(pod)) == (256, "16x16", "v5e:16x16")
    assert machine("h100").devices == 1
    assert machine("h100x16").link == 50e9  # past one node the network is the ring's slowest part
    assert machine("h100x8").link == 450e9


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("h10", r"did you mean h100\?"),
        ("h10x8", r"did you mean h100x8\?"),
        ("a100", "a100 may be a100-80 or a100-40: write one of them, as a100-80"),
        ("A100x8", "as a100-80x8"),
        ("v5:4x4", "v5 may be v5e or v5p: write one of them, as v5e:4x4"),
        ("NVIDIA A100-SXM4-40GB", r"did you mean a100-40\?"),
        ("rtx4090", r"did you mean 4090\?"),
        ("4090:2x4", "write 4090x8"),
        ("h100x0", "at least one"),
        ("h100x12", "12 don't fill whole ones: take 8 or 16"),
        ("v5e:32x32", "largest slice of v5e has 256"),
    ],
)
def test_machines_that_cannot_be(text, words):
    with pytest.raises(UserError, match=words):
        machine(text)


def test_a_table_of_ones_own(tmp_path):
    mine = tmp_path / "mine.toml"
    table = (ROOT / "coretrain" / "planning" / "accelerators.toml").read_text()
    row = table.split("[h100]")[1].split("[")[0] + '["H100"]\n'
    mine.write_text("[fast]" + row)
    assert machine("fastx2", mine).flops == 2 * 989e12
    assert str(machine("fastx2", mine).price) == "$5.98 an hour ($2.99 a device), in USD: mine.toml"
    mine.write_text('currency = "CNY"\nprice_date = 2026-11-30\nprice_kind = "rented"\n[fast]' + row)
    accelerators.cache_clear()
    assert str(machine("fast", mine).price) == "¥2.99 an hour, in CNY: mine.toml, rented, as seen in 2026-11-30"
    mine.write_text('currency = "yuan"\n[fast]' + row)
    accelerators.cache_clear()
    with refused("planning/accelerator-field-wrong", "currency"):
        accelerators(mine)
    mine.write_text("[fast]" + row.replace("tflops = 989", "tflops = -1"))
    accelerators.cache_clear()
    with refused("planning/accelerator-field-wrong", "tflops"):
        accelerators(mine)
    mine.write_text("not toml")
    accelerators.cache_clear()
    with refused("planning/toml-invalid"):
        accelerators(mine)
    with refused("planning/accelerators-unreadable"):
        accelerators(tmp_path / "none.toml")
