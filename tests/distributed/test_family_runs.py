"""Ten steps of POISE by a tiny model of each family: eight devices (fsdp x tensor) train as one.

A step here is that of the training loop, with made-up prompts and a reward that depends on every
token. Run as a script, this file trains the families that it is given on both meshes, because the
number of devices is fixed when jax starts.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny_run import tiny

from poise_jax import models, rollout
from poise_jax.distributed import sharding
from poise_jax.learner import update
from poise_jax.models.families import FAMILIES
from poise_jax.training.build import build_step
from poise_jax.types import Experience, Prompts

STEPS, BOOTSTRAP = 10, 3
PROMPTS, N, WIDTH, LENGTH, VOCAB = 8, 2, 6, 8, 32
# Compared before the probe is fitted: states and fits multiply the rounding of earlier updates.
PROBE = ("features", "baselines", "advantages")
WINDOW = dict(layer_types=("sliding_attention", "full_attention"), sliding_window=4)
SHAPES = {  # what a family has beyond the sizes that all share
  "gemma3_text": dict(**WINDOW, sliding_rope_theta=1e2, query_pre_attn_scalar=5.0),
  "llama": dict(tie_word_embeddings=True),
  "mistral": WINDOW,
  "olmo3": dict(**WINDOW, sliding_rope_theta=1e2),
  "qwen2": dict(qkv_bias=True),
  "smollm3": dict(unrotated_layers=(1,), tie_word_embeddings=True),
}


def experiment_of(name, mesh):
  """The tiny run's options with a decoder of this family."""
  config = tiny(
    rollouts=PROMPTS * N,
    rollout__max_new_tokens=LENGTH,
    task__max_prompt_length=WIDTH,
    probe__bootstrap_steps=BOOTSTRAP,
    probe__buffer_rows=48,  # turns over
    probe__pca_prompt=0,  # components with almost equal variance turn with rounding
    probe__pca_response=0,
    train__minibatch_size=PROMPTS,
    train__microbatch_size=PROMPTS,
    train__loss__kl_coef=0.0,
    train__old_logprobs="sampler",
    eval_batch=PROMPTS,
  )
  norm = bool(FAMILIES[name].qk_norm)
  model = models.ModelConfig(name, VOCAB, 32, 48, 2, 4, 2, 8, qk_norm=norm, **SHAPES.get(name, {}))
  return build_step(config, mesh, model, eos_ids=(5, 9), domains=("even", "odd"))


def train(step_config, mesh, params):
  """The parameters after ten steps, and the results of each step, as NumPy arrays."""
  key, steps = jax.random.key(0), []
  places = jax.tree.map(lambda x: x.sharding, step_config.param_shapes)
  policy = update.init(jax.device_put(params, places), step_config.update)
  probe = step_config.estimator.init(policy.params)
  policy, probe = sharding.spread(mesh, (policy, probe))
  rng = np.random.default_rng(1)
  for step in range(STEPS):
    batch = sharding.put_batch(mesh, made_up_prompts(rng))
    sampling = step_config.sampling_params(policy.params)
    keys = jax.random.fold_in(key, step)
    rollouts = rollout.sample(step_config.model, sampling, batch, keys, step_config.rollout)
    experience = judged(mesh, rollouts)
    estimate = step_config.estimator.estimate(probe, experience)
    arguments = step_config.model, step_config.update, policy, experience, estimate.advantages
    policy, metrics = update.step(*arguments)
    probe = step_config.estimator.update(probe, experience, policy.params, estimate.aux)
    # Devices have passes of their own shapes.
    metrics = {k: v for k, v in metrics.items() if k != "update/useful_positions"}
    steps.append(
      jax.device_get(
        {
          "tokens": rollouts.tokens,
          "logprobs": rollouts.logprobs,
          "features": rollouts.features,
          "rewards": experience.rewards,
          "baselines": estimate.baselines,
          "advantages": estimate.advantages,
          "probe/active": estimate.metrics["probe/active"],
          **metrics,
        }
      )
    )
  return jax.device_get(policy.params), steps


