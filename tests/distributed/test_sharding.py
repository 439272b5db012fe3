"""Meshes of 8 devices give the results of one device. Run as a script, this file computes them on 8
fake CPU devices and prints JSON; under pytest it starts that script and checks the output."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from poise_jax import models, rollout
from poise_jax.distributed import sharding
from poise_jax.learner import logprobs, update
from poise_jax.learner.losses import PolicyLossConfig
from poise_jax.learner.update import UpdateConfig
from poise_jax.models import attention, decode_attention, kv_cache
from poise_jax.rollout import RolloutConfig
from poise_jax.rollout.draw import draw
from poise_jax.types import Experience, Prompts, Rollouts

MESHES = ((8, 1, 1), (2, 2, 2), (2, 1, 4))
OTHER_MESHES = ((1, 8, 1), (4, 2, 1), (2, 4, 1), (4, 1, 2), (1, 4, 2), (1, 2, 4))  # slow tests
MODEL = models.ModelConfig("qwen3", 320, 64, 96, 2, 8, 4, 8, qk_norm=True, qkv_bias=True)
P_, N, TP, T = 8, 2, 5, 4
SAMPLING = RolloutConfig(n=1, max_new_tokens=T, temperature=0.5, eos_ids=tuple(range(30)))
SLOTS = dataclasses.replace(SAMPLING, slots=4)  # half of the prompts wait where 4 shards have 2
UPDATE = UpdateConfig(
  loss=PolicyLossConfig(0.2, 0.28, 10.0),
  minibatch_size=16,
  microbatch_size=8,
  learning_rate=1e-4,
  max_grad_norm=0.0,
  logprob_chunk=16,
)


def main(meshes):
  """Prints what the tests below check, one line of JSON per mesh."""
  # Twice the usual weights: each prompt gets its own answers, and rounding stays far below 1e-5.
  params = jax.device_get(jax.tree.map(lambda x: 2 * x, models.init(MODEL, jax.random.key(0))))
  inputs = made_up_inputs()
  layout = jax.jit(lambda p: models.sampling_params(MODEL, p))
  one_device = jax.device_put(params, jax.devices()[0])
  expected = jax.device_get(step(one_device, jax.tree.map(jnp.asarray, inputs), layout)[:3])
  for sizes in meshes:
    mesh = sharding.make_mesh(*sizes)
    print(json.dumps({"mesh": sizes, **on_mesh(mesh, params, inputs, expected)}), flush=True)
  if meshes == MESHES:
    print(json.dumps({"mesh": "layouts", **layouts(params)}), flush=True)
    print(json.dumps({"mesh": "errors", **errors()}), flush=True)


def made_up_inputs():
  """Prompts, experience and advantages. Rollouts are random: an update does not mind, and sampling
  them would need another compilation."""
  prompts = Prompts(
    tokens=np.asarray(jax.random.randint(jax.random.key(1), (P_, TP), 30, 320)),
    mask=np.arange(TP) >= np.array([2, 0, 3, 1, 0, 0, 4, 1])[:, None],
  )
  rng = np.random.default_rng(0)
  advantages = rng.normal(size=(P_, N)).astype(np.float32)
  mask = np.arange(T) < rng.integers(1, T + 1, (P_, N, 1))
  rollouts = Rollouts(
    prompts=prompts,
    tokens=rng.integers(0, 320, (P_, N, T)).astype(np.int32),
    mask=mask,
    logprobs=rng.normal(-6, 0.1, (P_, N, T)).astype(np.float32),
    entropies=np.zeros((P_, N, T), np.float32),
    truncated=mask[..., -1],
    features=np.zeros((P_, N, 3), np.float32),
  )
  experience = Experience(
    rollouts=rollouts,
    scores=np.zeros((P_, N), np.float32),
    token_rewards=np.zeros((P_, N, T), np.float32),
    domains=np.zeros(P_, np.int32),
    prompt_ids=np.arange(P_, dtype=np.int32),
  )
  return prompts, experience, advantages


def step(params, inputs, layout, sampling=SAMPLING):
  """(state after one update, its metrics, sampled answers, parameters in the sampling layout)."""
  prompts, experience, advantages = inputs
  sampling_params = layout(params)
  answers = rollout.sample(MODEL, sampling_params, prompts, jax.random.key(2), sampling)
  state = update.init(params, UPDATE)
  state, metrics = update.step(MODEL, UPDATE, state, experience, advantages)
  return state, metrics, answers, sampling_params


def on_mesh(mesh, params, inputs, expected):
  """The same step on a mesh: how far it is from `expected`, and the shapes of its shards."""
  shapes, axes = models.abstract_params(MODEL), models.logical_axes(MODEL)
  shardings = sharding.param_shardings(mesh, shapes, axes)
  sampling_shardings = sharding.param_shardings(
    mesh,
    jax.eval_shape(lambda p: models.sampling_params(MODEL, p), shapes),
    models.sampling_axes(MODEL),
    sharding.SAMPLING_RULES,
  )
  layout = jax.jit(lambda p: models.sampling_params(MODEL, p), out_shardings=sampling_shardings)
  # Two slots a device are drained in one, at times of its own or, with tensor shards, together.
  rollout.sampler.DRAIN, rollout.sampler.DRAIN_FROM = (2,), 2
  with jax.set_mesh(mesh):
    params = jax.device_put(params, shardings)
    fresh = adam(update.init(params, UPDATE))
    inputs = [sharding.put_batch(mesh, x) for x in inputs]
    state, metrics, answers, sampling_params = step(params, inputs, layout, SLOTS)
  moments = adam(state)
  return {
    **differences(jax.device_get((state, metrics, answers)), expected),
    "misplaced": {
      "fresh moments": misplaced(fresh.mu, shardings),
      "parameters": misplaced(state.params, shardings),
      "first moments": misplaced(moments.mu, shardings),
      "second moments": misplaced(moments.nu, shardings),
      "sampling parameters": misplaced(sampling_params, sampling_shardings),
    },
    "shards": shard_shapes(state.params, sampling_params, answers),
    "rows": sorted({x.index[0].start or 0 for x in answers.tokens.addressable_shards}),
  }


def differences(actual, expected):
  """Largest errors of (state, metrics, answers), and what makes their comparison meaningful."""
  (state, metrics, answers), (expected_state, expected_metrics, expected_answers) = actual, expected
  norm = float(expected_metrics["policy/grad_norm"])
  # As in test_update.py: gradients everywhere, parameters where the gradient is above its noise.
  gradient_error, parameter_error, compared, total = 0.0, 0.0, 0, 0
  trees = (adam(state).mu, adam(expected_state).mu, state.params, expected_state.params)
  for g, h, x, y in zip(*map(jax.tree.leaves, trees), strict=True):
    gradient_error = max(gradient_error, np.abs(g - h).max() / (1 - UPDATE.adam_b1) / norm)
    large = np.abs(h) > (1 - UPDATE.adam_b1) * 1e-4 * norm
    compared, total = compared + large.sum(), total + large.size
    parameter_error = max(parameter_error, np.abs(x - y)[large].max(initial=0))
  return {
    "gradient_error": float(gradient_error),
    "parameter_error": float(parameter_error),
    "compared": float(compared / total),
    "metrics_error": max(
      (abs(float(v) - float(metrics[k])) / max(1, abs(float(v))), k)
      for k, v in expected_metrics.items()
      if k != "update/useful_positions"  # devices have passes of their own shapes
    ),
    "same_answers": bool((answers.tokens == expected_answers.tokens).all()),
    "answers": len({tuple(row) for row in expected_answers.tokens[:, 0].tolist()}),
    "logprob_error": float(np.abs(answers.logprobs - expected_answers.logprobs).max()),
    "entropy_error": float(np.abs(answers.entropies - expected_answers.entropies).max()),
    "least_logprob": float(expected_answers.logprobs.min()),
  }


def adam(state):
  """Adam's moments in a TrainState."""
  return optax.tree_utils.tree_get(state.opt_state, "ScaleByAdamState")


