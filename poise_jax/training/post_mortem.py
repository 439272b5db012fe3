"""A batch whose numbers are not finite, written down for a post-mortem."""

import json
import pathlib

import jax
import numpy as np

FOLDER = "post_mortem"  # in the workdir


def write_post_mortem(workdir, step, experience, advantages, rows) -> pathlib.Path:
  """The batch of a step: post_mortem/step_N.npz with every array, .txt with what was not finite and
  `rows`, the answers as in samples.jsonl.

  Args:
    workdir: the run's.
    step: of training.
    experience: what the step would have learned from.
    advantages: [P, n] or [P, n, T].
    rows: dicts.

  Returns:
    The path of the text.
  """
  flat = jax.tree.leaves_with_path({"experience": experience, "advantages": advantages})
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")  # noqa: E731
  arrays = {name(path): np.asarray(leaf) for path, leaf in flat}
  folder = workdir / FOLDER
  folder.mkdir(exist_ok=True)
  np.savez_compressed(folder / f"step_{step}.npz", **arrays)
  lines = [f"Step {step}: loss or gradient were not finite. Arrays: step_{step}.npz", ""]
  for key, array in arrays.items():
    wrong = np.argwhere(~np.isfinite(array)) if array.dtype.kind == "f" else []
    if len(wrong):
      where = ", ".join(str(tuple(map(int, index))) for index in wrong[:10])
      lines.append(f"{key} {array.shape}: {len(wrong)} values are not finite, first {where}")
  if len(lines) == 2:
    lines.append("Every value of the batch is finite: loss or gradient overflowed in the update.")
  lines += ["", *(json.dumps(row, ensure_ascii=False) for row in rows)]
  path = folder / f"step_{step}.txt"
  path.write_text("\n".join(lines) + "\n")
  return path
