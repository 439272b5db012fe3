"""The values that flow through a training step.

Letters: P prompts, n samples a prompt, T response positions, Tp prompt positions, D model width, F
features, V vocabulary, L layers, M responses of the reference policy a prompt.
"""

import flax.struct
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree


@flax.struct.dataclass
class Prompts:
  """Tokenised prompts, padded on the left so that every response starts at the same position."""

  tokens: Int[Array, "P Tp"]
  mask: Bool[Array, "P Tp"]  # False on padding
  # Tokens that a response may have, at least 1 and at most the config's limit; None: that limit.
  max_tokens: Int[Array, " P"] | None = None


@flax.struct.dataclass
class Rollouts:
  """Sampled responses, and what the policy computed while it sampled them."""

  prompts: Prompts
  tokens: Int[Array, "P n T"]  # pad_id after the end
  mask: Bool[Array, "P n T"]  # from positions: True up to and including the EOS token
  logprobs: Float[Array, "P n T"]  # nats, under the distribution that was sampled from
  entropies: Float[Array, "P n T"]  # nats, full softmax at the sampling temperature
  truncated: Bool[Array, "P n"]  # no EOS within the limit
  features: Float[Array, "P n F"]  # see rollout/features.py
  # Rows that decode steps computed, useful or not, shared out equally; () if not sampled here.
  decode_rows: Float[Array, "P n"] | tuple[()] = ()
  # Decode steps that a response waited for its slot, for rollout/busy.py; () once that was read.
  decode_starts: Int[Array, "P n"] | tuple[()] = ()


@flax.struct.dataclass
class Experience:
  """Rollouts and their rewards: what estimators and the update learn from."""

  rollouts: Rollouts
  scores: Float[Array, "P n"]  # verdicts in [0, 1]
  # Reward of each token: score and length penalty on a response's last token, a KL penalty on every
  # token; 0 outside of the mask.
  token_rewards: Float[Array, "P n T"]
  domains: Int[Array, " P"]  # index into the task's domains
  prompt_ids: Int[Array, " P"]  # index into the training set
  # Steps since the group was sampled, 0 in this step; () where groups are never carried over.
  age: Int[Array, " P"] | tuple[()] = ()
  # Verdicts on the reference policy's responses; () unless the estimator needs them.
  reference_scores: Float[Array, "P M"] | tuple[()] = ()

  @property
  def rewards(self) -> Float[Array, "P n"]:
    """Reward of each response."""
    return self.token_rewards.sum(-1)

  @property
  def real_groups(self) -> Bool[Array, " P"]:
    """Which groups are not padding: a sampled response has at least one token."""
    return self.rollouts.mask.any((1, 2))


@flax.struct.dataclass
class Estimate:
  """An estimator's advantages for one step."""

  advantages: Float[Array, "P n"] | Float[Array, "P n T"]
  baselines: Float[Array, "P n"]  # in units of reward; shown, not learned from
  metrics: dict[str, Float[Array, ""]]
  aux: PyTree[Array] = ()  # what the estimator's `update` needs again, such as a critic's values


@flax.struct.dataclass
class TrainState:
  """Everything that an optimizer step reads and writes."""

  step: Int[Array, ""]  # optimizer steps taken
  params: PyTree[Array]  # float32 master weights in the training layout: stacked by layer
  opt_state: optax.OptState
  skipped: Int[Array, ""]  # optimizer steps left out because loss or gradient were not finite
  skipped_in_a_row: Int[Array, ""]  # those since the last optimizer step that was taken
