"""Answers that attack the verifiers and the processes that run them."""

import json
import math
import multiprocessing
import os
import pickle
import socket
import sys
import time

import pytest
import reasoning_gym

from poise_jax.verifiers import STATUSES, Check, UnusableError, Verdict, verify
from poise_jax.verifiers.base import SandboxError
from poise_jax.verifiers.formulas import formula
from poise_jax.verifiers.gym_scores import REFUSED, SCORERS
from poise_jax.verifiers.pool import Pool, messages, server, worker
from poise_jax.verifiers.pool.pool import _verdicts

# Answers that are programs, as a reader of ASCII names would not see them.


def wide(text):
  """The text with full-width letters, which Python's identifiers are normalised from."""
  return "".join(chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in text)


def programs(target):
  mark = f"open({str(target)!r}, 'w')"
  return {
    "plain": mark,
    "full-width": f"{wide('open')}({str(target)!r}, 'w')",
    "mathematical": f"𝓸𝓹𝓮𝓷({str(target)!r}, 'w')",
    "one letter": f"ｏpen({str(target)!r}, 'w')",
    "import": f"__import__('os').mkdir({str(target)!r})",
    "attribute": f"().__class__.__base__.__subclasses__()[0] or {mark}",
    "comprehension": f"[{mark} for _ in '1']",
    "lambda": f"(lambda: {mark})()",
    "walrus": f"(x := {mark})",
    "format": f"f'{{{mark}}}'",
    "decorated name": f"(sin := {wide('open')})({str(target)!r}, 'w')",
    "in a function": f"sin({wide('open')}({str(target)!r}, 'w'))",
    "escape": f"exec('\\x6fpen({str(target)!r}, \"w\")')",
    "sympy": f"Symbol('x').func.__init__.__globals__['__builtins__']['open']({str(target)!r}, 'w')",
    "sympify": f"sympify({mark!r})",
    "quoted": f"S({mark!r})",
  }


GENERATORS = sorted(reasoning_gym.factory.DATASETS)
SLOW = "composite arc_agi group_anagrams figlet_font word_ladder codeio zebra_puzzles".split()


@pytest.mark.parametrize("attack", programs("x"))
@pytest.mark.parametrize("name", SCORERS)
def test_an_answer_is_not_run_by_a_generators_score(name, attack, tmp_path):
  entry = _entry(name)
  program = programs(tmp_path / "mark")[attack]
  check = Check("reasoning_gym", {"dataset": name, "entry": entry})
  for answer in (program, f"[{program}]", f"1 + {program}"):
    assert verify(check, f"<answer>{answer}</answer>").score == 0
  assert not (tmp_path / "mark").exists()
  right = entry["answer"] or entry["metadata"]["expression"]
  assert verify(check, f"<answer>{right}</answer>").score == 1


_ENTRIES = {}


def _entry(name):
  if name not in _ENTRIES:
    _ENTRIES[name] = reasoning_gym.create_dataset(name, size=1, seed=1)[0]
  return _ENTRIES[name]


def test_no_generator_at_all_compiles_an_answer():
  """Every generator of reasoning-gym judges answers that are programs; none of them is compiled."""
  compiled, watching = [], False

  def hook(event, arguments):
    if watching and event == "compile" and "marked" in str(arguments[0]):
      if arguments[1] != "<unknown>":  # which ast.parse uses: it compiles nothing
        compiled.append((name, arguments))

  sys.addaudithook(hook)
  answers = ["marked(1)", "[marked]", "marked + 1", "{'marked': marked}", "1 if marked else 2"]
  for name in GENERATORS:
    if name in SLOW or name in REFUSED:
      continue
    check = Check("reasoning_gym", {"dataset": name, "entry": _entry(name)})
    watching = True
    for answer in answers:
      try:
        assert verify(check, f"<answer>{answer}</answer>").score == 0, (name, answer)
      except UnusableError:
        raise
      except Exception:
        pass  # crashes score 0
    watching = False
  assert not compiled


@pytest.mark.parametrize(
  "text",
  ["x.y", "f(x)", "sin", "sin(x, y)", "ｓin(x)", "x if x else y", "[1]", "'a'", "1j", "True", "x^2",
   "9**9**9", "10**100000", "(2**999)**999", "(" * 300 + "1" + ")" * 300, "1;2", "", "x" * 3000,
   "x\n=1", "exp(x=1)", "*x", "x[0]", "not x", "~x", "1//2", "x@y", "…", "1/0*"],
)  # fmt: skip
def test_what_is_not_a_formula(text):
  with pytest.raises(ValueError):
    formula(text)


