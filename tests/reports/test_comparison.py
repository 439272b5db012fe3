"""Comparisons of synthetic runs: every number of the table by hand."""

import importlib
import json
import pathlib
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree

import pytest

from configs import algorithms
from poise_jax.reports import comparison, run_log, svg

ROOT = pathlib.Path(__file__).parents[2]
START = {
  "command": ["python", "-m", "experiments.train", "--config=a.py"],
  "commit": "abc",
  "uncommitted_changes": True,
  "cpu": "an abacus",
  "cpus": 2,
  "devices": ["cpu:cpu"],
  "python": "3.11",
  "libraries": {"jax": "1"},
}


def write(folder, algorithm="poise", seed=0, accuracies=(0.25, 0.5), steps=12, **config):
  """A run with reward t / 100 and 30 tokens at step t, evaluated before and after."""
  (folder / "answers").mkdir(parents=True)
  (folder / "config.json").write_text(
    json.dumps({"algorithm": algorithm, "seed": seed, "rollouts": 8, **config})
  )
  rows = [{"step": 0, "eval/accuracy": accuracies[0], "time/elapsed": 30.0}]
  rows += [{"step": t, "reward/mean": t / 100, "time/elapsed": 30.0 + t} for t in range(1, steps)]
  for row in rows[1:]:
    row["collect/tokens"] = 30
  last = {"step": steps, "reward/mean": steps / 100, "eval/accuracy": accuracies[1]}
  last["collect/tokens"] = 30
  rows.append({**last, "time/elapsed": 90.123456789})
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (folder / "provenance.jsonl").write_text(json.dumps(START) + "\n")
  for step, response, reward in ((0, "a\nb", 0.0), (steps, "c", 1.0)):
    answers = [
      {"question": f"{i} + 1", "answer": str(i + 1), "response": response, "reward": reward}
      for i in range(3)
    ]
    path = folder / "answers" / f"step_{step}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in answers))
  return folder


def table(text, heading):
  """The cells of the rows below a heading."""
  lines = text[text.index(f"## {heading}") :].splitlines()[4:]
  rows = [line for line in lines[: lines.index("") if "" in lines else None]]
  return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]


@pytest.mark.parametrize(
  "first,second,message",
  [
    ({}, {}, ""),
    ({"rollout": {"n": 2}}, {"rollout": {"n": 8}}, ""),  # of the presets
    ({"train": {"loss": {"clip_high": 0.2}}}, {"train": {"loss": {"clip_high": 0.28}}}, ""),
    ({"loggers": ["wandb"]}, {"loggers": []}, ""),
    ({"train": {"learning_rate": 1e-5}}, {"train": {"learning_rate": 3e-5}}, "1e-05, 3e-05"),
    ({"task": {"name": "sums"}}, {"task": {"name": "words"}}, "task.name (sums, words)"),
    (
      {"eval_every": 9, "model": {"source": "a"}},
      {"eval_every": 8, "model": {"source": "b"}},
      "eval_every (9, 8), model.source (a, b)",
    ),
  ],
)
def test_runs_that_differ_in_more_than_the_algorithm_are_warned_about(
  tmp_path, first, second, message
):
  runs = [write(tmp_path / "a", "poise", **first), write(tmp_path / "b", "rloo", **second)]
  text = comparison.report(runs, tmp_path / "out")
  assert ("differ in more than the algorithm" in text) == bool(message) and message in text
  assert message in (tmp_path / "out" / "README.md").read_text()


def test_settings_in_labels_are_compared_on_purpose(tmp_path):
  rates = [{"train": {"learning_rate": rate}} for rate in (1e-5, 3e-5)]
  runs = [write(tmp_path / str(i), "poise", **rate) for i, rate in enumerate(rates)]
  assert "differ in more" not in comparison.report(runs, tmp_path / "out")


@pytest.mark.parametrize("name", ["quickstart", "lab", "smollm2_arithmetic", "own_data"])
def test_presets_of_a_shipped_config_differ_in_the_algorithm_alone(name):
  module = importlib.import_module(f"configs.{name}")
  configs = [module.get_config(algorithm) for algorithm in algorithms.ALGORITHMS]
  runs = [run_log.Run(pathlib.Path(), json.loads(config.to_json()), [], []) for config in configs]
  assert not comparison.settings_warning({str(i): [run] for i, run in enumerate(runs)})


