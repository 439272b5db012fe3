"""Meshes of 8 devices give the results of one. Run as a script, this file computes them on 8 fake
CPU devices and prints JSON; under pytest it starts that script and checks what it printed."""

import functools
import json
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
from poise_jax.learner import losses, update
from poise_jax.learner.losses import PolicyLossConfig
from poise_jax.learner.update import UpdateConfig
from poise_jax.models import attention, kv_cache
from poise_jax.rollout import RolloutConfig
from poise_jax.rollout.draw import draw
from poise_jax.types import Prompts, Rollouts

MESHES = ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2))
OTHER_MESHES = ((4, 2, 1), (2, 4, 1), (4, 1, 2), (2, 1, 4), (1, 2, 4))  # slow tests
MODEL = models.ModelConfig("qwen3", 320, 64, 96, 2, 8, 4, 8, qk_norm=True, qkv_bias=True)
P_, N, TP, T = 8, 2, 5, 4
SAMPLING = RolloutConfig(n=1, max_new_tokens=T, temperature=0.5, eos_ids=tuple(range(30)))
UPDATE = UpdateConfig(
  loss=PolicyLossConfig(0.2, 0.28, 10.0),
  minibatch_size=16,
  microbatch_size=8,
  learning_rate=1e-4,
  max_grad_norm=0.0,
  logprob_chunk=16,
)


