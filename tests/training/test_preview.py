"""The preview: the prompt that the model reads, verdicts on its reference, and what looks wrong."""

import dataclasses

import pytest
from tiny_run import tiny

from poise_jax.evaluation.judge import Judge
from poise_jax.training import preview
from poise_jax.training.build import build
from poise_jax.verifiers import Check
from poise_jax.verifiers.pool import Pool


@pytest.fixture(scope="module")
def experiment():
  return build(tiny(task__template="{question} ="))


def with_example(experiment, **changes):
  """The experiment with changed first examples, one for each change of a check."""
  first, *rest = experiment.task.train
  task = dataclasses.replace(experiment.task, train=[dataclasses.replace(first, **changes), *rest])
  return dataclasses.replace(experiment, task=task)


def text_of(experiment):
  with Pool(1, experiment.verifier.time_limit) as pool:
    judge = Judge(pool, experiment.verifier)
    judge.load(example.check for example in preview.examples(experiment.task))
    text = preview.preview(experiment, judge)
    assert not any(judge.counts.values())  # metrics of training do not see these answers
  return text


def test_one_prompt_its_reference_and_both_verdicts(experiment):
  example, text = experiment.task.train[0], text_of(experiment)
  count = len(experiment.encoder.encode(example))
  assert f"a training prompt, {count} tokens" in text
  assert f"  | {example.question} =" in text
  assert f"its reference: {example.answer!r}, verifier last_integer" in text
  assert "on the reference: 1.00; on an empty answer: 0.00 (unparsable: " in text
  assert "warning" not in text


@pytest.mark.parametrize(
  "check,answer,warns",
  [
    (Check("last_integer", "12"), "13", "earns 0.00 instead of 1"),
    (Check("exact", "yes"), "no", "earns 0.00 instead of 1"),
    (Check("exact", "yes"), "yes", ""),
    (
      Check("constraints", [{"kind": "words", "at_most": 9}]),
      "at most 9 words",
      "empty answer earns",
    ),
    (Check("user_rewards:unreadable", "x"), "x", "fine if your references are not answers"),
    (Check("user_rewards:broken", "x"), "x", "crashed"),
    (Check("code", {"tests": ["assert f(2) == 4"]}), '{"tests": []}', ""),
    (Check("user_rewards:broken", {"words": 3}), '{"words": 3}', ""),  # data is no answer
    (Check("user_rewards:broken", 3), "3", "crashed"),
  ],
)
def test_a_reference_that_is_not_right_and_a_reward_without_work_are_warned_about(
  experiment, check, answer, warns
):
  text = text_of(with_example(experiment, check=check, answer=answer, worked=answer))
  assert f"verifier {check.verifier}" in text
  assert (warns in text) if warns else ("warning" not in text)


@pytest.mark.parametrize(
  "weight,verifier,warns", [(1.0, "user_rewards:vowels", True), (0.5, "last_integer", False)]
)
def test_the_verifier_that_judges_is_named(experiment, weight, verifier, warns):
  config = dataclasses.replace(
    experiment.verifier, function="user_rewards:vowels", function_weight=weight
  )
  text = text_of(dataclasses.replace(experiment, verifier=config))
  assert f", verifier {verifier}\n" in text
  assert (f"verifier {verifier}, domain" in text) == warns  # digits have no vowels


@pytest.mark.parametrize(
  "task,worked,warns",
  [
    ("dataset", "3 + 4 is 7", False),
    ("dataset", "3 + 4 is 8", True),
    ("dataset", "7", False),
    ("arithmetic", "3 + 4 is 8", False),  # its teacher errs on purpose
  ],
)
def test_a_solution_that_contradicts_its_reference(experiment, task, worked, warns):
  config = experiment.config.copy_and_resolve_references()
  config.task.name = task
  changed = dataclasses.replace(experiment, config=config)
  changed = with_example(changed, check=Check("last_integer", "7"), answer="7", worked=worked)
  assert ("of a training example earns 0.00 with its reference '7'" in text_of(changed)) == warns


def test_every_domain_is_judged(experiment):
  changed = with_example(experiment, domain="other", check=Check("exact", "1"), answer="2")
  assert "verifier exact, domain other: the reference answer '2' earns 0.00" in text_of(changed)


def tokenizer_of(experiment, chat=True, special=(), words=()):
  """The tokenizer with or without a chat template, special tokens and words of one token."""
  real = experiment.encoder.tokenizer

  def apply_chat_template(messages):
    if not chat:
      return real.apply_chat_template(messages)
    return real.encode("".join(turn["content"] for turn in messages))

  return dataclasses.replace(
    real,
    apply_chat_template=apply_chat_template,
    special_ids={text: 1 + i for i, text in enumerate(special)},
    encode=lambda text: [5] if text in words else real.encode(text),
  )


@pytest.mark.parametrize(
  "chat,source,special,warns",
  [
    (True, "some/model", (), True),
    (False, "some/model", (), False),  # a base model
    (True, "", (), False),  # trained from scratch
  ],
)
def test_a_chat_model_that_is_asked_in_plain_text(experiment, chat, source, special, warns):
  config = experiment.config.copy_and_resolve_references()
  config.model.source = source
  encoder = experiment.encoder
  tokenizer = tokenizer_of(experiment, chat, special)
  changed = dataclasses.replace(experiment, config=config)
  old, encoder.tokenizer = encoder.tokenizer, tokenizer
  try:
    assert ("--config.task.chat" in text_of(changed)) == warns
  finally:
    encoder.tokenizer = old


@pytest.mark.parametrize(
  "template,words,warm_start,warns",
  [
    ("{question}", (), 0, True),
    ("{question} end with ;;", (), 0, False),
    ("{question}", (";;",), 0, False),  # a token of the model
    ("{question}", (), 5, False),  # the warm start teaches it
  ],
)
def test_a_marker_that_the_model_cannot_know(experiment, template, words, warm_start, warns):
  config = experiment.config.copy_and_resolve_references()
  config.task.think_end = ";;"
  encoder = experiment.encoder
  old = encoder.tokenizer, encoder.template
  encoder.tokenizer, encoder.template = tokenizer_of(experiment, False, (), words), template
  warm = dataclasses.replace(experiment.warm_start, steps=warm_start)
  changed = dataclasses.replace(experiment, config=config, warm_start=warm)
  try:
    encoder.max_length, limit = 99, encoder.max_length
    assert ("task.think_end=';;'" in text_of(changed)) == warns
  finally:
    encoder.tokenizer, encoder.template = old
    encoder.max_length = limit
