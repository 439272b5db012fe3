"""Speed of verifiers and agreement with labels: python -m experiments.verifier_agreement

Prints the tables of docs/results/verifiers/README.md: answers per minute; agreement of our verifier
and of math-verify alone by kind of answer; every answer that either judges wrongly. math-verify
alone is `verify(parse(reference), parse(response))`, in the same pool with the same time limit.
"""

import collections
import importlib.util
import pathlib
import time

from absl import flags

from experiments import cli
from poise_jax.verifiers import Check, Verdict
from poise_jax.verifiers.base import FAILURES
from poise_jax.verifiers.pool import Pool

LABELLED = pathlib.Path(__file__).parents[1] / "tests/verifiers/labelled_answers.py"
WORKERS = flags.DEFINE_integer("workers", 0, "processes that judge; 0: one per core")
TIME_LIMIT = flags.DEFINE_float("time_limit", 10.0, "seconds per answer")
TIMED = flags.DEFINE_integer("timed", 10_000, "answers in each throughput measurement; 0: none")


CODE = "```python\ndef add(a, b):\n  return a + b  # {}\n```"


def bare(reference: str, response: str) -> Verdict:
  """math-verify alone, without its own time limits: the pool has one."""
  import math_verify

  gold = math_verify.parse(f"${reference}$", parsing_timeout=None)
  parsed = math_verify.parse(response, parsing_timeout=None)
  return Verdict(float(math_verify.verify(gold, parsed, timeout_seconds=None)))


def labelled() -> dict[str, list[tuple[str, str, str, bool]]]:
  """(kind, reference, response, whether it is right) of the labelled answers, by set."""
  spec = importlib.util.spec_from_file_location("labelled_answers", LABELLED)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return {"first set": module.FIRST, "second set": module.SECOND, "third set": module.THIRD}


def cell(text: str) -> str:
  """A text for a table's cell: one line, only the end of a long text."""
  text = text.removeprefix("We simplify and obtain the result, so the answer is ")
  text = " ".join("".join(c for c in text if c.isprintable() or c.isspace()).split())
  text = text if len(text) < 60 else f"({len(text):,} characters) …{text[-30:]}"
  return f"`{text}`".replace("|", "\\|") if text else "(nothing)"


def agreement(sets, verdicts: dict[str, list[Verdict]]) -> str:
  """Tables of how often each verifier agrees with the labels, and of every disagreement."""
  answers = [answer for rows in sets.values() for answer in rows]
  groups = {kind: [] for kind, *_ in answers} | {name: [] for name in sets} | {"all": []}
  places = iter(range(len(answers)))
  for name, rows in sets.items():
    for i in [next(places) for _ in rows]:
      for group in (answers[i][0], name, "all"):
        groups[group].append(i)
  names = " | ".join(f"{name} | wrong taken" for name in verdicts)
  lines = [f"| answers | labelled right | {names} |", "|---" * (2 + 2 * len(verdicts)) + "|"]
  for group, rows in groups.items():
    counts = []
    for judged in verdicts.values():
      counts.append(sum(judged[i].score == answers[i][3] for i in rows))
      counts.append(sum(judged[i].score > answers[i][3] for i in rows))
    right = sum(answers[i][3] for i in rows)
    lines.append(f"| {group}: {len(rows)} | {right} | {' | '.join(map(str, counts))} |")
  for name, judged in verdicts.items():
    failures = collections.Counter(v.status for v in judged if v.status in FAILURES)
    mistakes = [i for i, v in enumerate(judged) if v.score != answers[i][3]]
    summary = dict(failures) or "no time-out, no crash"
    lines += ["", f"{name}: {len(mistakes)} against the label; {summary}."]
    lines += ["", "| reference | response | label | verdict |", "|---|---|---|---|"]
    for i in mistakes:
      _, reference, response, right = answers[i]
      verdict = judged[i].status if judged[i].status in FAILURES else judged[i].score
      lines.append(f"| {cell(reference)} | {cell(response)} | {float(right)} | {verdict} |")
  return "\n".join(lines)


def throughput(pool: Pool, count: int) -> str:
  """Table of answers per minute: numbers, fractions, expressions that need sympy, programs."""
  examples = {  # name -> function from a number to (verifier, reference, response)
    "last_integer": lambda i: ("last_integer", str(i), f"3 + 4 = {i}"),
    "math, numbers": lambda i: ("math", str(i), rf"So it is \boxed{{{i:,}}}."),
    "math, fractions": lambda i: ("math", f"{i}/7", rf"So it is \boxed{{\frac{{{2 * i}}}{{14}}}}."),
    "math, sympy": lambda i: ("math", rf"\sqrt{{{i}}}", rf"So it is \boxed{{{i}^{{1/2}}}}."),
  }
  tests = {"tests": "assert add(1, 2) == 3\nassert add(0, 0) == 0", "entry_point": "add"}
  examples["code, asserts"] = lambda i: ("code", tests, CODE.format(i))
  share = {"math, sympy": 20, "code, asserts": 50}  # the count is divided by this
  lines = ["| answers | number | per minute |", "|---|---|---|"]
  for name, make in examples.items():
    n = max(1, count // share.get(name, 1))
    rows = [make(i) for i in range(1, n + 1)]
    checks = [Check(verifier, reference) for verifier, reference, _ in rows]
    pool.score(checks[:100], [text for *_, text in rows[:100]])
    start = time.perf_counter()
    verdicts = pool.score(checks, [text for *_, text in rows])
    seconds = time.perf_counter() - start
    right = sum(verdict.score for verdict in verdicts) / n
    lines.append(f"| {name} ({right:.0%} right) | {n:,} | {60 * n / seconds:,.0f} |")
  return "\n".join(lines)


def main(_):
  """Prints the tables."""
  sets = labelled()
  answers = [answer for rows in sets.values() for answer in rows]
  responses = [response for _, _, response, _ in answers]
  names = {"poise_jax": "math", "math-verify alone": "experiments.verifier_agreement:bare"}
  with Pool(WORKERS.value, TIME_LIMIT.value) as pool:
    if TIMED.value:
      print(throughput(pool, TIMED.value), flush=True)
    verdicts = {
      name: pool.score([Check(verifier, reference) for _, reference, _, _ in answers], responses)
      for name, verifier in names.items()
    }
  print()
  print(agreement(sets, verdicts))


if __name__ == "__main__":
  cli.run(main)