def test_an_own_estimator_is_named(tmp_path):
  runs = [
    write(tmp_path / name, "rloo", estimator=estimator)
    for name, estimator in (("a", "rloo"), ("b", "lab.estimators:median"), ("c", "x/y.py:mean"))
  ]
  text = comparison.report(runs, tmp_path / "out")
  assert [row[0] for row in table(text, "Runs")] == ["rloo", "median (rloo)", "mean (rloo)"]


def test_means_and_runs_by_hand(tmp_path):
  paths = [
    write(tmp_path / "a", seed=1, accuracies=(0.25, 0.5)),
    write(tmp_path / "b", seed=0, accuracies=(0.25, 0.75)),
    write(tmp_path / "c", "rloo", accuracies=(0.25, 0.125)),
  ]
  text = comparison.report(paths, tmp_path / "out")
  assert "## Algorithms: mean ± standard error over seeds\n" in text
  # 0.75 and 0.5 have a standard deviation of 0.1768, divided by the root of two seeds.
  assert table(text, "Algorithms") == [
    ["poise", "2", "0.250 ± 0.000", "0.625 ± 0.125", "+0.375 ± 0.125", "0.075 ± 0.000", ""],
    ["rloo", "1", "0.250", "0.125", "-0.125", "0.075", ""],
  ]
  assert table(text, "Runs") == [
    ["poise", "0", "0.250", "0.750", "+0.500", "0.075", "", "", ""],
    ["poise", "1", "0.250", "0.500", "+0.250", "0.075", "", "", ""],
    ["rloo", "0", "0.250", "0.125", "-0.125", "0.075", "", "", ""],
  ]
  assert table(text, "Cost of each run") == [
    ["poise", "0", "12", "96", "360", "1.5", "", "", ""],
    ["poise", "1", "12", "96", "360", "1.5", "", "", ""],
    ["rloo", "0", "12", "96", "360", "1.5", "", "", ""],
  ]
  readme = (tmp_path / "out" / "README.md").read_text()
  assert text in readme and "python -m experiments.train --config=a.py\n" in readme
  assert "Commit abc with uncommitted changes." in readme and "an abacus, 2 CPUs" in readme
  assert "Held-out answers" not in readme
  lines = (tmp_path / "out" / "poise-1.metrics.jsonl").read_text().splitlines()
  assert json.loads(lines[-1]) == {
    "step": 12,
    "reward/mean": 0.12,
    "eval/accuracy": 0.5,
    "collect/tokens": 30,
    "time/elapsed": 90.123,
  }


def test_paired_differences(tmp_path):
  """Seeds differ much, algorithms little: the error of a difference is that of the pairs."""
  accuracies = {
    "poise": {0: (0.25, 0.5), 1: (0.375, 0.875), 2: (0.0, 0.25)},
    "rloo": {0: (0.25, 0.375), 1: (0.25, 0.75), 3: (0.0, 1.0)},
    "grpo": {2: (0.0, 0.5)},
    "ppo": {7: (0.0, 0.5)},
  }
  paths = [
    write(tmp_path / f"{name}-{seed}", name, seed, pair, steps=12 if name == "poise" else 22)
    for name, seeds in accuracies.items()
    for seed, pair in seeds.items()
  ]
  text = comparison.report(paths, tmp_path / "out")
  assert "## Paired differences: mean ± standard error over seeds\n" in text
  # Seeds 0 and 1: 0.125 twice, and gains of 0.25 - 0.125 and 0.5 - 0.5. Rewards 0.075 and 0.175.
  assert table(text, "Paired differences") == [
    ["poise − rloo", "2", "+0.125 ± 0.000", "+0.062 ± 0.062", "-0.100 ± 0.000"],
    ["poise − grpo", "1", "-0.250", "-0.250", "-0.100"],
  ]
  alone = comparison.report(paths[:2], tmp_path / "alone")
  assert "Paired" not in alone


