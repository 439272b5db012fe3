"""The published datasets: their files, and how a row becomes a question with a check.

A dataset is an entry of SOURCES; builder.py does the rest. docs/data.md says which definitions were
checked against the published files, and which come from documentation alone.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from poise_jax.data.templates import DAPO_AFTER, DAPO_BEFORE
from poise_jax.errors import UserError
from poise_jax.verifiers.structure import parsed

# The name of a column ("a.b" for a field, "a.0" for an element), or a name and a function that
# converts the column's value.
Column = str | tuple[str, Callable[[Any], Any]]


@dataclasses.dataclass(frozen=True)
class Source:
  """A dataset: its files and the meaning of their columns."""

  name: str
  files: Mapping[str, tuple[str, ...]]  # split -> paths below `home`, or on this machine
  columns: Mapping[str, Column]  # question, answer and optionally id, worked, domain, difficulty
  home: str = ""  # URL of the publisher; empty: the files must be on this machine
  domain: str = "math"  # domain of rows without one in `columns`
  verifier: str = "math"  # verifier of the answers
  keep: Callable[[str], bool] = lambda question: True  # filter: rows with False are left out
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # verifier's arguments
  sha256: Mapping[str, str] = dataclasses.field(default_factory=dict)  # path -> checksum
  license: str = ""
  citation: str = ""


def after_hashes(solution: str) -> str:
  """The number after #### in a GSM8K solution, without thousands separators."""
  _, mark, answer = solution.rpartition("####")
  if not mark:
    raise UserError("the solution has no '####' in front of the final answer")
  return answer.strip().replace(",", "")


def without_calculator(solution: str) -> str:
  """A GSM8K solution without its <<48/2=24>> annotations and with an 'Answer:' line."""
  return re.sub(r"<<.*?>>", "", solution).replace("#### ", "Answer: ")


def last_boxed(solution: str) -> str:
  r"""The content of the last \boxed{} or \fbox{} of a MATH solution, with balanced braces."""
  boxes = list(re.finditer(r"\\(?:boxed|fbox)\s*(\{|\s[^\s$]+)", solution))
  if not boxes:
    raise UserError(r"the solution has no \boxed answer")
  if boxes[-1][1] != "{":
    return boxes[-1][1].strip()  # \boxed 3
  start = end = boxes[-1].end()
  depth = 1
  while depth and end < len(solution):
    depth += {"{": 1, "}": -1}.get(solution[end], 0) * (solution[end - 1] != "\\")
    end += 1
  if depth:
    raise UserError(r"the braces of the last \boxed do not close")
  return solution[start : end - 1]


def without_dapo_template(prompt: str) -> str:
  """The question in a DAPO-Math-17K prompt; task.template adds the run's own template."""
  return prompt.strip().removeprefix(DAPO_BEFORE).removesuffix(DAPO_AFTER).strip()


def is_english(question: str) -> bool:
  """Whether there are no Chinese characters, which separates DAPO-Math-17K's two languages."""
  return not re.search(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]", question)


def tests(ground_truth: str) -> dict[str, Any]:
  """GURU's tests of a program, {"functional": source} or {"inputs": [...], "outputs": [...]}, in
  the form of the verifier `code`."""
  fields = json.loads(ground_truth)
  if "functional" in fields:
    return {"tests": [fields["functional"]]}
  if not {"inputs", "outputs"} <= set(fields):
    raise UserError(f"tests must be functional, or inputs and outputs, got {list(fields)}")
  return fields


def structure(ground_truth: Any) -> Any:
  """Grids, lists and JSON fragments such as '"output": 5', parsed to plain data."""
  return parsed(ground_truth) if isinstance(ground_truth, str) else ground_truth


