"""The paper's run: Qwen3-4B on DAPO-Math-17K, answers of up to 8,192 tokens.

`poise` has the settings of POISE's released code (paper v3), `poise_v2` and `dapo_greso` those of
the paper's tables 5 and 6 (v2). The other algorithms have the rollouts per step, optimizer steps
and learning rate of `poise`, so that they differ in the algorithm alone. Hardware: docs/scaling.md.

AMC 2024, the paper's seventh test set, has no known address (docs/data.md): with its file in
task.dataset.folder add "amc_2024" to TEST_SETS.
"""

from configs import common

TEST_SETS = ("aime_2024", "aime_2025", "aime_2026", "amc_2023", "hmmt_feb_2025", "brumo_2025")


def get_config(algorithm="poise"):
  """See configs/algorithms.py."""
  config = common.default(algorithm)
  # Released code: 256 prompts x 2, mini-batches of 32 prompts x 2; 200 steps, a test every 40.
  config.rollouts, config.train.minibatch_size, config.steps = 512, 64, 200
  if algorithm == "poise_v2":  # section 4.1 and table 5: 1,024 prompts x 2, mini-batch 16 prompts
    config.rollouts, config.train.minibatch_size, config.steps = 2048, 32, 120
  if algorithm == "dapo_greso":  # table 6: mini-batch 16 prompts x 8; as many rollouts as POISE has
    config.rollouts, config.train.minibatch_size, config.steps = 2048, 128, 100
  config.eval_every = config.checkpoint_every = 40
  config.eval_batch = 16  # prompts x eval.n: as many sequences as a step samples
  config.eval.n = 32
  config.eval.temperature = 0.6
  config.eval.top_p = 0.95

  config.model.source = "Qwen/Qwen3-4B"
  config.model.shape = dict(
    model_type="qwen3",
    vocab_size=151936,
    hidden_size=2560,
    intermediate_size=9728,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
    qk_norm=True,
  )
  config.model.dtype = "bfloat16"

  config.task.name = "dataset"
  config.task.dataset.train_on = "dapo_math_17k"
  config.task.dataset.test_on = ",".join(TEST_SETS)  # their questions are not trained on
  config.task.template = "dapo"
  config.task.chat = True
  config.task.think_end = "</think>"
  config.task.max_prompt_length = 2048
  config.task.drop_long = True
  config.eval.tasks = {name: {"dataset": {"test_on": name}} for name in TEST_SETS}

  config.rollout.max_new_tokens = 8192
  config.rollout.feature_layers = (19,)
  config.rollout.feature_window = 10

  config.mesh.tensor = 4  # fsdp takes the rest of the devices

  config.train.learning_rate = 1e-6
  # The released code's schedule moves once a batch of rollouts, ours once an optimizer step.
  config.train.warmup_steps = 10 * config.rollouts // config.train.minibatch_size
  config.train.weight_decay = 0.01
  if config.train.loss.surrogate == "ppo":  # GSPO's and CISPO's bounds are their own
    config.train.loss.clip_low, config.train.loss.clip_high = 0.2, 0.28
  config.train.microbatch_size = 16
  config.train.dtype = "bfloat16"
  config.train.remat = "full"
  config.train.old_logprobs = "recompute"  # eight optimizer steps a batch, and bfloat16
  return config