def misplaced(tree, shardings):
  """Paths of the arrays that have another sharding."""
  same = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), tree, shardings)
  return [jax.tree_util.keystr(path) for path, ok in jax.tree.leaves_with_path(same) if not ok]


def shard_shapes(params, sampling_params, answers):
  """Shapes of one device's shards."""
  layers, sampling_layer = params["layers"], sampling_params["layers"][0]
  arrays = {
    "q_proj": layers["self_attn"]["q_proj"]["kernel"],
    "down_proj": layers["mlp"]["down_proj"]["kernel"],
    "embedding": params["embed_tokens"]["embedding"],
    "sampling qkv_proj": sampling_layer["self_attn"]["qkv_proj"]["kernel"],
    "sampling gate_proj": sampling_layer["mlp"]["gate_proj"]["kernel"],
    "tokens": answers.tokens,
    "logprobs": answers.logprobs,
  }
  return {name: x.addressable_shards[0].data.shape for name, x in arrays.items()}


def layouts(params):
  """Shards and products inside the programs on data=2 x fsdp=2 x tensor=2."""
  mesh = sharding.make_mesh(2, 2, 2)
  batch, time, vocab = 8, 9, MODEL.vocab_size
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, vocab, (batch, time))
  mask = np.arange(time) >= rng.integers(0, time, (batch, 1))
  q, k, v, ct = (rng.normal(size=(batch, time, n, 8)).astype(np.float32) for n in (8, 4, 4, 8))
  ct *= mask[:, :, None, None]

  def loss(params, tokens, mask):
    hidden, _ = models.hidden_states(MODEL, params, models.Rows(tokens, mask))
    return logprobs.token_logprobs(hidden, params["lm_head"]["kernel"], tokens)[0].sum()

  def gradients(function):
    return jax.jit(lambda *qkv: jax.vjp(lambda *x: function(*x, mask), *qkv)[1](ct))(q, k, v)

  expected = gradients(attention.xla)
  axes = models.logical_axes(MODEL)
  with jax.set_mesh(mesh):
    kernel = gradients(functools.partial(attention.splash, interpret=True))
    shardings = sharding.param_shardings(mesh, params, axes)
    shapes = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), params, shardings
    )
    rows = [
      jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.batch_sharding(mesh))
      for x in (tokens.astype(np.int32), mask)
    ]
    gradient = jax.jit(jax.grad(loss), out_shardings=shardings)
    text = gradient.lower(shapes, *rows).compile().as_text()

    @jax.jit
    def decode(q, k, v):
      """The last token of each row, after a prompt of the other 8."""
      cache = kv_cache.KVCache.empty(MODEL, batch, 16, jnp.int8)
      prompts = kv_cache.store(k[:, :-1], v[:, :-1], jnp.int8)
      cache = cache.insert(prompts, jnp.arange(batch), jnp.ones(batch, bool))
      lengths = jnp.full(batch, time - 1)
      new = (x[:, -1] for x in (q, k, v))
      return decode_attention.append_and_attend(*new, cache, lengths, lengths > 0, "xla")

    context, stored = decode(q, k, v)
    whole = attention.xla(q, k, v, np.ones_like(mask))[:, -1]
    drawing = jax.jit(lambda logits, keys: draw(logits, keys, RolloutConfig(top_k=5, top_p=0.9)))
    logits = jax.ShapeDtypeStruct(
      (24, 1024), jnp.float32, sharding=NamedSharding(mesh, P(sharding.BATCH, "tensor"))
    )
    keys = jax.random.split(jax.random.key(0), 24)
    keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=sharding.batch_sharding(mesh))
    drawing_text = drawing.lower(logits, keys).compile().as_text()
  shards = {x.addressable_shards[0].data.shape for x in jax.tree.leaves(stored)}
  products = re.findall(r"f32\[([\d,]+)\]\S* dot\(", text)
  return {
    "kernel_error": max(float(np.abs(a - b).max()) for a, b in zip(kernel, expected, strict=True)),
    "kernel_shard": kernel[0].addressable_shards[0].data.shape,
    "cache_shards": sorted(shards),
    "context_shard": context.addressable_shards[0].data.shape,
    "context_error": float(np.abs(context - whole).max()),
    "products": sorted(set(products)),
    "gathered": sorted(set(re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", text))),
    "scattered": sorted(
      set(re.findall(r"f32\[([\d,]+)\]\S* [\w-]+\(.*op_name=\"[^\"]*scatter-add", text))
    ),
    "sent": re.findall(r"= \w+\[([\d,]*)\]\S* (?:all|collective|reduce)[-\w]+\(", drawing_text),
  }


def errors():
  """Messages for sizes that do not fit 8 devices."""
  mesh = sharding.make_mesh(1, 4, 2)

  def shape(size):
    return {"a": {"kernel": jax.ShapeDtypeStruct((64, size), jnp.float32)}}

  axes = {"a": {"kernel": ("embed", "heads")}}
  messages = {}
  for name, call in {
    "product": lambda: sharding.make_mesh(2, 2, 1),
    "free": lambda: sharding.make_mesh(3, -1, 1),
    "two free": lambda: sharding.make_mesh(-1, -1, 1),
    "zero": lambda: sharding.make_mesh(0, -1, 1),
    "parameter": lambda: sharding.param_shardings(mesh, shape(63), axes),
    "batch": lambda: sharding.put_batch(mesh, {"x": np.zeros((6, 2))}),
  }.items():
    try:
      call()
    except ValueError as error:
      messages[name] = str(error)
  messages["remaining"] = dict(sharding.make_mesh(2, -1, 2).shape)
  return messages


@functools.cache
def script_output(meshes):
  """The script's results by mesh, for the meshes in a global of that name."""
  root = pathlib.Path(__file__).parents[2]
  flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
  env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  env["PYTHONPATH"] = os.pathsep.join(filter(None, [env.get("PYTHONPATH"), str(root)]))
  command = [sys.executable, __file__, meshes]
  process = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, timeout=600)
  assert process.returncode == 0, process.stderr[-3000:]
  lines = [json.loads(line) for line in process.stdout.splitlines()]
  return {r["mesh"] if isinstance(r["mesh"], str) else tuple(r["mesh"]): r for r in lines}


@pytest.fixture
def results(request):
  slow = request.node.get_closest_marker("slow") is not None
  return script_output("OTHER_MESHES" if slow else "MESHES")


each_mesh = pytest.mark.parametrize(
  "mesh",
  [*MESHES, *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in OTHER_MESHES)],
  ids="data{0[0]} fsdp{0[1]} tensor{0[2]}".format,
)


