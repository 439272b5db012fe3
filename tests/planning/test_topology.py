"""Runs on hardware that is not there: arithmetic for GPUs, errors, and a compilation if libtpu is
installed."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from small_run import MODEL, SHAPE, small
from tiny_run import tiny

from configs import qwen3_4b_dapo_math
from poise_jax import models
from poise_jax.distributed import sharding
from poise_jax.planning import flops, hlo, roofline, topology, topology_results
from poise_jax.planning.chips import CHIPS
from poise_jax.planning.lengths import lengths_of
from poise_jax.planning.step import step_shapes

ROOT = pathlib.Path(__file__).parents[2]
NO_LIBTPU = importlib.util.find_spec("libtpu") is None


def test_large_arrays_are_named():
  text = """HloModule big

ENTRY %main (a: f32[2,64,512]) -> f32[2,64,512] {
  %a = f32[2,64,512]{2,1,0} parameter(0)
  %scores = bf16[4,96,96]{2,1,0} broadcast(%a)
  %chunk = f32[16,256]{1,0} broadcast(%a)
  ROOT %b = f32[2,32,96]{2,1,0} copy(%a)
}
"""
  assert topology.large_arrays(hlo.Program(text), MODEL, 2, 32, 64) == [
    "bf16[4, 96, 96] with two sequence axes (broadcast)",
    "f32[2, 32, 96] with two sequence axes (copy)",
    "f32[2, 64, 512] with a vocabulary axis (parameter)",
  ]


@pytest.mark.parametrize(
  "name,parts",
  [
    ("v5p", ["--topology=v5p must be CHIP:SHAPE", "v5e:8x8"]),
    ("v5p:4x", ["--topology=v5p:4x must"]),
    ("v9:2x2", ["chip in --topology 'v9'", "choose from h100", "v5e"]),
    ("h100:6", ["mesh.tensor=4", "there are 6"]),
    pytest.param(
      "v5e:4x4",
      ["libtpu", f"pip install 'jax[tpu]=={jax.__version__}'"],
      marks=pytest.mark.skipif(not NO_LIBTPU, reason="libtpu is installed"),
    ),
  ],
)
def test_an_impossible_topology_is_an_error_of_one_sentence(name, parts):
  with pytest.raises(ValueError) as error:
    topology.topology_step(qwen3_4b_dapo_math.get_config(), name)
  for part in parts:
    assert part in str(error.value)


def test_an_incomplete_shape_is_an_error():
  with pytest.raises(ValueError, match="model.shape lacks vocab_size"):
    topology.topology_step(tiny(), "h100:1")


def test_a_loaded_model_must_have_the_shape_of_the_config():
  MODEL.check_is(SHAPE)
  with pytest.raises(ValueError, match=r"model.shape.hidden_size=128, but .* has 256"):
    MODEL.check_is({**SHAPE, "hidden_size": 128})


@pytest.fixture(scope="module")
def ppo_on_gpus():
  config = small("ppo", mesh__fsdp=4, mesh__tensor=2, rollout__n=1, rollouts=32)
  return config, topology.report(config, "h100:8")


def test_gpu_memory_by_arithmetic(ppo_on_gpus):
  config, report = ppo_on_gpus
  memory = report.memory
  assert not report.compiled and report.mesh == {"data": 1, "fsdp": 4, "tensor": 2}
  count = sum(x.size for x in jax.tree.leaves(models.abstract_params(MODEL)))
  head_norms = 3 * 2 * 64  # replicated
  norms = (2 * 3 + 1) * 256  # sharded over fsdp only
  parameters = 4 * ((count - norms - head_norms) // 8 + norms // 4 + head_norms)
  assert memory.always["parameters"] == parameters
  assert 0 <= memory.always["optimizer"] - 2 * parameters < 64  # and its counters
  critic = memory.always["estimator (probe and buffer, critic, tracker)"]
  assert 3 * parameters < critic < 3.1 * parameters  # the policy, a value head, their moments
  length, width = config.rollout.max_new_tokens, config.task.max_prompt_length
  assert memory.sampling["caches"] == 3 * 2 * 2 * 64 * 4 * 32 * (length + width) // 8
  assert memory.fits and memory.limit == CHIPS["h100"].memory
  smaller = dataclasses.replace(memory, limit=memory.peak - 1)
  assert not smaller.fits and "raise mesh.tensor" in smaller.verdict


@pytest.mark.parametrize("chunk", [8, 0])
def test_the_caches_of_prefilled_prompts_are_counted(chunk):
  """On each of 4 shards 16 responses take turns in 4 slots: the caches of 4 prompts wait beside the
  slots, and the next ones are made beside both, in chunks in two layouts."""
  config = small("ppo", mesh__fsdp=4, mesh__tensor=2, rollout__n=1, rollouts=64)
  config.rollout.slots, config.rollout.prefill_chunk = 16, chunk
  config.task.max_prompt_length = width = 4096
  caches = 4 * width * 3 * 2 * 64 * 4  # 3 layers, keys and values, one of two heads on a device
  numbers = (3 * MODEL.intermediate_size + 4 * 4 * 64) // 2 + 4 * 256
  activations = 2 * 4 * (chunk or width) * numbers
  making = 2 * caches + activations if chunk else max(caches, activations)
  found = topology.report(config, "h100:8").memory.sampling["activations and logits"]
  assert found == caches + making


def test_gpu_flops_by_arithmetic(ppo_on_gpus):
  config, report = ppo_on_gpus
  length, width = config.rollout.max_new_tokens, config.task.max_prompt_length
  needed = flops.training_flops(MODEL, width, 1, length) * config.train.minibatch_size / 8
  assert report.flops["the update"].model == needed
  assert report.roofline.sampled_tokens_per_second > 0
  assert "nothing was compiled" in topology_results.text(report)


def test_an_update_that_the_compiler_rejects_counts_with_the_models_own_flops():
  step = topology.topology_step(small(), "h100:1")
  shapes = step_shapes(step)
  decoding = roofline.decode_step(step, shapes)
  times = roofline.roofline(step, shapes, CHIPS["h100"], {}, decoding)
  needed = shapes.optimizer_steps * roofline.model_flops(step, shapes)["the update"]
  assert times.updating_seconds == needed / CHIPS["h100"].flops


class OneLoop:
  """A compiled sampler with one decode loop."""

  entry = "main"

  def loops(self):
    return [("main", self)]

  def attribute(self, name):
    return "decode"

  def trip_count(self, loop):
    return None  # unknown

  def traffic(self, computation):
    return 1000

  def flops(self, computation=None):
    return 5.0

  def collective_bytes(self, computation=None):
    return {}


@pytest.mark.parametrize("name, with_kernel", [("paged_tpu", True), ("xla", False)])
def test_without_a_kernel_the_caches_count_as_read(name, with_kernel, monkeypatch):
  """Attention by blocks reads them in a loop, which the traffic of the decode loop leaves out."""
  step = topology.topology_step(small(), "h100:1")
  step = dataclasses.replace(step, mesh=sharding.make_mesh(devices=jax.devices()[:1]))
  shapes = step_shapes(step)
  decoding = roofline.decode_step(step, shapes)
  monkeypatch.setattr(topology.slots, "implementation", lambda *_: name)
  _, found = topology.compiled_work(step, shapes, decoding, {"the sampler": OneLoop()})
  assert found.bytes == 1000 + (0 if with_kernel else topology.cache_bytes(step))


@pytest.fixture(scope="module")
def ragged_report():
  config = small(mesh__fsdp=2, rollouts=32, rollout__max_new_tokens=2000, rollout__n=2)
  config.train.microbatch_size = 8
  return config, topology.report(config, "h100:2", lengths="lognormal:0.3,0.8")


def test_lengths_shorten_what_is_trained_and_decoded(ragged_report):
  config, report = ragged_report
  full = topology.report(config, "h100:2")
  assert report.memory.sizes["positions trained on per step"] < (
    0.6 * full.memory.sizes["positions trained on per step"]
  )
  assert full.ragged is None and full.useful_positions == 1.0
  assert report.useful_positions > 0.6
  times = report.ragged
  assert times.least_seconds < times.resident_seconds < 1.25 * times.least_seconds
  assert times.resident_seconds < times.slots_seconds
  assert times.resident_seconds < times.lockstep_seconds
  assert times.useful_rows < times.useful_slots < 1
  text = topology_results.text(report)
  for part in ("x the least", "positions of the update that hold a token", "whole step, each row"):
    assert part in text


def test_fewer_slots_take_more_rounds(ragged_report):
  config, report = ragged_report
  assert report.ragged.slots == 4  # a quarter of a device's 16 responses
  slots = config.copy_and_resolve_references()
  slots.rollout.slots = 12  # of 32 responses: 6 a device, which are filled three times
  fewer = topology.report(slots, "h100:2", lengths="lognormal:0.3,0.8")
  assert fewer.ragged.slots == 6 and "6 slots on each device" in topology_results.text(fewer)
  for changed, rounds in ((slots, 3), (config, 1)):
    step = topology.topology_step(changed, "h100:2")
    assert roofline.lockstep_steps(step, step_shapes(step)) == rounds * 2000
  assert fewer.ragged.resident_seconds < fewer.ragged.slots_seconds < report.ragged.slots_seconds
  assert fewer.ragged.step_tokens_per_second < report.ragged.step_tokens_per_second
  assert fewer.roofline.sampling_seconds > report.roofline.sampling_seconds


@pytest.mark.parametrize("slots", [0, 8])
def test_each_position_is_read_in_the_layers_whose_window_it_is_in(slots):
  """Bytes of a position by hand, whatever the number of slots and samples a prompt."""
  config = small(rollouts=32, rollout__n=2, rollout__slots=slots, mesh__tensor=2)
  config.model.shape = dict(
    SHAPE, layer_types=("sliding_attention", "full_attention", "sliding_attention")
  )
  config.model.shape.sliding_window = 48
  config.model.shape.model_type = "olmo3"
  step = topology.topology_step(config, "h100:4")
  cost = roofline.decode_cost(step, step_shapes(step))
  layer = 2 * 2 * 64 * 4 / 2  # keys and values of two heads in float32, on two devices
  assert cost.position == {48: 2 * layer, 0: layer}
  assert cost.row(np.array([20, 100])).tolist() == [60 * layer, (2 * 48 + 100) * layer]


@pytest.mark.parametrize(
  "lines,expected",
  [
    ("7\n7\n7\n", {7}),
    ('{"tokens": ["a", "b"], "reward": 1.0}\n{"tokens": ["c"]}\n', {1, 2}),
    ("9000\n", {2000}),  # cut at the limit
  ],
)
def test_lengths_of_a_run_are_read_from_a_file(ragged_report, tmp_path, lines, expected):
  (tmp_path / "lengths.txt").write_text(lines)
  step = topology.topology_step(ragged_report[0], "h100:2")
  lengths = lengths_of(step, str(tmp_path / "lengths.txt"))
  assert set(lengths.responses.tolist()) == expected and len(lengths) == 32


@pytest.mark.parametrize(
  "source,text,message",
  [
    ("lognormal:0.3", None, "--lengths=lognormal:0.3 must be lognormal:MEAN,SIGMA"),
    ("lognormal:0,1", None, "--lengths=lognormal:0,1 must be"),
    ("nowhere.txt", None, "is not a file that can be read"),
    ("a.txt", "12\ntwelve\n", "line 2: 'twelve' is neither a length nor"),
    ("b.txt", '{"reward": 1}\n', "line 1: .* is neither a length nor"),
    ("c.txt", "\n", "has no lengths"),
  ],
)
def test_malformed_lengths_are_named(ragged_report, tmp_path, monkeypatch, source, text, message):
  monkeypatch.chdir(tmp_path)
  if text is not None:
    (tmp_path / source).write_text(text)
  step = topology.topology_step(ragged_report[0], "h100:2")
  with pytest.raises(ValueError, match=message):
    lengths_of(step, source)


def test_a_step_names_the_shapes_of_its_passes(ragged_report):
  sizes = ragged_report[1].memory.sizes
  named = {name: count for name, count in sizes.items() if name.startswith("passes of ")}
  assert 1 <= len(named) <= 4 and sum(named.values()) >= sizes["optimizer steps per batch"]


def test_the_same_command_replaces_its_row(ppo_on_gpus, tmp_path):
  _, report = ppo_on_gpus
  for name in ("b.py:ppo", "a.py:ppo", "a.py:ppo"):
    topology_results.write_row(tmp_path, [f"--config={name}"], name, "h100:8", report)
  rows = json.loads((tmp_path / "results.json").read_text())
  assert [row["config"] for row in rows.values()] == ["a.py:ppo", "b.py:ppo"]
  readme = (tmp_path / "README.md").read_text()
  assert "| a:ppo | h100:8 (arithmetic) | 1 x 4 x 2 |" in readme and "1.00 x" in readme


def test_the_committed_table_is_that_of_its_results():
  folder = ROOT / "docs" / "results" / "topology"
  rows = json.loads((folder / "results.json").read_text())
  readme = topology_results.readme("topology", list(rows.values()))
  assert (folder / "README.md").read_text() == readme


def test_critics_and_moments_are_sharded_like_parameters():
  step = topology.topology_step(small("ppo", mesh__tensor=2, rollout__n=1), "h100:8")
  shapes = step_shapes(step)
  kernel = lambda tree: tree["layers"]["mlp"]["up_proj"]["kernel"]  # noqa: E731
  expected = kernel(shapes.params).sharding
  assert expected.spec == sharding.spec(("layers", "embed", "mlp"))
  assert kernel(shapes.estimator.params["decoder"]).sharding == expected
  moments = [x for x in jax.tree.leaves(shapes.state.opt_state) if x.shape == (3, 256, 512)]
  assert len(moments) >= 4 and all(x.sharding == expected for x in moments)
  assert shapes.estimator.params["value_head"]["bias"].sharding.is_fully_replicated
  assert shapes.rollouts.tokens.sharding == sharding.batch_sharding(step.mesh)


def test_the_command_in_the_readme_works(tmp_path):
  (line,) = re.findall(
    r"python -m experiments.compile_topology .*h100.*", (ROOT / "README.md").read_text()
  )
  command = [sys.executable, *line.split()[1:], f"--out={tmp_path}"]
  environment = {**os.environ, "PYTHONPATH": str(ROOT)}
  process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  assert process.returncode == 0, process.stderr
  assert "fits: a step needs about" in process.stdout and "tokens/s" in process.stdout
  assert list(json.loads((tmp_path / "results.json").read_text())) == [" ".join(line.split()[3:])]


@pytest.mark.skipif(NO_LIBTPU, reason="compiling for a TPU needs libtpu")
@pytest.mark.parametrize("slots", (0, 4))
def test_a_step_is_compiled_for_a_tpu(optimized, slots):
  code = """