def main(meshes):
  """Prints, a line a mesh, what the tests below check."""
  # Twice the usual weights: prompts get answers of their own, and rounding stays far below 1e-5.
  host = jax.device_get(jax.tree.map(lambda x: 2 * x, models.init(MODEL, jax.random.key(0))))
  prompts = Prompts(
    tokens=np.asarray(jax.random.randint(jax.random.key(1), (P_, TP), 30, 320)),
    mask=np.arange(TP) >= np.array([2, 0, 3, 1, 0, 0, 4, 1])[:, None],
  )
  rng = np.random.default_rng(0)
  advantages = rng.normal(size=(P_, N)).astype(np.float32)
  mask = np.arange(T) < rng.integers(1, T + 1, (P_, N, 1))
  rollouts = Rollouts(  # made up: an update does not care, and sampling them takes a compilation
    prompts=prompts,
    tokens=rng.integers(0, 320, (P_, N, T)).astype(np.int32),
    mask=mask,
    logprobs=rng.normal(-6, 0.1, (P_, N, T)).astype(np.float32),
    entropies=np.zeros((P_, N, T), np.float32),
    truncated=mask[..., -1],
    features=np.zeros((P_, N, 3), np.float32),
  )

  def results(params, prompts, rollouts, advantages, layout):
    """Sampled answers, the weights they were made with, and one update."""
    decoding = layout(params)
    answers = rollout.sample(MODEL, decoding, prompts, jax.random.key(2), SAMPLING)
    state = update.init(params, UPDATE)
    state, metrics = update.step(MODEL, state, rollouts, advantages, UPDATE)
    return state, metrics, answers, decoding

  layout = jax.jit(lambda p: models.sampling_params(MODEL, p))
  one = jax.device_put(host, jax.devices()[0])
  state, metrics, answers, _ = results(one, prompts, rollouts, jnp.asarray(advantages), layout)
  reference = jax.device_get((state, metrics, answers))

  def adam(state):
    return optax.tree_utils.tree_get(state.opt_state, "ScaleByAdamState")

  def off(tree, shardings):
    """Paths of the arrays that do not lie where they should."""
    same = jax.tree.map(lambda a, s: a.sharding.is_equivalent_to(s, a.ndim), tree, shardings)
    return [jax.tree_util.keystr(path) for path, ok in jax.tree.leaves_with_path(same) if not ok]

  shapes, axes = models.abstract_params(MODEL), models.logical_axes(MODEL)
  decoding_shapes = jax.eval_shape(layout, shapes)
  for sizes in meshes:
    mesh = sharding.make_mesh(*sizes)
    wanted = sharding.param_shardings(mesh, shapes, axes)
    wanted_decoding = sharding.param_shardings(
      mesh, decoding_shapes, models.sampling_axes(MODEL), sharding.SAMPLING_RULES
    )
    layout = jax.jit(lambda p: models.sampling_params(MODEL, p), out_shardings=wanted_decoding)
    with jax.set_mesh(mesh):
      params = jax.device_put(host, wanted)
      fresh = update.init(params, UPDATE)
      assert not off(adam(fresh).mu, wanted), f"moments before a step, {sizes}"
      state, metrics, answers, decoding = results(
        params,
        sharding.put_batch(mesh, prompts),
        sharding.put_batch(mesh, rollouts),
        sharding.put_batch(mesh, advantages),
        layout,
      )
    got = jax.device_get((state, metrics, answers))
    moments, expected = adam(got[0]), adam(reference[0])
    norm = float(reference[1]["policy/grad_norm"])
    # As in test_update.py: gradients everywhere, parameters where the gradient is above its noise.
    gradient_error, parameter_error, compared, total = 0.0, 0.0, 0, 0
    for g, h, x, y in zip(
      *map(jax.tree.leaves, (moments.mu, expected.mu, got[0].params, reference[0].params)),
      strict=True,
    ):
      gradient_error = max(gradient_error, np.abs(g - h).max() / (1 - UPDATE.adam_b1) / norm)
      large = np.abs(h) > (1 - UPDATE.adam_b1) * 1e-4 * norm
      compared, total = compared + large.sum(), total + large.size
      parameter_error = max(parameter_error, np.abs(x - y)[large].max(initial=0))
    layers = state.params["layers"]
    embedding = state.params["embed_tokens"]["embedding"]
    result = {
      "mesh": sizes,
      "gradient_error": float(gradient_error),
      "parameter_error": float(parameter_error),
      "compared": float(compared / total),
      "metrics_error": max(
        (abs(float(v) - float(got[1][k])) / max(1, abs(float(v))), k)
        for k, v in reference[1].items()
      ),
      "same_answers": bool((got[2].tokens == reference[2].tokens).all()),
      "answers": len({tuple(row) for row in reference[2].tokens[:, 0].tolist()}),
      "logprob_error": float(np.abs(got[2].logprobs - reference[2].logprobs).max()),
      "entropy_error": float(np.abs(got[2].entropies - reference[2].entropies).max()),
      "least_logprob": float(reference[2].logprobs.min()),
      "off_params": off(state.params, wanted),
      "off_mu": off(adam(state).mu, wanted),
      "off_nu": off(adam(state).nu, wanted),
      "off_decoding": off(decoding, wanted_decoding),
      "q_proj": layers["self_attn"]["q_proj"]["kernel"].addressable_shards[0].data.shape,
      "down_proj": layers["mlp"]["down_proj"]["kernel"].addressable_shards[0].data.shape,
      "embedding": embedding.addressable_shards[0].data.shape,
      "decoding_qkv_proj": decoding["layers"][0]["self_attn"]["qkv_proj"]["kernel"]
      .addressable_shards[0]
      .data.shape,
      "decoding_gate_up_proj": decoding["layers"][0]["mlp"]["gate_up_proj"]["kernel"]
      .addressable_shards[0]
      .data.shape,
      "tokens": answers.tokens.addressable_shards[0].data.shape,
      "logprobs": answers.logprobs.addressable_shards[0].data.shape,
      "rows": sorted({s.index[0].start or 0 for s in answers.tokens.addressable_shards}),
    }
    print(json.dumps(result), flush=True)
  if meshes != MESHES:
    return
  print(json.dumps({"mesh": "layouts", **layouts(host)}), flush=True)
  print(json.dumps({"mesh": "errors", **errors()}), flush=True)


