"""The table of docs/algorithms.md is the output of the command, and shows which baselines bias."""

import pathlib

import numpy as np
import pytest

from experiments import bias_variance

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def table():
  return bias_variance.table()


def numbers(text):
  """{(baseline, n): [bias, rescaled bias, variance]}."""
  cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
  return {(c[0], int(c[1])): [float(x) for x in c[2:]] for c in cells}


def test_the_documented_table_is_the_output_of_the_command(table):
  text = (ROOT / "docs" / "algorithms.md").read_text()
  start = text.index(table.splitlines()[0])
  documented = text[start:].partition("\n\n")[0]
  ours, theirs = numbers(table), numbers(documented)
  assert list(ours) == list(theirs)
  for key in ours:  # the last digit depends on the CPU
    np.testing.assert_allclose(ours[key], theirs[key], atol=0.0011, err_msg=str(key))


def test_bias_and_order_of_variances(table):
  rows = numbers(table)
  unbiased = ["no baseline", "the value itself", "poise", "poise_sibling", "rloo"]
  unbiased += ["sppo", "spo", "pvpo"]
  blind = {name: rows[name + bias_variance.BLIND, 2] for name in ("poise", "poise_sibling")}
  assert blind["poise"][0] == blind["poise_sibling"][0] == 0
  assert blind["poise_sibling"][2] < 0.9 * blind["poise"][2] < 0.9 * rows["rloo", 2][2]
  for (name, _), (bias, rescaled, _) in rows.items():
    if name in unbiased:
      assert bias == 0
    if name == "dr_grpo":
      assert bias > 0.1 and rescaled == 0  # only a factor, (n - 1) / n
  assert rows["own rollout", 1][1] > 0.1
  assert rows["grpo", 4][1] > 0
  for n in (2, 4):
    assert rows["the value itself", 1][2] < rows["poise", n][2] < rows["rloo", n][2]


def test_probabilities_and_scores_are_those_of_a_policy():
  toy = bias_variance.Toy(3)
  np.testing.assert_allclose(toy.probabilities.sum(1), 1.0)
  np.testing.assert_allclose(np.einsum("xy,xys->xs", toy.probabilities, toy.scores), 0, atol=1e-12)
  assert toy.rewards.sum(1).tolist() == list(bias_variance.SOLVED)