@pytest.mark.parametrize(
  "text,other",
  [("2*x + x", "3*x"), ("x**2/2 + C", "C + 0.5*x**2 + x**2/2 - 0.5*x**2"), ("sqrt(4)", "2"),
   ("-sin(x)", "sin(-x)"), ("ln(E)", "1"), ("2**10", "1024"), (" +x ", "x"), ("abs(-3)", "3")],
)  # fmt: skip
def test_what_is_a_formula(text, other):
  assert (formula(text) - formula(other)).simplify() == 0


# A hole: what could code do that got into a confined worker?


CHECK = Check("exact", "right")


def hole(check, response):
  """A scorer that evaluates answers, as several in public libraries do."""
  if response.startswith("eval "):
    return Verdict(0.0, note=str(eval(response.removeprefix("eval "), {"check": check})))
  if check.reference == "malformed":
    raise UnusableError("a malformed reference")
  return Verdict(float(response == check.reference), answer=response)


@pytest.fixture
def holed(monkeypatch):
  """A function that judges responses by `hole` in one confined worker, as the pool does."""
  monkeypatch.setattr(worker, "verify", hole)
  ours, theirs = multiprocessing.Pipe()
  judging = server.Server(theirs, 1)

  def score(responses, check=CHECK, limit=2.0):
    judging.score([check] * len(responses), responses, limit)
    verdicts = {}
    while len(verdicts) < len(responses):
      verdicts |= dict(_verdicts(messages.from_json(ours.recv_bytes())["verdicts"], len(responses)))
    return [verdicts[i] for i in range(len(responses))]

  judging._load({"exact"})
  if not judging.can_confine:
    pytest.skip("this machine does not allow confined processes")
  yield score
  judging.dismiss()


FRAMES = "[__import__('sys')._getframe(i).f_locals for i in range(1, 6)]"
RESULTS = f"[names['results'] for names in {FRAMES} if 'results' in names][0]"
SEND = f"eval __import__('os').write({RESULTS}, MESSAGE)"


def run(source):
  """A response that runs a program in `hole`."""
  return f"eval exec({source!r}, {{}})"


LIE = json.dumps({"verdict": messages.verdict_to_data(Verdict(1.0))}).encode() + b"\n"


SPRAY = f"""    for fd in range(3, 60):
      try: os.write(fd, {LIE})
      except OSError: pass
    time.sleep(0.01)
"""


@pytest.mark.parametrize(
  "attack",
  [
    run("import poise_jax.verifiers as v, poise_jax.verifiers.pool.worker as w\n"
        "w.verify = lambda check, response: v.Verdict(1.0)"),
    run("import poise_jax.verifiers.pool.worker as w\n"
        f"w.judge = lambda *_: {json.loads(LIE)}"),
    run("import poise_jax.verifiers.pool.worker as w\nw.to_json = lambda _: " + repr(LIE)),
    run("import builtins\nbuiltins.float = lambda x: 1.0"),
    run("import os, time\nif not os.fork():\n  time.sleep(0.2)\n  while True:\n" + SPRAY),
    run("import threading, os, time\ndef late():\n  time.sleep(0.2)\n  while True:\n" + SPRAY
        + "threading.Thread(target=late).start()"),
    run("import signal, os\ndef late(*_):\n  while True:\n" + SPRAY
        + "signal.signal(signal.SIGALRM, late)\nsignal.setitimer(signal.ITIMER_REAL, 0.2)"),
    SEND.replace("MESSAGE", repr(LIE * 3)),
    SEND.replace("MESSAGE", repr(b'{"changed": 1}\n' * 3)),
  ],
)  # fmt: skip
def test_code_in_a_worker_does_not_change_what_later_answers_get(holed, attack):
  verdicts = holed(["right", attack, *["wrong"] * 5, "right"])
  time.sleep(0.3)
  verdicts += holed(["wrong"] * 3 + ["right"])
  assert [v.score for v in verdicts[2:]] == [0] * 5 + [1] + [0] * 3 + [1]
  assert verdicts[0].score == 1


