"""The configs of the paper's second study: settings of the released code (v3), shapes, and the
task, built from small files."""

import guru_files
import jax
import pytest
import tensorflow_datasets as tfds

from configs import (
  common,
  guru_aime,
  guru_evaluation,
  olmo3_7b_guru,
  qwen3_4b_guru,
  r1_distill_1p5b_dapo_math,
  r1_distill_7b_dapo_math,
)
from poise_jax import models
from poise_jax.data import sources, templates
from poise_jax.estimators import ProbeConfig
from poise_jax.planning import topology
from poise_jax.planning.chips import parse_topology
from poise_jax.planning.step import step_shapes
from poise_jax.training import build

tfds.disable_progress_bar()
CONFIGS = (qwen3_4b_guru, olmo3_7b_guru)
each_config = pytest.mark.parametrize("module", CONFIGS, ids=lambda m: m.__name__)

ALL = {
  "rollouts": 512,
  "steps": 200,
  "seed": 42,
  "eval_every": 40,
  "checkpoint_every": 40,
  "task.max_prompt_length": 4096,
  "task.drop_long": True,
  "rollout.max_new_tokens": 8192,
  "rollout.temperature": 1.0,
  "rollout.top_p": 1.0,
  "train.minibatch_size": 64,  # 32 prompts x 2
  "train.learning_rate": 1e-6,
  "train.warmup_steps": 80,  # 10 batches of 8 optimizer steps
  "train.weight_decay": 0.01,
  "train.max_grad_norm": 1.0,
  "train.loss.kl_coef": 0.0,
  "train.loss.clip_low": 0.2,
  "train.loss.clip_high": 0.28,
  "eval.n": 1,
  "eval.temperature": 0.6,
  "eval.top_p": 0.95,
}
ARMS = {
  "poise": {
    "rollout.n": 2,
    "train.loss.dual_clip": 10.0,
    "train.loss.aggregation": "token-mean",
    "probe.bootstrap_steps": 16,
  },
  "rloo": {"rollout.n": 2, "train.loss.dual_clip": 10.0},
  "dapo": {"rollout.n": 8, "collect.dynamic_sampling": True},
  "ppo": {"rollout.n": 1},
}
PROBES = {
  qwen3_4b_guru: {
    "probe.alpha": 100.0,
    "probe.pca_prompt": 32,
    "probe.pca_response": 64,
    "rollout.feature_layers": (19,),
    "rollout.feature_window": 10,
    "task.think_end": "</think>",
  },
  olmo3_7b_guru: {
    "probe.alpha": 1000.0,
    "probe.pca_prompt": 16,
    "probe.pca_response": 128,
    "rollout.feature_layers": (7,),
    "rollout.feature_window": 32,
    "task.think_end": "",
  },
}


def field(config, name):
  """Value of a dotted name."""
  for part in name.split("."):
    config = config[part]
  return config


@each_config
@pytest.mark.parametrize("algorithm", ARMS)
def test_settings_are_those_of_the_released_code(module, algorithm):
  config = module.get_config(algorithm)
  for name, value in (ALL | ARMS[algorithm] | PROBES[module]).items():
    assert field(config, name) == value, name


@each_config
def test_the_first_papers_probe_stays_as_it_is(module):
  config = module.get_config("poise_v2")
  assert (config.probe.alpha, config.probe.pca_prompt, config.probe.pca_response) == (0.01, 0, 0)
  assert config.rollouts == 512 and config.train.minibatch_size == 64


@each_config
def test_training_and_validation_sets_are_those_of_the_released_code(module):
  config = module.get_config()
  trained = [sources.find(name) for name in config.task.dataset.train_on.split(",")]
  files = [file for source in trained for file in source.files["train"]]
  assert len(files) == 14 and not any("livecodebench" in file for file in files)
  assert {source.domain for source in trained} == set(qwen3_4b_guru.DOMAINS)
  held_out = config.task.dataset.test_on.split(",")
  assert sorted(config.eval.tasks) == sorted(held_out)
  files = [file for name in held_out for file in sources.find(name).files["test"]]
  assert len(files) == 12 and all(file.startswith("online_eval/") for file in files)
  for name, task in config.eval.tasks.items():
    assert task.dataset.test_on == name
    assert sources.find(name).domain in qwen3_4b_guru.DOMAINS


def test_every_benchmark_that_can_be_judged_is_evaluated():
  config = guru_evaluation.get_config()
  built = [name for name in sources.SOURCES if name.startswith("guru_test_")]
  assert sorted(config.eval.tasks) == sorted(built) and config.eval.n == 1
  config = guru_aime.get_config()
  assert list(config.eval.tasks) == ["aime_2025"] and config.eval.n == 32
  prompt = templates.resolve(config.task.template).replace("{question}", "How many?")
  assert prompt == "How many? Please output the final answer within \\boxed{}."


