"""The table of estimators, their common interface, and estimators from outside the package."""

import dataclasses
import functools
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_batch import T, experience_of, padded

from experiments.bias_variance import estimator_of, experience
from poise_jax import estimators, models
from poise_jax.errors import UserError
from poise_jax.estimators import Estimator, EstimatorContext, ProbeConfig
from poise_jax.learner.update import UpdateConfig
from poise_jax.models import ModelConfig
from poise_jax.rollout import RolloutConfig
from poise_jax.rollout.features import feature_size
from poise_jax.types import Estimate

REWARDS = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0.2, 0.9, 0.5, 0.4]], np.float32)
MODEL = ModelConfig("qwen3", 8, 4, 8, 1, 1, 1, 2)
GROUP = ("rloo", "grpo", "dr_grpo", "reinforce_pp_baseline")
SINGLE = ("spo",)  # estimators of one response a prompt


def context_of(name):
  rollout = RolloutConfig(n=1 if name in SINGLE else 4, max_new_tokens=1, feature_layers=(0,))
  update = UpdateConfig(minibatch_size=4, microbatch_size=4)
  probe = ProbeConfig(bootstrap_steps=1, buffer_rows=16)
  return EstimatorContext(rollout, MODEL, update, probe, prompts=len(REWARDS))


@pytest.mark.parametrize("name", estimators.ESTIMATORS)
def test_every_estimator_has_the_same_interface(name):
  context = context_of(name)
  estimator = estimators.make(name, context)
  params = models.init(MODEL, jax.random.key(0))
  rewards = REWARDS[:, : context.rollout.n]
  width = feature_size(MODEL, context.rollout)
  batch = experience(rewards, np.random.default_rng(0).normal(size=(*rewards.shape, width)))
  batch = batch.replace(
    prompt_ids=jnp.arange(len(rewards)),
    reference_scores=jnp.array([[0.0, 1], [0, 0], [1, 1], [0.5, 0]]),
  )
  state = estimator.init(params)
  shapes = jax.tree.map(jnp.shape, state)
  for _ in range(3):
    estimate = estimator.estimate(state, batch)
    assert isinstance(estimate, Estimate)
    assert estimate.advantages.reshape(rewards.shape).shape == rewards.shape
    assert jnp.broadcast_shapes(estimate.baselines.shape, rewards.shape) == rewards.shape
    assert all(metric.shape == () for metric in estimate.metrics.values())
    state = estimator.update(state, batch, params, estimate.aux)
    assert jax.tree.map(jnp.shape, state) == shapes
  assert name.startswith("poise") == ("probe/mae" in estimate.metrics)
  if name not in ("grpo", "reinforce_pp_baseline", "reinforce_pp", "ppo", "spo"):  # these rescale
    np.testing.assert_allclose(estimate.advantages, rewards - estimate.baselines, atol=1e-6)
  if name == "pvpo":
    np.testing.assert_allclose(estimate.baselines[:, 0], [0.5, 0, 1, 0.25])
  if name == "spo":
    assert estimator.priorities(state).shape == (len(rewards),)


SLOW = ("poise_sibling", "ppo", "sppo")  # they compile for long; ppo and sppo refuse padding


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())
    for name in estimators.ESTIMATORS
  ],
)
def test_padding_changes_nothing(name):
  """Advantages and metrics of four groups, and the state after a step, with and without empty
  groups after them."""
  context = context_of(name)
  n, width = context.rollout.n, feature_size(MODEL, context.rollout)
  context = dataclasses.replace(
    context,
    rollout=dataclasses.replace(context.rollout, max_new_tokens=T),
    update=UpdateConfig(minibatch_size=4 * n, microbatch_size=2 * n),
    probe=dataclasses.replace(context.probe, min_rows=4, pca_response=2),
  )
  estimator = estimators.make(name, context)
  params = models.init(MODEL, jax.random.key(0))
  rng = np.random.default_rng(0)
  steps = [
    experience_of(
      rng.choice([0.1, 0.7, 0.9], (4, n)), rng.integers(1, T + 1, (4, n)), features=width, seed=seed
    )
    for seed in range(3)
  ]
  alone, among = estimator.init(params), estimator.init(params)
  for batch in steps:
    batch = batch.replace(prompt_ids=batch.prompt_ids[::-1])  # padding has the id of the last one
    full = padded(batch, 8)
    expected, actual = estimator.estimate(alone, batch), estimator.estimate(among, full)
    mask = np.asarray(batch.rollouts.mask)
    for x, y in ((expected.advantages, actual.advantages), (expected.baselines, actual.baselines)):
      x, y = np.asarray(x), np.asarray(y)[:4]
      if x.ndim == 3:  # a token's advantage counts where there is a token
        x, y = x[mask], y[mask]
      np.testing.assert_allclose(y, x, atol=1e-5)
    for metric, value in expected.metrics.items():
      np.testing.assert_allclose(actual.metrics[metric], value, atol=1e-5, err_msg=metric)
    alone = estimator.update(alone, batch, params, expected.aux)
    among = estimator.update(among, full, params, actual.aux)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, among, alone)
  assert np.abs(np.asarray(expected.advantages)).max() > 0.1


