"""Times transformers' generate, the sampler of TRL, with two samples per prompt:

transformers_generate.py FOLDER PROMPT LIMITS REPEATS BATCH

LIMITS is a JSON list: tokens of the responses to each prompt, which are forced to end there. BATCH
sequences are generated at a time, in the order of LIMITS. Runs in an environment with torch. Prints
one JSON line.
"""

import json
import sys
import time

import torch
from limits import Limits
from transformers import AutoModelForCausalLM, LogitsProcessorList

folder, prompt, limits, repeats, batch = sys.argv[1], *map(json.loads, sys.argv[2:])
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
torch.manual_seed(0)
tokens = torch.randint(0, model.config.vocab_size, (len(limits), prompt))
EOS = 2
seconds = []


def generate(prompts, limits):
  """Returns the number of tokens of the responses to prompts [P, prompt]."""
  rows = [limit for limit in limits for _ in range(2)]
  out = model.generate(
    input_ids=prompts,
    attention_mask=torch.ones_like(prompts),
    logits_processor=LogitsProcessorList([Limits(rows, prompt, EOS)]),
    max_new_tokens=max(limits),
    num_return_sequences=2,
    do_sample=True,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    eos_token_id=EOS,
    pad_token_id=EOS,
  )
  ends = (out[:, prompt:] == EOS).int()
  return int((ends.argmax(-1) + 1).sum())


with torch.inference_mode():
  generate(tokens[: batch // 2], [2] * (batch // 2))  # warms up
  for _ in range(repeats):
    start, count = time.perf_counter(), 0
    for first in range(0, len(limits), batch // 2):
      part = slice(first, first + batch // 2)
      count += generate(tokens[part], limits[part])
    seconds.append(time.perf_counter() - start)
    assert count == 2 * sum(limits), (count, 2 * sum(limits))
print(json.dumps({"seconds": seconds}))
