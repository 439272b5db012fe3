"""What the model is asked: a prompt as the model reads it, and the verdicts on its reference."""

import dataclasses
from collections.abc import Sequence

from poise_jax.data.tasks import Example, Task
from poise_jax.errors import UserError
from poise_jax.evaluation import degenerate
from poise_jax.evaluation.judge import Judge
from poise_jax.training.build import Experiment
from poise_jax.verifiers import VERIFIERS, Verdict

NOT_ANSWERS = ("code", "constraints")  # verifiers whose references are tests or rules
SHOWN = 2000  # characters of a prompt


def examples(task: Task) -> list[Example]:
  """The first training example of each domain and verifier."""
  first: dict[tuple[str, str], Example] = {}
  for example in task.train:
    first.setdefault((example.domain, example.check.verifier), example)
  return list(first.values())


def preview(experiment: Experiment, judge: Judge) -> str:
  """Lines that show a prompt, its reference and verdicts, with warnings about what looks wrong.

  The verdicts are those of evaluation, which ignores verifier.format. The reference is judged in
  each usual form of an answer, and the best verdict counts. All processes call this together.

  Args:
    experiment: encoder and task.
    judge: has loaded the checks of `examples`.

  Raises:
    UserError: the prompt is too long.
  """
  chosen = [  # with the check that judges, which may be that of verifier.function
    dataclasses.replace(example, check=judge.config.check(example.check, training=False))
    for example in examples(experiment.task)
  ]
  answers = [(e, text) for e in chosen for text in ("", *_honest(e))]
  checks = [example.check for example, _ in answers]
  try:
    verdicts = judge.score(checks, [text for _, text in answers], training=False)
  except UserError as error:  # it crashed on every one; a model's responses may differ
    verdicts = [Verdict(0.0, "crashed", str(error))] * len(answers)
  pairs = list(zip((id(example) for example, _ in answers), verdicts, strict=True))
  lines, warnings = [], _form_warnings(experiment, chosen)
  for i, example in enumerate(chosen):
    empty, *honest = [verdict for owner, verdict in pairs if owner == id(example)]
    best = max(honest, key=lambda verdict: verdict.score, default=None)
    # Teachers of generated tasks err on purpose; a solution in a data set is meant to be right.
    if experiment.config.task.name == "dataset" and example.worked not in ("", example.answer):
      warnings += _worked_warning(example, honest[0])
    if not i:
      lines = _shown(experiment, example, empty, best)
    warnings += _verdict_warnings(example, empty, best)
  return "\n".join([*lines, *(f"warning: {warning}" for warning in warnings)])


def _honest(example) -> Sequence[str]:
  """Texts that give the reference answer; none where the reference is not an answer."""
  check, end = example.check, example.check.think_end
  # What an object or a list means to a user's function is not known; an answer it hardly is.
  data = check.verifier not in VERIFIERS and isinstance(check.reference, dict | list)
  if check.verifier not in NOT_ANSWERS and not data:
    return degenerate.honest(example, end)
  return [end + example.worked] if example.worked not in ("", example.answer) else []


def _shown(experiment, example, empty, best):
  encoder, check = experiment.encoder, example.check
  prompt = encoder.prompt(example)
  if len(prompt) > SHOWN:
    prompt = f"{prompt[: SHOWN // 2]} [...] {prompt[-SHOWN // 2 :]}"
  reference = _verdict(best) if best else "not judged, since it is no answer"
  return [
    f"a training prompt, {len(encoder.encode(example))} tokens as the model reads them:",
    *(f"  | {line}" for line in prompt.split("\n")),
    f"its reference: {example.answer[:200]!r}, verifier {check.verifier}",
    f"verdict on the reference: {reference}; on an empty answer: {_verdict(empty)}",
  ]


def _verdict(verdict: Verdict) -> str:
  note = "" if verdict.status == "ok" else f" ({verdict.status}: {verdict.note[:100]})"
  return f"{verdict.score:.2f}{note}"


def _verdict_warnings(example, empty, best):
  where = f"verifier {example.check.verifier}, domain {example.domain}"
  if best and best.score < 1:
    own = example.check.verifier not in VERIFIERS
    yield (
      f"{where}: the reference answer {example.answer[:60]!r} earns {_verdict(best)} instead of 1"
      f"{' (fine if your references are not answers)' if own else ''}; check the column of the "
      "references and the verifier's options"
    )
  if empty.score > 0:
    yield (
      f"{where}: an empty answer earns {empty.score:.2f}, so there is a reward without work; "
      "python -m experiments.audit_reward shows what else is paid"
    )


def _worked_warning(example, verdict):
  if verdict.score < 1:
    yield (
      f"the solution {example.worked[-60:]!r} of a training example earns {_verdict(verdict)} with "
      f"its reference {example.answer[:60]!r}: check both columns"
    )


def _form_warnings(experiment, chosen):
  """Warnings about a chat template and a thought marker, as far as the tokenizer tells."""
  encoder, warnings = experiment.encoder, []
  tokenizer, prompts = encoder.tokenizer, [encoder.prompt(example) for example in chosen]
  marked = any(token in prompt for token in tokenizer.special_ids for prompt in prompts)
  if experiment.config.model.source and not encoder.chat and not marked and _has_chat(tokenizer):
    warnings.append(
      "the tokenizer has a chat template, but task.chat is off, so the model reads plain text; a "
      "chat model needs --config.task.chat, a base model does not"
    )
  end = experiment.config.task.think_end
  taught = experiment.warm_start.steps or any(
    end in text for example in chosen for text in (encoder.text(example), encoder.prompt(example))
  )
  if end and not taught and len(tokenizer.encode(end)) > 1:
    warnings.append(
      f"task.think_end={end!r} occurs in no prompt and is not one token of the model, so the "
      "model cannot know it, and a response without it earns 0; ask for it in task.template, or "
      "leave task.think_end empty"
    )
  return warnings


def _has_chat(tokenizer):
  try:
    return bool(tokenizer.apply_chat_template([{"role": "user", "content": "?"}]))
  except UserError:
    return False
