"""Times a step of TRL's GRPOTrainer: sample, score, update.

trl_step.py FOLDER GGUF LIMITS REPEATS MICROBATCH

LIMITS is a JSON list: tokens of the responses to each prompt, which are forced to end there. The
gradient is accumulated over micro-batches of MICROBATCH sequences. Runs in an environment with trl.
FOLDER has the weights, GGUF the tokenizer. Prints one JSON line.
"""

import json
import os
import pathlib
import random
import resource
import sys
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from datasets import Dataset
from limits import Limits
from transformers import (
  AutoModelForCausalLM,
  AutoTokenizer,
  LogitsProcessorList,
  TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

folder, source, limits, repeats, microbatch = *sys.argv[1:3], *map(json.loads, sys.argv[3:])
sequences = 2 * len(limits)
random.seed(0)


def question():
  """A prompt like those of configs/smollm2_arithmetic.py."""
  a, b = (random.randint(100, 999) for _ in range(2))
  return f"What is {a} + {b}? Reply with the number only."


SYSTEM = {"role": "system", "content": "You are a calculator."}
data = Dataset.from_list(
  [
    {"prompt": [SYSTEM, {"role": "user", "content": question()}]}
    for _ in range((repeats + 1) * len(limits))
  ]
)


def reward(completions, **_):
  """A reward that differs within groups, whatever the responses are."""
  return [float(len(set(c[0]["content"])) % 2) for c in completions]


class Timer(TrainerCallback):
  """Records the seconds of every step."""

  seconds = []

  def on_step_begin(self, *args, **kwargs):
    """Starts the clock."""
    self.start = time.perf_counter()

  def on_step_end(self, *args, **kwargs):
    """Stops the clock."""
    self.seconds.append(time.perf_counter() - self.start)


config = GRPOConfig(
  output_dir=tempfile.mkdtemp(),
  use_cpu=True,
  bf16=False,
  fp16=False,
  max_steps=repeats + 1,  # the first one, a short one, warms up
  per_device_train_batch_size=microbatch,
  gradient_accumulation_steps=sequences // microbatch,
  num_generations=2,
  max_completion_length=max(limits),
  logging_steps=1,
  report_to=[],
  save_strategy="no",
  gradient_checkpointing=False,
  learning_rate=1e-6,
  beta=0.0,
  temperature=1.0,
  loss_type="dapo",
  epsilon_high=0.28,
)
gguf = pathlib.Path(source)
trainer = GRPOTrainer(
  model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
  reward_funcs=reward,
  args=config,
  train_dataset=data,
  processing_class=AutoTokenizer.from_pretrained(
    gguf.parent, gguf_file=gguf.name, padding_side="left"
  ),
  callbacks=[Timer()],
)
generate = trainer.model.generate


def limited(input_ids, **options):
  """Generates with responses of the given lengths; in the first step, of two tokens."""
  rows = [limit if trainer.state.global_step else 2 for limit in limits for _ in range(2)]
  limit = Limits(rows, input_ids.shape[1], trainer.processing_class.eos_token_id)
  return generate(input_ids, logits_processor=LogitsProcessorList([limit]), **options)


trainer.model.generate = limited
trainer.train()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(json.dumps({"seconds": Timer.seconds[1:], "peak_gb": peak}))
