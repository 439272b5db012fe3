"""Growth: the table and the figure at the smallest sizes, and a program that does not grow."""

import pathlib
import subprocess
import sys
import xml.etree.ElementTree

import jax
import pytest

from experiments import growth_measure
from poise_jax import models
from poise_jax.learner import update
from poise_jax.learner.update import UpdateConfig
from poise_jax.types import Experience, Prompts, Rollouts

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_rows_and_their_ratios(monkeypatch):
  monkeypatch.setattr(growth_measure, "BASE", {"T": 4, "n": 2, "P": 2})
  monkeypatch.setattr(growth_measure, "GROWN", {"T": (4,)})
  monkeypatch.setattr(growth_measure, "LAYERS", (1,))
  results = growth_measure.measure(width=64, repeats=1)
  assert {name: [row[name] for row in rows] for name, rows in results.items()} == {
    "T": [4],
    "layers": [1],
  }
  assert all(0 < row[part] < 100 for rows in results.values() for row in rows for part in row)
  rows = [{"T": 1, "sampling": 2, "update": 4}, {"T": 2, "sampling": 3, "update": 8}]
  text = growth_measure.table({"T": rows})
  assert text.splitlines()[2:] == ["| 1 | 2.00 | 4.00 |", "| 2 | 3.00 (1.50 x) | 8.00 (2.00 x) |"]
  picture = growth_measure.figure({"T": rows, "layers": results["layers"]})
  root = xml.etree.ElementTree.fromstring(picture)
  assert sum(e.get("class") == "line" and "L" in e.get("d") for e in root.iter()) == 2


def test_the_program_of_an_update_does_not_grow_with_layers():
  def size(layers):
    model = growth_measure.model(64, layers)
    options = UpdateConfig(minibatch_size=4, microbatch_size=2, old_logprobs="sampler")
    array = jax.ShapeDtypeStruct
    numbers, mask, ids = array((2, 2, 4), "f4"), array((2, 2, 4), "bool"), array((2,), "int32")
    prompts = Prompts(array((2, 4), "int32"), array((2, 4), "bool"))
    rollouts = Rollouts(
      prompts,
      tokens=array((2, 2, 4), "int32"),
      mask=mask,
      logprobs=numbers,
      entropies=numbers,
      truncated=array((2, 2), "bool"),
      features=array((2, 2, 3), "f4"),
    )
    per_response = array((2, 2), "f4")
    experience = Experience(rollouts, per_response, numbers, domains=ids, prompt_ids=ids)
    state = jax.eval_shape(lambda p: update.init(p, options), models.abstract_params(model))
    arguments = state, experience, per_response
    step = jax.jit(lambda s, e, a: update.step(model, options, s, e, a))
    return len(step.lower(*arguments).as_text())

  assert size(24) < 1.02 * size(3)


def test_an_invalid_width_is_an_error():
  command = [sys.executable, "-m", "experiments.growth", "--width=100"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert "--width=100 must be a multiple of 64" in done.stderr
