"""How well the values of prompts were predicted: MAE, r and calibration against avg@k.

The comparison of Figure 1 of POISE (arXiv 2605.07579 v2). Letters: P prompts, k + 1 = n responses a
prompt, of which one makes a prediction and the k others say how right it was.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from poise_jax.estimators.probe import leave_one_out_targets
from poise_jax.estimators.statistics import (
  explained_variance,
  noise_ceiling,
  pearson,
  value_variance,
)
from poise_jax.provenance import describe
from poise_jax.reports import markdown, svg, value

RESULTS = "results.json"
RESAMPLES = 200  # of the prompts, for standard errors
HOPELESS, CERTAIN = 0.02, 0.98  # values beyond which a prompt teaches nothing
LOW, HIGH = 0.2, 0.8  # ends of the middle range of values
SINGLE = "one other reward (RLOO)"
METRICS = (  # columns of the table, see `quality`
  *("MAE", "r", "ceiling", "r, one reward", "ceiling, one reward"),
  *("variance reduction", "its ceiling"),
)
SPREAD = ("problems", "prompts", "mean reward", "std of V(x)", f"V in [{LOW}, {HIGH}]")
MEANING = """Every prompt has {n} answers, sampled as in training. The value V(x) of a prompt, its
expected reward, is predicted from each answer in turn and compared with avg@{k}, the mean reward of
the {k} other answers, and for "one reward" with a single one of them. The rewards that a prediction
is compared with are unknown to it. ± is the bootstrap standard error over prompts. A *ceiling* is
the r of a predictor that knows V(x), sqrt(Var V / (Var V + noise)). Var V is the covariance of
different answers to a prompt, which is free of their noise; its root is the std of V(x). "V in
[...]" takes the mean of all {n} rewards of a prompt for its value, and so do the rows
"{low} ≤ V ≤ {high}", which leave hopeless and certain prompts out. That choice reads the rewards
that are compared: it keeps prompts whose answers happened to differ, so the ceilings of those rows
are too low where {n} answers cannot tell V = {low} from V = 0."""


@dataclasses.dataclass(frozen=True)
class Values:
  """Rewards of the responses to P prompts, and what each response predicted for its prompt."""

  rewards: Float[np.ndarray, "P n"]
  predictions: Float[np.ndarray, "P n"]  # NaN where nothing predicts
  domains: Sequence[str]  # of each prompt

  @property
  def groups(self) -> dict[str, Bool[np.ndarray, " P"]]:
    """Which prompts are in each group: all, each domain, and those whose value is informative."""
    domains = np.array(self.domains)
    groups = {"all": np.ones(len(domains), bool)}
    if len(names := sorted(set(self.domains))) > 1:
      groups |= {name: domains == name for name in names}
    mean = self.rewards.mean(1)
    informative = (mean >= HOPELESS) & (mean <= CERTAIN)
    limits = f"{HOPELESS} ≤ V ≤ {CERTAIN}"
    return groups | {f"{name}, {limits}": where & informative for name, where in groups.items()}


@jax.jit
def quality(
  predictions: Float[Array, "P n"],
  rewards: Float[Array, "P n"],
  where: Bool[Array, " P"],
) -> dict[str, Float[Array, ""]]:
  """How well each response's prediction foretells the rewards of the other responses.

  Args:
    predictions: of the value of each prompt, from each of its responses, n at least 2.
    rewards: of the responses.
    where: prompts that count; their predictions are finite.

  Returns:
    "MAE", "r" and "ceiling" against avg@k of the k = n - 1 other responses; "r, one reward",
    "ceiling, one reward" and "variance reduction", 1 - Var(reward - prediction) / Var(reward),
    against the next response's reward; "its ceiling", that of V(x); and "std of V(x)". Numbers that
    cannot be estimated are NaN, see statistics.noise_ceiling.
  """
  counted = jnp.broadcast_to(where[:, None], rewards.shape)
  targets = leave_one_out_targets(rewards)
  baselines = jnp.roll(predictions, 1, axis=1)  # of a response, from the one before it
  single = noise_ceiling(rewards, where)
  return {
    "MAE": jnp.mean(jnp.abs(predictions - targets), where=counted),
    "r": pearson(predictions, targets, counted),
    "ceiling": noise_ceiling(rewards, where, rewards.shape[1] - 1),
    "r, one reward": pearson(baselines, rewards, counted),
    "ceiling, one reward": single,
    "variance reduction": explained_variance(baselines, rewards, counted),
    "its ceiling": single**2,
    "std of V(x)": jnp.sqrt(jnp.maximum(value_variance(rewards, where)[0], 0.0)),
  }


@jax.jit
def _resampled(
  predictions: Float[Array, "P n"],
  rewards: Float[Array, "P n"],
  draws: Int[Array, "B P"],
  count: Int[Array, ""],
):
  """`quality` [B] of the first `count` prompts of each draw."""
  where = jnp.arange(draws.shape[1]) < count
  return jax.vmap(lambda rows: quality(predictions[rows], rewards[rows], where))(draws)


def results(values: Values, predictor: str) -> list[dict[str, Any]]:
  """`quality` of each group's predictions, and of a single reward as a prediction.

  Args:
    values: of the prompts.
    predictor: name of the estimator that made the predictions.

  Returns:
    {"group", "predictor", "prompts", metric: {"mean", "se"}, ...}; standard errors are bootstrap
    ones over prompts, and numbers that cannot be estimated are None. A group without a predicted
    prompt has no entry for the predictor.
  """
  rewards, rng, rows = jnp.asarray(values.rewards), np.random.default_rng(0), []
  for group, where in values.groups.items():
    for name, predictions in ((predictor, values.predictions), (SINGLE, values.rewards)):
      members = np.flatnonzero(where & np.isfinite(predictions).all(1))
      if not len(members):
        continue
      predictions, counted = jnp.asarray(predictions), np.isin(np.arange(len(where)), members)
      means = quality(predictions, rewards, jnp.asarray(counted))
      draws = jnp.asarray(rng.choice(members, (RESAMPLES, len(where))))
      errors = _resampled(predictions, rewards, draws, jnp.int32(len(members)))
      row = {"group": group, "predictor": name, "prompts": len(members)}
      for metric in (*METRICS, "std of V(x)"):
        mean = means[metric]
        draw = np.asarray(errors[metric])
        draw = draw[np.isfinite(draw)]
        error = float(draw.std()) if np.isfinite(mean) and len(members) > 1 else None
        row[metric] = {"mean": float(mean) if np.isfinite(mean) else None, "se": error}
      rows.append(row)
  return rows


def spreads(values: Values, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """How the values of each group are spread: {"group", *SPREAD[1:]}.

  Args:
    values: of the prompts.
    rows: their `results`.
  """
  mean, spread = values.rewards.mean(1), []
  stds = {row["group"]: row["std of V(x)"] for row in rows if row["predictor"] == SINGLE}
  for group, where in values.groups.items():
    if group in stds:
      middle = (mean[where] >= LOW) & (mean[where] <= HIGH)
      numbers = int(where.sum()), float(mean[where].mean()), stds[group], float(middle.mean())
      spread.append({"group": group, **dict(zip(SPREAD[1:], numbers, strict=True))})
  return spread


def tables(values: Values, predictor: str, rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """The tables in Markdown: spread, quality of predictions, and calibration by decile.

  Args: see `results`; rows are its result.
  """
  lines = [[_cell(row[name]) for name in ("group", *SPREAD[1:])] for row in spreads(values, rows)]
  texts = [markdown.table(SPREAD, lines)]
  k = values.rewards.shape[1] - 1
  header = [f"{m}, avg@{k}" if m in ("MAE", "r", "ceiling") else m for m in METRICS]
  lines = [[_cell(row[m]) for m in ("group", "predictor", "prompts", *METRICS)] for row in rows]
  texts.append(markdown.table(("problems", "prediction", "prompts", *header), lines))
  predicted, realised = independent(values)
  if len(predicted):
    lines = [
      [b.count, f"{b.x:.3f}", f"{b.y:.3f} ± {b.error:.3f}"]
      for b in value.deciles(predicted, realised)
    ]
    header = ("prompts, by decile of the prediction", f"predicted by {predictor}", f"avg@{k}")
    texts.append(markdown.table(header, lines))
  if missing := int((~np.isfinite(values.predictions).all(1)).sum()):
    texts.append(
      f"{missing} of {len(values.rewards)} prompts have no prediction: at this step {predictor} "
      "has no fitted probe and no critic for them."
    )
  return texts


def _cell(x: Any) -> str:
  """A number, with its standard error if it has one; "" if it could not be estimated."""
  if isinstance(x, Mapping):
    if x["mean"] is None:
      return ""
    return f"{x['mean']:.3f}" + ("" if x["se"] is None else f" ± {x['se']:.3f}")
  return f"{x:.3f}" if isinstance(x, float) else str(x)


def independent(values: Values) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
  """One prediction a prompt, from its first response, and the mean reward of the others."""
  known = np.isfinite(values.predictions[:, 0])
  return values.predictions[known, 0], values.rewards[known, 1:].mean(1)


def figure(values: Values, predictor: str, rows: Sequence[Mapping[str, Any]]) -> str:
  """An SVG: the spread of the values, predicted against realised value, and r by domain.

  Args: see `tables`.
  """
  n = values.rewards.shape[1]
  places = np.linspace(0, 1, min(n + 1, 11))  # right answers of n, or tenths
  groups = {name: where for name, where in values.groups.items() if "≤" not in name}
  shown = list(groups)[1:] or list(groups)
  lines = []
  for name in shown:
    mean = np.clip(values.rewards[groups[name]].mean(1), 0.0, 1.0)
    nearest = np.round(mean * (len(places) - 1)).astype(int)
    shares = np.bincount(nearest, minlength=len(places)) / len(mean)
    lines.append(svg.Line(name, places, shares))
  spread = svg.curves(lines, f"V(x), mean of {n} rewards")
  panels = [("Spread of the values: share of the prompts", spread)]
  predicted, realised = independent(values)
  if len(predicted):
    names = "predicted value", f"avg@{n - 1}"
    panels.append(
      (
        f"{predictor}: a dot a prompt, deciles ± standard error",
        value.calibration(predicted, realised, names, "prompts"),
      )
    )
    bars = [
      (label, row[metric], color)
      for row in rows
      if row["predictor"] == predictor and row["group"] in groups
      for label, metric, color in (
        (row["group"], "r", svg.color_of(0)),
        (f"{row['group']}: ceiling", "ceiling", "var(--bar)"),
      )
      if row[metric]["mean"] is not None
    ]
    if bars:
      labels, numbers, colors = zip(*bars, strict=True)
      means, errors = ([x[key] or 0.0 for x in numbers] for key in ("mean", "se"))
      panels.append(
        (f"r against avg@{n - 1}", svg.bars(labels, means, errors, colors, "Pearson's r"))
      )
  return svg.picture(panels, shown, len(panels))


def report(
  values: Values, predictor: str, about: Mapping[str, Any], out: pathlib.Path | None = None
) -> str:
  """The tables; with `out`, README.md, results.json and values.svg in that folder as well.

  Args:
    values: of the prompts.
    predictor: name of the estimator that made the predictions.
    about: "run", "step", "samples", "left_out" and "provenance", for the files.
    out: created if it does not exist.
  """
  rows = results(values, predictor)
  texts = tables(values, predictor, rows)
  if out:
    out.mkdir(parents=True, exist_ok=True)
    n = values.rewards.shape[1]
    meaning = " ".join(MEANING.format(n=n, k=n - 1, low=HOPELESS, high=CERTAIN).split())
    (out / "values.svg").write_text(figure(values, predictor, rows))
    content = {**about, "spread": spreads(values, rows), "results": rows}
    (out / RESULTS).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    title = f"# Values of prompts: {about['run']}, step {about['step']}"
    sections = [title, *texts, meaning, "![values](values.svg)", describe([about["provenance"]])]
    (out / "README.md").write_text("\n\n".join(sections) + "\n")
  return "\n\n".join(texts)
