"""Remote calls between a program and its tests, each in a sandbox of its own (see ../code.py).

`serve` loads the program and answers requests; `test` runs the tests and sends requests. Only plain
data travels between them, as JSON. The tests never hold an object of the program, so nothing that
the program does can change their results. Standard library only.
"""

import builtins
import importlib
import json
import math
import os
import sys
from collections import deque
from decimal import Decimal
from fractions import Fraction

_AS_LIST = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque}
_AS_TEXT = {"bytes": bytes.fromhex, "Fraction": Fraction, "Decimal": Decimal, "complex": complex}
ALIASES = {"np": "numpy"}  # modules that tests may use without an import, besides Python's own


class Remote:
  """Stands for an object at the other end and forwards operations to it.

  Equality, truth and membership are decided at this end: a remote object is true, equals only
  itself and contains what iteration gives.
  """

  def __init__(self, peer, place):
    self._peer, self._place = peer, place

  def __call__(self, *args, **kwargs):
    """Calls the object at the other end."""
    return self._peer.ask("call", self._place, *args, **kwargs)

  def __getattr__(self, name):
    if name.startswith("__"):  # protocols such as numpy's __array_interface__ stay at this end
      raise AttributeError(name)
    return self._peer.ask("attribute", self._place, name)

  def __len__(self):
    return self._peer.ask("len", self._place)

  def __bool__(self):
    return True

  def __getitem__(self, key):
    return self._peer.ask("item", self._place, key)

  def __contains__(self, key):
    return any(item is key or item == key for item in self)

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
  "str": str,
  "repr": repr,
  "iter": iter,
  "next": next,
}


def _exception(operation, name, text):
  """The built-in exception of that name, as far as the other end may raise it at this one."""
  kind = getattr(builtins, str(name), None)
  if not isinstance(kind, type) or not issubclass(kind, Exception) or kind is EOFError:
    kind = RuntimeError
  if issubclass(kind, StopIteration | StopAsyncIteration) and operation != "next":
    kind = RuntimeError  # it would end a loop of the tests, such as zip(map(f, inputs), outputs)
  return kind(str(text))


class Peer:
  """One end of the pipe. Serves requests while it waits for the reply to its own."""

  def __init__(self, pipe, allowed):
    self.incoming, self.outgoing = os.fdopen(pipe, "r"), os.fdopen(os.dup(pipe), "w")
    self.allowed, self.objects = allowed, []

  def send(self, message):
    """Sends one message, a line of JSON."""
    self.outgoing.write(json.dumps(message) + "\n")
    self.outgoing.flush()

  def receive(self):
    """Waits for the next message; raises EOFError if the other end has closed the pipe."""
    line = self.incoming.readline()
    if not line:
      raise EOFError("the other end has closed the pipe")
    return json.loads(line)

  def ask(self, operation, place, *args, **kwargs):
    """Requests an operation and returns its result.

    Exceptions of the other end are raised here as Python's built-in types, and its changes to
    mutable arguments are repeated here, as if the call were local.
    """
    self.send(["request", operation, place, self.encode(args), self.encode(kwargs)])
    while True:
      kind, *message = self.receive()
      if kind == "request":
        self.reply(*message)
      elif kind == "raised":
        raise _exception(operation, *message)
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

  def reply(self, operation, place, args, kwargs):
    """Serves a request and sends its result or exception."""
    try:
      if operation not in self.allowed:
        raise PermissionError(operation)
      args, kwargs = self.decode(args), self.decode(kwargs)
      value = _OPERATIONS[operation](self.objects[place], *args, **kwargs)
      message = ["returned", self.encode(value), self.encode(args)]
    except Exception as error:
      kinds = [kind.__name__ for kind in type(error).__mro__ if hasattr(builtins, kind.__name__)]
      message = ["raised", kinds[0], str(error)]
    self.send(message)

  def encode(self, value):
    """A value as JSON. Objects that are not plain data stay here; their place in a list travels."""
    if value is None or type(value) in (bool, int, float, str):
      return value
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
      return self.encode(value.tolist())
    if isinstance(value, int | float | str):  # a subclass, such as an enumeration, as its base
      return next(kind(value) for kind in (int, float, str) if isinstance(value, kind))
    if isinstance(value, dict):
      return ["dict", [[self.encode(k), self.encode(v)] for k, v in value.items()]]
    name = next((name for name, kind in _AS_LIST.items() if isinstance(value, kind)), None)
    if name:
      return [name, [self.encode(item) for item in value]]
    if isinstance(value, range):
      return ["range", [value.start, value.stop, value.step]]
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
    """The value that `encode` at the other end turned into JSON; raises ValueError otherwise."""
    if not isinstance(value, list):
      return value
    name, content = value
    if name == "dict":
      return {self.decode(k): self.decode(v) for k, v in content}
    if name in _AS_LIST:
      return _AS_LIST[name](self.decode(item) for item in content)
    if name == "range":
      return range(*content)
    if name in _AS_TEXT:
      return _AS_TEXT[name](content)
    if name == "mine":
      return Remote(self, int(content))
    if name == "yours":
      return self.objects[content]
    raise ValueError(f"unknown kind of value {name!r}")


