"""compile_topology: the arithmetic behind it, what it refuses, GPUs; with libtpu, a compilation."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from tiny_run import tiny

from configs import qwen3_4b_dapo_math
from poise_jax import models
from poise_jax.distributed import sharding
from poise_jax.learner import update
from poise_jax.learner.update import UpdateConfig
from poise_jax.planning import flops as costs
from poise_jax.planning import hlo, topology
from poise_jax.planning import memory as dry_run

ROOT = pathlib.Path(__file__).parents[2]
NO_LIBTPU = importlib.util.find_spec("libtpu") is None
SHAPE = dict(
  model_type="qwen3",
  vocab_size=512,
  hidden_size=256,
  intermediate_size=512,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=64,
  tie_word_embeddings=True,
  qk_norm=True,
)
MODEL = models.ModelConfig(**SHAPE)


def small(algorithm="poise", **changes):
  """A config whose model.shape is whole."""
  config = tiny(algorithm, **changes)
  config.model.shape = SHAPE
  config.train.minibatch_size = config.train.microbatch_size = config.eval_batch = config.rollouts
  return config


def test_parameters_are_those_that_multiply_tokens():
  tree = models.abstract_params(dataclasses.replace(MODEL, tie_word_embeddings=False))
  kernels = jax.tree_util.tree_leaves_with_path(tree["layers"])
  layers = sum(x.size for path, x in kernels if "kernel" in jax.tree_util.keystr(path))
  assert costs.parameters(MODEL) == (layers, tree["lm_head"]["kernel"].size)


def test_flops_by_hand():
  model = models.ModelConfig("llama", 10, 4, 6, 1, 2, 1, 2)
  layer = 4 * (4 + 2 + 2 + 4) + 3 * 4 * 6  # q, k, v, o and the MLP
  assert costs.parameters(model) == (layer, 40)
  pairs = 1 + 2 + 3  # three positions
  assert costs.forward_flops(model, 3, 2) == 2 * (3 * layer + 2 * 40) + 4 * pairs * 4
  first = costs.forward_flops(model, 2, 1)
  assert first + costs.forward_flops(model, 3, 1, start=2) == costs.forward_flops(model, 3, 2)
  assert costs.training_flops(model, 1, 1, 2) == 3 * costs.forward_flops(model, 3, 2)
  own = costs.forward_flops(model, 3, 2) - costs.forward_flops(model, 1, 0)
  assert costs.training_flops(model, 1, 5, 2) == 3 * (costs.forward_flops(model, 1, 0) + 5 * own)
  sampled = costs.sampling_flops(model, 1, 2, 2)
  assert sampled == first - 2 * layer - 4 * 2 * 4 + 2 * (
    costs.forward_flops(model, 3, 2) - costs.forward_flops(model, 1, 0)
  )


@pytest.fixture(scope="module")
def forward():
  def logits(params, tokens):
    hidden, _ = models.hidden_states(MODEL, params, models.Rows(tokens, tokens >= 0))
    return hidden @ models.unembedding(MODEL, params)

  shapes = models.abstract_params(MODEL), jax.ShapeDtypeStruct((4, 32), jnp.int32)
  return jax.jit(logits).lower(*shapes).compile()


def test_the_models_own_flops_are_those_of_its_program(forward):
  own = 4 * costs.forward_flops(MODEL, 32, 32)
  counted = hlo.Program(forward.as_text()).flops()
  assert own < counted < 1.05 * own
  # XLA counts one of the three layers: without the trip count this is what would be reported.
  assert forward.cost_analysis()["flops"] < 0.6 * own


@pytest.mark.parametrize("n", [1, 2])
def test_rematerialised_training_needs_up_to_a_third_more(n):
  config = UpdateConfig(minibatch_size=4, microbatch_size=2, remat="full", logprob_chunk=32)
  length, rows = 32, jax.ShapeDtypeStruct((4, 32), jnp.float32)
  batch = {name: rows for name in ("advantages", "old_logprobs", "sampler_logprobs")}
  for name, width, dtype in (
    ("tokens", 2 * length, jnp.int32),
    ("mask", 2 * length, bool),
    ("targets", length, jnp.int32),
    ("response_mask", length, bool),
  ):
    batch[name] = jax.ShapeDtypeStruct((4, width), dtype)
  state = jax.eval_shape(lambda p: update.init(p, config), models.abstract_params(MODEL))
  program = hlo.Program(
    update.minibatch_step.lower(MODEL, config, state, batch, n).compile().as_text()
  )
  ratio = program.flops() / (4 / n * costs.training_flops(MODEL, length, n, length))
  # A fourth forward product for three, but for the last one of each layer, which nothing going back
  # wants; on top come scores above the diagonal and Adam.
  assert 1.25 < ratio < 1.4
  assert {2, 3} <= {program.trips(loop) for _, loop in program.loops()}  # micro-batches, layers


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
  ((where, loop),) = program.loops()
  assert where == "main" and program.trips(loop) == 5  # to 10, by twos
  dot = 2 * 128 * 128
  assert 5 * dot <= program.flops() < 5 * dot + 5 * 200
  assert program.sent() == {"all-reduce": 5 * 512}
  # The slice of c, w, and the row that is put into c; rows in the core's own memory are near.
  assert 0 <= program.traffic("body") - (512 + 128 * 128 * 4 + 512) < 64  # and counters
  assert not any(x.name == "put" for x, _ in program.buffers())
  unknown = hlo.Program(LOOP.replace("direction=LT", "direction=NE"))
  assert unknown.trips(next(unknown.loops())[1]) is None
  odd = hlo.Program(LOOP.replace("%last = s32[] add(%next, %one)", "%last = s32[] negate(%next)"))
  with pytest.raises(ValueError, match="cannot tell how often"):
    odd.trips(next(odd.loops())[1])


@pytest.mark.parametrize(
  "name,results,ending,products",
  [
    ("fwd", "bf16[8,1024,128]", "", 2),
    ("dq", "bf16[8,1024,128]", "_dq", 3),
    ("dkv", "bf16[2,1024,128]", "_dkv", 4),
    ("dkv", "bf16[2,1024,128], bf16[2,8,1024,128]", "_dkv", 5),
  ],
)
def test_splash_kernels_count_their_causal_blocks(name, results, ending, products):
  text = f"""HloModule kernel

