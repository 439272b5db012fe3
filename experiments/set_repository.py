"""Sets the address of the repository in every link, such as those that open the notebook on Colab:

python -m experiments.set_repository OWNER/NAME

pyproject.toml has the address; this command writes it there and wherever it was repeated.
"""

import pathlib
import re

from experiments import cli

ROOT = pathlib.Path(__file__).parents[1]
FILES = ("pyproject.toml", "README.md", "docs/development.md", "notebooks/quickstart.ipynb")


def main(argv: list[str]):
  """Replaces the address of pyproject.toml by that of the argument."""
  if len(argv) != 2 or not re.fullmatch(r"[\w.-]+/[\w.-]+", argv[1]):
    raise cli.UsageError(
      "name the repository on GitHub, as in experiments.set_repository OWNER/NAME"
    )
  for path in (ROOT / name for name in replace(ROOT, argv[1])):
    print(f"changed {path}")


def replace(root: pathlib.Path, name: str) -> list[str]:
  """Replaces the repository's OWNER/NAME in FILES below `root`; returns the files that changed."""
  old = repository(root)
  changed = []
  for file in FILES:
    text = (root / file).read_text()
    # "github.com/OWNER/NAME", and "colab.research.google.com/github/OWNER/NAME".
    new = re.sub(rf"(github(?:\.com)?/){re.escape(old)}(?![\w-])", rf"\g<1>{name}", text)
    if new != text:
      (root / file).write_text(new)
      changed.append(file)
  return changed


def repository(root: pathlib.Path) -> str:
  """OWNER/NAME of the repository, from pyproject.toml."""
  text = (root / "pyproject.toml").read_text()
  return re.search(r'Repository = "https://github\.com/([^"]+)"', text)[1]


if __name__ == "__main__":
  cli.run(main)