def layouts(params):
  """What lies and is computed where on data=2 x fsdp=2 x tensor=2, inside of the programs."""
  mesh = sharding.make_mesh(2, 2, 2)
  batch, time, vocab = 8, 9, MODEL.vocab_size
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, vocab, (batch, time))
  mask = np.arange(time) >= rng.integers(0, time, (batch, 1))
  q, k, v, ct = (rng.normal(size=(batch, time, n, 8)).astype(np.float32) for n in (8, 4, 4, 8))
  ct *= mask[:, :, None, None]

  def loss(params, tokens, mask):
    hidden, _ = models.hidden_states(MODEL, params, models.Rows(tokens, mask))
    logprobs, _ = losses.token_logprobs(hidden, params["lm_head"]["kernel"], tokens)
    return logprobs.sum()

  def gradients(function):
    return jax.jit(lambda *qkv: jax.vjp(lambda *x: function(*x, mask), *qkv)[1](ct))(q, k, v)

  expected = gradients(attention.xla)
  axes = models.logical_axes(MODEL)
  with jax.set_mesh(mesh):
    kernel = gradients(functools.partial(attention.splash, interpret=True))
    shapes = jax.tree.map(
      lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
      params,
      sharding.param_shardings(mesh, params, axes),
    )
    rows = [
      jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.batch_sharding(mesh))
      for x in (tokens.astype(np.int32), mask)
    ]
    text = jax.jit(jax.grad(loss)).lower(shapes, *rows).compile().as_text()
    store = jax.jit(lambda k, v: kv_cache.grow(kv_cache.store(k, v, jnp.int8), 16))
    stored = store(k, v)
    drawing = jax.jit(lambda logits, keys: draw(logits, keys, RolloutConfig(top_k=5, top_p=0.9)))
    logits = jax.ShapeDtypeStruct(
      (1024, 24), jnp.float32, sharding=NamedSharding(mesh, P("tensor", sharding.BATCH))
    )
    keys = jax.random.split(jax.random.key(0), 24)
    keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=sharding.batch_sharding(mesh))
    drawn = drawing.lower(logits, keys).compile().as_text()
  shards = {x.addressable_shards[0].data.shape for x in jax.tree.leaves(stored)}
  products = re.findall(r"f32\[([\d,]+)\]\S* dot\(", text)
  return {
    "kernel_error": max(float(np.abs(a - b).max()) for a, b in zip(kernel, expected, strict=True)),
    "kernel_shard": kernel[0].addressable_shards[0].data.shape,
    "cache_shards": sorted(shards),
    "products": sorted(set(products)),
    "sent": re.findall(r"= \w+\[([\d,]*)\]\S* (?:all|collective|reduce)[-\w]+\(", drawn),
  }


def errors():
  """What is said to sizes that do not fit 8 devices."""
  mesh = sharding.make_mesh(1, 4, 2)

  def shape(size):
    return {"a": {"kernel": jax.ShapeDtypeStruct((64, size), jnp.float32)}}

  axes = {"a": {"kernel": ("embed", "heads")}}
  said = {}
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
      said[name] = str(error)
  said["left"] = dict(sharding.make_mesh(2, -1, 2).shape)
  return said


@functools.cache
def printed(which):
  """What the script prints for some of the meshes, by mesh."""
  root = pathlib.Path(__file__).parents[2]
  flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
  env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  env["PYTHONPATH"] = os.pathsep.join(filter(None, [env.get("PYTHONPATH"), str(root)]))
  command = [sys.executable, __file__, which]
  done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stderr[-3000:]
  lines = [json.loads(line) for line in done.stdout.splitlines()]
  return {r["mesh"] if isinstance(r["mesh"], str) else tuple(r["mesh"]): r for r in lines}


@pytest.fixture
def results(request):
  others = request.node.get_closest_marker("slow") is not None
  return printed("OTHER_MESHES" if others else "MESHES")


each_mesh = pytest.mark.parametrize(
  "mesh",
  [*MESHES, *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in OTHER_MESHES)],
  ids="data{0[0]} fsdp{0[1]} tensor{0[2]}".format,
)


@each_mesh
def test_an_update_equals_that_of_one_device(results, mesh):
  r = results[mesh]
  assert r["gradient_error"] < 1e-5
  assert r["compared"] > 0.3 and r["parameter_error"] < 1e-5
  assert r["metrics_error"][0] < 1e-5, r["metrics_error"][1]


