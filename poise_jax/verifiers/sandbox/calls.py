"""The two ends of a code check, each a program in a sandbox of its own (see code.py).

`serve` loads an answer and does what it is asked with it; `test` runs the tests and asks. Between
them only plain data travels, as JSON: the tests never hold an object of the answer's, so nothing
that the answer does can change what they find. Standard library alone.
"""

import builtins
import importlib
import json
import os
import sys
from decimal import Decimal
from fractions import Fraction

_AS_LIST = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_AS_TEXT = {"bytes": bytes.fromhex, "Fraction": Fraction, "Decimal": Decimal, "complex": complex}
_ALIASES = {"np": "numpy"}


class Remote:
  """An object of the other end, which is asked for everything but equality and truth: those are
  this end's to judge, and no object of the other's equals anything but itself."""

  def __init__(self, peer, place):
    self._peer, self._place = peer, place

  def __call__(self, *args, **kwargs):
    """Calls it at the other end."""
    return self._peer.ask("call", self._place, *args, **kwargs)

  def __getattr__(self, name):
    return self._peer.ask("attribute", self._place, name)

  def __len__(self):
    return self._peer.ask("len", self._place)

  def __bool__(self):
    return True

  def __getitem__(self, key):
    return self._peer.ask("item", self._place, key)

  def __contains__(self, key):
    return self._peer.ask("contains", self._place, key) is True

  def __str__(self):
    return str(self._peer.ask("str", self._place))

  def __repr__(self):
    return str(self._peer.ask("repr", self._place))

  def __iter__(self):
    iterator = self._peer.ask("iter", self._place)
    while True:
      try:
        yield self._peer.ask("next", iterator._place)
      except StopIteration:
        return


_OPERATIONS = {
  "call": lambda f, *args, **kwargs: f(*args, **kwargs),
  "attribute": getattr,
  "len": len,
  "item": lambda x, key: x[key],
  "contains": lambda x, key: key in x,
  "str": str,
  "repr": repr,
  "iter": iter,
  "next": next,
}


class Peer:
  """One end of the pipe. Answers requests while it waits for the reply to its own."""

  def __init__(self, pipe, allowed):
    self.incoming, self.outgoing = os.fdopen(pipe, "r"), os.fdopen(os.dup(pipe), "w")
    self.allowed, self.objects = allowed, []

  def send(self, message):
    """Writes one message, a line of JSON."""
    self.outgoing.write(json.dumps(message) + "\n")
    self.outgoing.flush()

  def receive(self):
    """Waits for the next message; EOFError if there will be none."""
    line = self.incoming.readline()
    if not line:
      raise EOFError("the other end is gone")
    return json.loads(line)

  def ask(self, operation, place, *args, **kwargs):
    """What the other end gives, or raises as one of Python's own exceptions; what it changed in
    the arguments is changed here too, as in a call within one process."""
    self.send(["do", operation, place, self.encode(args), self.encode(kwargs)])
    while True:
      kind, *message = self.receive()
      if kind == "do":
        self.obey(*message)
      elif kind == "raised":
        error = getattr(builtins, str(message[0]), None)
        known = isinstance(error, type) and issubclass(error, Exception)
        raise (error if known and error is not EOFError else RuntimeError)(str(message[1]))
      else:
        value, changed = map(self.decode, message)
        for old, new in zip(args, changed, strict=True):
          if type(old) is not type(new) or old == new:
            continue
          if isinstance(old, list):
            old[:] = new
          elif isinstance(old, dict | set):
            old.clear()
            old.update(new)
        return value

  def obey(self, operation, place, args, kwargs):
    """Does what the other end asks for and replies."""
    try:
      if operation not in self.allowed:
        raise PermissionError(operation)
      args, kwargs = self.decode(args), self.decode(kwargs)
      value = _OPERATIONS[operation](self.objects[place], *args, **kwargs)
      reply = ["gave", self.encode(value), self.encode(args)]
    except Exception as error:
      kinds = [kind.__name__ for kind in type(error).__mro__ if hasattr(builtins, kind.__name__)]
      reply = ["raised", kinds[0], str(error)]
    self.send(reply)

  def encode(self, value):
    """A value as JSON; what is no plain data stays here and is called by its place."""
    if value is None or type(value) in (bool, int, float, str):
      return value
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
      return self.encode(value.tolist())
    for kind in (bool, int, float, str):  # enumerations and the like, as what they are based on
      if isinstance(value, kind):
        return kind(value)
    if isinstance(value, dict):
      return ["dict", [[self.encode(k), self.encode(v)] for k, v in value.items()]]
    for name, kind in _AS_LIST.items():
      if isinstance(value, kind):
        return [name, [self.encode(item) for item in value]]
    if isinstance(value, bytes | bytearray):
      return ["bytes", value.hex()]
    if isinstance(value, Fraction | Decimal | complex):
      return [type(value).__name__, str(value)]
    if isinstance(value, Remote):
      return ["yours", value._place]
    if isinstance(value, type(sys)):
      return ["module", value.__name__]
    self.objects.append(value)
    return ["mine", len(self.objects) - 1]

  def decode(self, value):
    """What `encode` at the other end made JSON of; ValueError if it was something else."""
    if not isinstance(value, list):
      return value
    name, content = value
    if name == "dict":
      return {self.decode(k): self.decode(v) for k, v in content}
    if name in _AS_LIST:
      return _AS_LIST[name](self.decode(item) for item in content)
    if name in _AS_TEXT:
      return _AS_TEXT[name](content)
    if name == "mine":
      return Remote(self, int(content))
    if name == "yours":
      return self.objects[content]
    raise ValueError(f"{name!r} is no kind of value")


