"""Ablations of the probe on one set of rollouts (arXiv 2605.07579 v2, Tables 3, 8 and 12):

python -m experiments.probe_ablation --config=FILE.py --workdir=DIR [--prompts=P] [--samples=n]
  [--layers=A,B] [--config.FIELD=VALUE ...]

Samples n answers to each of P training prompts with the config's policy (after its warm start, if
it has one), fits every probe on one half of the prompts and tests it on the other. Writes
DIR/README.md and DIR/rollouts.npz; the same command continues from the rollouts.
"""

import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np
from absl import flags
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict

from experiments import cli
from experiments import train as command
from poise_jax.errors import UserError
from poise_jax.estimators import ProbeConfig, probe
from poise_jax.reports import markdown

PROMPTS = flags.DEFINE_integer("prompts", 512, "training prompts, half of them for testing")
SAMPLES = flags.DEFINE_integer("samples", 8, "answers per prompt, an even number")
LAYERS = flags.DEFINE_list("layers", [], "layers to read besides the config's first one")
HEADER = ("baseline of one answer, from its sibling", "MAE", "r", "1 - Var(A) / Var(R)")
SCALARS = 3  # entropies at the end of a feature row


@dataclasses.dataclass(frozen=True)
class Data:
  """Rollouts of P prompts with n answers each."""

  rewards: Float[np.ndarray, "P n"]
  features: Float[np.ndarray, "P n F"]  # each block has the layers one after the other
  lengths: Int[np.ndarray, "P n"]  # tokens per answer
  layers: tuple[int, ...]  # layers in the features

  @property
  def width(self) -> int:
    """Width of a layer."""
    return (self.features.shape[-1] - SCALARS) // 2 // len(self.layers)

  def layer(self, layer: int) -> Float[np.ndarray, "P n F1"]:
    """Features of one layer: prompt block, response block, entropies."""
    states = self.features[..., :-SCALARS].reshape(
      *self.rewards.shape, 2, len(self.layers), self.width
    )
    states = states[..., self.layers.index(layer), :]
    entropies = self.features[..., -SCALARS:]
    return np.concatenate([states[..., 0, :], states[..., 1, :], entropies], -1)


def sample(experiment, params: PyTree[Array], prompts: int, path: pathlib.Path):
  """Samples answers to the first training prompts and writes the arrays of Data.

  Args:
    experiment: what to sample with.
    params: the policy in the training layout.
    prompts: P.
    path: output file, .npz.
  """
  from rich.progress import track

  from poise_jax import rollout
  from poise_jax.distributed import sharding
  from poise_jax.evaluation.judge import Judge
  from poise_jax.training import step
  from poise_jax.verifiers.pool import Pool

  batch_size = experiment.groups
  parts, decoding = [], experiment.sampling_params(params)
  options = dataclasses.replace(experiment.rollout, n=SAMPLES.value)
  with Pool(experiment.verifier.workers, experiment.verifier.time_limit) as pool:
    judge = Judge(pool, experiment.verifier)
    for start in track(range(0, prompts, batch_size), description="sampling"):
      examples = experiment.task.train[start : start + batch_size]
      batch = sharding.put_batch(experiment.mesh, experiment.encoder(examples))
      key = jax.random.fold_in(jax.random.key(experiment.config.seed), start)
      rollouts = rollout.sample(experiment.model, decoding, batch, key, options)
      rewards = step.score(experiment, judge, examples, rollouts)
      parts.append((rewards, np.asarray(rollouts.features), np.asarray(rollouts.mask.sum(-1))))
  rewards, features, lengths = (np.concatenate(x)[:prompts] for x in zip(*parts, strict=True))
  partial = path.with_suffix(".partial.npz")
  np.savez(partial, rewards=rewards, features=features, lengths=lengths)
  partial.rename(path)


def table(data: Data, layer: int, config: ProbeConfig) -> str:
  """The ablations in Markdown.

  Args:
    data: rollouts.
    layer: the layer that all ablations but those of the layer read.
    config: probe to ablate.
  """
  rewards = data.rewards
  half = len(rewards) // 2
  features, raw = data.layer(layer), dict(pca_prompt=0, pca_response=0)
  with_reward = np.concatenate([features, rewards[..., None]], -1)
  lengths = data.lengths[..., None].astype(np.float32)
  sizes = (data.width, data.width, SCALARS)
  probed = functools.partial(_predictions, rewards)
  mean = np.full_like(rewards[half:], rewards[:half].mean())
  rows = {
    "a constant: the other half's mean": mean,
    "the sibling's reward (RLOO, n = 2)": rewards[half:],
    "POISE: states and entropies of the sibling": probed(features, config),
    "poise_sibling: also its reward": probed(with_reward, config, scalars=SCALARS + 1),
  }
  for part in probe.PARTS:
    mask = np.repeat([part == p for p in probe.PARTS], sizes)
    rows[f"{part} alone"] = probed(features * mask, config)
  rows["length alone"] = probed(lengths, config, scalars=1, **raw)
  for other in data.layers:
    rows[f"layer {other}"] = probed(data.layer(other), config)
  rows["ridge on raw states, alpha 0.01 (v2)"] = probed(features, config, alpha=0.01, **raw)
  rows["logistic"] = probed(features, config, model="logistic")
  for widths in ((64,), (512,), (512, 512, 512)):
    name = f"mlp {' x '.join(map(str, widths))}"
    rows[name] = probed(features, config, model="mlp", mlp_widths=widths, alpha=0.01)
  lines = [[name, *_quality(predictions, rewards)] for name, predictions in rows.items()]
  return markdown.table(HEADER, lines)


