"""Every dataset is built from small files with the columns of the published ones, and read back."""

import guru_files
import pytest
import tensorflow_datasets as tfds

from poise_jax.data import sources
from poise_jax.data.sources import catalog
from poise_jax.data.templates import TEMPLATES

tfds.disable_progress_bar()


def dapo(question, answer, index):
  content = TEMPLATES["dapo"].replace("{question}", question)
  return {
    "data_source": "math_dapo",
    "prompt": [{"content": content, "role": "user"}],
    "ability": "MATH",
    "reward_model": {"ground_truth": answer, "style": "rule-lighteval/MATH_v2"},
    "extra_info": {"index": index},
  }


def exam(rows):
  return [
    {"problem_idx": i, "problem": q, "answer": a, "problem_type": ["Algebra"]} for i, q, a in rows
  ]


def hendrycks(question, answer, level):
  return {"problem": question, "level": level, "type": "Algebra", "solution": f"So ${answer}$."}


MATH_FILES = {
  f"{subject}/{split}-00000-of-00001.parquet": [
    hendrycks(f"{subject} {split}?", r"\boxed{\frac{1}{\sqrt{2}}}", "Level 3")
  ]
  for subject in catalog.MATH_SUBJECTS
  for split in ("train", "test")
}
GSM = "She has 48/2 = <<48/2=24>>24 left.\n#### 1,024"
EXAM = {"data/train-00000-of-00001.parquet": exam([(1, "a?", "5"), (2, "b?", r"\sqrt{2}")])}
EXAM_INT = {"data/train-00000-of-00001.parquet": exam([(1, "a?", 5), (2, "b?", 70)])}
# name -> (the publisher's files, split, fields of the first example)
PUBLISHED = {
  "gsm8k": (
    {
      "train.jsonl": [{"question": "How many?", "answer": GSM}],
      "test.jsonl": [{"question": "And how many?", "answer": GSM}],
    },
    "train",
    dict(question="How many?", reference="1024", difficulty="gsm8k")
    | dict(worked="She has 48/2 = 24 left.\nAnswer: 1,024"),
  ),
  "math": (
    MATH_FILES,
    "test",
    dict(question="algebra test?", reference=r"\frac{1}{\sqrt{2}}", difficulty="math/level 3"),
  ),
  "math_500": (
    {
      "test.jsonl": [
        dict(problem="p?", solution="s", answer=r"\left(3\right)", subject="Algebra", level=4)
        | dict(unique_id="test/algebra/1.json")
      ]
    },
    "test",
    dict(question="p?", reference=r"\left(3\right)", worked="s", difficulty="math_500/level 4"),
  ),
  "dapo_math_17k": (
    {"data/dapo-math-17k.parquet": [dapo("What is $1+1$?", "2", "id-1")] * 3},
    "train",
    dict(question="What is $1+1$?", reference="2", domain="math"),
  ),
  "deepscaler": (
    {"deepscaler.json": [dict(problem="p?", answer="-3", solution="because")]},
    "train",
    dict(question="p?", reference="-3", worked="because"),
  ),
  "aime_2024": (
    {
      "data/train-00000-of-00001.parquet": [
        dict(id=60, problem="p?", solution="s", answer="033", url="u", year="2024")
      ]
    },
    "test",
    dict(question="p?", reference="033", difficulty="aime_2024"),
  ),
  "aime_2025": (EXAM_INT, "test", dict(question="a?", reference="5")),
  "aime_2026": (EXAM_INT, "test", dict(question="a?", reference="5")),
  "hmmt_feb_2025": (EXAM, "test", dict(question="a?", reference="5")),
  "brumo_2025": (EXAM, "test", dict(question="a?", reference="5")),
  "amc_2023": (
    {"test-00000-of-00001.parquet": [dict(id=0, question="p?", answer=27.0, url="u")]},
    "test",
    dict(question="p?", reference="27", difficulty="amc_2023"),
  ),
  "amc_2024": ({"test.jsonl": [dict(id=0, problem="p?", answer="27")]}, "test", {}),
  **guru_files.PUBLISHED,
}


def test_all_datasets_are_tested():
  assert set(PUBLISHED) == set(sources.SOURCES)


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_dataset_is_built_from_its_published_files(name, tmp_path):
  files, split, first = PUBLISHED[name]
  guru_files.write(tmp_path, name, files)
  source = sources.find(name)
  examples, left_out = sources.load(source, split, str(tmp_path), str(tmp_path / "built"))
  assert {k: examples[0][k] for k in first} == first
  assert len(examples) == sum(len(files[path]) for path in source.files[split]) - sum(
    left_out.values()
  )
  assert left_out == ({"repeated": 2} if name == "dapo_math_17k" else {})
  assert all(set(example) == set(examples[0]) for example in examples)
  assert source.license and source.citation


def test_tfds_knows_the_datasets():
  assert {config.name for config in sources.Problems.BUILDER_CONFIGS} == set(sources.SOURCES)
  builder = tfds.builder("problems/aime_2026", data_dir="/nonexistent")
  assert builder.info.citation.startswith("Balunović") and "MathArena" in builder.info.homepage


def test_answers_of_all_logic_puzzles_are_data(tmp_path):
  guru_files.write(tmp_path, "guru_logic", PUBLISHED["guru_logic"][0])
  source = sources.find("guru_logic")
  examples, _ = sources.load(source, "train", str(tmp_path), str(tmp_path / "built"))
  assert [e["reference"] for e in examples[3:]] == ["Xiao", ["crow", "owl"], guru_files.TABLE]


@pytest.mark.parametrize(
  "solution,answer",
  [
    (r"first \boxed{1}, then $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
    (r"\boxed{ x^{2^{3}} } is it", " x^{2^{3}} "),
    (r"the set \boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"old style $\boxed 3$", "3"),
    (r"\fbox{7}", "7"),
  ],
)
def test_the_last_box_of_a_solution(solution, answer):
  assert catalog.last_boxed(solution) == answer


@pytest.mark.parametrize("solution", ["no box", r"\boxed{1", r"\boxed{\frac{1}{2}"])
def test_a_solution_without_a_complete_box_is_an_error(solution):
  with pytest.raises(ValueError, match="boxed"):
    catalog.last_boxed(solution)


def test_dapo_uses_each_english_question_once(tmp_path):
  rows = [
    dapo("What is $1+1$?", "2", "a"),
    dapo("求 $1+1$ 的值。", "2", "b"),
    dapo("What  is\n$1+1$?", "2", "a"),  # the first one with other white space
    dapo("What is $1+1$?", "3", "c"),
    dapo("What is $1+2$?", "3", "d"),
  ]
  guru_files.write(tmp_path, "dapo_math_17k", {"data/dapo-math-17k.parquet": rows})
  source = sources.find("dapo_math_17k")
  examples, left_out = sources.load(source, "train", str(tmp_path), str(tmp_path / "built"))
  assert [e["question"] for e in examples] == ["What is $1+1$?", "What is $1+2$?"]
  assert [e["reference"] for e in examples] == ["2", "3"]
  assert left_out == {"another language": 1, "repeated": 1, "repeated with another answer": 1}


def test_unknown_formats_of_program_tests_are_an_error():
  assert catalog.tests('{"inputs": ["1"], "outputs": ["2"]}') == {"inputs": ["1"], "outputs": ["2"]}
  with pytest.raises(ValueError, match=r"functional, or inputs and outputs, got \['pytest'\]"):
    catalog.tests('{"pytest": "def test(): pass"}')