def made_up_prompts(rng):
  """Prompts of unequal lengths, padded on the left."""
  mask = np.arange(WIDTH) >= rng.integers(0, WIDTH, (PROMPTS, 1))
  return Prompts(tokens=rng.integers(0, VOCAB, mask.shape).astype(np.int32), mask=mask)


def judged(mesh, rollouts):
  """Rewards 1 where the sum of a response's tokens is even."""
  tokens, mask = jax.device_get((rollouts.tokens, rollouts.mask))
  scores = ((tokens * mask).sum(-1) % 2 == 0).astype(np.float32)
  last = np.arange(LENGTH) == mask.sum(-1, keepdims=True) - 1
  fields = dict(
    scores=scores,
    token_rewards=(last * scores[..., None]).astype(np.float32),
    domains=np.arange(PROMPTS, dtype=np.int32) % 2,
    prompt_ids=np.arange(PROMPTS, dtype=np.int32),
  )
  return Experience(rollouts=rollouts, **sharding.put_batch(mesh, fields))


def main(names):
  """Prints a line of JSON for each family."""
  one = sharding.make_mesh(devices=jax.devices()[:1])
  eight = sharding.make_mesh(fsdp=4, tensor=2)
  for name in names:
    model = experiment_of(name, one).model
    start = jax.device_get(models.init(model, jax.random.key(1)))
    results = []
    for mesh in (one, eight):
      with jax.set_mesh(mesh):
        results.append(train(experiment_of(name, mesh), mesh, start))
    print(json.dumps({"name": name, **compared(start, *results)}), flush=True)


def compared(start, expected, actual):
  """The largest errors of eight devices, and what makes their comparison meaningful."""
  (end, steps), (other_end, other_steps) = expected, actual
  pairs = list(zip(other_steps, steps, strict=True))
  names = [name for name in steps[0] if name != "tokens"]
  moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), end, start)
  return {
    "same_tokens": [bool((a["tokens"] == b["tokens"]).all()) for a, b in pairs],
    "bootstrap": {
      name: max(error(a[name], b[name]) for a, b in pairs[:BOOTSTRAP]) for name in names
    },
    "all": {name: max(error(a[name], b[name]) for a, b in pairs) for name in names},
    "parameters": max(jax.tree.leaves(jax.tree.map(error, other_end, end))),
    "moved": min(jax.tree.leaves(moved)),
    "active": [float(step["probe/active"]) for step in steps],
    "rewards": [float(step["rewards"].mean()) for step in steps],
    "different": len({tuple(row) for row in steps[-1]["tokens"].reshape(-1, LENGTH).tolist()}),
  }


def error(a, b):
  """The largest difference, relative to b where b is above 1."""
  return float(np.max(np.abs(np.asarray(a) - b) / np.maximum(1, np.abs(b))))


@functools.cache
def script_output(names):
  """The script's results by family."""
  root = pathlib.Path(__file__).parents[2]
  flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
  path = os.pathsep.join([str(root), str(root / "tests")])
  env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
  command = [sys.executable, __file__, *names]
  done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, timeout=1200)
  assert done.returncode == 0, done.stderr[-3000:]
  return {r.pop("name"): r for r in map(json.loads, done.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_ten_steps_on_eight_devices_equal_those_on_one(name):
  result = script_output(tuple(sorted(FAMILIES)))[name]
  # Rounding could let another token be drawn, after which all differs. With this seed it does not.
  assert result["same_tokens"] == [True] * STEPS and result["all"]["rewards"] == 0
  assert result["different"] > PROMPTS
  assert max(result["bootstrap"].values()) < 1e-5, result["bootstrap"]
  later = {k: v for k, v in result["all"].items() if k not in PROBE}
  assert {"logprobs", "policy/grad_norm", "policy/loss"} <= later.keys()
  assert max(later.values()) < 1e-5, later
  assert result["parameters"] < 1e-5
  assert result["moved"] > 1e-3  # every array has learned
  assert result["active"] == [0.0] * BOOTSTRAP + [1.0] * (STEPS - BOOTSTRAP)
  assert all(0 < mean < 1 for mean in result["rewards"])


if __name__ == "__main__":
  main(sys.argv[1:])
