"""Ablations of the probe on one set of rollouts (arXiv 2605.07579 v2, Tables 3, 8 and 12):

python -m experiments.probe_ablation --config=FILE.py --workdir=DIR [--prompts=P] [--samples=n]
  [--layers=A,B] [--critics] [--config.FIELD=VALUE ...]

Samples n answers to each of P training prompts with the config's policy (after its warm start, if
it has one), fits every probe on one half of the prompts and tests it on the other. --critics also
trains PPO's and SPPO's critic on the same half, and compares what they and the probe cost. Writes
DIR/README.md, DIR/results.json (also by domain) and DIR/rollouts.npz; the same command continues
from the rollouts, and another config on the same DIR is an error.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from absl import flags
from jaxtyping import Array, Float, Int, PyTree
from ml_collections import ConfigDict
from rich.progress import track

from experiments import answers, cli, critics
from experiments import train as command
from poise_jax import files
from poise_jax.errors import UserError
from poise_jax.estimators import ProbeConfig, probe
from poise_jax.estimators.statistics import noise_ceiling
from poise_jax.reports import markdown
from poise_jax.rollout.features import ENTROPIES

PROMPTS = flags.DEFINE_integer("prompts", 512, "training prompts, half of them for testing")
SAMPLES = flags.DEFINE_integer("samples", 8, "answers per prompt, an even number")
LAYERS = flags.DEFINE_list("layers", [], "layers to read besides the config's first one")
CRITICS = flags.DEFINE_bool("critics", False, "also train critics on the same prompts")
HEADER = (
  *("baseline of one answer, from its sibling", "MAE", "r", "r within a level"),
  "1 - Var(A) / Var(R)",
)
LEVEL = "the mean of the prompt's level"
POISE = "POISE: states and entropies of the sibling"
ALPHAS = (0.01, 1.0, 100.0, 10000.0)
WIDTHS = ((64,), (512,), (512, 512, 512))
CRITIC = "critic of {}"


@dataclasses.dataclass(frozen=True)
class Data:
  """Rollouts of P prompts with n answers each."""

  rewards: Float[np.ndarray, "P n"]
  features: Float[np.ndarray, "P n F"]  # each block has the layers one after the other
  lengths: Int[np.ndarray, "P n"]  # tokens per answer
  layers: tuple[int, ...]  # layers in the features
  levels: Int[np.ndarray, " P"]  # number of each prompt's difficulty
  domains: tuple[str, ...] = ()  # of the prompts; () if they are all of one

  @property
  def width(self) -> int:
    """Width of a layer."""
    return (self.features.shape[-1] - ENTROPIES) // 2 // len(self.layers)

  def layer(self, layer: int) -> Float[np.ndarray, "P n F1"]:
    """Features of one layer: prompt block, response block, entropies."""
    states = self.features[..., :-ENTROPIES].reshape(
      *self.rewards.shape, 2, len(self.layers), self.width
    )
    states = states[..., self.layers.index(layer), :]
    entropies = self.features[..., -ENTROPIES:]
    return np.concatenate([states[..., 0, :], states[..., 1, :], entropies], -1)


def sample(experiment, params: PyTree[Array], prompts: int, path: pathlib.Path):
  """Samples answers to training prompts and writes what probes and critics learn from.

  Args:
    experiment: what to sample with.
    params: the policy in the training layout.
    prompts: P.
    path: output file, .npz.
  """
  parts = []
  for experience in answers.sampled(experiment, params, prompts, SAMPLES.value):
    rollouts, width = experience.rollouts, experiment.encoder.max_length
    asked = [np.asarray(x) for x in (rollouts.prompts.tokens, rollouts.prompts.mask)]
    padding = (0, 0), (width - asked[0].shape[1], 0)
    parts.append(
      {
        "rewards": experience.rewards,
        "features": rollouts.features,
        "domains": experience.domains,
        "prompt_ids": experience.prompt_ids,
        "prompt_tokens": np.pad(asked[0], padding),
        "prompt_mask": np.pad(asked[1], padding),
        "tokens": rollouts.tokens,
        "mask": rollouts.mask,
      }
    )
  arrays = {name: np.concatenate([part[name] for part in parts])[:prompts] for name in parts[0]}
  answers.write(path, **arrays)


def predictions(
  data: Data, layer: int, config: ProbeConfig
) -> dict[str, Float[np.ndarray, "P/2 n"]]:
  """What each probe, and each baseline without one, predicts on the second half of the prompts.

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
  sizes = (data.width, data.width, ENTROPIES)
  probed = functools.partial(functools.partial, _predictions, rewards)  # a fit, made below
  mean = np.full_like(rewards[half:], rewards[:half].mean())
  rows = {
    "a constant: the other half's mean": lambda: mean,
    LEVEL: lambda: of_level(data),
    "the sibling's reward (RLOO, n = 2)": lambda: rewards[half:],
    POISE: probed(features, config),
    "poise_sibling: also its reward": probed(with_reward, config, scalars=ENTROPIES + 1),
  }
  for part in probe.PARTS:
    mask = np.repeat([part == p for p in probe.PARTS], sizes)
    rows[f"{part} alone"] = probed(features * mask, config)
  rows["length alone"] = probed(lengths, config, scalars=1, **raw)
  for other in data.layers:
    rows[f"layer {other}"] = probed(data.layer(other), config)
  for alpha in ALPHAS:
    rows[f"PCA, alpha {alpha:g}"] = probed(features, config, alpha=alpha)
    rows[f"raw states, alpha {alpha:g}"] = probed(features, config, alpha=alpha, **raw)
  rows["logistic"] = probed(features, config, model="logistic")
  for widths in WIDTHS:
    name = f"mlp {' x '.join(map(str, widths))}"
    rows[name] = probed(features, config, model="mlp", mlp_widths=widths, alpha=0.01)
  count = half * rewards.shape[1]
  for size in (256 * 4**k for k in range(10)):
    if size < count:
      rows[f"{size} rows"] = probed(features, config, rows=size)
  return {name: make() for name, make in track(rows.items(), description="probes")}