@each_mesh
def test_samples_equal_those_of_one_device(results, mesh):
  r = results[mesh]
  assert r["answers"] >= 4  # the prompts get answers of their own, or equality says little
  assert r["same_answers"]
  assert r["least_logprob"] < -0.1  # none of this is a point mass
  assert r["logprob_error"] < 1e-5 and r["entropy_error"] < 1e-5


@each_mesh
def test_parameters_moments_and_sampling_weights_lie_where_the_rules_say(results, mesh):
  r = results[mesh]
  assert not r["off_params"] and not r["off_mu"] and not r["off_nu"] and not r["off_decoding"]
  _, fsdp, tensor = mesh
  # By hand, so that a rule that shards nothing does not pass.
  assert r["q_proj"] == [2, 64 // fsdp, 64 // tensor]
  assert r["down_proj"] == [2, 96 // tensor, 64 // fsdp]
  assert r["embedding"] == [320 // tensor, 64 // fsdp]
  assert r["decoding_qkv_proj"] == [4 // tensor, 4, 8, 64]
  assert r["decoding_gate_up_proj"] == [2, 96 // tensor, 64]


@each_mesh
def test_rollouts_are_spread_over_the_batch_axes(results, mesh):
  r = results[mesh]
  shards = mesh[0] * mesh[1]
  assert r["tokens"] == r["logprobs"] == [P_ // shards, 1, T]
  assert r["rows"] == list(range(0, P_, P_ // shards))


def test_splash_runs_on_the_rows_and_heads_of_each_device(results):
  assert results["layouts"]["kernel_error"] < 1e-5
  assert results["layouts"]["kernel_shard"] == [2, 9, 4, 8]


def test_caches_are_split_by_rows_and_key_heads(results):
  assert results["layouts"]["cache_shards"] == [[2, 2, 1, 8, 32], [2, 2, 1, 32, 8], [2, 2, 32]]


def test_no_device_computes_scores_or_logits_of_another(results):
  """8 rows over 4, 8 heads (4 key heads) and 320 tokens over 2; 9 positions."""
  products = results["layouts"]["products"]
  logits = [shape for shape in products if shape.endswith(",160") or shape.endswith(",320")]
  assert logits and set(logits) <= {f"{2 * 9},160", "64,160"}, products  # 64: of the unembedding
  scores = [shape for shape in products if shape.endswith(",9") or shape.endswith(",9,9")]
  assert scores and all(np.prod([int(n) for n in s.split(",")]) <= 2 * 4 * 81 for s in scores)


def test_drawing_sends_no_scores(results):
  """24 rows over 4 devices, a vocabulary over 2: only sums and what was drawn, of own rows."""
  sent = [[int(n) for n in shape.split(",") if n] for shape in results["layouts"]["sent"]]
  assert sent and all(max(shape) <= 256 and 24 not in shape for shape in sent), sent


@pytest.mark.parametrize(
  "name,parts",
  [
    ("product", ["data=2 x fsdp=2 x tensor=1", "8 devices"]),
    ("free", ["data=3", "8 devices"]),
    ("two free", ["data and fsdp"]),
    ("zero", ["mesh.data=0"]),
    ("parameter", ["['a']['kernel']", "(64, 63)", "'heads'", "63", "mesh.tensor=2"]),
    ("batch", ["batch of 6", "4 batch shards", "data=1 x fsdp=4"]),
  ],
)
def test_sizes_that_do_not_fit_are_named(results, name, parts):
  assert name in results["errors"], f"{name}: no error"
  for part in parts:
    assert part in results["errors"][name]


def test_what_is_left_of_the_devices(results):
  assert results["errors"]["left"] == {"data": 2, "fsdp": 2, "tensor": 2}


def test_outside_of_a_mesh_nothing_is_constrained():
  x = jnp.ones((3, 2))
  assert sharding.constrain(x, "batch", None) is x


if __name__ == "__main__":
  main(globals()[sys.argv[1]])