import dataclasses, json, sys
from experiments.compile_topology import prepare
prepare()
from poise_jax.distributed import sharding
from poise_jax.planning import chips, topology
from small_run import small
devices = chips.topology_devices("v6e:8x8")
sharding.make_mesh(tensor=4, devices=devices)  # half of a ring
changes = dict(model__dtype="bfloat16", train__dtype="bfloat16", train__remat="full")
config = small(mesh__tensor=2, rollout__slots=int(sys.argv[1]), **changes)
config.model.shape = dict(config.model.shape, hidden_size=4096, intermediate_size=16384)
report = topology.report(config, "v5e:2x2")
print(json.dumps([report.memory.fits, dataclasses.asdict(report)]))
"""
  path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "planning")])
  path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), path]))
  process = subprocess.run(
    [sys.executable, "-c", code, str(slots)],
    env={**os.environ, "PYTHONPATH": path},
    capture_output=True,
    text=True,
  )
  assert process.returncode == 0, process.stderr
  fits, report = json.loads(process.stdout.splitlines()[-1])
  assert fits and report["memory"]["limit"] == CHIPS["v5e"].memory
  assert report["lengths"] == "" and report["ragged"] is None
  updates = [name for name in report["memory"]["programs"] if name.startswith("the update, ")]
  assert updates and report["memory"]["programs"][updates[0]]["temporary"] > 0
  assert report["compiled"] and report["mesh"] == {"data": 1, "fsdp": 2, "tensor": 2}
  for count in report["flops"].values():
    assert 0.9 < count["program"] / count["model"] < 3
  on_core = 2**27  # VMEM, where some of the weights stay from step to step
  decode = report["decode"]
  assert decode["least_bytes"] - on_core < decode["bytes"] < 1.2 * decode["least_bytes"]
