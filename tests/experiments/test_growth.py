"""Growth: the table and the figure at the smallest sizes, and a program that does not grow."""

import pathlib
import subprocess
import sys
import xml.etree.ElementTree

import jax

from experiments import growth_measure
from poise_jax import models
from poise_jax.learner import update
from poise_jax.learner.update import UpdateConfig
from poise_jax.types import Prompts, Rollouts

ROOT = pathlib.Path(__file__).parents[2]


def test_rows_and_their_ratios(monkeypatch, compiled_quickly):
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
    array = jax.ShapeDtypeStruct
    numbers, flags = array((2, 2, 4), "float32"), array((2, 2, 4), "bool")
    prompts = Prompts(array((2, 4), "int32"), array((2, 4), "bool"))
    whole = array((2, 2, 4), "int32"), flags, numbers, numbers
    said = Rollouts(prompts, *whole, array((2, 2), "bool"), array((2, 2, 3), "float32"))
    options = UpdateConfig(minibatch_size=4, microbatch_size=2, old_logprobs="sampler")
    params = models.abstract_params(model)
    state = jax.eval_shape(lambda p: update.init(p, options), params)
    batch = jax.eval_shape(
      lambda p, r, a: update.learning_batch(model, p, r, a, options)[0],
      params,
      said,
      array((2, 2), "float32"),
    )
    return len(update.minibatch_step.lower(model, options, state, batch, 2).as_text())

  assert size(24) < 1.02 * size(3)


def test_an_invalid_width_is_an_error():
  command = [sys.executable, "-m", "experiments.growth", "--width=100"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert "--width=100 must be a multiple of 64" in done.stderr
