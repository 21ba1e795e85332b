"""The bound on an update's time, on small texts whose answers are known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from coretrain.planning.accelerators import machine
from coretrain.planning.hlo.collectives import members
from coretrain.planning.hlo.links import Rates
from coretrain.planning.hlo.roofline import roofline

PLACES = [(x, y) for x in range(16) for y in range(16)]
RATES = Rates(flops=1e3, bandwidth=1e2, axis=10.0, shape=(16, 16))
FREE = Rates(flops=1e3, bandwidth=1e30, axis=10.0, shape=(16, 16))
ROW = "replica_groups={{" + ",".join(map(str, range(16))) + "}}"


def text(entry: str, more: str = "") -> str:
    return f"HloModule m, is_scheduled=true\n\n{more}\nENTRY %main (a: f32[8,4]) -> f32[8,4] {{\n{entry}\n}}\n"


DOT = "  %d{} = f32[8,16]{{1,0}} dot(%a, %b), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}"
GIVEN = "  %a = f32[8,4]{1,0} parameter(0)\n  %b = f32[4,16]{1,0} parameter(1)\n"
FLOPS = 2 * 8 * 16 * 4
LOOP = '  %w{} = (s32[]) while(%t), condition=%c, body=%{}, backend_config={{"known_trip_count":{{"n":"{}"}}}}'


def test_loops_in_loops_are_multiplied():
    inner = "%inner (p: (s32[])) -> (s32[]) {\n" + GIVEN + DOT.format(1) + "\n}\n"
    outer = "%outer (p: (s32[])) -> (s32[]) {\n" + LOOP.format(1, "inner", 3) + "\n" + GIVEN + DOT.format(2) + "\n}\n"
    found = roofline(text(LOOP.format(2, "outer", 5), inner + outer), FREE, PLACES)
    assert found.flops == 5 * (3 + 1) * FLOPS
    assert found.seconds["matmul"] == pytest.approx(20 * FLOPS / 1e3)


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        ("f32[8,16]{1,0} convolution(f, %a, %b), dim_labels=bf_io->bf", FLOPS),
        ("f32[16,8]{1,0} convolution(f, %b, %a), dim_labels=fb_oi->bf", FLOPS),
        # three matmuls [8, 4] x [4, 16] with the batch as a dilated axis, as XLA writes them
        (
            "f32[3,8,16]{2,1,0} convolution(f, %p, %q), window={size=3 stride=2 pad=0_0 lhs_dilate=3}, "
            "dim_labels=0bf_0io->0bf",
            3 * FLOPS,
        ),
        # a window of 3 with padding at both ends: 3 x 5 - 2 products a pair of features
        ("f32[1,5,1]{2,1,0} convolution(f, %r, %s), window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f", 2 * 13),
    ],
)
def test_matmuls_as_a_tpu_writes_them(line, flops):
    more = "  %p = f32[3,8,4]{2,1,0} parameter(2)\n  %q = f32[3,4,16]{2,1,0} parameter(3)\n"
    more += "  %r = f32[1,5,1]{2,1,0} parameter(4)\n  %s = f32[3,1,1]{2,1,0} parameter(5)\n"
    found = roofline(text(GIVEN + more + "  %c = " + line.replace("(f, ", "(")), FREE, PLACES)
    assert found.flops == flops


def test_the_memory_is_counted_at_a_fusions_borders_and_not_in_vector_memory():
    """One row of a stack is read, one of another is written in its place, and vector memory costs nothing."""
    fused = (
        "%fused (s: f32[9,100], o: f32[9,100], v: f32[100], i: s32[]) -> f32[9,100] {\n"
        "  %s = f32[9,100]{1,0} parameter(0)\n  %o = f32[9,100]{1,0} parameter(1)\n"
        "  %v = f32[100]{0} parameter(2)\n  %i = s32[] parameter(3)\n"
        "  %one = f32[1,100]{1,0} dynamic-slice(%s, %i, %i), dynamic_slice_sizes={1,100}\n"
        "  %sum = f32[1,100]{1,0} add(%one, %v)\n"
        "  ROOT %put = f32[9,100]{1,0} dynamic-update-slice(%o, %sum, %i, %i)\n}\n"
    )
    entry = (
        "  %x = f32[9,100]{1,0} parameter(0)\n  %y = f32[9,100]{1,0} parameter(1)\n"
        "  %z = f32[100]{0:T(128)S(1)} parameter(2)\n  %n = s32[]{:S(6)} parameter(3)\n"
        "  ROOT %f = f32[9,100]{1,0} fusion(%x, %y, %z, %n), kind=kLoop, calls=%fused"
    )
    found = roofline(text(entry, fused), RATES, PLACES)
    assert found.bytes == 2 * 400
    assert found.seconds == {"matmul": 0.0, "memory": pytest.approx(8.0), "collectives": 0.0}


def gather(name: str, rows: int) -> tuple[str, str]:
    kind = f"(f32[1,4]{{1,0}}, f32[{rows},4]{{1,0}}) all-gather-start(%a), dimensions={{0}}, {ROW}"
    return f"  %{name} = {kind}\n", f"  %{name}d = f32[{rows},4]{{1,0}} all-gather-done(%{name})\n"


def test_a_collective_is_waited_for_as_far_as_no_matmul_hides_it():
    begin, end = gather("g", 16)
    sending = 256 * 15 / 16 / 10
    matmul = FLOPS / 1e3
    found = roofline(text(GIVEN + begin + DOT.format(1) + "\n" + end + DOT.format(2)), FREE, PLACES)
    assert found.sending == sending
    assert found.seconds == {"matmul": 2 * matmul, "memory": 0.0, "collectives": pytest.approx(sending - matmul)}
    whole = f"  %r = f32[16,4]{{1,0}} all-gather(%a), dimensions={{0}}, {ROW}\n"
    found = roofline(text(GIVEN + whole + DOT.format(1)), FREE, PLACES)
    assert found.seconds["collectives"] == sending, "nothing runs beside it"


def test_what_shares_links_takes_turns():
    """Two gathers over one axis take the sum of both; halves of a ring, which has no way around, go half as fast."""
    (one, one_end), (two, two_end) = gather("g", 16), gather("h", 16)
    sending = 256 * 15 / 16 / 10
    found = roofline(text(GIVEN + one + two + two_end + one_end), FREE, PLACES)
    assert found.seconds["collectives"] == pytest.approx(2 * sending)
    half = gather("g", 8)[0].replace(ROW, "replica_groups={{0,1,2,3,4,5,6,7}}")
    found = roofline(text(GIVEN + half), FREE, PLACES)
    assert found.sending == pytest.approx(128 * 7 / 8 / 10 * 2)


def test_a_gather_in_a_chain_of_fusions_is_one_that_runs_beside_them():
    def fused(name: str, root: str) -> str:
        inside = f'  %g.{name} = f32[16,4]{{1,0}} all-gather(%p), dimensions={{0}}, {ROW}, chain_id="0"\n'
        return f"%{name} (p: f32[1,4]) -> f32[16,4] {{\n  %p = f32[1,4] parameter(0)\n{inside}{root}\n}}\n"

    call = '  ROOT %c.{0} = f32[16,4]{{1,0}} custom-call(%p), custom_call_target="AsyncCollective{0}"'
    parts = fused("begin", call.format("Start")) + fused("beside", DOT.format(1)) + fused("end", call.format("Done"))
    parts = parts.replace("dot(%a, %b)", "dot(%p, %b)")
    entry = GIVEN + "".join(
        f"  %f.{name} = f32[16,4]{{1,0}} fusion(%a), kind=kOutput, calls=%{name}\n"
        for name in ("begin", "beside", "end")
    )
    found = roofline(text(entry, parts), FREE, PLACES)
    sending, matmul = 256 * 15 / 16 / 10, 2 * 8 * 16 * 4 / 1e3
    assert found.sending == sending
    assert found.seconds["collectives"] == pytest.approx(sending - matmul)


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("replica_groups={{0,4},{1,5}}", [0, 4]),
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", [0, 1, 4, 5]),
        ("source_target_pairs={{3,1},{1,3}}", [3, 1]),
        ("nothing", []),
    ],
)
def test_who_takes_part(groups, first):
    assert members(groups) == first


def test_links_are_shared_by_the_axes_and_rings_close_where_google_says():
    v5e = Rates.of(machine("v5e:8x16"), 197e12, 0.5, 0.8, 0.7)
    assert (v5e.flops, v5e.bandwidth, v5e.axis) == pytest.approx((98.5e12, 819e9 * 0.8, 90e9 * 0.7))
    assert [v5e.wraps(axis) for axis in range(2)] == [False, True]
    v5p = Rates.of(machine("v5p:2x4x8"), 459e12)
    assert v5p.axis == pytest.approx(180e9)
    assert [v5p.wraps(axis) for axis in range(3)] == [False, True, True]


def test_the_flops_are_those_of_a_program_that_this_machine_compiles():
    """A scan of 5 products, differentiated with the first operand kept: 3 products a step."""

    def loss(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    w, x = jax.ShapeDtypeStruct((5, 32, 32), jnp.float32), jax.ShapeDtypeStruct((8, 32), jnp.float32)
    program = jax.jit(jax.grad(loss)).lower(w, x).compile()
    found = roofline(program.as_text(), FREE, PLACES)
    assert 3 * 5 * 2 * 8 * 32 * 32 >= found.flops >= (3 * 5 - 1) * 2 * 8 * 32 * 32