def parameters(module):
  shape = models.ModelConfig(**module.get_config().model.shape)
  return sum(x.size for x in jax.tree.leaves(models.abstract_params(shape)))


def test_olmos_shape_is_that_of_the_published_model():
  config = models.ModelConfig(**olmo3_7b_guru.get_config().model.shape)
  layer = 4 * 4096**2 + 3 * 4096 * 11008 + 4 * 4096  # two norms of outputs, two of projections
  assert parameters(olmo3_7b_guru) == 2 * 100278 * 4096 + 32 * layer + 4096
  assert [i for i, layer in enumerate(config.layers) if not layer.window] == list(range(3, 32, 4))
  assert {layer.window for layer in config.layers} == {0, 4096}


def test_r1_distill_7b_has_the_published_parameters():
  assert parameters(r1_distill_7b_dapo_math) == 7_615_616_512  # of Qwen2.5-7B
  small = r1_distill_1p5b_dapo_math.get_config("poise_v2")
  large = r1_distill_7b_dapo_math.get_config("poise_v2")
  for name in ("rollouts", "steps", "rollout.feature_layers", "task.template", "probe.alpha"):
    assert field(large, name) == field(small, name), name


@pytest.mark.parametrize("module", [*CONFIGS, r1_distill_7b_dapo_math], ids=lambda m: m.__name__)
@pytest.mark.parametrize("algorithm", common.ALGORITHMS)
def test_every_algorithm_divides_over_64_chips(module, algorithm, monkeypatch):
  # Only that sizes divide; not that memory suffices.
  monkeypatch.setattr(topology, "topology_devices", lambda name: parse_topology(name)[1])
  monkeypatch.setattr(build.jax, "eval_shape", lambda *_: None)
  monkeypatch.setattr(build, "sampling_layout", lambda *_: None)
  for name in ("v5p:4x4x4", "v6e:8x8"):
    step = topology.topology_step(module.get_config(algorithm), name)
    assert step.update.minibatch_size % step.update.microbatch_size == 0


def test_planning_knows_the_three_probes():
  step = topology.topology_step(qwen3_4b_guru.get_config(), "h100:64")
  state = step_shapes(step).estimator
  assert state.fitted.shape == (3,)
  assert state.buffer.targets.shape == (3, 2048, 2)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
  """The study with a small model, on one device, from small files."""
  folder = tmp_path_factory.mktemp("guru")
  config = qwen3_4b_guru.get_config()
  train_on, test_on = (config.task.dataset[name].split(",") for name in ("train_on", "test_on"))
  for name in (*train_on, *test_on):
    guru_files.write(folder, name, guru_files.PUBLISHED[name][0])
  leaked = guru_files.row("online_eval math__math_500, 1?", "7", "math")
  rows = [*guru_files.PUBLISHED["guru_math"][0]["train/math__combined_54.4k.parquet"], leaked]
  guru_files.write(folder, "guru_math", {"train/math__combined_54.4k.parquet": rows})
  config.model.shape = dict(
    model_type="qwen3",
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=20,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    qk_norm=True,
  )
  config.model.source = ""
  config.mesh.tensor = 1
  config.task.chat = False
  config.task.dataset.folder, config.task.dataset.data_dir = str(folder), str(folder / "built")
  return build.build(config)


def test_the_study_is_built_from_the_published_files(experiment):
  assert experiment.task.domains == tuple(sorted(qwen3_4b_guru.DOMAINS))
  names = {f"guru_val_{name}" for name in qwen3_4b_guru.VALIDATION}
  assert {test.name for test in experiment.held_out} == names
  assert all(len(test.examples) == 2 for test in experiment.held_out)
  assert experiment.task.left_out == {"held out as well": 1}
  assert len(experiment.task.train) == 14


def test_three_domains_have_a_probe_and_a_buffer(experiment):
  domains = experiment.task.domains
  names, index = ProbeConfig(**experiment.config.probe).probes_of(domains)
  probe_of = {domain: names[i] for domain, i in zip(domains, index, strict=True)}
  assert probe_of == dict.fromkeys(domains, "other") | {"math": "math", "code": "code"}
  state = jax.eval_shape(experiment.estimator.init, experiment.param_shapes)
  assert state.fitted.shape == (3,) and state.buffer.targets.shape == (3, 2048, 2)
  rows = ProbeConfig(**experiment.config.probe).rows_of(names)
  assert dict(zip(names, rows, strict=True)) == {"math": 4096, "code": 3072, "other": 3072}
