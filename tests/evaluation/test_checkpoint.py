"""Evaluation of a checkpoint from end to end: resuming, errors, comparison, the command line.

The policy is random, and the verifier accepts about half of its answers: no metric is 0 or 1.
"""

import json
import os
import pathlib
import subprocess
import sys
import types
import xml.etree.ElementTree

import jax
import numpy as np
import pytest

from configs import quickstart
from poise_jax import models, verifiers
from poise_jax.data import tasks
from poise_jax.evaluation import answer, table
from poise_jax.evaluation import checkpoint as evaluation
from poise_jax.learner import update
from poise_jax.learner.update import UpdateConfig
from poise_jax.training import build, checkpoints
from poise_jax.training.run import Run
from poise_jax.training.workdir import open_workdir

ROOT = pathlib.Path(__file__).parents[2]
SHAPE = dict(
  model_type="llama",
  hidden_size=16,
  intermediate_size=16,
  num_hidden_layers=1,
  num_attention_heads=2,
  num_key_value_heads=1,
  head_dim=8,
)
FIELDS = {
  "task.name": "arithmetic",
  "task.think_end": "",
  "task.arithmetic.kinds": ("1+", "1-"),
  "task.train": 60,
  "task.test": 10,
  "task.max_prompt_length": 8,
  "rollout.max_new_tokens": 6,
  "eval_batch": 4,
  "eval.n": 3,
  "eval.temperature": 1.0,
}


