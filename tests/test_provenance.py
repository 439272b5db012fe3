"""Provenance of results."""

import subprocess

import pytest

from poise_jax import provenance

CODE = ("poise_jax/provenance.py", "configs/lab.py", "requirements.txt")
WRITTEN = (
  *("README.md", "experiments/claims/a/page.md", "experiments/claims/a/results/metrics.json"),
  "docs/results/b/results.json",
)


@pytest.fixture
def repository(tmp_path, monkeypatch):
  """A checkout in which all files are committed."""

  def git(*arguments):
    who = "-c", "user.name=a", "-c", "user.email=a@b"
    subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

  for name in (*CODE, *WRITTEN):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("first\n")
  git("init")
  git("add", ".")
  git("commit", "-m", "all")
  monkeypatch.setattr(provenance, "__file__", str(tmp_path / "poise_jax" / "provenance.py"))
  provenance.started.cache_clear()
  yield tmp_path
  provenance.started.cache_clear()


def test_pages_and_results_that_commands_write_are_no_changes(repository):
  for name in WRITTEN:
    (repository / name).write_text("second\n")
  assert not provenance.provenance()["uncommitted_changes"]
  assert provenance.commit() == provenance.provenance()["commit"]


@pytest.mark.parametrize("name", CODE)
def test_changes_of_code_are_noted(repository, name):
  (repository / name).write_text("second\n")
  provenance.started.cache_clear()
  assert provenance.provenance()["uncommitted_changes"]
  assert provenance.commit().endswith(" with uncommitted changes")


def test_what_changes_during_the_work_is_not_its_origin(repository):
  before = provenance.provenance()
  (repository / CODE[0]).write_text("second\n")
  after = provenance.provenance()
  assert not after["uncommitted_changes"] and after["started"] == before["started"]


def test_a_command_notes_its_start_before_its_work(repository):
  from experiments import cli

  calls = []
  cli.guarded(lambda argv: calls.append(provenance.started.cache_info().currsize), ["x"])
  assert calls == [1]
