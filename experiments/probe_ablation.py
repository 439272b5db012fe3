"""What a probe can read from one set of rollouts: the paper's ablations (v2 Tables 3, 8 and 12).

python -m experiments.probe_ablation --config=FILE.py --workdir=DIR [--prompts=P] [--samples=n]
  [--layers=A,B] [--config.FIELD=VALUE ...]

Samples n answers to P training prompts with the config's policy (after its warm start, if it has
one), fits every probe on one half of the prompts and asks it about the other. Writes DIR/README.md
and keeps the rollouts in DIR/rollouts.npz, from which the same command starts again.
"""

import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np
from absl import flags

from experiments import cli
from experiments import train as command

PROMPTS = flags.DEFINE_integer("prompts", 512, "training prompts, half of them to be asked about")
SAMPLES = flags.DEFINE_integer("samples", 8, "answers a prompt, an even number")
LAYERS = flags.DEFINE_list("layers", [], "further layers to read, beside the config's first")


def sample(run, params, prompts: int, samples: int, layers: tuple[int, ...], path: pathlib.Path):
  """Rewards [P, n], features [P, n, F] of all layers and lengths [P, n], kept in `path`."""
  from rich.progress import track

  from poise_jax import rollout
  from poise_jax.distributed import sharding
  from poise_jax.evaluation.judge import Judge
  from poise_jax.training import train
  from poise_jax.verifiers.pool import Pool

  options = dataclasses.replace(run.rollout, n=samples, feature_layers=layers)
  count = run.config.rollouts // run.rollout.n
  parts, decoding = [], run.sampling_params(params)
  with Pool(run.verifier.workers, run.verifier.time_limit) as pool:
    judge = Judge(pool, run.verifier)
    for start in track(range(0, prompts, count), description="sampling"):
      examples = run.task.train[start : start + count]
      batch = sharding.put_batch(run.mesh, run.encoder(examples))
      key = jax.random.fold_in(jax.random.key(run.config.seed), start)
      said = rollout.sample(run.model, decoding, batch, key, options)
      rewards = train.score(run, judge, examples, said)
      parts.append((rewards, np.asarray(said.features), np.asarray(said.mask.sum(-1))))
  rewards, features, lengths = (np.concatenate(x)[:prompts] for x in zip(*parts, strict=True))
  partial = path.with_suffix(".partial.npz")
  np.savez(partial, rewards=rewards, features=features, lengths=lengths)
  partial.rename(path)


