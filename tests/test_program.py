# SPDX-License-Identifier: Apache-2.0
"""Products, loops, traffic and collectives of compiled programs, counted by hand and against JAX's own counts."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from albert_jax.training.program import Collective, read_program
from albert_jax.training.sharding import make_mesh

BY_HAND = """\
HloModule by_hand, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%stored (p0: f32[6,8,16], p1: f32[8,16], p2: s32[]) -> f32[6,8,16] {
  %p0 = f32[6,8,16]{2,1,0} parameter(0)
  %p1 = f32[8,16]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %one = f32[1,8,16]{2,1,0} bitcast(%p1)
  ROOT %d = f32[6,8,16]{2,1,0} dynamic-update-slice(%p0, %one, %p2, %zero, %zero)
}

%body (c: (s32[], f32[8,16], f32[6,8,16], s32[])) -> (s32[], f32[8,16], f32[6,8,16], s32[]) {
  %c = (s32[], f32[8,16]{1,0}, f32[6,8,16]{2,1,0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%c), index=1
  %kept = f32[6,8,16]{2,1,0} get-tuple-element(%c), index=2
  %n = s32[] get-tuple-element(%c), index=3
  %w = f32[16,16]{1,0:T(8,128)S(1)} constant({...})
  %y = f32[8,16]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="layer/dot"}
  %r = f32[8,16]{1,0} all-reduce(%y), replica_groups=[2,4]<=[8], to_apply=%sum
  %f = f32[6,8,16]{2,1,0} fusion(%kept, %r, %i), kind=kLoop, calls=%stored
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  ROOT %t = (s32[], f32[8,16]{1,0}, f32[6,8,16]{2,1,0}, s32[]) tuple(%next, %r, %f, %n)
}

%condition (d: (s32[], f32[8,16], f32[6,8,16], s32[])) -> pred[] {
  %d = (s32[], f32[8,16]{1,0}, f32[6,8,16]{2,1,0}, s32[]) parameter(0)
  %j = s32[] get-tuple-element(%d), index=0
  %m = s32[] get-tuple-element(%d), index=3
  ROOT %less = pred[] compare(%j, %m), direction=LT
}

ENTRY %main (q: f32[8,16], v: f32[4,12,64,32], u: f32[4,12,64,32]) -> f32[8,16] {
  %q = f32[8,16]{1,0} parameter(0)
  %v = bf16[4,12,64,32]{3,2,1,0:T(8,128)S(1)} parameter(1)
  %u = bf16[4,12,64,32]{3,2,1,0:T(8,128)S(1)} parameter(2)
  %k = f32[6,8,16]{2,1,0} broadcast(%q), dimensions={}
  %scores = f32[4,12,64,64]{3,2,1,0:T(8,128)S(1)} convolution(%v, %u), WINDOW
  %first = s32[] constant(1)
  %last = s32[] constant(12)
  %start = (s32[], f32[8,16]{1,0}, f32[6,8,16]{2,1,0}, /*index=3*/s32[]) tuple(%first, %q, %k, %last)
  %loop = (s32[], f32[8,16]{1,0}, f32[6,8,16]{2,1,0}, s32[]) while(%start), condition=%condition, body=%body
  %z = f32[8,16]{1,0} get-tuple-element(%loop), index=1
  %started = (f32[8,16]{1,0}, f32[32,16]{1,0}) all-gather-start(%z), replica_groups={{0,1,2,3},{4,5,6,7}}
  ROOT %finished = f32[32,16]{1,0} all-gather-done(%started)
}
""".replace("WINDOW", "window={size=4x12 stride=3x11 lhs_dilate=4x12}, dim_labels=01bf_01oi->01bf")


@pytest.fixture(scope="module")
def by_hand():
    return {operation.name: operation for operation in read_program(BY_HAND).operations}


def test_a_loop_counts_as_often_as_it_runs(by_hand):
    assert by_hand["y"].loops == (6,)  # 1, 3, 5, 7, 9, 11
    assert by_hand["y"].flops == 2 * 8 * 16 * 16
    assert by_hand["y"].origin == "layer/dot"
    assert read_program(BY_HAND).flops == 6 * 2 * 8 * 16 * 16 + by_hand["scores"].flops


def test_batch_dimensions_written_as_a_dilated_convolution_are_those_of_a_product(by_hand):
    assert by_hand["scores"].flops == 2 * (4 * 12) * 64 * 64 * 32


def test_collectives_have_their_bytes_their_group_and_the_loops_around_them(by_hand):
    assert sorted(read_program(BY_HAND).collectives) == [
        (Collective("all-gather", 4 * 32 * 16, 4), ()),
        (Collective("all-reduce", 4 * 8 * 16, 4), (6,)),
    ]
    assert read_program(BY_HAND).reduced_bytes == 6 * 4 * 8 * 16


def test_traffic_is_what_is_sliced_or_updated_and_nothing_of_the_chips_own_memory(by_hand):
    one = 4 * 8 * 16
    assert by_hand["f"].traffic == one + 4 + one  # reads the update and its place, writes the update alone
    assert by_hand["y"].traffic == 2 * one  # the weights are in S(1)
    assert by_hand["k"].traffic == one + 6 * one
    assert "scores" in by_hand and by_hand["scores"].traffic == 0
    counting = 3 * 4  # the loop's counter is added to
    assert read_program(BY_HAND).traffic == 7 * one + 6 * (2 * one + 2 * one + 4 + counting)


def test_a_fusion_reads_only_the_slice_that_it_takes():
    text = """\