@each_mesh
def test_an_update_is_the_same_as_on_one_device(results, mesh):
  r = results[mesh]
  assert r["gradient_error"] < 1e-5
  assert r["compared"] > 0.3 and r["parameter_error"] < 1e-5
  assert r["metrics_error"][0] < 1e-5, r["metrics_error"][1]


@each_mesh
def test_samples_are_the_same_as_on_one_device(results, mesh):
  r = results[mesh]
  assert r["answers"] >= 4  # prompts have different answers, or equality would mean little
  assert r["same_answers"]
  assert r["least_logprob"] < -0.1  # not a point mass
  assert r["logprob_error"] < 1e-5 and r["entropy_error"] < 1e-5


@each_mesh
def test_parameters_moments_and_sampling_weights_are_sharded_by_the_rules(results, mesh):
  assert not any(results[mesh]["misplaced"].values()), results[mesh]["misplaced"]
  _, fsdp, tensor = mesh
  shards = results[mesh]["shards"]
  # By hand, so that a rule that shards nothing does not pass.
  assert shards["q_proj"] == [2, 64 // fsdp, 64 // tensor]
  assert shards["down_proj"] == [2, 96 // tensor, 64 // fsdp]
  assert shards["embedding"] == [320 // tensor, 64 // fsdp]
  assert shards["sampling qkv_proj"] == [4 // tensor, 4, 8, 64]
  assert shards["sampling gate_proj"] == [96 // tensor, 64]


@each_mesh
def test_rollouts_are_split_over_the_batch_axes(results, mesh):
  split = mesh[0] * mesh[1]
  shards = results[mesh]["shards"]
  assert shards["tokens"] == shards["logprobs"] == [P_ // split, 1, T]
  assert results[mesh]["rows"] == list(range(0, P_, P_ // split))


def test_splash_attention_runs_on_each_devices_rows_and_heads(results):
  assert results["layouts"]["kernel_error"] < 1e-5
  assert results["layouts"]["kernel_shard"] == [2, 9, 4, 8]


def test_caches_are_split_by_rows_and_key_heads(results):
  layouts = results["layouts"]
  assert layouts["cache_shards"] == [[2, 2, 128], [2, 2, 128, 8]]
  assert layouts["context_shard"] == [2, 4, 8] and layouts["context_error"] < 0.05  # int8


def test_no_device_computes_scores_or_logits_of_another(results):
  """8 rows over 4 devices, 8 heads (4 key heads) and 320 tokens over 2; 9 positions."""
  products = results["layouts"]["products"]
  logits = [shape for shape in products if shape.endswith(",160") or shape.endswith(",320")]
  assert logits and set(logits) <= {f"{2 * 9},160", "64,160"}, (
    products
  )  # 64: gradient of the unembedding
  scores = [shape for shape in products if shape.endswith(",9") or shape.endswith(",9,9")]
  assert scores and all(np.prod([int(n) for n in s.split(",")]) <= 2 * 4 * 81 for s in scores)


def test_the_embedding_is_not_gathered(results):
  """320 tokens over 2 devices, 64 features over 2: a device looks up and sums its own part."""
  assert "160,64" not in results["layouts"]["gathered"]
  assert results["layouts"]["gathered"]  # kernels are
  scattered = results["layouts"]["scattered"]  # gradients, and the updates of their rows
  assert "160,32" in scattered and not {"160,64", "320,32", "320,64"} & set(scattered)


def test_drawing_sends_no_scores(results):
  """24 rows over 4 devices, a vocabulary over 2: devices send sums and drawn tokens only, of their
  own rows."""
  sent = [[int(n) for n in shape.split(",") if n] for shape in results["layouts"]["sent"]]
  assert sent and all(max(shape) <= 256 and 24 not in shape for shape in sent), sent


@pytest.mark.parametrize(
  "name,parts",
  [
    ("product", ["data=2 x fsdp=2 x tensor=1", "need 4 devices, and there are 8"]),
    ("free", ["mesh.data=3 needs a multiple of 3", "there are 8"]),
    ("two free", ["data and fsdp"]),
    ("zero", ["mesh.data must be at least 1", "got 0"]),
    ("parameter", ["['a']['kernel']", "(64, 63)", "'heads'", "63", "mesh.tensor=2"]),
    ("batch", ["batch of 6", "4 batch shards", "data=1 x fsdp=4"]),
  ],
)
def test_sizes_that_do_not_fit_are_named(results, name, parts):
  assert name in results["errors"], f"{name}: no error"
  for part in parts:
    assert part in results["errors"][name]


@pytest.mark.parametrize(
  "sizes,devices,need",
  [
    ((1, -1, 4), 1, "mesh.tensor=4 needs 4 devices, and there is 1"),
    ((1, -1, 4), 6, "mesh.tensor=4 needs a multiple of 4 devices, and there are 6"),
    ((2, 4, 1), 4, "mesh.data=2 x mesh.fsdp=4 need 8 devices, and there are 4"),
    ((1, 2, 1), 8, "mesh.fsdp=2 needs 2 devices, and there are 8"),
    ((1, 1, 1), 2, "the mesh needs 1 device, and there are 2"),
  ],
)
def test_a_mesh_that_does_not_fit_says_what_it_needs_and_what_fits(sizes, devices, need):
  with pytest.raises(ValueError) as error:
    sharding.make_mesh(*sizes, devices=devices)
  message = str(error.value)
  assert message.startswith(need) and "experiments.compile_topology" in message
  product = math.prod(size for size in sizes if size > 1)
  assert re.search(rf"a --topology of (a multiple of )?{product} device", message)
  options = dict(re.findall(r"--config\.mesh\.(\w+)=(\d+)", message))
  asked = dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))
  sharding.make_mesh(**asked | {k: int(v) for k, v in options.items()}, devices=devices)


def test_an_axis_of_minus_one_takes_the_remaining_devices(results):
  assert results["errors"]["remaining"] == {"data": 2, "fsdp": 2, "tensor": 2}


def test_without_a_mesh_nothing_is_constrained():
  x = jnp.ones((3, 2))
  assert sharding.constrain(x, "batch", None) is x


if __name__ == "__main__":
  main(globals()[sys.argv[1]])
