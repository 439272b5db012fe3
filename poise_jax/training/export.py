"""Export of a run's model as a Hugging Face folder with a tokenizer and a model card."""

import json
import pathlib
from typing import Any

import huggingface_hub

from poise_jax import models, own_functions, provenance
from poise_jax.errors import UserError
from poise_jax.models.io import run_checkpoint
from poise_jax.models.io.sources import hub_id
from poise_jax.reports import markdown
from poise_jax.reports.run_log import GREEDY, metric_of

CARD = """---
{metadata}
---

# {name}

{start}, trained by reinforcement learning from verifiable rewards with poise_jax: algorithm
`{algorithm}`, {step} of {steps} steps with {rollouts} rollouts each ({n} per prompt), seed {seed}.

{evaluations}

{tokenizer}

{starts}

The configuration:

```json
{config}
```
"""


def export(workdir: pathlib.Path, out: pathlib.Path, step: str) -> int:
  """Writes the model of a checkpoint to a Hugging Face folder.

  Args:
    workdir: folder of the run.
    out: output folder, created if it does not exist.
    step: "last", "best" (by config.eval.best_by), or the number of a step.

  Returns:
    The step of the checkpoint.

  Raises:
    UserError, OSError: the run or the step has no checkpoint, the checkpoint is damaged, or `out`
      holds something other than a model.
  """
  if not (steps := run_checkpoint.steps_of(workdir)):
    raise FileNotFoundError(f"{workdir} holds no run with a checkpoint")
  newest = run_checkpoint.about(run_checkpoint.path_of(workdir, steps[-1]))
  chosen = {"last": steps[-1], "best": newest["best"]["step"]}.get(step, step)
  if str(chosen) not in map(str, steps):
    raise UserError(
      f"--step={step}: {workdir} has no checkpoint of step {chosen}; choose from "
      f"{', '.join(map(str, steps))}"
    )
  checkpoint = run_checkpoint.path_of(workdir, int(chosen))
  about = run_checkpoint.about(checkpoint)
  if out.exists() and any(out.iterdir()) and not (out / "config.json").exists():
    raise UserError(f"{out} is not empty and holds no model; choose another --out")
  config, params = models.load(checkpoint)
  out.mkdir(parents=True, exist_ok=True)
  models.save_tokenizer(checkpoint, out)
  (out / "README.md").write_text(_card(workdir, about, out.absolute().name))
  models.save_hf(out, config, params)  # writes config.json, the mark of completion, last
  return about["step"]


def _card(workdir: pathlib.Path, about: dict[str, Any], name: str) -> str:
  config = about["config"]
  best_by = config.get("eval", {}).get("best_by", GREEDY)
  metric = metric_of(best_by)
  rows = _rows(workdir / "metrics.jsonl")
  accuracy = {row["step"]: row[metric] for row in rows if metric in row}
  steps = {"before training": 0, "best": about["best"]["step"], "this model": about["step"]}
  evaluations = [
    (x, step, f"{accuracy[step]:.3f}") for x, step in steps.items() if step in accuracy
  ]
  starts = _rows(workdir / "provenance.jsonl")
  source = config["model"]["source"]
  metadata = huggingface_hub.ModelCardData(
    base_model=_base_model(source),
    library_name="transformers",
    pipeline_tag="text-generation",
    tags=["reinforcement-learning", "poise_jax", config["algorithm"]],
  )
  return CARD.format(
    name=name,
    start=f"`{source}`" if source else "A model made from scratch",
    step=about["step"],
    evaluations=markdown.table(("", "step", f"held-out accuracy, {best_by}"), evaluations),
    tokenizer="The tokenizer is that of the initial model."
    if source
    else "The tokenizer is the sentencepiece model `tokenizer.model`, made for this run.",
    starts=_starts(starts),
    metadata=metadata.to_yaml(),
    config=json.dumps(config, indent=2),
    n=config["rollout"]["n"],
    algorithm=own_functions.algorithm_name(config["algorithm"], config.get("estimator", "")),
    **{key: config[key] for key in ("steps", "rollouts", "seed")},
  )


def _base_model(source: str) -> str | None:
  """The hub id of the initial model, or that in the model card of its folder; None without one."""
  card = pathlib.Path(source, "README.md").expanduser()
  if source and card.is_file():
    return huggingface_hub.ModelCard.load(card).data.base_model
  return hub_id(source) or None


def _starts(starts: list[provenance.Start]) -> str:
  """What `provenance.describe` says about every start of the run, with the date of each."""
  if not starts:
    return "The run's provenance.jsonl is missing."
  dates = ", ".join(start["started"] for start in starts)
  times = "once" if len(starts) == 1 else f"{len(starts)} times"
  return f"The run was started {times} ({dates}):\n\n{provenance.describe(starts)}"


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a JSONL file; none if it does not exist."""
  text = path.read_text() if path.exists() else ""
  return [json.loads(line) for line in text.split("\n") if line]
