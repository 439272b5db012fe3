"""What the README says can be done. Its two shell commands are run by .ci/run."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_python_of_the_readme_runs():
  (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
  code += "\nassert out.features.shape == (1, 2, 2 * config.hidden_size + 3)"
  code += "\nassert out.tokens.shape == out.logprobs.shape == out.entropies.shape == (1, 2, 16)"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_and_commands_lead_somewhere(path):
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
