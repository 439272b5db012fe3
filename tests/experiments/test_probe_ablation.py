"""The ablations find information where it was put, and nowhere else."""

import types

import numpy as np
import pytest
from tiny_run import tiny

from experiments import critics, probe_ablation
from poise_jax.errors import UserError
from poise_jax.estimators import ProbeConfig
from poise_jax.training import build

PROMPTS, N, WIDTH, LAYERS = 200, 4, 6, (3, 7)


@pytest.fixture(scope="module")
def data():
  """Response states of layer 7 contain the values of the prompts; all else is noise."""
  rng = np.random.default_rng(0)
  value = rng.beta(0.5, 0.5, size=PROMPTS)
  rewards = (rng.random((PROMPTS, N)) < value[:, None]).astype(np.float32)
  blocks = rng.normal(size=(PROMPTS, N, 2, len(LAYERS), WIDTH))
  blocks[..., 1, 1, 0] += 6 * value[:, None]
  entropies = rng.random((PROMPTS, N, 3))
  features = np.concatenate([blocks.reshape(PROMPTS, N, -1), entropies], -1).astype(np.float32)
  lengths = rng.integers(1, 9, (PROMPTS, N))
  return probe_ablation.Data(rewards, features, lengths, LAYERS, np.zeros(PROMPTS, np.int64))


def numbers(data, layer):
  config = ProbeConfig(alpha=10.0, mlp_steps=3)
  text = probe_ablation.table(
    probe_ablation.results(probe_ablation.predictions(data, layer, config), data)
  )
  cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
  return {c[0]: [float(x) for x in c[1:]] for c in cells}


def test_information_is_found_where_it_is(data):
  rows = numbers(data, layer=7)
  for name in ("POISE: states and entropies of the sibling", "response alone", "layer 7"):
    mae, r, within, reduction = rows[name]
    assert r > 0.6 and mae < 0.3 and reduction > 0.25, name
    assert within == r, name  # all prompts are of one level
  for name in ("prompt alone", "entropy alone", "length alone", "layer 3"):
    assert abs(rows[name][1]) < 0.25 and rows[name][3] < 0.05, name
  assert rows["layer 7"] == rows["POISE: states and entropies of the sibling"]
  assert rows["a constant: the other half's mean"][1:] == [0, 0, 0]


def test_within_a_level_its_mean_says_nothing(data):
  """Values of two levels that differ in half of the prompts; the response knows the rest."""
  levels = np.arange(PROMPTS) % 2
  rng = np.random.default_rng(1)
  known = rng.random(PROMPTS) < 0.5
  value = 0.8 * levels * ~known + 0.9 * rng.integers(0, 2, PROMPTS) * known
  rewards = (rng.random((PROMPTS, N)) < value[:, None]).astype(np.float32)
  features = data.features.copy()
  features[..., :WIDTH] = (4 * levels)[:, None, None]  # the prompt's states of layer 3 show it
  features[..., 2 * WIDTH : 3 * WIDTH] = (4 * value)[:, None, None]
  data = probe_ablation.Data(rewards, features, data.lengths, LAYERS, levels)
  rows = numbers(data, layer=3)
  for name in (probe_ablation.LEVEL, "prompt alone"):
    assert rows[name][1] > 0.4 and rows[name][2] == 0, name
  assert rows["response alone"][2] > rows["prompt alone"][1]


def test_the_mean_of_a_level_by_hand():
  rewards = np.array([[1, 0], [1, 1], [0, 0], [0, 0], [1, 1], [0, 1]], np.float32)
  features, lengths = np.zeros((6, 2, 15), np.float32), np.ones((6, 2), np.int64)
  levels = np.array([2, 2, 5, 2, 7, 5])
  data = probe_ablation.Data(rewards, features, lengths, (3,), levels)
  np.testing.assert_array_equal(probe_ablation.of_level(data), [[0.75] * 2, [0.5] * 2, [0] * 2])
  numbers = probe_ablation.quality(rewards[3:], rewards[3:], np.array([0, 0, 1]))
  # Subtracted: 1/2 from the first two prompts, all that there is from the last one.
  predicted, target = [-0.5, -0.5, 0.5, 0.5, -0.5, 0.5], [-0.5, -0.5, 0.5, 0.5, 0.5, -0.5]
  expected = np.corrcoef(predicted, target)[0, 1]
  np.testing.assert_allclose(numbers["r within a level"], expected, rtol=1e-6)