def results(
  rows: Mapping[str, Float[np.ndarray, "P/2 n"]], data: Data
) -> list[dict[str, str | float | None]]:
  """`quality` of all predictions, for all prompts (domain None) and those of each domain."""
  half, n = len(data.rewards) // 2, data.rewards.shape[1]
  rewards, domains = data.rewards[half:], np.array(data.domains[half:])
  levels = data.levels[half:]
  places = {None: np.ones(len(rewards), bool)}
  places |= {name: domains == name for name in sorted(set(data.domains))}
  made = []
  for domain, where in places.items():
    ceiling = float(noise_ceiling(rewards, where, n - 1)) if where.any() else np.nan
    for name, predicted in rows.items():
      if where.sum() > 1:
        numbers = quality(predicted[where], rewards[where], levels[where])
        numbers["ceiling"] = ceiling
        about = {"name": name, "domain": domain, "prompts": int(where.sum())}
        made.append({**about, **files.known(numbers)})
  return made


def table(rows: Sequence[Mapping[str, str | float | None]]) -> str:
  """The `results` of all prompts in Markdown."""
  lines = [
    [
      row["name"],
      *(f"{row[name]:.3f}" for name in ("MAE", "r", "r within a level")),
      f"{row['variance reduction']:+.3f}",
    ]
    for row in rows
    if row["domain"] is None
  ]
  return markdown.table(HEADER, lines)


def _predictions(
  rewards: Float[np.ndarray, "P n"],
  features: Float[np.ndarray, "P n F"],
  config: ProbeConfig,
  rows: int | None = None,
  **changes: object,
) -> Float[np.ndarray, "P/2 n"]:
  """A probe with changed options, fitted on the first half of the prompts, or on the first `rows`
  answers to them, on the second half."""
  half = len(rewards) // 2
  config = dataclasses.replace(config, **changes)
  fitted = answers.fit_probe(rewards[:half], features[:half], config, rows)
  return np.asarray(probe.predict(fitted, features[half:]))


def of_level(data: Data) -> Float[np.ndarray, "P/2 n"]:
  """For each prompt of the second half the mean reward of its level in the first half, or the mean
  of the first half if the level is not in it: what a prompt's difficulty says about its value."""
  half = len(data.rewards) // 2
  levels, rewards = data.levels[:half], data.rewards[:half]
  means = {level: rewards[levels == level].mean() for level in np.unique(levels)}
  predicted = np.array([means.get(level, rewards.mean()) for level in data.levels[half:]])
  return np.repeat(predicted[:, None], rewards.shape[1], 1)


