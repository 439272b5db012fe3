"""The command line of a run: what it explains, and how it says what cannot be."""

import dataclasses
import pathlib
import subprocess
import sys
import textwrap

import jax
import pytest
from absl.testing import flagsaver

from configs import common, meanings, quickstart, smollm2_arithmetic
from experiments import cli
from experiments import train as command
from poise_jax.planning import memory
from poise_jax.training import train as train_lib

ROOT = pathlib.Path(__file__).parents[2]
QUICK = "--config=configs/quickstart.py"
SMALL = {  # a program that compiles in a moment
  "rollouts": 8,
  "model.shape.hidden_size": 32,
  "model.shape.intermediate_size": 48,
  "model.shape.num_hidden_layers": 1,
  "model.shape.head_dim": 16,
  "task.train": 50,
  "task.test": 16,
  "rollout.feature_layers": "(0,)",
  "rollout.max_new_tokens": 14,
  "probe.buffer_rows": 128,
  "probe.pca_response": 8,
  "train.minibatch_size": 4,
  "train.microbatch_size": 2,
  "train.loss.kl_coef": 0.1,
}


@pytest.fixture
def type_in(monkeypatch):
  """Calls a command in this process, with the flags as a shell would give them."""
  monkeypatch.chdir(ROOT)

  def call(*arguments, main=command.main, passed_on=""):
    argv = ["program", *arguments]
    monkeypatch.setattr(sys, "argv", argv)
    with flagsaver.flagsaver():
      cli.guarded(main, cli.parse(argv, passed_on))

  return call


@pytest.fixture
def refusal(type_in, capsys):
  """What a command says that it refuses, in one line."""

  def call(*arguments, **options):
    with pytest.raises(SystemExit) as exit:
      type_in(*arguments, **options)
    said = exit.value.code
    assert said.startswith("error: ") and "\n" not in said and "Traceback" not in said, said
    assert capsys.readouterr() == ("", "")
    return said

  return call


def set_to(**changes):
  """--config.x.y=value for x__y=value."""
  return [f"--config.{name.replace('__', '.')}={value}" for name, value in changes.items()]


