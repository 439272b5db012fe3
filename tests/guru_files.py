"""Small files with the columns of GURU's published ones."""

import json

import pyarrow
import pyarrow.parquet

TABLE = {"header": ["House", "Name"], "rows": [["1", "alice"], ["2", "bob"]]}
INPUTS = json.dumps({"inputs": ["1\n"], "outputs": ["2\n"]})
FUNCTION = json.dumps({"functional": "assert f(2) == 4"})


def row(question, ground_truth, data_source):
  return {
    "data_source": data_source,
    "prompt": [{"content": question, "role": "user"}],
    "ability": "x",
    "apply_chat_template": True,
    "reward_model": {"ground_truth": ground_truth, "style": "rule"},
    "extra_info": {"index": 0, "split": "train"},
    "qwen2.5_7b_pass_rate": 0.5,
  }


def benchmark(folder, file, domain, ground_truth, reference):
  """The file of a benchmark, its split, and what its first example has."""
  rows = [row(f"{folder} {file}, {i}?", ground_truth, file) for i in range(2)]
  first = dict(question=f"{folder} {file}, 0?", reference=reference, domain=domain)
  return {f"{folder}/{file}.parquet": rows}, "test", first


def benchmarks(name, domain, ground_truth, reference, validation="", test=""):
  """Both sets of a benchmark."""
  for kind, folder, file in (("val", "online_eval", validation), ("test", "offline_eval", test)):
    if file:
      yield f"guru_{kind}_{name}", benchmark(folder, file, domain, ground_truth, reference)


CODE = ("code", FUNCTION, {"tests": ["assert f(2) == 4"]})
GRID = [[0, 1], [2, 3]]
PUBLISHED = {
  "guru_math": (
    {"train/math__combined_54.4k.parquet": [row("math?", "7", "math__dapo")]},
    "train",
    dict(question="math?", reference="7", domain="math", difficulty="guru_math/math__dapo"),
  ),
  "guru_code": (
    {
      f"train/codegen__{name}.parquet": [row(f"{name}?", json.dumps(tests), name)]
      for name, tests in (
        ("leetcode2k_1.3k", {"functional": "assert f(2) == 4"}),
        ("primeintellect_7.5k", {"inputs": ["1\n"], "outputs": ["2\n"]}),
        ("taco_8.8k", {"inputs": ["1\n"], "outputs": ["2\n"]}),
      )
    },
    "train",
    dict(question="leetcode2k_1.3k?", reference={"tests": ["assert f(2) == 4"]}, domain="code"),
  ),
  "guru_livecodebench": (
    {"train/codegen__livecodebench_440.parquet": [row("contest?", INPUTS, "contests")]},
    "train",
    dict(reference=json.loads(INPUTS), domain="code"),
  ),
  "guru_science": (
    {"train/stem__web_3.6k.parquet": [row("science?", "3 J", "stem_web")]},
    "train",
    dict(reference="3 J", domain="science"),
  ),
  "guru_logic": (
    {
      f"train/logic__{name}.parquet": [row(f"{name}?", truth, name)]
      for name, truth in (
        ("arcagi1_111", [[0, 1], [2, 3]]),
        ("arcagi2_190", [[0, 1]]),
        ("barc_1.6k", [[5]]),
        ("graph_logical_1.2k", "Xiao"),
        ("ordering_puzzle_1.9k", ["crow", "owl"]),
        ("zebra_puzzle_1.3k", TABLE),
      )
    },
    "train",
    dict(reference=[[0, 1], [2, 3]], domain="logic"),
  ),
  "guru_simulation": (
    {"train/simulation__codeio_3.7k.parquet": [row("code?", '"output": {"n": [1, 2]}', "codeio")]},
    "train",
    dict(reference={"output": {"n": [1, 2]}}, domain="simulation"),
  ),
  "guru_table": (
    {
      "train/table__hitab_4.3k.parquet": [row("table?", "1|2", "hitab")],
      "train/table__multihier_1.5k.parquet": [row("tables?", "8", "multihier")],
    },
    "train",
    dict(reference="1|2", domain="table"),
  ),
  **dict(benchmarks("humaneval", *CODE, *("codegen__humaneval_164",) * 2)),
  **dict(benchmarks("mbpp", *CODE, "codegen__mbpp_200", "codegen__mbpp_500")),
  **dict(
    benchmarks(
      "livecodebench", "code", INPUTS, json.loads(INPUTS), test="codegen__livecodebench_279"
    )
  ),
  **dict(benchmarks("arcagi1", "logic", GRID, GRID, "logic__arcagi1_200", "logic__arcagi1_400")),
  **dict(
    benchmarks(
      *("ordering_puzzle", "logic", ["crow", "owl"], ["crow", "owl"]),
      "logic__ordering_puzzle_dataset_100",
    )
  ),
  **dict(
    benchmarks("zebra_puzzle", "logic", TABLE, TABLE, *("logic__zebra_puzzle_dataset_200",) * 2)
  ),
  **dict(benchmarks("math_500", "math", "7", "7", *("math__math_500",) * 2)),
  **dict(benchmarks("aime", "math", "27", "27", "math__aime_repeated_8x_240")),
  **dict(benchmarks("amc", "math", "27.0", "27.0", "math__amc_repeated_4x_332")),
  **dict(
    benchmarks(
      *("codeio", "simulation", '"output": [1]', {"output": [1]}),
      *("simulation__codeio_200",) * 2,
    )
  ),
  **dict(benchmarks("gpqa_diamond", "science", "C", "C", test="stem__gpqa_diamond_198")),
  **dict(benchmarks("supergpqa", "science", "J", "J", "stem__supergpqa_200", "stem__supergpqa_1k")),
  **dict(benchmarks("finqa", "table", "0.25", "0.25", test="table__finqa_1.1k")),
  **dict(benchmarks("hitab", "table", "1|2", "1|2", "table__hitab_200", "table__hitab_1k")),
  **dict(
    benchmarks("multihier", "table", "8", "8", "table__multihier_200", "table__multihier_336")
  ),
}


def write(folder, name, files):
  """Writes the files as folder/NAME/PATH, each in the format of its suffix."""
  for path, rows in files.items():
    path = folder / name / path
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
      pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
      path.write_text(json.dumps(rows))
    else:
      path.write_text("".join(json.dumps(row) + "\n" for row in rows))
