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
