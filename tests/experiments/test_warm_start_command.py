"""A folder belongs to one warm start."""

import pytest
from commands import load
from tiny_run import tiny

from poise_jax.errors import UserError
from poise_jax.training import build

program = load("warm_start")


def test_an_interrupted_warm_start_is_made_again_and_a_mistake_claims_no_folder(
  tmp_path, monkeypatch
):
  with pytest.raises(UserError):
    program.warm_start(tiny(task__train=0), str(tmp_path / "start"))
  assert not (tmp_path / "start").exists()

  def stop(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(build, "warmed_up", stop)
  experiment = build.build(tiny())
  monkeypatch.setattr(build, "build", lambda config: experiment)
  for _ in range(2):
    with pytest.raises(KeyboardInterrupt):
      program.warm_start(tiny(), str(tmp_path / "start"))
  with pytest.raises(UserError, match="seed: 2 -> 3"):
    program.warm_start(tiny(seed=3), str(tmp_path / "start"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder with the model of a warm start, which is not trained."""
  folder = tmp_path_factory.mktemp("warm") / "start"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(build, "warmed_up", lambda experiment, params, report: params)
    program.warm_start(tiny(), str(folder))
    patch.setattr(build, "build", None)  # must not be called again
    yield folder


@pytest.mark.parametrize(
  "change, difference",
  (
    ({"seed": 7}, "seed: 2 -> 7"),
    ({"warm_start__steps": 9}, "warm_start.steps: 2 -> 9"),
    ({"model__shape__hidden_size": 64}, "model.shape.hidden_size: 32 -> 64"),
    ({"task__train": 50}, "task.train: 100 -> 50"),
    ({"rollout__max_new_tokens": 12}, "rollout.max_new_tokens: 10 -> 12"),
  ),
)
def test_another_warm_start_is_an_error(folder, change, difference):
  with pytest.raises(UserError, match="holds a warm start with another configuration") as error:
    program.warm_start(tiny(**change), str(folder))
  assert difference in str(error.value)


def test_what_differs_in_training_alone_is_the_same_warm_start(folder):
  before = (folder / "config.json").stat().st_mtime_ns
  for config in (tiny(), tiny("rloo"), tiny(train__learning_rate=1e-3, steps=9)):
    program.warm_start(config, str(folder))
  program.warm_start(tiny(seed=7, warm_start__steps=0), str(folder))  # none is to be made
  assert (folder / "config.json").stat().st_mtime_ns == before