def table(rewards, features, lengths, layers: tuple[int, ...], main: int, config) -> str:
  """The Markdown table.

  Args:
    rewards: [P, n].
    features: [P, n, F]; a block holds the layers one after the other.
    lengths: [P, n] tokens.
    layers: of the features.
    main: the layer that all other ablations read.
    config: the ProbeConfig that is ablated.
  """
  from poise_jax.estimators import probe

  prompts, n = rewards.shape
  width = (features.shape[-1] - 3) // 2 // len(layers)
  blocks = features[..., :-3].reshape(prompts, n, 2, len(layers), width)
  entropies, pairs = features[..., -3:], rewards.reshape(-1, 2)
  sibling, half = pairs[:, ::-1].reshape(prompts, n), prompts // 2
  others = (rewards.sum(1, keepdims=True) - rewards) / (n - 1)
  lines = [
    "| baseline of one answer, from its sibling | MAE | r | 1 - Var(A) / Var(R) |",
    "|---|---|---|---|",
  ]

  def row(name, predictions):
    """Of [P - half, n] predictions: each is of its prompt's value and its sibling's baseline."""
    target, asked = others[half:], rewards[half:]
    error = np.abs(predictions - target).mean()
    constant = np.ptp(predictions) == 0 or np.ptp(target) == 0  # a deviation has rounding errors
    r = 0.0 if constant else np.corrcoef(predictions.ravel(), target.ravel())[0, 1]
    baselines = predictions.reshape(-1, 2)[:, ::-1].reshape(asked.shape)
    left = 1 - (asked - baselines).var() / asked.var() if asked.std() else 0.0
    lines.append(f"| {name} | {error:.3f} | {r:.3f} | {left:+.3f} |")

  def probed(name, x, **changes):
    of = dataclasses.replace(config, **changes)
    fitted = probe.fit(x[:half].reshape(-1, x.shape[-1]), sibling[:half].ravel(), of)
    row(name, np.asarray(probe.predict(fitted, x[half:])))

  def rows(layer=main, extra=None):
    at = layers.index(layer)
    parts = [blocks[..., 0, at, :], blocks[..., 1, at, :], entropies]
    return np.concatenate(parts + ([extra[..., None]] if extra is not None else []), -1)

  full, bare = rows(), dict(pca_prompt=0, pca_response=0)
  row("a constant: the other half's mean", np.full_like(others[half:], rewards[:half].mean()))
  row("the sibling's reward (RLOO, n = 2)", rewards[half:])
  probed("POISE: states and entropies of the sibling", full)
  probed("poise_sibling: and its reward", rows(extra=rewards), scalars=4)
  for part in probe.PARTS:
    seen = np.repeat([part == p for p in probe.PARTS], (width, width, 3))
    probed(f"{part} alone", full * seen)
  probed("length alone", lengths[..., None].astype(np.float32), scalars=1, **bare)
  for layer in layers:
    probed(f"layer {layer}", rows(layer))
  probed("ridge on raw states, alpha 0.01 (v2)", full, alpha=0.01, **bare)
  probed("logistic", full, model="logistic")
  for widths in ((64,), (512,), (512, 512, 512)):
    probed(f"mlp {' x '.join(map(str, widths))}", full, model="mlp", mlp_widths=widths)
  return "\n".join(lines)


def ablate(config, folder: str):
  """Samples, unless that was done, fits and writes."""
  from poise_jax import estimators
  from poise_jax.provenance import provenance
  from poise_jax.training import train

  prompts, samples = PROMPTS.value, SAMPLES.value
  if samples < 2 or samples % 2 or prompts < 2:
    raise ValueError(
      f"--samples={samples} must be even and --prompts={prompts} at least 2: the answers to a "
      "prompt are paired, one half of the prompts is learned from"
    )
  config = config.copy_and_resolve_references()
  main = config.rollout.feature_layers[0]
  layers = tuple(sorted({main, *map(int, LAYERS.value)}))
  config.rollout.feature_layers = layers  # setup checks that they exist
  run = train.setup(config)
  if prompts > len(run.task.train):
    raise ValueError(f"--prompts={prompts} exceeds the task's {len(run.task.train)}")
  folder = pathlib.Path(folder)
  train.open_workdir(folder, type(config)({**config, "prompts": prompts, "samples": samples}))
  path = folder / "rollouts.npz"
  with jax.set_mesh(run.mesh):
    if not path.exists():
      params = run.params
      if run.warm_start.steps:
        report = lambda step, loss: print(f"warm start {step}  {loss:.3f}")  # noqa: E731
        params = train.warmed_up(run, params, report)
      sample(run, params, prompts, samples, layers, path)
    kept = np.load(path)
    rewards, probe_config = kept["rewards"], estimators.ProbeConfig(**config.probe)
    text = table(rewards, kept["features"], kept["lengths"], layers, main, probe_config)
  head = (
    f"{prompts} prompts x {samples} answers, mean reward {rewards.mean():.3f}. MAE and r: what is "
    f"predicted from one answer against the mean reward of the other {samples - 1}. Layer {main}, "
    "unless a line says otherwise.\n"
  )
  facts = f"\n```json\n{json.dumps(provenance(), indent=2)}\n```\n"
  (folder / "README.md").write_text(f"# What a probe reads\n\n{head}\n{text}\n{facts}")
  print(head + "\n" + text)


if __name__ == "__main__":
  cli.run(functools.partial(command.main, work=ablate))
