"""Whether two runs are the same, bit for bit."""

import json
import pathlib

import jax
import numpy as np

from poise_jax.models.io import run_checkpoint


def differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
  """What differs between two runs' metrics (but for times), samples, answers and last checkpoints;
  arrays must be equal bit for bit."""

  def rows(folder, name):
    lines = (folder / name).read_text().split("\n")[:-1]
    return [{k: v for k, v in json.loads(x).items() if not k.startswith("time/")} for x in lines]

  names = {path.relative_to(run) for run in (one, other) for path in run.glob("answers/*")}
  found = [
    str(name)
    for name in ["metrics.jsonl", "samples.jsonl", *sorted(names)]
    if not ((one / name).exists() and (other / name).exists())
    or rows(one, name) != rows(other, name)
  ]
  checkpoints = [run_checkpoint.find(run) for run in (one, other)]
  a, b = ({**run_checkpoint.about(c), "elapsed": 0} for c in checkpoints)
  found += [f"checkpoint: {key}" for key in sorted(a | b) if a.get(key) != b.get(key)]
  for item in (run_checkpoint.PARAMS, run_checkpoint.REST):
    x, y = (jax.tree.leaves_with_path(run_checkpoint.read(c, item, None)) for c in checkpoints)
    found += [
      f"checkpoint: {item}{jax.tree_util.keystr(path)}"
      for (path, u), (_, v) in zip(x, y, strict=True)
      if np.asarray(u).tobytes() != np.asarray(v).tobytes()
    ]
  return found