@pytest.mark.parametrize(
  "arguments,parts",
  [
    ([], ["--config=FILE.py is missing", "configs/quickstart.py"]),
    ([QUICK, "--workdir="], ["--workdir=DIR is missing"]),
    ([QUICK + ":poize"], ["'poize'", "did you mean 'poise'?", "grpo", "pvpo"]),
    ([QUICK + ":zzz"], ["'zzz' is unknown. Known are", "poise", "grpo", "pvpo"]),
    (["--config=configs/quickstrat.py"], ["no such file", "configs/quickstart.py", "smollm2"]),
    (["--config=configs"], ["--config=configs"]),
    (["--config=README.md"], ["README.md is not a Python file"]),
    (["--config=configs/meanings.py"], ["no function get_config"]),
    (["--config="], ["no such file"]),
    ([QUICK, "--config.steps=abc"], ["--config.steps=abc", "a whole number, as 40 is"]),
    ([QUICK, "--config.steps=1.5"], ["--config.steps=1.5", "a whole number"]),
    ([QUICK, "--config.train.adam_b1=high"], ["adam_b1=high", "a number, as 0.9 is"]),
    ([QUICK, "--config.task.chat=maybe"], ["--config.task.chat=maybe", "true or false"]),
    (
      [QUICK, "--config.rollout.feature_layers=(1,"],
      ["feature_layers=(1,: it must be a tuple, as (1,) is"],
    ),
    ([QUICK, "--config.rollout.feature_layers=last"], ["'last'", "must be whole numbers"]),
    (
      [QUICK, "--config.task.arithmetic.kinds=1"],
      ["task.arithmetic.kinds contains 1", "such as '2+'"],
    ),
    ([QUICK, "--config.steps"], ["--config.steps", "alue"]),
    ([QUICK, "--config.step=3"], ["--config.step:", "did you mean --config.steps?"]),
    ([QUICK, "--config.train.learning_rat=1"], ["did you mean --config.train.learning_rate?"]),
    (
      [QUICK, "--config.learning_rate=1"],
      ["--config.critic.learning_rate or", "--config.train.learning_rate"],
    ),
    ([QUICK, "--config.rollout.minibatch_size=4"], ["mean --config.train.minibatch_size?"]),
    ([QUICK, "--config.train.clip_hihg=1"], ["mean --config.train.loss.clip_high?"]),
    ([QUICK, "--config.train.loss.kl_coef.x=1"], ["kl_coef.x", "mean --config.train.loss.kl_coef"]),
    ([QUICK, "--config.task.kinds=1"], ["did you mean --config.task.arithmetic.kinds?"]),
    ([QUICK, "--config.qqqq=1"], ["--config.qqqq:", "--help lists all"]),
    ([QUICK, "--config.train=5"], ["train is a section", "--config.train."]),
    ([QUICK, "--noconfig.task.chatt"], ["mean --config.task.chat?"]),
    (["--config.steps=5"], ["needs --config=FILE.py in front"]),
    (["--config.steps=5", QUICK], ["--config.steps"]),
    ([QUICK, "--wrkdir=runs"], ["wrkdir", "workdir"]),
    ([QUICK, "--dry_run=perhaps"], ["--dry_run=perhaps", "true or false"]),
    ([QUICK, "stray"], ["'stray'", "--config.field=value"]),
    ([QUICK, "--workdir=README.md/run"], ["README.md/run"]),
    ([QUICK, "--config.model.source=missing.gguf"], ["missing.gguf"]),
    ([QUICK, "--config.rollout.n=1"], ["rollout.n=1"]),
    ([QUICK, "--config.steps=-3"], ["steps=-3"]),
    ([QUICK, "--config.seed=-1"], ["seed=-1"]),
    ([QUICK, "--config.log_samples=-1"], ["log_samples=-1"]),
    ([QUICK, "--config.checkpoint_every=-1"], ["checkpoint_every=-1"]),
    ([QUICK, "--config.task.train=0"], ["train set is empty"]),
    ([QUICK, "--config.task.test=0"], ["test set is empty"]),
    ([QUICK, "--config.task.arithmetic.careless=2"], ["task.arithmetic.careless=2"]),
    ([QUICK, "--config.train.learning_rate=-1"], ["train.learning_rate=-1"]),
    ([QUICK, "--config.train.learning_rate=nan"], ["train.learning_rate=nan"]),
    ([QUICK, "--config.train.adam_b2=1"], ["train.adam_b2=1"]),
    ([QUICK, "--config.train.warmup_steps=-1"], ["train.warmup_steps=-1"]),
    ([QUICK, "--config.warm_start.steps=-1"], ["warm_start.steps=-1"]),
    ([QUICK, "--config.model.shape.head_dim=7"], ["head_dim 7"]),
  ],
  ids=lambda x: " ".join(x)[-40:] if isinstance(x, list) else "",
)
def test_what_was_typed_wrong_is_one_sentence(refusal, monkeypatch, arguments, parts):
  zeros = lambda model, key: jax.tree.map(  # noqa: E731
    lambda x: jax.numpy.zeros(x.shape), train_lib.models.abstract_params(model)
  )
  monkeypatch.setattr(train_lib.models, "init", zeros)
  arguments = ["--workdir=/proc/no/run", *arguments]  # nobody can make this folder
  if arguments[1:2] == [QUICK]:
    arguments[2:2] = ["--config.task.train=50"]  # little to set up
  said = refusal(*arguments)
  for part in parts:
    assert part in said, said


@pytest.mark.parametrize(
  "text,parts",
  [
    ("def get_config(): return {}['x']", ["line 1: KeyError: 'x'"]),
    ("def get_config():\n  return (1,)[3]", ["line 2: IndexError: tuple index"]),
    ("def get_config():\n  return len(3)", ["line 2: TypeError: object of type 'int'"]),
    ("def get_config():\n  return 1 / 0", ["line 2: ZeroDivisionError"]),
    ("def get_config():\n  return int('x')", ["line 2: ValueError: invalid literal"]),
    ("def get_config():\n  raise ValueError('no TPU, no run')", ["line 2: no TPU, no run"]),
    ("def get_config(:", ["line 1: SyntaxError"]),
    ("import no_such_thing", ["line 1: ModuleNotFoundError: No module named 'no_such_thing'"]),
    ("x = 3", ["no function get_config"]),
    ("def get_config(): pass", ["returned NoneType, not a ConfigDict"]),
    ("def get_config(): return {}", ["returned dict, not a ConfigDict"]),
    ("def get_config(name): pass", ["needs a :NAME"]),
    (
      "from configs import common\ndef get_config():\n  c = common.default('poise')\n"
      "  c.steps = 'many'",
      ["line 4: TypeError", "steps"],
    ),
    (
      "from configs import common\ndef get_config():\n  c = common.default('poise')\n"
      "  c.train.learning_rat = 1.0",
      ["line 4: AttributeError", 'Did you mean "learning_rate"'],
    ),
    ("from configs import common\ndef get_config():\n  common.default('grop')", ["mean 'grpo'?"]),
  ],
)
def test_what_is_wrong_in_a_config_file_is_named_with_its_line(refusal, tmp_path, text, parts):
  path = tmp_path / "mine.py"
  path.write_text(textwrap.dedent(text) + "\n")
  said = refusal(f"--config={path}", "--workdir=runs/x")
  for part in (str(path), *parts):
    assert part in said, said


