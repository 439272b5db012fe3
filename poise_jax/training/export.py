"""A run's model as a Hugging Face folder with its tokenizer and a model card."""

import json
import pathlib

from poise_jax import models
from poise_jax.errors import UserError
from poise_jax.models.io import run_checkpoint

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [reinforcement-learning, poise_jax, {algorithm}]
---

# {name}

{start}, trained by reinforcement learning from verifiable rewards with poise_jax: algorithm
`{algorithm}`, {step} of {steps} steps of {rollouts} rollouts ({n} a prompt), seed {seed}.

| | step | held-out accuracy |
|---|---|---|
{evaluations}

{tokenizer}

```
{command}
```

Commit {commit}. The configuration:

```json
{config}
```
"""


def export(workdir: pathlib.Path, out: pathlib.Path, step: str) -> int:
  """Writes `out` and returns the step it is of.

  Raises:
    UserError, OSError: there is no such run or step, its checkpoint is damaged, or `out` holds
      something else than a model.
  """
  if not (steps := run_checkpoint.steps_of(workdir)):
    raise FileNotFoundError(f"{workdir} holds no run with a checkpoint")
  newest = run_checkpoint.about(run_checkpoint.path_of(workdir, steps[-1]))
  chosen = {"last": steps[-1], "best": newest["best"]["step"]}.get(step, step)
  if str(chosen) not in map(str, steps):
    raise UserError(
      f"--step={step}: there is no checkpoint of step {chosen} in {workdir}; there are "
      f"{', '.join(map(str, steps))}"
    )
  checkpoint = run_checkpoint.path_of(workdir, chosen)
  about = run_checkpoint.about(checkpoint)
  if out.exists() and any(out.iterdir()) and not (out / "config.json").exists():
    raise UserError(f"{out} is not empty and holds no model; choose another --out")
  config, params = models.load(checkpoint)
  out.mkdir(parents=True, exist_ok=True)
  models.save_tokenizer(checkpoint, out)
  (out / "README.md").write_text(_card(workdir, about, out.absolute().name))
  models.save_hf(out, config, params)  # its config.json comes last and says: complete
  return about["step"]


def _card(workdir, about, name):
  def rows(file):
    text = (workdir / file).read_text() if (workdir / file).exists() else ""
    return [json.loads(line) for line in text.split("\n") if line]

  config = about["config"]
  accuracy = {r["step"]: r["eval/accuracy"] for r in rows("metrics.jsonl") if "eval/accuracy" in r}
  told = {"before training": 0, "best": about["best"]["step"], "this model": about["step"]}
  started = rows("provenance.jsonl") or [{"command": ["?"], "commit": "?"}]
  source = config["model"]["source"]
  return CARD.format(
    name=name,
    start=f"`{source}`" if source else "A model made from scratch",
    step=about["step"],
    evaluations="\n".join(
      f"| {what} | {at} | {accuracy[at]:.3f} |" for what, at in told.items() if at in accuracy
    ),
    tokenizer="The tokenizer is the one of the model it started from."
    if source
    else "The tokenizer is the sentencepiece model `tokenizer.model`, made for this run.",
    command=" ".join(started[0]["command"]),
    commit=started[0]["commit"],
    config=json.dumps(config, indent=2),
    n=config["rollout"]["n"],
    **{key: config[key] for key in ("algorithm", "steps", "rollouts", "seed")},
  )
