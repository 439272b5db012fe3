"""The repository's address is filled in at one place."""

import json
import re
import shutil

import pytest

from experiments import set_repository


@pytest.fixture
def copies(tmp_path):
  for name in set_repository.FILES:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.copy(set_repository.ROOT / name, tmp_path / name)
  return tmp_path


def addresses(root):
  """OWNER/NAME of the repository in every file, as often as it occurs."""
  found = {}
  for name in set_repository.FILES:
    text = (root / name).read_text()
    own = re.findall(
      r"(?:github\.com|research\.google\.com/github)/([\w-]+/[\w.-]*poise[\w-]*)", text
    )
    found[name] = own
  return found


def test_every_file_has_the_address_of_pyproject():
  name = set_repository.repository(set_repository.ROOT)
  for file, found in addresses(set_repository.ROOT).items():
    assert found and set(found) == {name}, file


@pytest.mark.parametrize("name", ["someone/poise_jax", "a-b/my.poise-fork"])
def test_one_command_changes_all_of_them_and_nothing_else(copies, name):
  before = {file: (copies / file).read_text() for file in set_repository.FILES}
  counts = {file: len(found) for file, found in addresses(copies).items()}
  old = set_repository.repository(copies)
  assert set(set_repository.replace(copies, name)) == set(set_repository.FILES)
  assert {file: found.count(name) for file, found in addresses(copies).items()} == counts
  json.loads((copies / "notebooks/quickstart.ipynb").read_text())
  set_repository.replace(copies, old)
  assert {file: (copies / file).read_text() for file in set_repository.FILES} == before