HUB = "https://huggingface.co/datasets/"
PARQUET = "data/train-00000-of-00001.parquet"  # the hub's default path of a single table
MATHARENA = dict(
  license="CC BY-NC-SA 4.0",
  citation="Balunović et al., MathArena: Evaluating LLMs on Uncontaminated Math Competitions, 2025",
)
MATH_PAPER = "Hendrycks et al., Measuring Mathematical Problem Solving With the MATH Dataset, 2021"
MATH_SUBJECTS = (
  *("algebra", "counting_and_probability", "geometry", "intermediate_algebra"),
  *("number_theory", "prealgebra", "precalculus"),
)


def _competition(name, home, path=PARQUET, question="problem", id="problem_idx", **more):
  """One exam: a small table with a held-out split only."""
  columns = dict(id=id, question=question, answer="answer")
  return Source(name, {"test": (path,)}, columns, HUB + home if home else "", **more)


def _guru(name, domain, verifier, files):
  """A set of GURU, whose prompts already state the answer format."""
  convert = {"code": tests, "structure": structure}.get(verifier)
  answer = "reward_model.ground_truth"
  return Source(
    name=f"guru_{name}",
    files=files,
    columns=dict(
      question="prompt.0.content",
      answer=(answer, convert) if convert else answer,
      difficulty="data_source",
    ),
    home=HUB + "LLM360/guru-RL-92k",
    domain=domain,
    verifier=verifier,
    license="MIT",
    citation="Cheng et al., Revisiting Reinforcement Learning for LLM Reasoning from A "
    "Cross-Domain Perspective, arXiv 2506.14965, 2025",
  )


def _guru_domain(domain, verifier, *files, name=""):
  """A domain of GURU's training set."""
  paths = tuple(f"train/{file}.parquet" for file in files)
  return _guru(name or domain, domain, verifier, {"train": paths})


def _guru_tests(name, domain, verifier, validation="", test=""):
  """A benchmark of GURU: guru_val_NAME for checks while training and guru_test_NAME for results,
  which is a larger set."""
  for prefix, folder, file in (("val", "online_eval", validation), ("test", "offline_eval", test)):
    if file:
      yield _guru(f"{prefix}_{name}", domain, verifier, {"test": (f"{folder}/{file}.parquet",)})


