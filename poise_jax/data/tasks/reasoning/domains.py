"""The domains by name. Every domain is a module with

- `LEVELS`, the number of its levels of difficulty, which count from 1;
- `VERIFIER`, the verifier that compares an answer with the right one;
- `problems(level)`, a lower bound on the number of different questions;
- `question(rng, level)`, a random question;
- `think(question, step)`, a thought and the answer it leads to. Every atomic result goes through
  `step` (see slips.py), which may replace it by a wrong one; what follows builds on that.
"""

from poise_jax.data.tasks.reasoning import expressions, products, search, sums, words

DOMAINS = {
  "sums": sums,
  "products": products,
  "expressions": expressions,
  "search": search,
  "words": words,
}
