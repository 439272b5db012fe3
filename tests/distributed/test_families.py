"""Decoders whose layers differ, on eight devices: gradients and samples are those of one device.

Run as a script, this file computes both, because the number of devices is fixed when jax starts.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poise_jax import models, rollout
from poise_jax.distributed import sharding
from poise_jax.types import Prompts

KINDS = ("sliding_attention", "full_attention")
SIZES = (64, 32, 48, 2, 4, 2, 8)
SHARED = dict(qk_norm=True, layer_types=KINDS, sliding_window=3, sliding_rope_theta=1e2)
CONFIGS = {
  "olmo3": models.ModelConfig("olmo3", *SIZES, **SHARED),
  "gemma3_text": models.ModelConfig(
    "gemma3_text", *SIZES, **SHARED, tie_word_embeddings=True, query_pre_attn_scalar=5
  ),
}
ROLLOUT = rollout.RolloutConfig(n=2, max_new_tokens=5, feature_layers=(1,), feature_window=2)


def results(config, params, prompts):
  """Gradients of a loss of all states, and samples."""
  rows = models.Rows(prompts.tokens, prompts.mask)

  def loss(params):
    hidden, _ = models.hidden_states(config, params, rows, remat="full")
    return (jnp.sin(hidden) * rows.segments[..., None]).sum()

  gradients = jax.jit(jax.grad(loss))(params)
  out = rollout.sample(config, params, prompts, jax.random.key(2), ROLLOUT)
  return jax.device_get((gradients, out.logprobs, out.features, out.tokens))


def main(name):
  config = CONFIGS[name]
  params = jax.tree.map(lambda x: 3 * x, models.init(config, jax.random.key(0)))
  mask = np.arange(8) >= np.array([0, 5, 1, 7])[:, None]
  tokens = np.random.default_rng(0).integers(0, 64, mask.shape)
  prompts = Prompts(tokens=tokens.astype(np.int32), mask=mask)
  expected = results(config, params, jax.tree.map(jnp.asarray, prompts))
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  shapes, axes = models.abstract_params(config), models.logical_axes(config)
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, sharding.param_shardings(mesh, shapes, axes))
    actual = results(config, placed, sharding.put_batch(mesh, prompts))
  leaves = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
  errors = [float(np.abs(a - b).max() / max(1, np.abs(b).max())) for a, b in leaves]
  scale = placed["layers"]["self_attn"]["q_norm"]["scale"]
  print(json.dumps({"errors": errors, "norm": scale.addressable_shards[0].data.shape}))


@pytest.mark.parametrize(
  "name,norm",
  [("olmo3", [2, 16]), pytest.param("gemma3_text", [2, 8], marks=pytest.mark.slow)],
)
def test_eight_devices_equal_one(name, norm):
  """OLMo's queries are normalised over all heads, which the tensor axis splits."""
  root = pathlib.Path(__file__).parents[2]
  flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
  env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
  command = [sys.executable, __file__, name]
  done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, timeout=600)
  assert done.returncode == 0, done.stderr[-3000:]
  result = json.loads(done.stdout.splitlines()[-1])
  assert result["norm"] == norm
  assert len(result["errors"]) > 10 and max(result["errors"]) < 1e-5, result["errors"]


if __name__ == "__main__":
  main(sys.argv[1])