def test_tables_have_few_enough_columns_and_long_words_wrap(tmp_path):
  """Nine columns of numbers fit into a window of 1,200 pixels; a word that does not, wraps."""
  text = comparison.report([write(tmp_path / "a"), write(tmp_path / "b", "rloo")], tmp_path / "out")
  headers = [line for line in text.splitlines() if line.startswith(("| algorithm", "| difference"))]
  assert len(headers) == 4 and max(line.count("|") - 1 for line in headers) <= 9
  page = (tmp_path / "out" / "report.html").read_text()
  assert re.search(r"\btd\{[^}]*overflow-wrap:anywhere", page)
  for name in ("curves", "costs"):  # a picture shrinks with its window
    assert "max-width:100%" in (tmp_path / "out" / f"{name}.svg").read_text()


def test_accuracy_is_that_of_best_by(tmp_path):
  paths = [write(tmp_path / name, name, eval={"best_by": "avg@4"}) for name in ("poise", "rloo")]
  for path in paths:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    rows[0]["eval/avg_at_4"], rows[-1]["eval/avg_at_4"] = 0.125, 0.875
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  text = comparison.report(paths, tmp_path / "out")
  assert table(text, "Algorithms")[0][2:5] == ["0.125", "0.875", "+0.750"]
  page = (tmp_path / "out" / "report.html").read_text()
  assert "that of config.eval.best_by: avg@4." in page and "<h3>Held-out accuracy (avg@4)<" in page
  paths.append(write(tmp_path / "old", "old"))
  with pytest.raises(ValueError, match="differ in eval.best_by .*rloo avg@4, .*old greedy"):
    comparison.report(paths, tmp_path / "out")


def test_every_chart_has_a_title_of_its_own(tmp_path):
  comparison.report([write(tmp_path / "a"), write(tmp_path / "b", "rloo")], tmp_path / "out")
  titles = re.findall("<h3>(.*?)</h3>", (tmp_path / "out" / "report.html").read_text())
  assert len(titles) == 8 and len(set(titles)) == 8
  for name, count in (("curves", 2), ("costs", 6)):
    text = (tmp_path / "out" / f"{name}.svg").read_text()
    assert len(set(re.findall('class="title"[^>]*>(.*?)</text>', text))) == count


def test_commands_can_be_pasted_into_a_shell(tmp_path):
  command = ["python", "-m", "experiments.train", "--config.profile_steps=(3, 4)", "--workdir=a b"]
  path = write(tmp_path / "a")
  (path / "provenance.jsonl").write_text(json.dumps({**START, "command": command}) + "\n")
  comparison.report([path], tmp_path / "out")
  line = (tmp_path / "out" / "README.md").read_text().split("```\n")[1].strip()
  assert shlex.split(line) == command