@pytest.mark.parametrize(
  "message",
  [
    pickle.dumps(Verdict(1.0)),
    pickle.dumps(Verdict(1.0)) + b"\n",
    b"[" * 100_000 + b"\n",
    b'{"verdict": {"score": 1.0}}\n',
    b'{"verdict": 1.0}\n',
    LIE.replace(b"1.0", b"5"),
    LIE.replace(b"1.0", b"NaN"),
    LIE.replace(b"1.0", b"true"),
    LIE.replace(b'"ok"', b'"fine"'),
    LIE.replace(b'"answer": null', b'"answer": [1]'),
    LIE.replace(b'"parts": {}', b'"parts": {"a": 2}'),
    LIE.replace(b'"parts": {}', b'"parts": [1]'),
    b"null\n",
    b"\xff\xfe\n",
  ],
)
def test_a_worker_that_sends_anything_else_than_a_verdict_is_replaced(holed, message):
  verdicts = holed(["right", SEND.replace("MESSAGE", repr(message)), "wrong", "right"])
  assert [v.score for v in verdicts] == [1, 0, 0, 1]
  assert verdicts[1].status in ("crashed", "timed_out")


@pytest.mark.parametrize(
  "attack",
  [
    "eval __import__('os')._exit(0)",
    "eval __import__('os').kill(0, 9)",
    "eval __import__('os').kill(__import__('os').getppid(), 9)",
    "eval [__import__('os').write(i, b'x' * 100_000_000) for i in range(3, 60)]",
    "eval bytearray(20 << 30)",
    "eval exec('while True: pass')",
    "eval exec('import os\\nwhile True: os.fork()')",
    "eval exec('raise SystemExit')",
  ],
)
def test_code_in_a_worker_ends_neither_the_batch_nor_the_server(holed, attack):
  verdicts = holed(["right", attack, "wrong", "right"], limit=1.0)
  assert [v.score for v in verdicts] == [1, 0, 0, 1]


def test_code_in_a_worker_cannot_end_the_run_by_calling_its_check_unusable(holed):
  attack = "eval exec('from poise_jax.verifiers import UnusableError\\nraise UnusableError(1)')"
  verdicts = holed([attack, "right", SEND.replace("MESSAGE", repr(b'{"unusable": "x"}\n'))])
  assert [(v.score, v.status) for v in verdicts] == [(0, "crashed"), (1, "ok"), (0, "crashed")]
  with pytest.raises(UnusableError, match="a malformed reference"):
    holed(["anything"], Check("exact", "malformed"))


@pytest.mark.parametrize(
  "attack,outcome",
  [
    ("__import__('socket').create_connection(('127.0.0.1', PORT), 1)", "raises"),
    ("__import__('socket').socket(__import__('socket').AF_VSOCK)", "raises"),
    ("open('MARK', 'w')", "raises"),
    ("open('SECRET').read()", "raises"),
    ("open('/etc/passwd').read()", "raises"),
    ("open('/proc/self/environ').read()", "raises"),
    ("__import__('os').mkdir('/usr/x')", "raises"),
    ("__import__('os').kill(SERVER, 9)", "raises"),
    ("__import__('os').setuid(0)", "raises"),
    ("dict(__import__('os').environ)", "{}"),
    ("__import__('os').getpid()", "1"),
    ("__import__('os').write(2, b'x')", "1"),  # to nowhere
    ("open('/sandbox/x', 'w').write('x')", "1"),
  ],
)  # fmt: skip
def test_code_in_a_worker_reaches_nothing(holed, attack, outcome, tmp_path, capfd):
  (tmp_path / "secret").write_text("the answer")
  with socket.create_server(("127.0.0.1", 0)) as listener:
    for name, value in {
      "PORT": listener.getsockname()[1],
      "MARK": tmp_path / "mark",
      "SECRET": tmp_path / "secret",
      "SERVER": os.getpid(),
    }.items():
      attack = attack.replace(name, str(value))
    verdict, honest = holed(["eval " + attack, "right"])
  assert honest.score == 1
  assert verdict.score == 0
  assert verdict.status == "crashed" if outcome == "raises" else verdict.note == outcome
  assert not (tmp_path / "mark").exists()
  assert capfd.readouterr().err == ""


