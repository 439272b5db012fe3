"""Runs the cells of the notebook in order with a small model, without Jupyter."""

import json
import os
import pathlib
import sys

import matplotlib

ROOT = pathlib.Path(__file__).parents[1]
SMALL = {
  "rollouts": 16,
  "eval_batch": 15,
  "model.shape.hidden_size": 32,
  "model.shape.intermediate_size": 48,
  "model.shape.num_hidden_layers": 1,
  "model.shape.head_dim": 16,
  "task.train": 200,
  "task.test": 15,
  "rollout.feature_layers": (0,),
  "warm_start.steps": 0,
  "probe.bootstrap_steps": 1,
  "probe.buffer_rows": 32,
  "probe.pca_prompt": 4,
  "probe.pca_response": 4,
  "train.minibatch_size": 16,
  "train.microbatch_size": 16,
}


def test_the_quickstart_notebook_runs_cell_by_cell(tmp_path, monkeypatch, capsys):
  notebook = json.loads((ROOT / "notebooks/quickstart.ipynb").read_text())
  monkeypatch.chdir(ROOT / "notebooks")  # the folder in which Jupyter starts a notebook
  monkeypatch.setattr(sys, "path", [*sys.path])
  matplotlib.use("agg")
  import matplotlib.pyplot as plt

  figures = []
  monkeypatch.setattr(plt, "show", lambda: figures.append(plt.gcf()))
  variables = {}
  for cell in notebook["cells"]:
    if cell["cell_type"] != "code":
      continue
    assert not cell["outputs"]
    exec(compile("".join(cell["source"]), f"{cell['id']} of the notebook", "exec"), variables)
    if "parameters" in cell["metadata"].get("tags", []):
      variables |= dict(STEPS=3, WARM_START=2, CHANGES=SMALL, WORKDIR=str(tmp_path))
  assert pathlib.Path(os.getcwd()) == ROOT
  variances = variables["variances"]
  assert variances["POISE"] < 0.9 * variances["RLOO"]
  (figure,) = figures
  curves = {axis.get_title(): len(axis.lines) for axis in figure.axes}
  assert list(curves.values()) == [2, 2, 2, 2]
  last = variables["rows"]("poise", "metrics.jsonl")[-1]
  assert last["step"] == 3 and "probe/variance_reduction" in last
  text = capsys.readouterr().out
  assert text.count("advantage ") >= 12 and "step 3" in text
