"""The histogram of answers' lengths: its shares and medians, and runs without answers."""

import json

import numpy as np
from test_run_report import write_run

from poise_jax.reports import lengths, run_log


def answers(folder, step, rows):
  """Writes held-out answers as (domain, tokens)."""
  (folder / "answers").mkdir(exist_ok=True)
  text = "".join(json.dumps(dict(domain=domain, tokens=n)) + "\n" for domain, n in rows)
  (folder / "answers" / f"step_{step}.jsonl").write_text(text)


def test_the_newest_answers_are_shown_by_domain(tmp_path):
  folder = write_run(tmp_path / "run")
  answers(folder, 2, [("old", 1)] * 10)
  answers(folder, 10, [("sums", n) for n in (4, 4, 8, 16)] + [("words", 100)] * 4)
  (card,) = lengths.cards(run_log.read(folder))
  assert card.title == "Lengths of held-out answers at step 10"
  assert card.labels == ["sums", "words"]
  assert card.note == "all answers: median 58 tokens, 95th percentile 100"
  body = str(card.figure.body())
  assert "sums: median 6 tokens, longest 16" in body
  assert "words: median 100 tokens, longest 100" in body


def test_runs_without_answers_or_without_lengths_have_no_figure(tmp_path):
  folder = write_run(tmp_path / "run")
  assert list(lengths.cards(run_log.read(folder))) == []
  (folder / "answers").mkdir()
  (folder / "answers/step_1.jsonl").write_text('{"domain": "sums"}\n')
  assert list(lengths.cards(run_log.read(folder))) == []


def test_equal_and_empty_lengths_are_drawn():
  for some in ([0, 0], [1], [7, 7, 7]):
    figure = lengths.histogram({"": np.array(some)})
    assert 1.0 <= figure.ylim[1] < 1.1  # all answers are in one bin
    body = str(figure.body())
    assert "nan" not in body and f"longest {max(some)}" in body
