"""Times the continuous batching of transformers, which TRL's GRPOTrainer can use:

transformers_continuous.py FOLDER PROMPT LIMITS REPEATS BATCH

LIMITS is a JSON list: tokens of the two responses to each prompt. At most BATCH requests decode at
once. Runs in an environment with torch. Prints one JSON line.
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

folder, prompt, limits, repeats, batch = sys.argv[1], *map(json.loads, sys.argv[2:])
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
torch.manual_seed(0)
tokens = torch.randint(0, model.config.vocab_size, (len(limits), prompt)).tolist()
NO_EOS = -1
sampling = GenerationConfig(
  do_sample=True,
  temperature=1.0,
  top_k=0,
  top_p=1.0,
  max_new_tokens=max(limits),
  eos_token_id=NO_EOS,
)
# Blocks for all requests, of 256 tokens: what it infers from the memory is for GPUs.
blocks = 2 * len(limits) * -(-(prompt + max(limits)) // 256)
config = ContinuousBatchingConfig(
  num_blocks=blocks, max_batch_tokens=max(batch, 512), max_requests_per_batch=batch
)


def generate(limits):
  """Returns the number of tokens of the responses to the first prompts."""
  options = {"generation_config": sampling, "continuous_batching_config": config}
  count, left = 0, 2 * len(limits)
  with torch.inference_mode(), model.continuous_batching_context_manager(**options) as manager:
    for row, limit in zip(tokens, limits, strict=False):
      for _ in range(2):
        manager.add_request(row, max_new_tokens=limit, eos_token_id=NO_EOS)
    while left:
      result = manager.get_result(timeout=1)
      if result is None and not manager.is_running():
        raise RuntimeError("the generation thread ended")
      if result is not None and result.is_finished():
        left -= 1
        count += len(result.generated_tokens)
  return count


generate([2] * len(limits[: batch // 2]))  # warms up
seconds = []
for _ in range(repeats):
  start = time.perf_counter()
  count = generate(limits)
  seconds.append(time.perf_counter() - start)
  assert count == 2 * sum(limits), (count, 2 * sum(limits))
print(json.dumps({"seconds": seconds}))