def test_the_siblings_reward_by_hand(data):
  """The row of RLOO; and the reward helps a probe whose states are noise."""
  rewards = data.rewards[PROMPTS // 2 :]
  advantages, errors = [], []
  for group in rewards:
    for i, j in ((0, 1), (1, 0), (2, 3), (3, 2)):
      advantages.append(group[i] - group[j])
      errors.append(abs(group[i] - np.mean(np.delete(group, i))))
  rows = numbers(data, layer=3)
  mae, _, _, reduction = rows["the sibling's reward (RLOO, n = 2)"]
  np.testing.assert_allclose(mae, np.mean(errors), atol=6e-4)
  np.testing.assert_allclose(reduction, 1 - np.var(advantages) / rewards.var(), atol=6e-4)
  blind, sibling = (rows[k][3] for k in rows if k.startswith(("POISE", "poise_sibling")))
  assert sibling > max(blind, reduction) + 0.1


def set_flags(monkeypatch, **values):
  for name, value in values.items():
    monkeypatch.setattr(probe_ablation, name, types.SimpleNamespace(value=value))


@pytest.mark.parametrize("with_critics", (False, pytest.param(True, marks=pytest.mark.slow)))
def test_the_command_samples_once_and_writes_its_table(monkeypatch, tmp_path, with_critics):
  """test_critics tests what critics learn."""
  set_flags(monkeypatch, PROMPTS=6, SAMPLES=2, LAYERS=["0"], CRITICS=with_critics)
  short = {name: critics.Search(name, 1) for name in ("sppo", "ppo")}
  monkeypatch.setattr(critics, "SEARCHES", short)
  monkeypatch.setattr(probe_ablation, "ALPHAS", (1.0,))
  monkeypatch.setattr(probe_ablation, "WIDTHS", ((4,),))
  changes = {"warm_start.steps": 0, "probe.pca_prompt": 2, "probe.pca_response": 2}
  config = tiny(**{name.replace(".", "__"): value for name, value in changes.items()})
  config.probe.mlp_steps = 2
  probe_ablation.ablate(config, str(tmp_path / "out"))
  arrays = np.load(tmp_path / "out" / "rollouts.npz")
  assert arrays["rewards"].shape == (6, 2) and arrays["features"].shape == (6, 2, 4 * 32 + 3)
  text = (tmp_path / "out" / "README.md").read_text()
  assert with_critics == ("| critic of sppo |" in text) == ("| critic of ppo |" in text)
  assert "| layer 0 |" in text and "6 prompts x 2 answers" in text and '"commit"' in text
  (tmp_path / "out" / "README.md").unlink()
  monkeypatch.setattr(probe_ablation, "sample", None)  # must not be called
  probe_ablation.ablate(config, str(tmp_path / "out"))
  assert (tmp_path / "out" / "README.md").exists()


@pytest.fixture(scope="module")
def experiment():
  return build.build(tiny())


@pytest.mark.parametrize(
  "changes, prompts, difference",
  (
    ({"seed": 3}, 6, "seed: 2 -> 3"),
    ({"rollout.temperature": 0.5}, 6, "rollout.temperature: 1.0 -> 0.5"),
    ({"rollout.feature_layers": (0,)}, 6, "rollout.feature_layers: "),
    ({}, 8, "prompts: 6 -> 8"),
  ),
)
def test_answers_of_another_config_are_not_read(
  monkeypatch, tmp_path, experiment, changes, prompts, difference
):
  """Also if no more than the answers were written."""
  set_flags(monkeypatch, PROMPTS=6, SAMPLES=2, LAYERS=[], CRITICS=False)

  def stop(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(build, "build", lambda config: experiment)
  monkeypatch.setattr(probe_ablation, "predictions", stop)
  monkeypatch.setattr(probe_ablation, "sample", write_answers)
  monkeypatch.setattr(probe_ablation.answers, "params_of", lambda _: {})
  with pytest.raises(KeyboardInterrupt):
    probe_ablation.ablate(tiny(), str(tmp_path / "out"))
  set_flags(monkeypatch, PROMPTS=prompts)
  other = {name.replace(".", "__"): value for name, value in changes.items()}
  with pytest.raises(UserError, match="holds answers with another configuration") as error:
    probe_ablation.ablate(tiny(**other), str(tmp_path / "out"))
  assert difference in str(error.value)


def write_answers(experiment, params, prompts, path):
  """Instead of sampling."""
  rewards, mask = np.zeros((prompts, 2), np.float32), np.ones((prompts, 2, 3), bool)
  features, domains = np.zeros((prompts, 2, 67), np.float32), np.zeros(prompts, np.int32)
  arrays = {"rewards": rewards, "mask": mask, "features": features, "domains": domains}
  np.savez(path, **arrays, prompt_ids=np.arange(prompts))


def test_answers_of_an_earlier_version_are_not_read(monkeypatch, tmp_path, experiment):
  """They do not say which prompts they are to."""
  set_flags(monkeypatch, PROMPTS=6, SAMPLES=2, LAYERS=[], CRITICS=False)

  def write_older(*args):
    write_answers(*args)
    arrays = dict(np.load(args[-1]))
    del arrays["prompt_ids"]
    np.savez(args[-1], **arrays)

  monkeypatch.setattr(build, "build", lambda config: experiment)
  monkeypatch.setattr(probe_ablation, "sample", write_older)
  monkeypatch.setattr(probe_ablation.answers, "params_of", lambda _: {})
  with pytest.raises(UserError, match="written by an earlier version"):
    probe_ablation.ablate(tiny(), str(tmp_path / "out"))


def test_odd_samples_are_an_error(monkeypatch):
  set_flags(monkeypatch, SAMPLES=3, PROMPTS=8)
  with pytest.raises(ValueError, match="--samples=3 must be even"):
    probe_ablation.ablate(None, "unused")
