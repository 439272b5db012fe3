"""Two processes (gloo on this machine) sample through slots what one device samples at once.

Run as a script, this file is one of the processes."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from poise_jax import models, rollout
from poise_jax.distributed import processes, sharding
from poise_jax.rollout import RolloutConfig
from poise_jax.rollout.busy import busy_rows
from poise_jax.types import Prompts

MODEL = models.ModelConfig("qwen3", 90, 32, 48, 1, 4, 2, 8, qk_norm=True, rope_theta=1e4)
P, N, T = 8, 3, 16
MARKER = 41  # an ordinary token, which a quarter of the responses have
# Prompts longer than a chunk, and four tokens that end one.
SAMPLING = RolloutConfig(
  n=N,
  max_new_tokens=T,
  temperature=0.8,
  top_k=12,
  eos_ids=(1, 2, 3, 4),
  feature_layers=(0,),
  feature_window=3,
  think_end=(MARKER,),
  prefill_chunk=3,
)
QUARTER = P * N // 4  # three slots on each of two devices
TOLERANCES = {"": 1e-4, "int8": 2e-3}  # a number between two steps of int8 is rounded either way
FIELDS = ("tokens", "mask", "truncated", "logprobs", "entropies", "features", "decode_starts")


def initial_params():
  """In NumPy; not made on a mesh, which would split a batch of one."""
  return jax.device_get(models.init(MODEL, jax.random.key(0)))


def sampled(params, cache_dtype, slots, mesh=None):
  """The rollouts in NumPy, and the rows that were busy in each decode step."""
  options = dataclasses.replace(SAMPLING, cache_dtype=cache_dtype, slots=slots)
  prompts = Prompts(
    tokens=np.random.default_rng(1).integers(5, 90, (P, 7)).astype(np.int32),
    mask=np.arange(7) >= np.array([2, 0, 6, 1, 0, 4, 3, 5])[:, None],
  )
  key = jax.random.key(2)
  if mesh is not None:
    params = sharding.spread(mesh, jax.tree.map(jnp.asarray, params))
    prompts, key = sharding.put_batch(mesh, prompts), sharding.spread(mesh, key)
  out = rollout.sample(MODEL, params, prompts, key, options)
  fields = {name: sharding.fetch(getattr(out, name)) for name in FIELDS}
  return fields | {"busy": busy_rows(out)}


def main(where, path, cache_dtype):
  """Process 0 writes {slots-field: array}."""
  with processes.started(where):
    params, mesh, arrays = initial_params(), sharding.make_mesh(2, 1, 1), {}
    with jax.set_mesh(mesh):
      for slots in (P * N, QUARTER):
        for name, x in sampled(params, cache_dtype, slots, mesh).items():
          arrays[f"{slots}-{name}"] = x
    if processes.is_first():
      np.savez(path, **arrays)


@pytest.fixture(
  scope="module",
  params=["", pytest.param("int8", marks=pytest.mark.slow)],
  ids=["float32 caches", "int8 caches"],
)
def cache_dtype(request):
  return request.param


@pytest.fixture(scope="module")
def by_two(cache_dtype, tmp_path_factory):
  """What the two processes sampled."""
  root, folder = pathlib.Path(__file__).parents[2], tmp_path_factory.mktemp("two")
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
  path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(root)]))
  environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
  running = []
  for index in range(2):
    command = [sys.executable, __file__, f"127.0.0.1:{port},2,{index}"]
    command += [str(folder / "all.npz"), cache_dtype]
    with (folder / f"{index}.log").open("w") as log:
      process = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log)
    running.append(process)
  codes = [process.wait(500) for process in running]
  assert codes == [0, 0], (folder / "0.log").read_text()[-3000:]
  with np.load(folder / "all.npz") as arrays:
    return dict(arrays)


@pytest.fixture(scope="module")
def by_one(cache_dtype):
  """What one process samples with a slot for each response."""
  return sampled(initial_params(), cache_dtype, 0)


@pytest.mark.parametrize("slots", [P * N, QUARTER])
def test_two_processes_sample_what_one_does(by_one, by_two, cache_dtype, slots):
  for name in ("tokens", "mask", "truncated"):
    np.testing.assert_array_equal(by_two[f"{slots}-{name}"], by_one[name])
  for name in ("logprobs", "entropies", "features"):
    actual, tolerance = by_two[f"{slots}-{name}"], TOLERANCES[cache_dtype]
    np.testing.assert_allclose(actual, by_one[name], atol=tolerance)


def test_the_case_says_something(by_one):
  """Responses of many lengths, some with a marker and text after it; none is a copy."""
  tokens, mask = by_one["tokens"], by_one["mask"]
  assert mask.sum(-1).min() <= 3 and mask.sum(-1).max() == T
  assert 0.1 < by_one["truncated"].mean() < 0.9
  assert 0.1 < ((tokens == MARKER) & mask)[..., :-1].any(-1).mean() < 0.9
  assert len({row.tobytes() for row in tokens.reshape(P * N, T)}) > 20


@pytest.mark.parametrize("slots", [P * N, QUARTER])
def test_busy_rows_are_those_of_all_processes(by_two, slots):
  busy, mask = by_two[f"{slots}-busy"], by_two[f"{slots}-mask"]
  lengths, starts = mask.sum(-1), by_two[f"{slots}-decode_starts"]
  assert busy.sum() == (lengths - 1).sum()
  assert busy.max() <= slots
  assert (starts > 0).any() == (slots < P * N)  # some responses waited
  halves = [starts[:4] + lengths[:4], starts[4:] + lengths[4:]]  # each device has a queue
  assert len(busy) == max(half.max() for half in halves) - 1


if __name__ == "__main__":
  main(*sys.argv[1:])