def _predictions(
  rewards: Float[np.ndarray, "P n"],
  features: Float[np.ndarray, "P n F"],
  config: ProbeConfig,
  **changes: object,
) -> Float[np.ndarray, "P/2 n"]:
  """A probe with changed options, fitted on the first half of the prompts, on the second half."""
  half = len(rewards) // 2
  siblings = rewards.reshape(-1, 2)[:, ::-1].reshape(rewards.shape)
  rows = features[:half].reshape(-1, features.shape[-1])
  fitted = probe.fit(rows, siblings[:half].ravel(), dataclasses.replace(config, **changes))
  return np.asarray(probe.predict(fitted, features[half:]))


def _quality(
  predictions: Float[np.ndarray, "P/2 n"], rewards: Float[np.ndarray, "P n"]
) -> list[str]:
  """Cells for predictions on the second half of the prompts.

  A prediction is an estimate of its prompt's value and the baseline of its sibling.
  """
  n = rewards.shape[1]
  others = (rewards.sum(1, keepdims=True) - rewards) / (n - 1)
  target, tested = others[len(rewards) // 2 :], rewards[len(rewards) // 2 :]
  error = np.abs(predictions - target).mean()
  constant = np.ptp(predictions) == 0 or np.ptp(target) == 0  # exactly: a deviation gets rounded
  r = 0.0 if constant else np.corrcoef(predictions.ravel(), target.ravel())[0, 1]
  baselines = predictions.reshape(-1, 2)[:, ::-1].reshape(tested.shape)
  reduction = 1 - (tested - baselines).var() / tested.var() if tested.std() else 0.0
  return [f"{error:.3f}", f"{r:.3f}", f"{reduction:+.3f}"]


def ablate(config: ConfigDict, folder: str):
  """Samples unless rollouts.npz exists, fits the probes and writes the table.

  Raises:
    UserError: --prompts or --samples is out of range.
  """
  from poise_jax.provenance import provenance
  from poise_jax.training import build, workdir

  prompts, samples = PROMPTS.value, SAMPLES.value
  if samples < 2 or samples % 2:
    raise UserError(f"--samples={samples} must be even and at least 2: answers are paired")
  if prompts < 2:
    raise UserError(f"--prompts={prompts} must be at least 2: one half is for fitting")
  config = config.copy_and_resolve_references()
  layer = config.rollout.feature_layers[0]
  layers = tuple(sorted({layer, *map(int, LAYERS.value)}))
  config.rollout.feature_layers = layers  # build checks that they exist
  experiment = build.build(config)
  if not experiment.estimator.reads_features:
    raise UserError(f"algorithm {config.algorithm!r} reads no hidden states; name one like :poise")
  if prompts > len(experiment.task.train):
    raise UserError(
      f"--prompts={prompts} must not exceed the training set of {len(experiment.task.train)}"
    )
  folder = pathlib.Path(folder)
  settings = type(config)({**config, "prompts": prompts, "samples": samples})
  workdir.open_workdir(folder, settings)
  path = folder / "rollouts.npz"
  with jax.set_mesh(experiment.mesh):
    if not path.exists():
      sample(experiment, _params(experiment), prompts, path)
    arrays = np.load(path)
    data = Data(arrays["rewards"], arrays["features"], arrays["lengths"], layers)
    text = table(data, layer, ProbeConfig(**config.probe))
  about = (
    f"{prompts} prompts x {samples} answers, mean reward {data.rewards.mean():.3f}. MAE and r "
    f"compare the prediction from one answer with the mean reward of the other {samples - 1}. "
    f"Layer {layer} unless a row says otherwise."
  )
  start = f"```json\n{json.dumps(provenance(), indent=2)}\n```"
  sections = ["# Ablations of the probe", about, text, start]
  (folder / "README.md").write_text("\n\n".join(sections) + "\n")
  print(f"{about}\n\n{text}")


def _params(experiment) -> PyTree[Array]:
  """The policy before training, after its warm start."""
  from poise_jax.training import build

  params = build.initial_params(experiment)
  if not experiment.warm_start.steps:
    return params

  def report(step, loss):
    print(f"warm start {step}  loss {loss:.3f}", flush=True)

  return build.warmed_up(experiment, params, report)


if __name__ == "__main__":
  cli.run(functools.partial(command.main, work=ablate))
