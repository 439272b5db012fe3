"""The batch of a step whose loss or gradient is not finite, written down for a post-mortem."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from poise_jax.types import Experience

FOLDER = "post_mortem"  # in the workdir


def write_post_mortem(
  workdir: pathlib.Path,
  step: int,
  experience: Experience,
  advantages: Float[np.ndarray, "P n"] | Float[np.ndarray, "P n T"],
  samples: Sequence[dict[str, Any]],
) -> pathlib.Path:
  """Writes post_mortem/step_N.npz, which has every array of the batch, and post_mortem/step_N.txt,
  which lists the values that are not finite, and the responses.

  Args:
    workdir: folder of the run.
    step: number of the training step.
    experience: the step's batch, fetched.
    advantages: its advantages, fetched.
    samples: the responses as rows of samples.jsonl.

  Returns:
    Path of the text file.
  """
  flat = jax.tree.leaves_with_path({"experience": experience, "advantages": advantages})
  arrays = {
    jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in flat
  }
  folder = workdir / FOLDER
  folder.mkdir(exist_ok=True)
  np.savez_compressed(folder / f"step_{step}.npz", **arrays)
  lines = [f"Step {step}: loss or gradient were not finite. Arrays: step_{step}.npz", ""]
  for name, array in arrays.items():
    indices = np.argwhere(~np.isfinite(array)) if array.dtype.kind == "f" else []
    if len(indices):
      first = ", ".join(str(tuple(map(int, index))) for index in indices[:10])
      lines.append(f"{name} {array.shape}: {len(indices)} values are not finite, first {first}")
  if len(lines) == 2:
    lines.append("Every value of the batch is finite: loss or gradient overflowed in the update.")
  lines += ["", *(json.dumps(row, ensure_ascii=False) for row in samples)]
  path = folder / f"step_{step}.txt"
  path.write_text("\n".join(lines) + "\n")
  return path
