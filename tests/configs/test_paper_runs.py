"""The configs of the paper's runs: model shapes, and the settings of tables 4 to 6 (v2) and of the
released code (v3)."""

import jax
import pytest

from configs import common, qwen3_4b_dapo_math, r1_distill_1p5b_dapo_math
from poise_jax import models
from poise_jax.data import sources, templates
from poise_jax.planning import topology
from poise_jax.planning.chips import parse_topology
from poise_jax.training import build

CONFIGS = (qwen3_4b_dapo_math, r1_distill_1p5b_dapo_math)
each_config = pytest.mark.parametrize("module", CONFIGS, ids=lambda m: m.__name__)

V3 = {  # released code, config.sh and poise_fsdp.yaml
  "rollouts": 512,
  "steps": 200,
  "eval_every": 40,
  "train.minibatch_size": 64,
  "train.learning_rate": 1e-6,
  "train.warmup_steps": 80,  # 10 batches of 8 optimizer steps
  "train.weight_decay": 0.01,
  "train.max_grad_norm": 1.0,
  "train.loss.clip_low": 0.2,
  "train.loss.clip_high": 0.28,
  "train.loss.kl_coef": 0.0,
  "train.loss.entropy_coef": 0.0,
  "rollout.temperature": 1.0,
  "rollout.top_p": 1.0,
  "rollout.max_new_tokens": 8192,
  "task.max_prompt_length": 2048,
  "reward.overlong_buffer": 0,
}
PROBE_V3 = {
  "probe.alpha": 100.0,
  "probe.pca_prompt": 32,
  "probe.pca_response": 64,
  "probe.buffer_rows": 4096,
  "probe.bootstrap_steps": 16,
  "rollout.feature_layers": (19,),
  "rollout.feature_window": 10,
}
EXPECTED = {
  "poise": V3
  | PROBE_V3
  | {"rollout.n": 2, "train.loss.dual_clip": 10.0, "train.loss.aggregation": "token-mean"},
  "rloo": V3 | {"rollout.n": 2, "train.loss.dual_clip": 10.0},
  "grpo": V3 | {"rollout.n": 8, "train.loss.aggregation": "seq-mean-token-mean"},
  "dapo": V3 | {"rollout.n": 8, "collect.dynamic_sampling": True},
  "ppo": V3 | {"rollout.n": 1, "critic.learning_rate": 1e-5},
}
V2 = V3 | {"rollouts": {"qwen3": 2048, "qwen2": 1024}}
EXPECTED["poise_v2"] = V2 | {
  "steps": 120,
  "rollout.n": 2,
  "train.minibatch_size": 32,  # table 5's 16 prompts
  "train.warmup_steps": {"qwen3": 640, "qwen2": 320},
  "train.loss.aggregation": "seq-mean-token-mean",
  "probe.alpha": 0.01,
  "probe.pca_prompt": 0,
  "probe.pca_response": 0,
}
EXPECTED["dapo_greso"] = V2 | {
  "steps": 100,
  "rollout.n": 8,
  "train.minibatch_size": 128,  # table 6's 16 prompts
  "train.warmup_steps": {"qwen3": 160, "qwen2": 80},
  "collect.dynamic_sampling": True,
  "collect.greso_target": 0.25,
}


def field(config, name):
  """Value of a dotted name."""
  for part in name.split("."):
    config = config[part]
  return config


@each_config
@pytest.mark.parametrize("algorithm", EXPECTED)
def test_settings_are_those_of_the_paper(module, algorithm):
  config = module.get_config(algorithm)
  kind = config.model.shape.model_type
  for name, value in EXPECTED[algorithm].items():
    expected = value[kind] if isinstance(value, dict) else value
    assert field(config, name) == expected, name


@each_config
def test_other_surrogates_have_clip_bounds_of_their_own(module):
  assert module.get_config("gspo").train.loss.clip_high == 4e-4
  assert module.get_config("cispo").train.loss.clip_low == 1.0


@each_config
def test_evaluation_is_that_of_the_paper(module):
  config = module.get_config()
  assert (config.eval.n, config.eval.temperature, config.eval.top_p) == (32, 0.6, 0.95)
  assert set(config.eval.tasks) == set(qwen3_4b_dapo_math.TEST_SETS)
  for name in [config.task.dataset.train_on, *config.task.dataset.test_on.split(",")]:
    assert sources.find(name).name == name
  assert [task.dataset.test_on for task in config.eval.tasks.values()] == list(config.eval.tasks)
  assert templates.resolve(config.task.template).startswith("Solve the following math problem")


@pytest.mark.parametrize(
  "module,total,layers",
  [
    (qwen3_4b_dapo_math, 4_022_468_096, 3_633_511_936),  # "4.0B, 3.6B without embeddings"
    (r1_distill_1p5b_dapo_math, 1_777_088_000, 1_310_340_608),  # "1.78B"
  ],
)
def test_the_shape_is_that_of_the_published_model(module, total, layers):
  shape = models.ModelConfig(**module.get_config().model.shape)
  tree = models.abstract_params(shape)
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
  assert count(tree) == total
  assert count({k: v for k, v in tree.items() if k not in ("embed_tokens", "lm_head")}) == layers


@each_config
@pytest.mark.parametrize("algorithm", common.ALGORITHMS)
def test_every_algorithm_divides_over_the_meshes_in_the_docs(module, algorithm, monkeypatch):
  # Only that sizes divide; not that memory suffices.
  monkeypatch.setattr(topology, "topology_devices", lambda name: parse_topology(name)[1])
  monkeypatch.setattr(build.jax, "eval_shape", lambda *_: None)
  monkeypatch.setattr(build, "sampling_layout", lambda *_: None)
  slices = ("v5p:4x4x4", "v6e:8x8", "h100:8")
  for name in slices if module is qwen3_4b_dapo_math else ("v5p:2x2x2", "v6e:4x4", "v5e:4x8"):
    step = topology.topology_step(module.get_config(algorithm), name)
    assert step.update.minibatch_size % step.update.microbatch_size == 0