def test_a_name_that_a_config_file_does_not_take(refusal, tmp_path):
  path = tmp_path / "mine.py"
  path.write_text("def get_config(): pass")
  assert "takes no :NAME" in refusal(f"--config={path}:grpo", "--workdir=runs/x")


def run_of(work):
  """A main that gets a config and then does `work`."""
  return lambda argv: command.main(argv, lambda config, workdir: work())


def test_running_out_of_memory_says_what_to_lower(refusal):
  much = run_of(lambda: jax.numpy.zeros(2**44).block_until_ready())  # a real refusal of XLA's
  said = refusal(QUICK, "--workdir=x", main=much)
  assert "out of memory; lower train.microbatch_size" in said
  assert "--dry_run" in said and "RESOURCE_EXHAUSTED" in said


@pytest.mark.parametrize(
  "bug,parts",
  [
    (lambda: {}["nope"], ["KeyError in ", "'nope'"]),
    (lambda: int("x"), ["ValueError in ", "invalid literal"]),
    (lambda: train_lib.update.UpdateConfig(minibatch_size="x"), ["TypeError", "update.py, line"]),
    (lambda: train_lib.prompts_of_nobody, ["AttributeError"]),
    (lambda: jax.numpy.ones(3) @ jax.numpy.ones(4), ["TypeError"]),
  ],
)
def test_a_bug_is_told_from_a_mistake(refusal, type_in, bug, parts):
  said = refusal(QUICK, "--workdir=x", main=run_of(bug))
  for part in (*parts, "it may be a bug; --debug shows the traceback"):
    assert part in said, said
  with pytest.raises((KeyError, ValueError, TypeError, AttributeError)):
    type_in(QUICK, "--workdir=x", "--debug", main=run_of(bug))


def test_interrupting_is_not_an_error(type_in, capsys):
  def stop():
    raise KeyboardInterrupt

  with pytest.raises(SystemExit) as exit:
    type_in(QUICK, "--workdir=x", main=run_of(stop))
  assert exit.value.code == 130
  assert capsys.readouterr().err == "interrupted\n"


def test_mistakes_reach_the_shell_without_a_traceback(tmp_path):
  """As above, but for real: through absl's app, with its exit code."""
  run = [sys.executable, "-m", "experiments.train", f"--workdir={tmp_path / 'run'}", QUICK]
  done = subprocess.run([*run, "--config.mesh.data=3"], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 1 and done.stdout == ""
  assert done.stderr.startswith("error: mesh data=3")
  assert len(done.stderr.splitlines()) == 1
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  "config", [common.default(name) for name in common.ALGORITHMS]
  + [quickstart.get_config(), smollm2_arithmetic.get_config()]
)  # fmt: skip
def test_every_field_has_a_meaning(config):
  known = meanings.fields()
  missing = [name for name in cli.flat(config) if not known.get(name)]
  assert not missing, "write a comment beside each, or put its dataclass into common.SECTIONS"


def test_meanings_are_the_comments_of_the_code():
  known = meanings.fields()
  assert known["rollout.n"] == "responses a prompt"
  assert known["task.max_prompt_length"] == "Tp, tokens; a longer prompt is an error"
  assert known["reference_every"].startswith("steps after which the reference policy")  # above it
  of = meanings.algorithms()
  assert list(of) == list(common.ALGORITHMS) and all(of.values())
  assert of["dapo"].startswith("DAPO whole:") and of["dapo"].endswith("set reward.overlong_buffer.")