def serve(pipe, code):
  """Loads an answer and does what it is asked, for good."""
  sys.setrecursionlimit(10_000)
  sys.set_int_max_str_digits(0)
  peer = Peer(pipe, _OPERATIONS)
  module = sys.modules["solution"] = type(sys)("solution")
  try:
    exec(compile(code, "solution.py", "exec"), vars(module))
    names = {k: v for k, v in vars(module).items() if not k.startswith("__")}
    peer.send(["gave", {name: peer.encode(value) for name, value in names.items()}])
  except BaseException as error:
    peer.send(["raised", f"{type(error).__name__}: {error}"[:300]])
  while True:
    kind, *message = peer.receive()
    peer.obey(*message)


def test(pipe, setup, tests, name, calls):
  """Runs tests and writes "1" or "0" for each of them on the standard output.

  Args:
    pipe: to the answer.
    setup: source that runs before each test.
    tests: sources; one fails by raising.
    name: the function that calls are of, and that a test's own `check` is given.
    calls: pairs of arguments and what is to be returned.
  """
  verdicts = os.fdopen(os.dup(1), "w")
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
  sys.set_int_max_str_digits(0)
  peer = Peer(pipe, ("call",))
  kind, names = peer.receive()
  if kind != "gave":
    verdicts.write(f"answer: {names}")
    return
  known = {}
  for key, value in names.items():
    if isinstance(value, list) and value[0] == "module":
      module = str(value[1])
      if module in sys.stdlib_module_names and key == module or _ALIASES.get(key) == module:
        known[key] = importlib.import_module(module)
    elif not hasattr(builtins, key) or key == name:  # an answer's own `all` would judge itself
      known[key] = peer.decode(value)
  for source in tests:
    scope = {"__name__": "tests", **known}
    try:
      exec(setup, scope)
      exec(source, scope)
      if name and callable(check := scope.get("check")) and not isinstance(check, Remote):
        check(known[name])
      passed = True
    except BaseException:
      passed = False
    verdicts.write(f"{passed:d}")
    verdicts.flush()
  for args, expected in calls:
    try:
      function = known[name] if name in known else getattr(known["Solution"](), name)
      value = plain(function(*args))
      passed = value == expected or [value] == expected
    except BaseException:
      passed = False
    verdicts.write(f"{passed:d}")
    verdicts.flush()


def plain(value):
  """A value as JSON would give it back, which expected values went through."""
  if isinstance(value, list | tuple):
    return [plain(item) for item in value]
  if isinstance(value, dict):
    return {key if isinstance(key, str) else str(key): plain(item) for key, item in value.items()}
  return value