_SOURCES = (
  Source(
    "gsm8k",
    {"train": ("train.jsonl",), "test": ("test.jsonl",)},
    dict(
      question="question",
      answer=("answer", after_hashes),
      worked=("answer", without_calculator),
    ),
    "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data",
    license="MIT",
    citation="Cobbe et al., Training Verifiers to Solve Math Word Problems, arXiv 2110.14168, 2021",
  ),
  Source(
    "math",
    {
      split: tuple(f"{subject}/{split}-00000-of-00001.parquet" for subject in MATH_SUBJECTS)
      for split in ("train", "test")
    },
    dict(
      question="problem",
      answer=("solution", last_boxed),
      worked="solution",
      difficulty=("level", str.lower),
    ),
    HUB + "EleutherAI/hendrycks_math",
    license="MIT",
    citation=MATH_PAPER,
  ),
  Source(
    "math_500",
    {"test": ("test.jsonl",)},
    dict(
      id="unique_id",
      question="problem",
      answer="answer",
      worked="solution",
      difficulty=("level", "level {}".format),
    ),
    HUB + "HuggingFaceH4/MATH-500",
    license="MIT",
    citation="Lightman et al., Let's Verify Step by Step, arXiv 2305.20050, 2023; " + MATH_PAPER,
  ),
  Source(  # the file repeats every question a hundred times with the same id
    "dapo_math_17k",
    {"train": ("data/dapo-math-17k.parquet",)},
    dict(
      question=("prompt.0.content", without_dapo_template),
      answer="reward_model.ground_truth",
    ),
    HUB + "BytedTsinghua-SIA/DAPO-Math-17k",
    keep=is_english,
    license="Apache-2.0",
    citation="Yu et al., DAPO: An Open-Source LLM Reinforcement Learning System at Scale, "
    "arXiv 2503.14476, 2025",
  ),
  Source(
    "deepscaler",
    {"train": ("deepscaler.json",)},
    dict(question="problem", answer="answer", worked="solution"),
    HUB + "agentica-org/DeepScaleR-Preview-Dataset",
    license="MIT",
    citation="Luo et al., DeepScaleR: Surpassing O1-Preview with a 1.5B Model by Scaling RL, 2025",
  ),
  _competition(
    "aime_2024",
    "HuggingFaceH4/aime_2024",
    id="id",
    license="Apache-2.0",
    citation="AIME 2024 I and II, Mathematical Association of America; transcribed by AI-MO",
  ),
  _competition("aime_2025", "MathArena/aime_2025", **MATHARENA),
  _competition("aime_2026", "MathArena/aime_2026", **MATHARENA),
  _competition("hmmt_feb_2025", "MathArena/hmmt_feb_2025", **MATHARENA),
  _competition("brumo_2025", "MathArena/brumo_2025", **MATHARENA),
  _competition(
    "amc_2023",
    "math-ai/amc23",
    "test-00000-of-00001.parquet",
    question="question",
    id="id",
    license="not stated by its publisher",
    citation="AMC 12 2023, Mathematical Association of America; transcribed by AI-MO, math-ai",
  ),
  _competition(  # the forty questions of POISE's AMC24 have no known address
    "amc_2024",
    "",
    "test.jsonl",
    id="id",
    license="not stated by its publisher",
    citation="AMC 12 2024, Mathematical Association of America",
  ),
  _guru_domain("math", "math", "math__combined_54.4k"),
  _guru_domain(
    "code",
    "code",
    "codegen__leetcode2k_1.3k",
    "codegen__primeintellect_7.5k",
    "codegen__taco_8.8k",
  ),
  # Apart from guru_code, because POISE does not train on it and its tests take 3.3 GB.
  _guru_domain("code", "code", "codegen__livecodebench_440", name="livecodebench"),
  _guru_domain("science", "math", "stem__web_3.6k"),
  _guru_domain(
    "logic",
    "structure",
    "logic__arcagi1_111",
    "logic__arcagi2_190",
    "logic__barc_1.6k",
    "logic__graph_logical_1.2k",
    "logic__ordering_puzzle_1.9k",
    "logic__zebra_puzzle_1.3k",
  ),
  _guru_domain("simulation", "structure", "simulation__codeio_3.7k"),
  _guru_domain("table", "math", "table__hitab_4.3k", "table__multihier_1.5k"),
  *_guru_tests("humaneval", "code", "code", *("codegen__humaneval_164",) * 2),
  *_guru_tests("mbpp", "code", "code", "codegen__mbpp_200", "codegen__mbpp_500"),
  *_guru_tests("livecodebench", "code", "code", test="codegen__livecodebench_279"),
  *_guru_tests("arcagi1", "logic", "structure", "logic__arcagi1_200", "logic__arcagi1_400"),
  *_guru_tests("ordering_puzzle", "logic", "structure", "logic__ordering_puzzle_dataset_100"),
  *_guru_tests("zebra_puzzle", "logic", "structure", *("logic__zebra_puzzle_dataset_200",) * 2),
  *_guru_tests("math_500", "math", "math", *("math__math_500",) * 2),
  *_guru_tests("aime", "math", "math", "math__aime_repeated_8x_240"),
  *_guru_tests("amc", "math", "math", "math__amc_repeated_4x_332"),
  *_guru_tests("codeio", "simulation", "structure", *("simulation__codeio_200",) * 2),
  *_guru_tests("gpqa_diamond", "science", "choice", test="stem__gpqa_diamond_198"),
  *_guru_tests("supergpqa", "science", "choice", "stem__supergpqa_200", "stem__supergpqa_1k"),
  *_guru_tests("finqa", "table", "math", test="table__finqa_1.1k"),
  *_guru_tests("hitab", "table", "math", "table__hitab_200", "table__hitab_1k"),
  *_guru_tests("multihier", "table", "math", "table__multihier_200", "table__multihier_336"),
)
SOURCES = {source.name: source for source in _SOURCES}
