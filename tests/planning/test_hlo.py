"""What is read from the HLO of a compiled program: trip counts, FLOPs, bytes, kernels."""

import dataclasses
import sys

import pytest

from poise_jax.errors import UserError
from poise_jax.planning import hlo

LOOP = """HloModule test

%fused (a: f32[8,128], b: f32[1,128], i: s32[]) -> f32[8,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %b = f32[1,128]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %put = f32[8,128]{1,0} dynamic-update-slice(%a, %b, %i, %zero)
}

%body (t: (s32[], f32[8,128], f32[128,128])) -> (s32[], f32[8,128], f32[128,128]) {
  %t = (s32[], f32[8,128]{1,0}, f32[128,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %last = s32[] add(%next, %one)
  %w = f32[128,128]{1,0} get-tuple-element(%t), index=2
  %c = f32[8,128]{1,0} get-tuple-element(%t), index=1
  %row = f32[1,128]{1,0:S(1)} slice(%c), slice={[0:1], [0:128]}
  %y = f32[1,128]{1,0:S(1)} dot(%row, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %sum = f32[1,128]{1,0:S(1)} all-reduce(%y), to_apply=%add
  %new = f32[8,128]{1,0} fusion(%c, %sum, %i), kind=kLoop, calls=%fused
  ROOT %r = (s32[], f32[8,128]{1,0}, f32[128,128]{1,0}) tuple(%last, %new, %w)
}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}

%condition (t: (s32[], f32[8,128], f32[128,128])) -> pred[] {
  %t = (s32[], f32[8,128]{1,0}, f32[128,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %n = s32[] constant(10)
  ROOT %more = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (c: f32[8,128], w: f32[128,128]) -> f32[8,128] {
  %c = f32[8,128]{1,0} parameter(0)
  %w = f32[128,128]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,128]{1,0}, f32[128,128]{1,0}) tuple(%zero, %c, %w)
  %loop = (s32[], f32[8,128]{1,0}, f32[128,128]{1,0}) while(%start), condition=%condition, \
body=%body, metadata={op_name="two
lines" source="}"}
  ROOT %done = f32[8,128]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_loop_counts_as_often_as_it_runs():
  program = hlo.Program(LOOP)
  ((computation, loop),) = program.loops()
  assert computation == "main" and program.trip_count(loop) == 5  # up to 10 in steps of 2
  dot = 2 * 128 * 128
  assert 5 * dot <= program.flops() < 5 * dot + 5 * 200
  assert program.collective_bytes() == {"all-reduce": 5 * 512}
  # The slice of c, w, and the row written into c; S(1) is the core's own memory.
  assert 0 <= program.traffic("body") - (512 + 128 * 128 * 4 + 512) < 64  # and counters
  assert not any(instruction.name == "put" for instruction, _ in program.buffers())


SCATTER = """HloModule test

%inner (a: f32[64,128], i: s32[4], b: f32[4,128]) -> f32[64,128] {
  %a = f32[64,128]{1,0} parameter(0)
  %i = s32[4]{0} parameter(1)
  %b = f32[4,128]{1,0} parameter(2)
  ROOT %s = f32[64,128]{1,0} scatter(%a, %i, %b), update_window_dims={1}, to_apply=%last
}

%last (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  ROOT %y = f32[] parameter(1)
}

%outer (a: f32[64,128], i: s32[4], b: f32[4,128]) -> f32[64,128] {
  %a = f32[64,128]{1,0} parameter(0)
  %i = s32[4]{0} parameter(1)
  %b = f32[4,128]{1,0} parameter(2)
  ROOT %f = f32[64,128]{1,0} fusion(%a, %i, %b), kind=kCustom, calls=%inner
}

ENTRY %main (a: f32[64,128], i: s32[4], b: f32[4,128]) -> f32[4,128] {
  %a = f32[64,128]{1,0} parameter(0)
  %i = s32[4]{0:S(1)} parameter(1)
  %b = f32[4,128]{1,0:S(1)} parameter(2)
  %marked = s32[4]{0} custom-call(%i), custom_call_target="AssumeGatherIndicesInBound"
  %new = f32[64,128]{1,0} fusion(%a, %marked, %b), kind=kCustom, calls=%outer
  ROOT %read = f32[4,128]{1,0:S(1)} custom-call(%new, %b), custom_call_target="tpu_custom_call"
}
"""


def test_a_scatter_moves_what_it_writes_and_a_kernel_all_that_it_is_given():
  """As decoding appends to a cache, which a kernel then reads."""
  rows, indices, cache = 4 * 128 * 4, 4 * 4, 64 * 128 * 4
  assert hlo.Program(SCATTER).traffic("main") == rows + indices + cache
  alone = "%new = f32[64,128]{1,0} scatter(%a, %marked, %b), to_apply=%last"
  start = SCATTER.index("  %new")
  text = SCATTER[:start] + f"  {alone}" + SCATTER[SCATTER.index("\n", start) :]
  assert hlo.Program(text).traffic("main") == 2 * rows + cache


def test_a_trip_count_that_depends_on_values_is_unknown():
  program = hlo.Program(LOOP.replace("direction=LT", "direction=NE"))
  assert program.trip_count(next(program.loops())[1]) is None


def test_an_unfamiliar_loop_counter_is_an_error():
  text = LOOP.replace("%last = s32[] add(%next, %one)", "%last = s32[] negate(%next)")
  program = hlo.Program(text)
  with pytest.raises(ValueError, match="cannot read the trip count of a loop"):
    program.trip_count(next(program.loops())[1])


@pytest.mark.parametrize(
  "name,results,suffix,products",
  [
    ("fwd", "bf16[8,1024,128]", "", 2),
    ("dq", "bf16[8,1024,128]", "_dq", 3),
    ("dkv", "bf16[2,1024,128]", "_dkv", 4),
    ("dkv", "bf16[2,1024,128], bf16[2,8,1024,128]", "_dkv", 5),
  ],
)
def test_splash_kernels_count_their_causal_blocks(name, results, suffix, products):
  text = f"""HloModule kernel

ENTRY %main (q: bf16[8,1024,128], k: bf16[2,1024,128]) -> bf16[8,1024,128] {{
  %blocks = s8[1,2,2]{{2,1,0}} constant({{...}})
  %q = bf16[8,1024,128]{{2,1,0}} parameter(0)
  %k = bf16[2,1024,128]{{2,1,0}} parameter(1)
  %splash_mha_{name}_segmented = ({results}) custom-call(%blocks, %q, %k), \
custom_call_target="tpu_custom_call", frontend_attributes={{kernel_metadata={{
"xprof_metadata":"{{\\"block_q{suffix}\\": 512, \\"block_kv{suffix}\\": 256}}"
}}}}
}}
"""
  main = hlo.Program(text).computations["main"]
  call = main[f"splash_mha_{name}_segmented"]
  pairs = 512 * 512 + 512 * 1024  # two blocks of queries, each with the keys up to its end
  assert hlo.kernel_flops(call, main) == 2 * products * 8 * 128 * pairs
  assert hlo.kernel_flops(dataclasses.replace(call, name="some_kernel"), main) == 0


def test_a_jaxlib_without_the_cost_analysis_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, "jaxlib._hlo", None)
  monkeypatch.delattr("jaxlib._hlo", raising=False)
  with pytest.raises(UserError, match="cannot count the FLOPs .* install jax 0.10.2"):
    hlo.xla_flops(LOOP)