def serve(pipe, code, builtin_names):
  """Loads a program and serves requests until the sandbox ends."""
  sys.setrecursionlimit(10_000)
  sys.set_int_max_str_digits(0)
  peer = Peer(pipe, _OPERATIONS)
  module = sys.modules["solution"] = type(sys)("solution")
  module.__builtins__ = builtin_names
  try:
    exec(compile(code, "solution.py", "exec"), vars(module))
    names = {k: v for k, v in vars(module).items() if not k.startswith("__")}
    peer.send(["returned", {name: peer.encode(value) for name, value in names.items()}])
  except BaseException as error:
    peer.send(["raised", f"{type(error).__name__}: {error}"[:300]])
  while True:
    kind, *message = peer.receive()
    peer.reply(*message)


class _Builtins(dict):
  """Built-in names, and modules that are imported on first use."""

  def __missing__(self, name):
    if name in sys.stdlib_module_names or name in ALIASES:
      return importlib.import_module(ALIASES.get(name, name))
    raise KeyError(name)


def test(pipe, setup, tests, name, names, calls, builtin_names):
  """Runs tests and writes "1" (passed) or "0" (failed) for each to the standard output.

  Args:
    pipe: file descriptor of the pipe to the program.
    setup: source that runs before each test.
    tests: sources of tests; a test fails by raising.
    name: function that `calls` call, and that is passed to the `check` that a test defines.
    names: names that the tests take from the program, and no others.
    calls: (arguments, expected result) of each call.
    builtin_names: the value of `__builtins__` in the tests.
  """
  results = os.fdopen(os.dup(1), "w")
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
  sys.set_int_max_str_digits(0)
  peer = Peer(pipe, ("call",))
  kind, values = peer.receive()
  if kind != "returned":
    results.write(f"not loaded: {values}")
    return
  scope = {key: peer.decode(values[key]) for key in names if key in values and key[0] != "_"}
  # A name that the program lacks is an error, not the built-in function of that name.
  builtin_names = _Builtins({k: v for k, v in builtin_names.items() if k not in names})
  for source in tests:
    variables = {"__name__": "tests", "__builtins__": builtin_names, **scope}
    try:
      exec(setup, variables)
      exec(source, variables)
      if name and callable(check := variables.get("check")) and not isinstance(check, Remote):
        check(function(scope, name))
      passed = True
    except BaseException:
      passed = False
    results.write(f"{passed:d}")
    results.flush()
  for args, expected in calls:
    try:
      value = plain(function(scope, name)(*args))
      passed = same(value, expected) or same([value], expected)
    except BaseException:
      passed = False
    results.write(f"{passed:d}")
    results.flush()


def function(scope, name):
  """A program's function of that name, or that method of its class Solution."""
  return scope[name] if name in scope else getattr(scope["Solution"](), name)


def same(value, expected):
  """Whether a result is the expected one, up to the tolerance of printed floats (../code.py)."""
  if isinstance(expected, float) and isinstance(value, int | float | Decimal | Fraction):
    return value == expected or math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-9)
  if isinstance(expected, list) and isinstance(value, list):
    return len(value) == len(expected) and all(map(same, value, expected))
  if isinstance(expected, dict) and isinstance(value, dict):
    return value.keys() == expected.keys() and all(same(value[k], expected[k]) for k in expected)
  return value == expected


def plain(value):
  """A value as it would come back from JSON, as the expected values did."""
  if isinstance(value, list | tuple):
    return [plain(item) for item in value]
  if isinstance(value, dict):
    return {key if isinstance(key, str) else str(key): plain(item) for key, item in value.items()}
  return value
