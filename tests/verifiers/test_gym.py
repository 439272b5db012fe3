"""reasoning-gym's scores."""

import pytest
import reasoning_gym

from poise_jax.verifiers import Check, UnusableError, verify
from poise_jax.verifiers.gym import SCORERS

NAMES = ["chain_sum", "leg_counting", "countdown", "simple_integration", "n_queens", "puzzle24"]


@pytest.mark.parametrize("name", NAMES)
def test_reference_answers_are_right_and_others_are_not(name):
  for entry in reasoning_gym.create_dataset(name, size=3, seed=1):
    check = Check("reasoning_gym", {"dataset": name, "entry": entry})
    answer = entry["answer"] if entry["answer"] else entry["metadata"]["expression"]
    assert verify(check, f"<answer>{answer}</answer>").score == 1
    assert verify(check, "<answer>-17</answer>").score == 0
    assert verify(check, "I do not know").status == "unparsable"


def test_there_is_no_partial_credit():
  """reasoning-gym itself gives 0.67 to an answer that contains the right one."""
  entry = {"question": "What is 5 + 9?", "answer": "14", "metadata": {}}
  scorer = reasoning_gym.get_score_answer_fn("chain_sum")
  assert 0.6 < scorer("145", entry) < 0.7
  check = Check("reasoning_gym", {"dataset": "chain_sum", "entry": entry}, {"extract": "auto"})
  responses = ("14", "145", "14 or 15", "<answer>14</answer>", "")
  assert [verify(check, response).score for response in responses] == [1, 0, 0, 1, 0]


@pytest.mark.parametrize("name", SCORERS)
def test_an_answer_is_never_run_as_a_program(name, tmp_path):
  """The scores of these generators evaluate the answer as Python."""
  check = Check(
    "reasoning_gym", {"dataset": name, "entry": reasoning_gym.create_dataset(name, size=1)[0]}
  )
  target = tmp_path / "target"
  for program in (f"open('{target}', 'w')", f"__import__('os').mkdir('{target}')"):
    for text in (program, f"[{program}]", f"sin({program})"):
      assert verify(check, f"<answer>{text}</answer>").score == 0
  assert not target.exists()


def test_an_unknown_generator():
  with pytest.raises(UnusableError, match="no generator 'nothing'"):
    verify(Check("reasoning_gym", {"dataset": "nothing", "entry": {}}), "<answer>1</answer>")