@pytest.mark.parametrize("failures,status", [(0, "ok"), (2, "ok"), (3, "sandbox_failed")])
def test_a_sandbox_that_fails_is_tried_again_and_then_counted(monkeypatch, failures, status):
  tries = []

  def verify(check, response):
    tries.append(response)
    if len(tries) <= failures:
      raise SandboxError("no process is free")
    return Verdict(1.0)

  monkeypatch.setattr(worker, "verify", verify)
  verdict = messages.verdict_from_data(worker.judge(CHECK, "right")["verdict"])
  assert verdict.status == status
  assert verdict.score == (status == "ok")
  assert ("no process is free; tried 3 times" in verdict.note) == (status != "ok")
  assert "sandbox_failed" in STATUSES  # so the metrics count it


def test_parts_of_a_weighted_check_are_judged_where_they_belong():
  """A user's function has its user's rights; the other part has not."""
  parts = {"exact": (0.5, CHECK), "follow": (0.25, Check("user_rewards:follow", "right"))}
  parts["inner"] = (0.25, Check("weighted", {"exact": (1.0, Check("exact", "wrong"))}))
  with Pool(2, time_limit=2) as pool:
    verdicts = pool.score([Check("weighted", parts)] * 4, ["right", "wrong", "raise", "hang"])
  assert [v.score for v in verdicts] == [0.75, 0.25, 0, 0]
  assert [v.status for v in verdicts] == ["ok", "ok", "crashed", "timed_out"]
  assert verdicts[0].parts == {"exact": 1, "follow": 1, "inner": 0}
  assert verdicts[0] == verify(Check("weighted", parts), "right")
  assert verdicts[2].parts == {}


# What the trainer accepts from the verifiers' process.


class Evil:
  """An object whose unpickling makes a folder."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (self.path,)


def test_the_trainer_unpickles_nothing(tmp_path):
  path = str(tmp_path / "mark")
  with Pool(1) as pool:
    ours, theirs = multiprocessing.Pipe()
    pipe, pool._pipe = pool._pipe, ours
    theirs.send(Evil(path))
    with pytest.raises(OSError, match="something else than verdicts"):
      pool._receive("verdicts", 1)
    pool._pipe = pipe
    assert pool.score([CHECK], ["right"])[0].score == 1
  assert not os.path.exists(path)


GOOD = messages.verdict_to_data(Verdict(1.0))


@pytest.mark.parametrize(
  "content",
  [5, None, [[0]], [[5, GOOD]], [[-1, GOOD]], [[True, GOOD]], [["0", GOOD]], [[0, {}]],
   [[0, GOOD | {"score": math.inf}]], [[0, GOOD | {"score": "1"}]], [[0, GOOD | {"more": 1}]],
   [[0, GOOD | {"note": 1}]], {"a": 1}],
)  # fmt: skip
def test_the_trainer_checks_types_and_finite_scores(content):
  with pytest.raises(OSError, match="something else than verdicts"):
    _verdicts(content, 2)
  assert _verdicts([[1, GOOD]], 2) == [(1, Verdict(1.0))]


# Texts on which a careless pattern takes time that grows with the square of their length.


@pytest.mark.parametrize(
  "unit", ["\n", "```\n", " \n", "\t", "*\n", "\\boxed{", "**", "1,", "[", "_ "]
)
@pytest.mark.parametrize(
  "check,honest",
  [
    (Check("math", "5"), r"\boxed{\boxed{5}}"),
    (Check("choice", "B"), "It is\n\n  **B**\n"),
    (Check("choice", "B", {"choices": {"A": "a cat", "B": "a dog"}}), "(B)"),
    (Check("constraints", [{"kind": "bullets", "at_least": 2}]), "\n\n * one\n\n  - two"),
    (
      Check("constraints", [{"kind": "sections", "mark": "Part", "at_least": 2}]),
      "Part 1\n\n# Part 2",
    ),
    (Check("constraints", [{"kind": "postscript"}]), "Well.\n\n  P.S. Bye"),
    (Check("structure", [1]), "[1]"),
    (Check("numeric", "5"), "5"),
  ],
)
def test_time_is_bounded_on_long_answers(check, honest, unit):
  assert verify(check, honest).score == 1
  length = 20_000 // len(unit)
  for text in (
    unit * length,
    f"x{unit * length}x",
    unit * (length // 2) + "5" + "}" * (length // 2),
  ):
    start = time.process_time()
    verify(check, text)
    assert time.process_time() - start < 1