def test_sampled_rollouts_and_times(tmp_path):
  path = write(tmp_path / "a")
  rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
  for i, row in enumerate(rows[1:]):
    row |= {"time/rollout": 9.0 if i == 0 else 1.25, "time/estimate": 0.5, "time/update": 2.0}
  rows[-1]["collect/generated_total"] = 4000.0
  (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  text = comparison.report([path], tmp_path / "out")
  assert table(text, "Cost")[0][2:] == ["12", "4000", "360", "1.5", "1.25", "0.50", "2.00"]


@pytest.mark.parametrize("fractions,warns", [((0.5, 0.25), True), ((0.5, 0.375), False)])
def test_runs_that_clipping_treats_differently(tmp_path, fractions, warns):
  paths = [write(tmp_path / "a"), write(tmp_path / "b", "dr_grpo"), write(tmp_path / "c", "old")]
  for path, fraction in zip(paths, fractions, strict=False):  # the third one did not log it
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    rows = [rows[0], *({**row, "policy/grad_clipped": fraction} for row in rows[1:])]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  text = comparison.report(paths, tmp_path / "out")
  assert table(text, "Runs")[0][-3:] == ["", f"{fractions[0]:.2f}", ""]
  warning = "(optimizer steps clipped: poise 50%, dr_grpo 25%)"
  for place in (
    text,
    *((tmp_path / "out" / name).read_text() for name in ("README.md", "report.html")),
  ):
    assert (warning in place) == warns
    assert ("Tune train.max_grad_norm" in place) == warns


def test_baselines_over_the_second_half_of_the_steps(tmp_path):
  paths = [write(tmp_path / "a"), write(tmp_path / "b", seed=1), write(tmp_path / "c", "grpo")]
  for path, removed in zip(paths[:2], (0.25, 0.5), strict=True):
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for row in rows[1:]:
      late = row["step"] > 6
      row |= {"baseline/variance_reduction": removed if late else -9.0}
      row |= {"baseline/pearson": 0.5 if late else -1.0}
      if row["step"] > 10:  # two steps, whose mean square is 0.25
        row["baseline/ceiling"] = {11: 0.1, 12: 0.7}[row["step"]]
    if removed == 0.5:
      rows = [{k: v for k, v in row.items() if k != "baseline/ceiling"} for row in rows]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  text = comparison.report(paths, tmp_path / "out")
  ends = [[row[6], row[8]] for row in table(text, "Runs")]
  assert ends == [["0.250", "0.50 of 0.50"], ["0.500", "0.50"], ["", ""]]
  assert [row[-1] for row in table(text, "Algorithms")] == ["0.375 ± 0.125", ""]


def test_probes_by_domain(tmp_path):
  path = write(tmp_path / "a")
  rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
  for i, row in enumerate(rows[1:]):
    row |= {"probe/mae/sums": 0.9 if i == 0 else 0.25, "probe/pearson/sums": 0.5}
  rows[-1] |= {"probe/mae/words": 0.125, "probe/pearson/words": -0.5, "eval/accuracy/words": 1.0}
  (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  comparison.report([path], tmp_path / "out")
  readme = (tmp_path / "out" / "README.md").read_text()
  assert "| poise-0 | sums | 0.250 | 0.500 |  |  |\n" in readme  # without the first of 11 steps
  assert "| poise-0 | words | 0.125 | -0.500 | 1.000 | 1.000 |\n" in readme


def test_figures_show_every_algorithm_in_its_color(tmp_path):
  comparison.report([write(tmp_path / "a")], tmp_path / "one")
  comparison.report([write(tmp_path / "b"), write(tmp_path / "c", "rloo")], tmp_path / "two")

  def count(folder, name, place):
    text = (tmp_path / folder / name).read_text()
    color = svg.color_of(place)
    if name.endswith("svg"):  # a file of its own has literal colors
      assert xml.etree.ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
      assert "var(" not in text
      color = svg.COLORS[place]
    return len(
      re.findall(rf'class="line" style="stroke:{re.escape(color)};[^"]*" d="M\S+ \S+L', text)
    )

  # Accuracy and reward, the only metrics of these runs: by step, and by each of three costs.
  for folder, second in (("one", 0), ("two", 1)):
    assert [count(folder, "curves.svg", place) for place in (0, 1)] == [2, 2 * second]
    assert [count(folder, "costs.svg", place) for place in (0, 1)] == [6, 6 * second]
    assert [count(folder, "report.html", place) for place in (0, 1)] == [8, 8 * second]


def test_seeds_are_averaged_at_equal_cost(tmp_path):
  """One seed generates twice as many tokens per step as the other."""
  paths = [write(tmp_path / "a"), write(tmp_path / "b", seed=1)]
  text = (paths[1] / "metrics.jsonl").read_text()
  (paths[1] / "metrics.jsonl").write_text(
    text.replace('"collect/tokens": 30', '"collect/tokens": 60')
  )
  group = [run_log.read(path) for path in paths]
  line = comparison.mean_curve("poise", group, "eval/accuracy", "tokens")
  assert line.x.tolist() == [0, 360]  # the end of the shorter run
  # From 0.25 to 0.5 over 360 tokens, and over 720.
  assert line.y.tolist() == pytest.approx([0.25, (0.5 + 0.375) / 2])
  assert line.spread.tolist() == pytest.approx([0.0, 0.125 / 2])
  steps = comparison.mean_curve("poise", group, "reward/mean", "steps")
  assert steps.x.tolist() == list(range(1, 13)) and not steps.spread.any()
  assert steps.y[[0, 5, 11]].tolist() == pytest.approx([0.02, 0.06, 0.11])  # moving means
  assert comparison.mean_curve("poise", group[:1], "eval/accuracy", "minutes").spread is None
  minutes = group[0].positions("minutes")
  assert minutes[[0, 1]].tolist() == pytest.approx([0.5, 31 / 60])
  assert comparison.mean_curve("poise", group, "probe/mae", "steps") is None


def test_tokens_of_runs_without_collect_tokens(tmp_path):
  """Twice as many rollouts were sampled as trained on, so twice their tokens are assumed."""
  path = write(tmp_path / "a")
  row = {"step": 0, "eval/accuracy": 0.5}, {"step": 1, "rollout/tokens": 7, "collect/generated": 16}
  (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in row))
  assert run_log.read(path).positions("tokens").tolist() == [0, 14]


def test_labels_name_the_fields_that_differ(tmp_path):
  paths = [
    write(
      tmp_path / f"{rate}-{seed}", seed=seed, train={"rate": rate, "n": 2}, start=f"start-{seed}"
    )
    for rate in (0.1, 0.2)
    for seed in (0, 1)
  ]
  text = comparison.report(paths, tmp_path / "out")
  assert [row[:2] for row in table(text, "Algorithms")] == [
    ["poise train.rate=0.1", "2"],
    ["poise train.rate=0.2", "2"],
  ]
  assert (tmp_path / "out" / "poise train.rate=0.2-1.metrics.jsonl").exists()
  far = write(tmp_path / "far", **{f"option_{i}": i for i in range(9)})  # too long for a label
  assert set(comparison.grouped([run_log.read(p) for p in (paths[0], far)])) == {
    "poise (0.1-0)",
    "poise (far)",
  }


def test_answers_before_and_after(tmp_path):
  comparison.report([write(tmp_path / "a")], tmp_path / "out", problems=2)
  lines = (tmp_path / "out" / "README.md").read_text().splitlines()
  assert [line for line in lines if "✓" in line] == [
    "| 0 + 1 | 1 | `a\\nb` ✗ | `c` ✓ |",
    "| 1 + 1 | 2 | `a\\nb` ✗ | `c` ✓ |",
  ]


def test_answers_do_not_break_tables(tmp_path):
  path = write(tmp_path / "a")
  row = json.dumps({"question": "a|b\nc", "answer": "<b>", "response": "<i>|", "reward": 0.0})
  for file in (path / "answers").iterdir():
    file.write_text(row + "\n")
  comparison.report([path], tmp_path / "out", problems=1)
  assert (
    r"| a\|b<br>c | &lt;b&gt; | `<i>\|` ✗ | `<i>\|` ✗ |" in (tmp_path / "out/README.md").read_text()
  )
  page = (tmp_path / "out" / "report.html").read_text()
  assert "<td>&lt;i&gt;| ✗</td>" in page and "<i>|" not in page


def test_errors_name_the_folder(tmp_path):
  with pytest.raises(ValueError, match="nowhere holds no run"):
    comparison.report([tmp_path / "nowhere"], tmp_path / "out")
  young = write(tmp_path / "young")
  (young / "metrics.jsonl").unlink()
  with pytest.raises(ValueError, match="young has not been evaluated yet"):
    comparison.report([young], tmp_path / "out")
  twins = [write(tmp_path / "a"), write(tmp_path / "b")]
  with pytest.raises(ValueError, match="a and .*b have the same configuration and seed"):
    comparison.report(twins, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_the_command(tmp_path):
  run = [sys.executable, "-m", "experiments.compare"]
  done = subprocess.run(
    [*run, write(tmp_path / "a"), f"--out={tmp_path / 'out'}", "--samples=1"],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert "| poise | 0 | 0.250 |" in done.stdout
  assert "Held-out answers, poise-0" in (tmp_path / "out" / "README.md").read_text()
  done = subprocess.run(
    [*run, tmp_path / "b", f"--out={tmp_path / 'out'}"], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 1
  assert done.stderr == f"error: {tmp_path / 'b'} holds no run: it has no config.json\n"