@pytest.mark.parametrize("name", ["poise", "poise_sibling", *GROUP])
def test_groups_of_one_are_refused(name):
  with pytest.raises(UserError, match=f"{name} .*rollout.n must be at least 2, got 1"):
    estimator_of(name, 1, 11, ProbeConfig())


@pytest.mark.parametrize("fields", [dict(own_rollout=True), dict(reads=("prompt",))])
def test_ablations_of_one_rollout_a_prompt(fields):
  """Those of the paper's Table 3; the sibling's reward has to come from a sibling."""
  config = ProbeConfig(**fields)
  batch = experience(np.array([[1.0], [0.0], [0.5]]), np.zeros((3, 1, 11)))
  estimator = estimator_of("poise", 1, 11, config)
  estimate = estimator.estimate(estimator.init(()), batch)
  np.testing.assert_allclose(estimate.baselines[:, 0], [0.25, 0.75, 0.5])
  with pytest.raises(UserError, match="poise_sibling .*rollout.n must be at least 2, got 1"):
    estimator_of("poise_sibling", 1, 11, config)
  for reads in (("prompt", "entropy"), ("response",)):
    with pytest.raises(UserError, match="poise .*at least 2, got 1.*own_rollout or probe.reads"):
      estimator_of("poise", 1, 11, ProbeConfig(reads=reads))


def test_a_context_that_does_not_suit_is_named():
  with pytest.raises(UserError, match="spo takes one response a prompt.*must be 1, got 2"):
    estimator_of("spo", 2, 11, ProbeConfig())
  with pytest.raises(UserError, match="poise reads hidden states: rollout.feature_layers"):
    estimators.make("poise", EstimatorContext(RolloutConfig(n=2), MODEL))


def test_an_unknown_name_suggests_the_nearest():
  message = "unknown estimator 'grpoo'; did you mean 'grpo'. choose from dr_grpo, grpo, poise, "
  with pytest.raises(UserError, match=message):
    estimators.make("grpoo", context_of("grpo"))
  for name in (":batch_mean", "module:", "my.module.batch_mean"):
    with pytest.raises(UserError, match=f"unknown estimator '{name}'"):
      estimators.make(name, context_of("grpo"))


SOURCE = '''
  import jax
  import jax.numpy as jnp
  from poise_jax.estimators import Estimator, EstimatorContext, stateless
  from poise_jax.types import Estimate, Experience


  def batch_mean(context: EstimatorContext) -> Estimator:
    """Reward minus the mean reward of the batch."""
    return stateless(estimate, needs_spread=context.rollout.n > 1)


  @jax.jit
  def estimate(experience: Experience) -> Estimate:
    rewards = experience.rewards  # [P, n]
    baselines = jnp.full_like(rewards, rewards.mean())
    return Estimate(advantages=rewards - baselines, baselines=baselines, metrics={})


  def advantages(context):
    return jnp.zeros((4, 4))


  MEAN = 0.5
'''


@pytest.fixture
def laboratory(tmp_path, monkeypatch):
  """A package on Python's path with a module `estimators`; returns its parent folder."""
  package = tmp_path / "laboratory"
  package.mkdir()
  (package / "__init__.py").touch()
  (package / "estimators.py").write_text(textwrap.dedent(SOURCE))
  (package / "broken.py").write_text("import no_such_dependency\n")
  monkeypatch.syspath_prepend(tmp_path)
  return tmp_path


@pytest.mark.parametrize("module", ["laboratory.estimators", "laboratory/estimators.py"])
def test_an_estimator_from_outside_the_package(laboratory, module, monkeypatch):
  monkeypatch.chdir(laboratory)
  estimator = estimators.make(f"{module}:batch_mean", context_of("grpo"))
  assert isinstance(estimator, Estimator) and estimator.needs_spread
  batch = experience(REWARDS, np.zeros((*REWARDS.shape, 0)))
  state = estimator.init(())
  estimate = estimator.estimate(state, batch)
  np.testing.assert_allclose(estimate.advantages, REWARDS - REWARDS.mean(), atol=1e-6)
  np.testing.assert_allclose(estimate.baselines, REWARDS.mean(), atol=1e-6)
  assert estimator.update(state, batch, (), estimate.aux) == state


@pytest.mark.parametrize(
  "name,message",
  [
    ("laboratory.missing:batch_mean", "No module named 'laboratory.missing'.*PYTHONPATH"),
    ("no_such_package:batch_mean", "No module named 'no_such_package'.*PYTHONPATH"),
    ("laboratory.broken:batch_mean", "No module named 'no_such_dependency'"),
    ("laboratory.estimators:median", "laboratory.estimators has no function 'median'"),
    ("laboratory.estimators:batch_maen", "functions are batch_mean, advantages"),
    ("laboratory.estimators:MEAN", "MEAN is a float, not a function; its functions are batch_mean"),
    ("missing/mine.py:batch_mean", "there is no file missing/mine.py in /"),
    ("laboratory.estimators:advantages", "must return a poise_jax.estimators.Estimator, got Array"),
  ],
)
@pytest.mark.usefixtures("laboratory")
def test_an_estimator_that_cannot_be_used_is_named(name, message):
  with pytest.raises(UserError, match=f"{name}.*{message}"):
    estimators.make(name, context_of("grpo"))
