"""From a task's examples to the order in which they are used."""

import dataclasses
import hashlib
import json
import pathlib
from collections import Counter
from collections.abc import Sequence

from grain import MapDataset
from rich.progress import track

from poise_jax import files
from poise_jax.data.prompts import PromptEncoder
from poise_jax.data.tasks import Task
from poise_jax.distributed import processes
from poise_jax.errors import UserError

SLOW = 50_000  # prompts from which on counting their tokens shows a progress bar


def order(size: int, seed: int) -> MapDataset:
  """The endless order of training examples: element i is the i-th example's number.

  Every epoch of `size` elements is another permutation. Access is random, so that a position is all
  that a checkpoint needs.
  """
  return MapDataset.range(size).seed(seed).shuffle().repeat()


def fit(task: Task, encoder: PromptEncoder, drop_long: bool) -> Task:
  """The task with every prompt within the encoder's limit.

  Args:
    task: whose examples are counted, by the tokenizer that encodes them.
    encoder: knows the limit.
    drop_long: longer ones are left out, and counted in task.left_out.

  Raises:
    UserError: a prompt is longer and drop_long is off, or all of a split's in a domain are.
  """
  sets, left_out = {}, dict(task.left_out)
  for split, examples in (("test", task.test), ("train", task.train)):
    shown = track(
      examples, f"measuring {split} prompts", disable=len(examples) < SLOW, transient=True
    )
    if not drop_long:
      for example in shown:
        encoder.encode(example)
      continue
    sets[split] = [e for e in shown if len(encoder.ids(e)) <= encoder.max_length]
    kept = Counter(example.domain for example in sets[split])
    for domain, count in sorted(Counter(example.domain for example in examples).items()):
      if not kept[domain]:
        raise UserError(
          f"every {split} prompt of domain {domain} is longer than "
          f"task.max_prompt_length={encoder.max_length}"
        )
      if kept[domain] < count:
        reason = f"{domain}, {split}: longer than {encoder.max_length} tokens"
        left_out[reason] = count - kept[domain]
  return dataclasses.replace(task, **sets, left_out=left_out)


def remember(task: Task, workdir: pathlib.Path) -> None:
  """Writes workdir/data.json when a run starts; when it goes on, checks that its data is the same:
  a position in another order would train on other prompts.

  Raises:
    UserError: it is not.
  """
  digest = hashlib.sha256()
  for example in (*task.train, *task.test):
    digest.update(repr((example.question, example.answer, example.domain)).encode())
  now = {
    "train": len(task.train),
    "test": len(task.test),
    "left_out": dict(task.left_out),
    "sha256": digest.hexdigest(),
  }
  processes.check_alike("the training or held-out data", now["sha256"])
  processes.on_first(_write_or_compare, workdir / "data.json", now)


def _write_or_compare(path, now):
  if not path.exists():
    files.write_whole(path, json.dumps(now, indent=2, ensure_ascii=False) + "\n")
    return
  before = json.loads(path.read_text())
  if before["sha256"] != now["sha256"]:
    raise UserError(
      f"the data is not what this run began with ({before['train']} + {before['test']} examples in "
      f"{path}, {now['train']} + {now['test']} now, or other ones); restore it, or choose another "
      "--workdir"
    )


def summary(task: Task) -> str:
  """How many examples there are, by domain if there are several, and how many were left out."""
  lines = []
  for split, examples in (("training", task.train), ("held-out", task.test)):
    of = Counter(example.domain for example in examples)
    several = len(task.domains) > 1
    domains = ", ".join(f"{name} {of[name]}" for name in task.domains) if several else ""
    lines.append(f"{len(examples)} {split} examples" + (f" ({domains})" if domains else ""))
  lines += [f"left out: {n} ({reason})" for reason, n in task.left_out.items()]
  return "\n".join(lines)


def by_length(
  lengths: Sequence[int], batch_size: int, multiple: int = 64
) -> list[tuple[list[int], int]]:
  """Batches of an evaluation: prompts of similar length together, so that little is padding.

  Args:
    lengths: of the prompts, in tokens.
    batch_size: prompts a batch; the last one may have fewer.
    multiple: widths are rounded up to multiples of it, so that few programs are compiled.

  Returns:
    (places of its prompts in `lengths`, width in tokens), shortest first; every place once.
  """
  places = sorted(range(len(lengths)), key=lambda i: lengths[i])
  batches = [places[i : i + batch_size] for i in range(0, len(places), batch_size)]
  return [(batch, -(-lengths[batch[-1]] // multiple) * multiple) for batch in batches]