@pytest.mark.parametrize("width", [80, 160])
def test_help_shows_what_this_command_would_use(type_in, capsys, monkeypatch, width):
  monkeypatch.setenv("COLUMNS", str(width))
  with pytest.raises(SystemExit) as exit:
    type_in("--help", QUICK + ":gspo", "--config.steps=7")
  said = capsys.readouterr().out
  assert not exit.value.code
  assert all(len(line) <= max(width, 110) for line in said.splitlines())
  rows = [line.split() for line in said.splitlines()]
  assert ["steps", "7", "(default", "100)", "batches", "of", "rollouts"] in [r[:7] for r in rows]
  assert ["clip_high", "0.0004", "ratios"] in [row[:3] for row in rows]
  assert ["num_hidden_layers", "2", "L,", "blocks"] in rows
  for name in [*common.ALGORITHMS, "--workdir", "--dry_run", "--config.train.loss."]:
    assert any(row and row[0] == name for row in rows), name
  for name, meaning in meanings.fields().items():
    if name in cli.flat(quickstart.get_config("gspo")):
      assert meaning.split()[0] in said, name


def test_help_needs_no_config_and_one_that_fails_is_an_error(type_in, refusal, capsys):
  with pytest.raises(SystemExit) as exit:
    type_in("--help")
  assert not exit.value.code
  assert "probe" in capsys.readouterr().out
  with pytest.raises(SystemExit, match="did you mean --config.steps"):
    type_in("--help", QUICK, "--config.step=3")


def test_dry_run_counts_what_a_run_would_hold_and_writes_nothing(
  type_in, refusal, capsys, monkeypatch, tmp_path, compiled_quickly
):
  small = [QUICK, "--dry_run", f"--workdir={tmp_path / 'run'}"]
  small += [f"--config.{name}={value}" for name, value in SMALL.items()]
  make, plans = memory.dry_run, []
  monkeypatch.setattr(memory, "dry_run", lambda run, phase: plans.append((run, make(run, phase))))
  with pytest.raises(AttributeError):  # None, instead of the plan
    type_in(*small, "--debug")
  run, seen = plans[0]
  params = train_lib.models.init(run.model, jax.random.key(0))
  assert not any(isinstance(x, jax.Array) for x in jax.tree.leaves(run.params))
  state = train_lib.update.init(params, run.update)
  estimator = run.estimator.init(params)
  size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))  # noqa: E731
  assert seen.sizes["parameters"] == sum(x.size for x in jax.tree.leaves(params))
  assert list(seen.always.values()) == [
    size(params), size(state.opt_state), size(estimator), size(params)
  ]  # fmt: skip
  assert seen.sampling["sampling copy of the parameters"] == size(run.sampling_params(params))
  # 1 layer, keys and values of 2 heads x 16: 8 responses of 14 tokens, 4 prompts of 10; float32
  assert seen.sampling["caches"] == 2 * 2 * 16 * (8 * 14 + 4 * 10) * 4
  assert seen.sizes["prompts per step"] == 4
  assert seen.sizes["tokens sampled per step, at most"] == 8 * 14
  assert seen.sizes["optimizer steps per batch"] == 2
  assert seen.sizes["micro-batches per optimizer step"] == 2
  assert {"the sampler", "log-probs", "the update"} <= set(seen.programs)
  assert seen.programs["the update"].temporary >= seen.updating["gradients"] == size(params)
  for part in (seen.always, seen.sampling, seen.updating):
    assert min(part.values()) >= 0

  capsys.readouterr()
  monkeypatch.setattr(memory, "dry_run", lambda run, phase: seen)
  type_in(*small)
  said = " ".join(capsys.readouterr().out.split())
  for part in ("rollouts 8 (default 64)", "optimizer", "caches", "the sampler in "):
    assert part in said
  assert "fits: a step needs about" in said and "does not fit" not in said
  monkeypatch.setattr(cli.rich.console.Console, "print", lambda *_, **__: None)
  monkeypatch.setattr(memory, "dry_run", lambda *_: dataclasses.replace(seen, limit=2**20))
  assert "does not fit: a step needs about" in refusal(*small)
  assert not list(tmp_path.iterdir())


def test_a_plan_says_what_to_lower():
  none = memory.MemoryReport({}, {"parameters": 4}, {"caches": 3}, {"gradients": 5}, {}, 1, 10, 1)
  assert none.peak == none.limit and none.fits and none.verdict.startswith("barely fits:")
  assert dataclasses.replace(none, limit=13).verdict.startswith("fits:")
  assert dataclasses.replace(none, sharing=2).peak == 19  # devices that share a machine
  assert dataclasses.replace(none, sampling={"caches": 6}).peak == 11
  for change, advice in (
    (dict(limit=9), "lower train.microbatch_size"),
    (dict(limit=9, sampling={"caches": 6}), "lower rollouts or rollout.max_new_tokens"),
    (dict(limit=4), "train a smaller model"),
  ):
    plan = dataclasses.replace(none, **change)
    assert not plan.fits and advice in plan.verdict
