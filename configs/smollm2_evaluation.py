"""SmolLM2-135M-Instruct before training: held-out arithmetic and two sets of reasoning-gym, eight
answers per problem. For `python -m experiments.evaluate`.
"""

from configs import smollm2_arithmetic

GENERATORS = {
  "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
  "spell_backward": {"min_word_len": 3, "max_word_len": 4},
}


def get_config(algorithm="poise"):
  """See configs/algorithms.py."""
  config = smollm2_arithmetic.get_config(algorithm)
  common_fields = dict(
    name="reasoning_gym",
    test=32,
    train=32,
    chat=True,
    system="Give only the answer.",
    template="{question}",
    max_prompt_length=88,
  )
  config.eval_batch = 16
  config.eval.n = 8
  config.eval.temperature = 1.0
  config.eval.max_new_tokens = 24
  config.eval.tasks = {
    "arithmetic": {"test": 64},
    **{
      name: {**common_fields, "reasoning_gym": {"generators": {name: settings}}}
      for name, settings in GENERATORS.items()
    },
  }
  return config
