"""Times transformers' generate, the sampler of TRL, with two samples per prompt:

transformers_generate.py FOLDER SEQUENCES PROMPT NEW REPEATS

Runs in an environment with torch. Prints one JSON line.
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM

folder, (sequences, prompt, new, repeats) = sys.argv[1], map(int, sys.argv[2:])
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
torch.manual_seed(0)
tokens = torch.randint(0, model.config.vocab_size, (sequences // 2, prompt))
seconds = []
with torch.inference_mode():
  for _ in range(repeats + 1):  # the first one warms up
    start = time.perf_counter()
    model.generate(
      input_ids=tokens,
      attention_mask=torch.ones_like(tokens),
      max_new_tokens=new,
      min_new_tokens=new,
      num_return_sequences=2,
      do_sample=True,
      temperature=1.0,
      top_k=0,
      top_p=1.0,
    )
    seconds.append(time.perf_counter() - start)
print(json.dumps({"seconds": seconds[1:]}))