def correlation(a: Float[np.ndarray, "..."], b: Float[np.ndarray, "..."]) -> float:
  """Pearson's r; 0 if either does not vary."""
  constant = any(np.ptp(x) < 1e-6 for x in (a, b))  # what is left of equal numbers is rounding
  return 0.0 if constant else float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def quality(
  predictions: Float[np.ndarray, "Q n"],
  rewards: Float[np.ndarray, "Q n"],
  levels: Int[np.ndarray, " Q"],
) -> dict[str, float]:
  """MAE and r against the mean reward of a prompt's other answers, r once each level's mean is
  subtracted from both, and the variance that is removed from the rewards of the siblings, whose
  baselines the predictions are."""
  n = rewards.shape[1]
  target = (rewards.sum(1, keepdims=True) - rewards) / (n - 1)
  within = [x - _means(x, levels) for x in (predictions, target)]
  left = (rewards - answers.of_siblings(predictions)).var()
  reduction = 1 - left / rewards.var() if rewards.std() else 0.0
  error = np.abs(predictions - target).mean()
  return {
    "MAE": float(error),
    "r": correlation(predictions, target),
    "r within a level": correlation(*within),
    "variance reduction": float(reduction),
  }


def _means(values, levels):
  """The mean of each prompt's level, [Q, 1]."""
  _, index = np.unique(levels, return_inverse=True)
  sums = np.bincount(index, values.mean(1)) / np.bincount(index)
  return sums[index][:, None]


def ablate(config: ConfigDict, folder: str):
  """Samples unless rollouts.npz exists, fits the probes and writes the table.

  Raises:
    UserError: --prompts or --samples is out of range, or the folder holds answers of another
      config.
  """
  from poise_jax.provenance import provenance
  from poise_jax.training import build

  prompts, samples = PROMPTS.value, SAMPLES.value
  answers.check_numbers(prompts, samples)
  config = config.copy_and_resolve_references()
  layer = config.rollout.feature_layers[0]
  layers = tuple(sorted({layer, *map(int, LAYERS.value)}))
  config.rollout.feature_layers = layers  # build checks that they exist
  experiment = build.build(config)
  if not experiment.estimator.reads_features:
    raise UserError(f"algorithm {config.algorithm!r} reads no hidden states; name one like :poise")
  answers.check_prompts(experiment, prompts)
  folder = pathlib.Path(folder)
  answers.claim(config, folder, "answers", prompts=prompts, samples=samples)
  path = folder / "rollouts.npz"
  probe_config, costs = ProbeConfig(**config.probe), {}
  with jax.set_mesh(experiment.mesh):
    if not path.exists():
      sample(experiment, answers.params_of(experiment), prompts, path)
    arrays = np.load(path)
    if "prompt_ids" not in arrays:
      raise UserError(f"{path} was written by an earlier version; name another --workdir")
    names = experiment.task.domains
    domains = tuple(names[i] for i in arrays["domains"]) if len(names) > 1 else ()
    lengths = arrays["mask"].sum(-1)
    levels = answers.levels(experiment, arrays["prompt_ids"])
    data = Data(arrays["rewards"], arrays["features"], lengths, layers, levels, domains)
    rows = predictions(data, layer, probe_config)
    if CRITICS.value:
      learned, costs = _critics(experiment, dict(arrays), data.layer(layer), probe_config)
      rows |= learned
  measured = results(rows, data)
  text = table(measured)
  about = (
    f"{prompts} prompts x {samples} answers, mean reward {data.rewards.mean():.3f}. MAE and r "
    f"compare the prediction from one answer with the mean reward of the other {samples - 1}; "
    "within a level, the means of the prompts of each difficulty are subtracted from both. "
    f"Layer {layer} unless a row says otherwise."
  )
  if costs:
    about += f" {critics.describe(costs)}"
  start = f"```json\n{json.dumps(provenance(), indent=2)}\n```"
  sections = ["# Ablations of the probe", about, text, start]
  (folder / "README.md").write_text("\n\n".join(sections) + "\n")
  content = {"prompts": prompts, "samples": samples, "costs": costs, "results": measured}
  (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n")
  print(f"{about}\n\n{text}")


def _critics(experiment, arrays, features, config):
  """Predictions of the critics by name, and the costs of the critics and the probe."""
  rewards = arrays["rewards"]
  half = len(rewards) // 2
  learned_from = rewards[:half], features[:half]
  costs = {"probe": critics.cost(lambda: answers.fit_probe(*learned_from, config))}
  costs["probe"]["bytes"] += features[:half].nbytes  # the buffer
  rows, params = {}, answers.params_of(experiment)
  for name in critics.SEARCHES:
    rows[CRITIC.format(name)], costs[name] = critics.learn(experiment, params, arrays, name)
  return rows, costs


if __name__ == "__main__":
  cli.run(functools.partial(command.main, work=ablate))
