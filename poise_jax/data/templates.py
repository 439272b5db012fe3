"""Prompt templates: the text around a question."""

from poise_jax.errors import UserError, unknown_name

# DAPO's prompt (arXiv 2503.14476; verbatim from the rows of DAPO-Math-17K), which POISE uses for
# training and evaluation. Results are comparable only under the same prompt.
DAPO_BEFORE = (
  "Solve the following math problem step by step. The last line of your response should be of the "
  "form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
)
DAPO_AFTER = '\n\nRemember to put your answer on its own line after "Answer:".'

TEMPLATES = {
  "dapo": DAPO_BEFORE + "{question}" + DAPO_AFTER,
  "boxed": "{question}\n\nReason step by step and give the final answer in \\boxed{}.",
  "answer_tags": "{question}\n\nReason first, then give the final answer alone between <answer> "
  "and </answer>.",
}


def resolve(template: str) -> str:
  """The template of that name, or the text itself if it contains {question}.

  Raises:
    UserError: it is neither.
  """
  if "{question}" in template:
    return template
  if template in TEMPLATES:
    return TEMPLATES[template]
  if template.isidentifier():
    raise unknown_name("task.template", template, TEMPLATES)
  raise UserError(f"task.template={template!r} does not contain {{question}}")