ENTRY %main (q: bf16[8,1024,128], k: bf16[2,1024,128]) -> bf16[8,1024,128] {{
  %blocks = s8[1,2,2]{{2,1,0}} constant({{...}})
  %q = bf16[8,1024,128]{{2,1,0}} parameter(0)
  %k = bf16[2,1024,128]{{2,1,0}} parameter(1)
  %splash_mha_{name}_segmented = ({results}) custom-call(%blocks, %q, %k), \
custom_call_target="tpu_custom_call", frontend_attributes={{kernel_metadata={{
"xprof_metadata":"{{\\"block_q{ending}\\": 512, \\"block_kv{ending}\\": 256}}"
}}}}
}}
"""
  program = hlo.Program(text)
  call = program.computations["main"][f"splash_mha_{name}_segmented"]
  pairs = 512 * 512 + 512 * 1024  # two blocks of queries, with the keys up to their ends
  flops = hlo.kernel_flops(call, program.computations["main"])
  assert flops == 2 * products * 8 * 128 * pairs
  other = dataclasses.replace(call, name="some_kernel")
  assert hlo.kernel_flops(other, program.computations["main"]) == 0


def test_arrays_that_are_too_large_are_named():
  text = """HloModule big

ENTRY %main (a: f32[2,64,512]) -> f32[2,64,512] {
  %a = f32[2,64,512]{2,1,0} parameter(0)
  %scores = bf16[4,96,96]{2,1,0} broadcast(%a)
  %chunk = f32[16,256]{1,0} broadcast(%a)
  ROOT %b = f32[2,32,96]{2,1,0} copy(%a)
}
"""
  found = topology.too_large_arrays(hlo.Program(text), MODEL, 2, 32, 64)
  assert found == [
    "bf16[4, 96, 96] with two sequence axes (broadcast)",
    "f32[2, 32, 96] with two sequence axes (copy)",
    "f32[2, 64, 512] with a vocabulary axis (parameter)",
  ]


@pytest.mark.parametrize(
  "name,parts",
  [
    ("v5p", ["'v5p' is no topology", "v5e:8x8"]),
    ("v5p:4x", ["'v5p:4x'"]),
    ("v9:2x2", ["'v9' is unknown", "v5e", "h100"]),
    ("h100:6", ["tensor=4", "6 devices"]),
    pytest.param(
      "v5e:4x4",
      ["libtpu", f"pip install 'jax[tpu]=={jax.__version__}'"],
      marks=pytest.mark.skipif(not NO_LIBTPU, reason="libtpu is installed"),
    ),
  ],
)
def test_what_cannot_be_is_one_sentence(name, parts):
  with pytest.raises(ValueError) as error:
    topology.programs(qwen3_4b_dapo_math.get_config(), name)
  for part in parts:
    assert part in str(error.value)


def test_a_shape_that_is_not_whole_is_named():
  with pytest.raises(ValueError, match="lacks vocab_size"):
    topology.programs(tiny(), "h100:1")


def test_a_loaded_model_must_have_the_configs_shape():
  MODEL.check_is(SHAPE)
  with pytest.raises(ValueError, match=r"model.shape.hidden_size=128, but .* has 256"):
    MODEL.check_is({**SHAPE, "hidden_size": 128})


def test_gpus_by_arithmetic(tmp_path):
  config = small("ppo", mesh__fsdp=4, mesh__tensor=2, rollout__n=1, rollouts=32)
  plan, work = topology.report(config, "h100:8")
  count = sum(x.size for x in jax.tree.leaves(models.abstract_params(MODEL)))
  split = count - 3 * 2 * 64  # norms of heads are whole on each chip; the others' width is split
  assert not work["compiled"] and work["mesh"] == {"data": 1, "fsdp": 4, "tensor": 2}
  norms = (2 * 3 + 1) * 256 // 4 + 3 * 2 * 64
  parameters = 4 * ((split - (2 * 3 + 1) * 256) // 8 + norms)
  assert plan.always["parameters"] == parameters
  adam = plan.always["optimizer"]
  assert 0 <= adam - 2 * parameters < 64  # and its counters
  critic = plan.always["estimator's memory (probe and buffer, critic, tracker)"]
  assert 3 * parameters < critic < 3.1 * parameters  # the policy, a value head, their moments
  length, width = config.rollout.max_new_tokens, config.task.max_prompt_length
  assert plan.sampling["caches"] == 3 * 2 * 2 * 64 * 4 * 32 * (length + width) // 8
  update_flops = work["flops"]["the update"]
  own = costs.training_flops(MODEL, width, 1, length) * config.train.minibatch_size / 8
  assert update_flops["own"] == own
  assert work["roofline"]["sampled_tokens_per_second"] > 0
  tight = dataclasses.replace(plan, limit=plan.peak - 1)
  assert not tight.fits and "raise mesh.tensor" in tight.verdict
  assert plan.fits and plan.limit == topology.CHIPS["h100"].memory
  assert "nothing was compiled" in topology.text(plan, work)

  for name in ("b.py:ppo", "a.py:ppo", "a.py:ppo"):  # the same command replaces its row
    topology.write_row(tmp_path, [f"--config={name}"], name, "h100:8", plan, work)
  rows = json.loads((tmp_path / "results.json").read_text())
  assert [row["config"] for row in rows.values()] == ["a.py:ppo", "b.py:ppo"]
  readme = (tmp_path / "README.md").read_text()
  assert "| a:ppo | h100:8 (arithmetic) | 1 x 4 x 2 |" in readme and "1.00 x" in readme


def test_critics_and_moments_lie_as_parameters_do():
  run = topology.programs(small("ppo", mesh__tensor=2, rollout__n=1), "h100:8")
  step = dry_run.arrays(run)
  kernel = lambda tree: tree["layers"]["mlp"]["up_proj"]["kernel"]  # noqa: E731
  wanted = kernel(step.params).sharding
  assert wanted.spec == sharding.spec(("layers", "embed", "mlp"))
  assert kernel(step.estimator.params["decoder"]).sharding == wanted
  moments = [x for x in jax.tree.leaves(step.state.opt_state) if x.shape == (3, 256, 512)]
  assert len(moments) >= 4 and all(x.sharding == wanted for x in moments)
  assert step.estimator.params["value_head"]["bias"].sharding.is_fully_replicated
  assert step.rollouts.tokens.sharding == sharding.batch_sharding(run.mesh)


def test_the_readmes_command_works(tmp_path):
  (line,) = re.findall(
    r"python -m experiments.compile_topology .*h100.*", (ROOT / "README.md").read_text()
  )
  command = [sys.executable, *line.split()[1:], f"--out={tmp_path}"]
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert "fits: a step needs about" in done.stdout and "tokens/s" in done.stdout
  assert list(json.loads((tmp_path / "results.json").read_text())) == [" ".join(line.split()[3:])]


@pytest.mark.skipif(NO_LIBTPU, reason="compiles for a TPU: needs libtpu, and no TPU")
def test_a_step_is_compiled_for_a_tpu():
  code = """
import json
from experiments.compile_topology import prepare
prepare()
from poise_jax.distributed import sharding
from poise_jax.planning import topology
from test_topology import small
sharding.make_mesh(tensor=4, devices=topology.devices("v6e:8x8"))  # half of a ring
changes = dict(model__dtype="bfloat16", train__dtype="bfloat16", train__remat="full")
plan, work = topology.report(small(mesh__tensor=2, **changes), "v5e:2x2")
print(json.dumps([plan.fits, plan.limit, plan.programs["the update"].temporary, work]))
"""
  path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "planning")])
  done = subprocess.run(
    [sys.executable, "-c", code],
    env={**os.environ, "PYTHONPATH": path},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  fits, limit, temporary, work = json.loads(done.stdout.splitlines()[-1])
  assert fits and limit == topology.CHIPS["v5e"].memory and temporary > 0
  assert work["compiled"] and work["mesh"] == {"data": 1, "fsdp": 2, "tensor": 2}
  for counted in work["flops"].values():
    assert 0.9 < counted["xla"] / counted["own"] < 3
  for stage in work["decode"]:
    assert stage["bytes"] > 0.9 * stage["least_bytes"]