%taken (p0: bf16[12,8,16], p1: s32[]) -> bf16[8,16] {
  %p0 = bf16[12,8,16]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %part = bf16[1,8,16]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,16}
  ROOT %b = bf16[8,16]{1,0} bitcast(%part)
}

ENTRY %main (a: bf16[12,8,16], i: s32[]) -> bf16[8,16] {
  %a = bf16[12,8,16]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %f = bf16[8,16]{1,0} fusion(%a, %i), kind=kLoop, calls=%taken
}
"""
    assert read_program(text).traffic == 2 * 8 * 16 + 4 + 2 * 8 * 16


def test_what_the_text_does_not_say_is_asked_for():
    endless = BY_HAND.replace("%last = s32[] constant(12)", "%last = s32[] bitcast(%q)")
    with pytest.raises(ValueError, match="'loop' runs; give `unknown_trips`"):
        read_program(endless)
    assert read_program(endless, unknown_trips=4).reduced_bytes == 4 * 4 * 8 * 16
    kernel = BY_HAND.replace("convolution(%v, %u)", 'custom-call(%v, %u), custom_call_target="fast"')
    with pytest.raises(ValueError, match="'fast' may hold products; give its FLOPs in `kernels`"):
        read_program(kernel)
    by_formula = read_program(kernel, kernels={"fast": lambda operands: 2.0 * operands[0].size})
    assert by_formula.flops == 6 * 2 * 8 * 16 * 16 + 2 * 4 * 12 * 64 * 32
    with pytest.raises(ValueError, match="no ENTRY"):
        read_program("")


# --- programs that JAX compiles for the CPU ---------------------------------------------------------------------------


def compiled(function, *arguments):
    """What our reader finds in a function's program, the program's text, and JAX's count of its FLOPs."""
    program = jax.jit(function).lower(*arguments).compile()
    text, analysis = program.as_text(), program.cost_analysis()
    assert text is not None and analysis is not None
    return read_program(text), text, analysis["flops"]


def stacked(layers, unroll):
    """A network of equal layers, its loss and its gradients."""

    def loss(w, x):
        y, _ = jax.lax.scan(lambda x, _: (x @ w, None), x, length=layers, unroll=unroll)
        return jnp.sum(y)

    return compiled(jax.value_and_grad(loss, argnums=(0, 1)), jnp.ones((64, 64)), jnp.ones((128, 64)))


def test_a_loop_has_the_flops_that_jax_counts_where_it_is_unrolled():
    (looped, text, once), (unrolled, flat, counted) = stacked(12, 1), stacked(12, 12)
    assert "while" in text and "while" not in flat
    assert once < 0.2 * looped.flops
    assert looped.flops == unrolled.flops == pytest.approx(counted, rel=0.02)  # JAX counts additions too


@pytest.mark.parametrize(
    ("out", "equation", "shapes"),
    [
        (2 * 8 * 16 * 32, "ij,jk->ik", ((8, 16), (16, 32))),
        (2 * 4 * 3 * 8 * 8 * 16, "bqnd,bknd->bnqk", ((4, 8, 3, 16), (4, 8, 3, 16))),
        (2 * 4 * 8 * 16 * 32, "bsh,hf->bsf", ((4, 8, 16), (16, 32))),
    ],
)
def test_products_have_the_flops_of_their_dimensions(out, equation, shapes):
    program, _, _ = compiled(lambda a, b: jnp.einsum(equation, a, b), *map(jnp.ones, shapes))
    assert program.flops == out


@pytest.mark.parametrize(
    "options",
    [
        {"padding": ((2, 1), (0, 3)), "window_strides": (1, 2)},
        {"padding": ((1, 1), (1, 1)), "window_strides": (1, 1), "lhs_dilation": (2, 3)},
        {"padding": ((3, 2), (2, 2)), "window_strides": (1, 1), "rhs_dilation": (3, 2)},
        {"padding": ((1, 1), (1, 1)), "window_strides": (1, 1), "feature_group_count": 3},
    ],
)
def test_convolutions_have_the_flops_that_jax_counts(options):
    groups = options.get("feature_group_count", 1)

    def convolve(x, w):
        return jax.lax.conv_general_dilated(x, w, **options)

    program, text, counted = compiled(convolve, jnp.ones((2, 6, 9, 11)), jnp.ones((12, 6 // groups, 3, 4)))
    assert "convolution(" in text
    assert program.flops == counted


def test_a_sum_over_devices_is_found_inside_a_loop_and_outside():
    mesh = make_mesh(4)
    rows = NamedSharding(mesh, PartitionSpec("data"))

    def summed(inside):
        def local(x):
            def body(x, _):
                return (jax.lax.psum(x, "data") if inside else jnp.sin(x)), None

            x = jax.lax.scan(body, jax.lax.pcast(x, "data", to="varying") if inside else x, length=5)[0]
            return x if inside else jax.lax.psum(x, "data")

        spec = PartitionSpec("data")
        step = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=PartitionSpec(), check_vma=False)
        return compiled(step, jax.ShapeDtypeStruct((4, 32), jnp.float32, sharding=rows))[0].collectives

    assert summed(inside=False) == [(Collective("all-reduce", 4 * 32, 4), ())]
    assert summed(inside=True) == [(Collective("all-reduce", 4 * 32, 4), (5,))]
