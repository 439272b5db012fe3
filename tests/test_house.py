"""The rules of the code base: import contracts, sizes of files and functions, and the package."""

import ast
import importlib
import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import poise_jax

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = "poise_jax", "experiments", "configs"
FILES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
MAX_FILE, MAX_FUNCTION, MAX_LOOP = 400, 80, 250  # lines


def test_imports_keep_the_contracts_of_pyproject():
  # In a process of its own: it replaces the standard streams that pytest captures.
  code = "import sys; from importlinter import cli; sys.exit(cli.lint_imports(cache_dir=None))"
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_is_too_long():
  lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in FILES}
  assert not {file: lines for file, lines in lengths.items() if lines > MAX_FILE}
  assert lengths["poise_jax/training/loop.py"] <= MAX_LOOP


def test_no_function_is_too_long():
  too_long = {}
  for file in FILES:
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        lines = node.end_lineno - node.lineno + 1
        if lines > MAX_FUNCTION:
          too_long[f"{file.relative_to(ROOT)}:{node.name}"] = lines
  assert not too_long


def test_one_function_imports_private_modules_of_jax():
  private = re.compile(r"^\s*(?:import|from)\s+(?:jaxlib|jax\._src)\b.*", re.MULTILINE)
  imports = {str(file.relative_to(ROOT)): private.findall(file.read_text()) for file in FILES}
  imports = {file: lines for file, lines in imports.items() if lines}
  assert list(imports) == ["poise_jax/planning/hlo.py"]
  assert len(imports["poise_jax/planning/hlo.py"]) == 1


WITHOUT_JAX = """
import importlib, pkgutil, sys
from poise_jax import verifiers
for module in pkgutil.walk_packages(verifiers.__path__, "poise_jax.verifiers."):
  importlib.import_module(module.name)
  assert "jax" not in sys.modules, f"{module.name} imports jax"
"""


def test_verifiers_import_without_jax():
  # The contract covers the code of poise_jax; this covers the libraries that it imports.
  subprocess.run([sys.executable, "-c", WITHOUT_JAX], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
  """A folder with the package as pip installs it from its wheel."""
  source, wheels, folder = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "site"))
  for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source)
  ignore = shutil.ignore_patterns("__pycache__")
  shutil.copytree(ROOT / "poise_jax", source / "poise_jax", ignore=ignore)
  pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
  offline = ["--no-deps", "--no-index", "--no-build-isolation"]
  subprocess.run([*pip, "wheel", str(source), *offline, f"--wheel-dir={wheels}"], check=True)
  (wheel,) = wheels.glob("*.whl")
  subprocess.run([*pip, "install", str(wheel), *offline, f"--target={folder}"], check=True)
  return folder


INSTALLED = """
import importlib, pathlib, pkgutil, sys
import poise_jax
site = pathlib.Path(sys.argv[1])
assert pathlib.Path(poise_jax.__file__).is_relative_to(site)
for module in pkgutil.walk_packages(poise_jax.__path__, "poise_jax."):
  importlib.import_module(module.name)
from poise_jax.verifiers import Check
from poise_jax.verifiers.pool import Pool
check = Check("code", {"tests": ["assert f(2) == 4"]}, {})
with Pool(workers=1) as pool:  # its processes and the sandbox run files of the package
  (verdict,) = pool.score([check], ["```python\\ndef f(x): return x * x\\n```"])
assert verdict.score == 1, verdict
"""


def test_the_installed_package_works_in_any_folder(installed, tmp_path, monkeypatch):
  monkeypatch.setenv("PYTHONPATH", str(installed))
  command = [sys.executable, "-c", INSTALLED, str(installed)]
  done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


def test_the_wheel_has_every_file_of_the_package_and_its_metadata(installed):
  files = [file.relative_to(ROOT) for file in (ROOT / "poise_jax").rglob("*") if file.is_file()]
  files = [file for file in files if "__pycache__" not in file.parts]
  assert not [file for file in files if not (installed / file).exists()]
  (metadata,) = installed.glob("poise_jax-*.dist-info/METADATA")
  text = metadata.read_text()
  assert f"\nVersion: {poise_jax.__version__}\n" in text
  for line in (ROOT / "requirements.txt").read_text().splitlines():
    assert line.startswith("#") or f"Requires-Dist: {line}\n" in text
  for part in ("License-Expression: Apache-2.0", 'extra == "tpu"', 'extra == "cuda"'):
    assert part in text


def test_the_docstring_of_the_package_names_what_it_offers():
  named = re.findall(r"`(poise_jax\.[\w.]+)`: ((?:`\w+`(?:, )?)+)", poise_jax.__doc__)
  assert len(named) >= 9
  for module, names in named:
    offered = vars(importlib.import_module(module))
    assert not set(re.findall(r"`(\w+)`", names)) - offered.keys(), module
  assert f"version: {poise_jax.__version__}" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("name", poise_jax._MOVED)
def test_a_module_that_moved_names_its_new_place(name):
  new = f"poise_jax.{poise_jax._MOVED[name]}"
  assert importlib.util.find_spec(new)
  with pytest.raises(ImportError, match=f"poise_jax.{name} is now {new}; see CHANGELOG.md"):
    exec(f"from poise_jax import {name}")
  assert f"`poise_jax.{name}`" in (ROOT / "CHANGELOG.md").read_text()