@pytest.fixture(scope="module", autouse=True)
def several_calls():
  """Sets of 10 prompts are answered in several calls of the sampler."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(answer, "QUEUE", 1)
    yield


def odd(checks, responses):
  return [verifiers.Verdict(float(len(text) % 2)) for text in responses]


def small(**changes):
  """A smaller quickstart; a change a__b sets the field a.b."""
  config = quickstart.get_config()
  config.model.shape = SHAPE
  config.update_from_flattened_dict(FIELDS)
  config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
  return config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  """A Hugging Face folder with a sentencepiece tokenizer."""
  folder = tmp_path_factory.mktemp("model")
  config = small()
  made = build.train_tokenizer(tasks.make(config.task, config.seed), config.task.template)
  (folder / "tokenizer.model").write_bytes(made)
  vocab_size = models.load_tokenizer(folder / "tokenizer.model").vocab_size
  model = models.ModelConfig(vocab_size=vocab_size, **SHAPE)
  rng = np.random.default_rng(0)  # models.init would compile for seconds
  shapes = models.abstract_params(model)
  params = jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(x.dtype), shapes)
  models.save_hf(folder, model, params)
  return folder


def evaluate(config, checkpoint, out, **options):
  return evaluation.run(config, str(checkpoint), str(out), score=odd, **options)


@pytest.fixture(scope="module")
def straight(checkpoint, tmp_path_factory):
  """An evaluation without interruption."""
  out = tmp_path_factory.mktemp("evaluations") / "straight"
  evaluate(small(), checkpoint, out)
  return out


def results(out):
  return json.loads((out / "results.json").read_text())


def test_the_files_of_an_evaluation(straight, checkpoint):
  names = {path.name for path in straight.iterdir()}
  assert names == {
    "protocol.json",
    "provenance.jsonl",
    "answers.jsonl",
    "results.json",
    "README.md",
    "scores.svg",
  }
  rows = [json.loads(line) for line in (straight / "answers.jsonl").open()]
  assert len(rows) == 30
  everything, *parts = results(straight)["results"]
  assert everything["group"] == "" and [part["group"] for part in parts] == ["1+", "1-"]
  scores = np.array([row["reward"] for row in rows]).reshape(10, 3)
  assert 0.1 < scores.mean() < 0.9  # otherwise the comparisons below would be trivial
  assert everything["avg@3"] == {
    "mean": pytest.approx(scores.mean()),
    "se": pytest.approx(scores.mean(1).std() / 10**0.5),
  }
  assert everything["pass@3"]["mean"] == pytest.approx(scores.max(1).mean())
  protocol = results(straight)["protocol"]
  assert protocol["sampling"] == {
    "n": 3,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "max_new_tokens": 6,
    "seed": 0,
  }
  assert protocol["checkpoint"]["source"] == str(checkpoint) and protocol["seed"] == 0
  assert protocol["tasks"]["held_out"]["config"]["template"] == "{question} :"
  (start,) = results(straight)["provenance"]
  assert len(start["commit"]) == 40
  readme = (straight / "README.md").read_text()
  mean, error = everything["avg@3"].values()
  assert f"| all | 10 | {mean:.3f} ± {error:.3f} |" in readme
  assert start["commit"] in readme and "temperature 1.0" in readme
  root = xml.etree.ElementTree.fromstring((straight / "scores.svg").read_text())
  labels = {element.text for element in root.iter() if element.tag.endswith("text")}
  assert {"all", "1+", "1-", "avg@3", "pass@k (solid) and maj@k (dotted)"} <= labels


@pytest.mark.parametrize("batches,torn", [(0, 0), (2, 400)])
def test_an_interrupted_evaluation_resumes_bit_for_bit(
  straight, checkpoint, tmp_path, batches, torn
):
  """Interrupted in a batch, of which `torn` bytes were written."""
  out, calls = tmp_path / "out", []

  def interrupted(checks, responses):
    if len(calls) == batches:
      raise KeyboardInterrupt
    calls.append(len(responses))
    return odd(checks, responses)

  with pytest.raises(KeyboardInterrupt):
    evaluation.run(small(), str(checkpoint), str(out), score=interrupted)
  expected = (straight / "answers.jsonl").read_bytes()
  done = (out / "answers.jsonl").read_bytes() if batches else b""
  assert expected.startswith(done) and len(done) < len(expected)
  message = f"has {12 * batches} of its 30 answers; run the same command"
  with pytest.raises(ValueError, match=message):
    table.read(out)
  with (out / "answers.jsonl").open("ab") as file:
    file.write(expected[len(done) : len(done) + torn])
  calls.clear()
  evaluation.run(
    small(), str(checkpoint), str(out), score=lambda c, r: calls.append(len(r)) or odd(c, r)
  )
  assert calls == [12, 12, 6][batches:]
  assert (out / "answers.jsonl").read_bytes() == expected
  assert results(out)["results"] == results(straight)["results"]
  assert len(results(out)["provenance"]) == 2


def test_several_held_out_sets_resume_in_the_interrupted_one(checkpoint, straight, tmp_path):
  sets = {"held_out": {}, "sums": dict(arithmetic=dict(kinds=("1+",)), test=6)}
  config, calls = small(eval__tasks=sets), []

  def interrupted(checks, responses):
    if len(calls) == 4:  # batches of 4, 4 and 2 prompts of one set, twice 3 of the other
      raise KeyboardInterrupt
    calls.append(len(responses))
    return odd(checks, responses)

  with pytest.raises(KeyboardInterrupt):
    evaluation.run(config, str(checkpoint), str(tmp_path / "out"), score=interrupted)
  evaluate(config, checkpoint, tmp_path / "out")
  evaluate(config, checkpoint, tmp_path / "straight")
  answers = [(tmp_path / name / "answers.jsonl").read_text() for name in ("out", "straight")]
  assert answers[0] == answers[1]
  assert answers[0].startswith((straight / "answers.jsonl").read_text())  # sets are independent
  groups = {row["group"]: row["prompts"] for row in results(tmp_path / "out")["results"]}
  assert groups == {"": 16, "held_out": 10, "held_out/1+": 5, "held_out/1-": 5, "sums": 6} | {
    "sums/1+": 6
  }


def test_a_finished_evaluation_is_reported_with_other_k_without_sampling(checkpoint, straight):
  def unused(checks, responses):
    raise AssertionError("a finished evaluation must not sample")

  before = (straight / "answers.jsonl").read_bytes()
  text = evaluation.run(small(eval__k=(2,)), str(checkpoint), str(straight), score=unused)
  assert "pass@2" in text and "pass@3" not in text
  text = evaluation.run(small(), str(checkpoint), str(straight), score=unused)
  assert "pass@3" in text and (straight / "answers.jsonl").read_bytes() == before
  assert len(results(straight)["provenance"]) == 1


def test_a_folder_of_another_evaluation_is_an_error_with_the_differences(checkpoint, straight):
  before = (straight / "answers.jsonl").read_bytes()
  config = small(eval__temperature=0.5, task__template="{question}?")
  with pytest.raises(ValueError, match="another configuration.*choose another --out") as error:
    evaluate(config, checkpoint, straight)
  assert "sampling.temperature: 1.0 -> 0.5" in str(error.value)
  assert "held_out.config.template: '{question} :' -> '{question}?'" in str(error.value)
  assert "max_new_tokens" not in str(error.value)
  assert (straight / "answers.jsonl").read_bytes() == before


def test_changed_weights_are_another_evaluation(checkpoint, straight, tmp_path):
  model, params = models.load(checkpoint)
  params["norm"]["scale"] = params["norm"]["scale"].at[3].add(1e-3)
  models.save_hf(tmp_path, model, params)
  (tmp_path / "tokenizer.model").write_bytes((checkpoint / "tokenizer.model").read_bytes())
  with pytest.raises(ValueError, match="checkpoint.crc32"):
    evaluate(small(), tmp_path, straight)


def test_two_evaluations_are_compared(checkpoint, straight, tmp_path):
  evaluate(small(eval__seed=1), checkpoint, tmp_path / "seed", against=str(straight))
  readme = (tmp_path / "seed" / "README.md").read_text()
  assert "Protocol changes from straight: `sampling.seed: 0 -> 1`." in readme
  scores = [
    np.array([row["reward"] for row in table.read(path).rows]).reshape(10, 3).mean(1)
    for path in (tmp_path / "seed", straight)
  ]
  d = scores[0] - scores[1]
  error = d.std() / 10**0.5
  assert (
    f"| all | avg@3 | {scores[0].mean():.3f} | {scores[1].mean():.3f} | "
    f"{d.mean():+.3f} ± {error:.3f} (paired) | {d.mean() / error:+.2f} |"
  ) in readme
  # Other problems cannot be paired.
  text = evaluate(small(seed=1), checkpoint, tmp_path / "problems", against=str(straight))
  other = np.array([row["reward"] for row in table.read(tmp_path / "problems").rows])
  other = other.reshape(10, 3).mean(1)
  error = (other.var() / 10 + scores[1].var() / 10) ** 0.5
  assert f"{other.mean() - scores[1].mean():+.3f} ± {error:.3f} |" in text
  assert "paired" not in text


def test_a_run_is_evaluated_with_its_tokenizer_and_training_questions(
  checkpoint, straight, tmp_path
):
  model, params = models.load(checkpoint)
  run = small(seed=3)
  open_workdir(tmp_path / "run", run)
  (tmp_path / "run" / "tokenizer.model").write_bytes((checkpoint / "tokenizer.model").read_bytes())
  with pytest.raises(FileNotFoundError, match="run .* has no whole checkpoint yet"):
    evaluate(small(), tmp_path / "run", tmp_path / "out")
  state = update.init(params, UpdateConfig())
  about = {"config": json.loads(run.to_json()), "model": model.to_hf(), "best": {"step": 0}}
  with checkpoints.Checkpoints(tmp_path / "run") as saved:
    saved.save(7, (state, {"probe": np.zeros(3)}, (), {"buffer": np.zeros(2)}), about)
  evaluate(small(), tmp_path / "run", tmp_path / "out")
  assert (tmp_path / "out" / "answers.jsonl").read_text() == (
    straight / "answers.jsonl"
  ).read_text()
  protocol = results(tmp_path / "out")["protocol"]
  assert protocol["checkpoint"]["step"] == 7
  assert protocol["checkpoint"]["crc32"] == results(straight)["protocol"]["checkpoint"]["crc32"]
  trained = {example.question for example in tasks.make(run.task, 3).train}
  held_out = tasks.make(small().task, 0).test
  trained_on = sum(example.question in trained for example in held_out)
  assert 0 < trained_on == protocol["tasks"]["held_out"]["trained_on"]
  assert (
    f"**{trained_on} of them in the checkpoint's training set**"
    in (tmp_path / "out" / "README.md").read_text()
  )


@pytest.mark.parametrize(
  "changes,message",
  [
    (dict(eval__k=(4,)), "eval.k=.* contains 4"),
    (dict(task__test=0), "test set is empty"),
    (dict(eval_batch=0), "eval_batch must be a positive multiple of .* got 0"),
    (dict(task__max_prompt_length=3), "task.max_prompt_length=3"),
    (dict(model__dtype="float31"), "unknown model.dtype 'float31'"),
  ],
)
def test_invalid_values_are_an_error_before_anything_is_written(
  checkpoint, tmp_path, changes, message
):
  with pytest.raises(ValueError, match=message):
    evaluate(small(**changes), checkpoint, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_errors_name_folders_that_hold_something_else(checkpoint, tmp_path):
  (tmp_path / "thesis.tex").write_text("years of work")
  with pytest.raises(
    ValueError, match="is not empty and holds no evaluation; choose another --out"
  ):
    evaluate(small(), checkpoint, tmp_path)
  with pytest.raises(ValueError, match="holds no evaluation: it has no protocol.json"):
    evaluate(small(), checkpoint, tmp_path / "out", against=str(tmp_path))
  with pytest.raises(FileNotFoundError, match="no config.json"):
    evaluate(small(), tmp_path, tmp_path / "out")
  with pytest.raises(FileNotFoundError, match="no.gguf does not exist"):
    evaluate(small(), tmp_path / "no.gguf", tmp_path / "out")


def test_an_answer_may_contain_any_character(straight, tmp_path):
  """Some of them end a line according to str.splitlines()."""
  for name in ("protocol.json", "provenance.jsonl", "answers.jsonl"):
    (tmp_path / name).write_bytes((straight / name).read_bytes())
  lines = (tmp_path / "answers.jsonl").read_text().split("\n")
  odd_row = json.loads(lines[4]) | {"response": "a\u2028b\x85c\rd\ne\x1cf"}
  lines[4] = json.dumps(odd_row, ensure_ascii=False)
  (tmp_path / "answers.jsonl").write_text("\n".join(lines))
  assert table.read(tmp_path).rows[4] == odd_row
  assert evaluation.truncate_to_batches(tmp_path / "answers.jsonl", [12, 12, 6]) == 3
  (tmp_path / "answers.jsonl").write_text("\n".join([*lines[:4], "{", *lines[5:]]))
  with pytest.raises(ValueError, match="answers.jsonl, line 5, is not valid JSON"):
    table.read(tmp_path)


def test_training_stores_greedy_and_sampled_answers(checkpoint, straight, tmp_path):
  changes = dict(estimator="rloo", warm_start__steps=0, rollout__feature_layers=())
  config = small(model__source=str(checkpoint), **changes)
  experiment = build.build(config)
  judge = types.SimpleNamespace(score=lambda checks, responses, training: odd(checks, responses))
  log = types.SimpleNamespace(phase=lambda name: None)
  run = Run(experiment, tmp_path, judge, checkpoints=None, interrupts=None, log=log)
  metrics = run.evaluate(5, build.initial_params(experiment))
  greedy, sampled = (
    [json.loads(line) for line in (tmp_path / name / "step_5.jsonl").open()]
    for name in ("answers", "answers_sampled")
  )
  assert len(greedy) == 10 and len(sampled) == 30
  expected = [row["response"] for row in table.read(straight).rows]
  assert [row["response"] for row in sampled] == expected  # same draws as experiments.evaluate
  assert metrics["eval/accuracy"] == np.mean([row["reward"] for row in greedy])
  assert metrics["eval/avg_at_3"] == pytest.approx(np.mean([row["reward"] for row in sampled]))


def test_the_command(checkpoint, tmp_path):
  fields = {f"model.shape.{k}": v for k, v in SHAPE.items()} | FIELDS
  fields |= {"eval.n": 1, "eval.temperature": 0.0}
  good = [f"--checkpoint={checkpoint}", f"--out={tmp_path / 'out'}"]
  good += [f"--config.{name}={value}" for name, value in fields.items() if "shape" not in name]
  expected = {
    (f"--out={tmp_path / 'none'}",): "error: --checkpoint is missing",
    tuple(good): "",
  }
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  started = {
    arguments: subprocess.Popen(
      [
        *(sys.executable, "-m", "experiments.evaluate", "--config=configs/quickstart.py"),
        *arguments,
      ],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for arguments in expected
  }
  for arguments, process in started.items():
    stdout, stderr = process.communicate(timeout=120)
    if expected[arguments]:
      assert process.returncode == 1
      assert stderr.startswith(expected[arguments]) and len(stderr.splitlines()) == 1, stderr
    else:
      assert process.returncode == 0, stderr
      assert "10/10 prompts  held_out" in stdout and "| all | 10 | 0." in stdout
  assert not (tmp_path / "none").exists()
  assert "avg@1" in results(tmp_path / "out")["results"][0]
