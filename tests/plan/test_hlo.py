"""What is read off a compiled program: collectives with trip counts, large arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rljax.plan import hlo

# A loop whose number of trips XLA knows, around one whose end depends on data: its
# condition says 5 at most. The last branch is one of two that may run.
MODULE = """
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%inner_body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %r = f32[8]{0} all-reduce(%x), to_apply=%add, metadata={op_name="inner"}
  ROOT %t = (s32[], f32[8]) tuple(%i, %r)
}

%compared (p: s32[]) -> pred[] {
  %five = s32[] constant(5)
  ROOT %less = pred[] compare(%p, %five), direction=LT
}

%inner_condition (p: (s32[], f32[8])) -> pred[] {
  ROOT %c = pred[] fusion(%i), kind=kLoop, calls=%compared
}

%outer_body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %w = (s32[], f32[8]) while(%p), condition=%inner_condition, body=%inner_body
  ROOT %t = (s32[], f32[8]) tuple(%i, %r)
}

%outer_condition (p: (s32[], f32[8])) -> pred[] {
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

%branch (p: bf16[4]) -> bf16[8] {
  %s = (bf16[4]{0}, bf16[8]{0}) all-gather-start(%p), dimensions={0}
  ROOT %d = bf16[8]{0:T(128)S(1)} all-gather-done(%s)
}

%other (p: bf16[4]) -> bf16[8] {
  ROOT %z = bf16[8]{0} broadcast(%p)
}

ENTRY %main (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %w = (s32[], f32[8]) while(%p), condition=%outer_condition, body=%outer_body, \
backend_config={"known_trip_count":{"n":"3"}}
  %q = bf16[8] conditional(%i, %a, %a), branch_computations={%branch, %other}
  ROOT %n = f32[1024] fusion(%all-reduce.1), kind=kLoop, calls=%add
}
"""


def test_collectives_in_loops_count_as_often_as_the_loops_run():
    # Each body counted once would give 1 all-reduce; `-start` counted, too, 2 gathers.
    assert hlo.by_kind(hlo.collectives(MODULE)) == {
        "all-gather": {"count": 1, "bytes": 16},
        "all-reduce": {"count": 15, "bytes": 15 * 32},
    }
    (reduced,) = (x for x in hlo.collectives(MODULE) if x.kind == "all-reduce")
    assert (reduced.shape, reduced.times, reduced.op_name) == ("f32[8]{0}", 15, "inner")


# As libtpu writes them: an asynchronous gather starts in one fusion, goes on beside
# products in a loop, and ends after it; a device keeps a part of a sum.
FUSED = """
%begun (p: bf16[2]) -> (bf16[2], bf16[8]) {
  %g.1 = bf16[8]{0} all-gather(%p), channel_id=7, dimensions={0}
}

%async_collective_fusion.1 (p: bf16[2], q: bf16[8]) -> (bf16[4], bf16[8]) {
  %g.2 = bf16[8]{0:S(1)} all-gather(%p), channel_id=7, dimensions={0}
}

%ended (p: bf16[2], q: bf16[8]) -> bf16[8] {
  ROOT %g.3 = bf16[8]{0} all-gather(%p), channel_id=7, dimensions={0}
}

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1.clone (p: f32[8]) -> f32[2] {
  %r = f32[8]{0} all-reduce(%p), channel_id=9, to_apply=%add
  ROOT %d = f32[2]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={2}
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %m = (bf16[4], bf16[8]) fusion(%p), kind=kOutput, calls=%async_collective_fusion.1
  %f = f32[2]{0:S(1)} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1.clone
}

%condition (p: (s32[], f32[8])) -> pred[] {
  ROOT %c = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %async-collective-start.4 = (bf16[2], bf16[8]) fusion(%p), calls=%begun, \
metadata={op_name="update/gather"}
  %w = (s32[], f32[8]) while(%p), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %async-collective-done.4 = bf16[8]{0} fusion(%w), calls=%ended
}
"""


def test_a_collective_in_several_fusions_counts_once():
    # With every part there would be 5 gathers. As all-reduces the sums would seem to
    # bring each device all of the result, twice.
    assert hlo.by_kind(hlo.collectives(FUSED)) == {
        "all-gather": {"count": 1, "bytes": 16},
        "reduce-scatter": {"count": 3, "bytes": 3 * 8},
    }
    # What has no name has that of what it is in; the loop has none either.
    names = {one.kind: one.op_name for one in hlo.collectives(FUSED)}
    assert names == {"all-gather": "update/gather", "reduce-scatter": ""}


def test_arrays_are_found_by_their_bytes():
    assert hlo.arrays(MODULE, min_bytes=33) == {"f32[1024]": 4096}
    assert hlo.arrays(MODULE, min_bytes=32) == {"f32[1024]": 4096, "f32[8]": 32}


@pytest.mark.parametrize(
    ("shape", "size"),
    [("pred[3]", 3), ("s4[3]", 2), ("f8e4m3fn[4,2]{1,0}", 8), ("(f32[], u8[5])", 9)],
)
def test_bytes_of_shapes(shape, size):
    assert hlo.num_bytes(shape) == size


def test_a_scan_of_a_compiled_program_is_counted_by_its_length():
    # 7 trips, in each of which the devices' parts of f32[8] are summed.
    place = Mesh(np.array(jax.devices()), ("data",))
    whole = NamedSharding(place, PartitionSpec())

    def step(total, x):
        return total + jnp.sum(x * total, 0), None

    def loop(start, x):
        return jax.lax.scan(step, start, x)[0]

    spread = NamedSharding(place, PartitionSpec(None, "data"))
    shapes = (
        jax.ShapeDtypeStruct((8,), jnp.float32, sharding=whole),
        jax.ShapeDtypeStruct((7, 16, 8), jnp.float32, sharding=spread),
    )
    text = jax.jit(loop).lower(*shapes).compile().as_text()
    found = hlo.by_kind(hlo.collectives(text))
    assert found == {"all-reduce": {"count": 7, "bytes": 7 * 32}}
