"""Programs that try to pass their tests without right values, and honest ones beside them."""

import pytest

from poise_jax.verifiers import Check, UnusableError, verify
from poise_jax.verifiers.code_names import program_names


def judge(program, tests, **reference):
  reference = {"tests": [tests] if isinstance(tests, str) else tests, **reference}
  return verify(Check("code", reference), f"```python\n{program}\n```").score


HONEST = "def f(x):\n  return x * x\n"
# Sends the tests more than the names of a program.
FORGED = """
import gc, json
def f(x): return 0
def yes(*a, **k): return True
peer = [o for o in gc.get_objects() if type(o).__name__ == 'Peer'][0]
send = peer.send
def forge(message):
  if isinstance(message, list) and message[0] == 'returned' and len(message) == 2:
    for name in NAMES:
      message[1][name] = peer.encode(yes)
    names = [name for name in NAMES if name not in ('__builtins__', 'print')]
    message[1]['__builtins__'] = ['dict', [[name, peer.encode(yes)] for name in names]]
  send(message)
peer.send = forge
"""
NAMES = [
  *(
    "__builtins__",
    "all",
    "any",
    "zip",
    "sorted",
    "set",
    "abs",
    "len",
    "sum",
    "import",
    "isinstance",
  ),
  *(
    "__import__",
    "print",
    "range",
    "list",
    "map",
    "max",
    "str",
    "math",
    "check",
    "same",
    "__name__",
  ),
]


@pytest.mark.parametrize(
  "test",
  [
    "assert all(f(x) == x * x for x in (2, 3))",
    "assert all(f(x) == y for x, y in zip((2, 3), (4, 9)))",
    "assert sorted([f(3), f(2)]) == [4, 9]",
    "assert set([f(2)]) == {4}",
    "assert abs(f(2) - 4) < 1e-9",
    "assert len([x for x in [f(2)] if x == 4]) == 1",
    "import math\nassert math.isclose(f(2), 4)",
    "assert math.isclose(f(2), 4)",
    "assert str(f(2)) == '4'",
    "assert sum([f(2), 1]) == 5",
    "assert any([f(2) == 4, f(3) == 9])",
    "assert max(f(2), 1) == 4",
    "assert list(map(f, [2, 3])) == [4, 9]",
    "assert isinstance(f(2), int) and f(2) == 4",
    "def check(g):\n  assert g(2) == 4\ncheck(f)",
    "assert print is not None and f(2) == 4",
  ],
)
def test_a_program_replaces_no_name_of_its_tests(test):
  forged = FORGED.replace("NAMES", repr(NAMES))
  defined = "def f(x): return 0\n" + "".join(
    f"def {name}(*a, **k): return True\n" for name in NAMES if name not in ("import", "math")
  )
  assert judge(forged, test) == 0
  assert judge(defined, test) == 0
  assert judge(HONEST, test) == 1


@pytest.mark.parametrize(
  "helper",
  [
    "def same(a, b): return True",
    "same = lambda *a: True",
    "class same:\n  def __init__(self, *a): pass",
  ],
)
def test_a_helper_that_the_tests_lack_does_not_come_from_the_program(helper):
  test = "assert same(f(2), 4)"
  program = f"def f(x): return 0\n{helper}"
  with pytest.raises(UnusableError, match='tests that use f, same, which neither they nor "setup"'):
    judge(program, test)
  assert judge(program, test, entry_point="f") == 0
  solution = f"class Solution:\n  def f(self, x): return 0\n{helper}"
  assert judge(solution, "assert same(Solution().f(2), 4)") == 0
  setup = "def same(a, b): return a == b"
  assert judge(program, test, setup=setup, entry_point="f") == 0
  assert judge(HONEST, test, setup=setup) == 1


@pytest.mark.parametrize(
  "setup,test,listed,names",
  [
    ("", "assert g(1) == 2", [], ["g"]),
    ("import math", "assert math.pi < g(2)", [], ["g"]),
    ("", "assert statistics.mean(g(2)) == np.sum([1])", [], ["g"]),
    ("from math import *", "assert isclose(g(1), pi)", [], ["g"]),
    ("", "assert Counter(g(1)) == Counter([1])", [], ["g"]),
    ("", "assert count(1) == 2", [], ["count"]),  # a name of the usual imports
    ("", "assert bisect([1], 2) == 1", [], ["bisect"]),  # and one of a module, called
    ("def h(x): return x", "y = [h(g(i)) for i in range(3)]\nassert y", [], ["g"]),
    ("", "def check(c):\n  global z\n  z = c(1)\n  assert z\ncheck(g)", [], ["g"]),
    ("", "assert Solution().g(1) == 2", [], ["Solution"]),
    ("", "def check(c): assert c(1)", ["g"], ["g", "Solution"]),
    ("", "assert g(h(1)) == 1", ["g", "h"], ["g", "h", "Solution"]),
  ],
)
def test_names_that_tests_take_from_a_program(setup, test, listed, names):
  assert program_names(setup, [test], listed) == names


@pytest.mark.parametrize(
  "test,listed",
  [
    ("assert g(h(1)) == 1", []),
    ("assert 1 + 1 == 2", []),
    ("assert _g(1) == 1", []),
    ("assert _g(1) == 1", ["_g"]),
    ("assert g(1)", ["__builtins__"]),
    ("assert g(1)", ["g h"]),
    ("assert g(1)", [3]),
    ("from numbers_of_mine import *\nassert g(h(1)) == 1", []),
    ("return g(1)", []),
  ],
)
def test_references_whose_names_are_not_clear(test, listed):
  with pytest.raises(UnusableError, match="the reference of verifier code"):
    program_names("", [test], listed)


def test_a_missing_function_is_not_python_s_own():
  assert judge("x = 1", "assert sorted([2, 1]) == [1, 2]", entry_point="sorted") == 0
  own = "def sorted(x):\n  x = list(x)\n  x.sort()\n  return x"
  assert judge(own, "assert sorted([2, 1]) == [1, 2]", entry_point="sorted") == 1


# Objects of the program.


@pytest.mark.parametrize(
  "program,honest,test",
  [
    (
      "class C:\n  def __contains__(self, x): return True\ndef f(x): return C()",
      "def f(x): return [1, 4]",
      "assert 4 in f(2)",
    ),
    (
      "class C:\n  def __contains__(self, x): return True\n  def __iter__(self): return iter(())\n"
      "def f(x): return C()",
      "def f(x): return (i for i in (3, 4))",
      "assert 4 in f(2)",
    ),
    (
      "class C:\n  def __contains__(self, x): return False\n  def __iter__(self): yield 4\n"
      "def f(x): return C()",
      "def f(x): return {1, 5}",
      "assert 4 not in f(2) and 5 in f(3)",
    ),
    (
      "def f(x): raise StopIteration",
      HONEST,
      "for got, want in zip(map(f, (2, 3)), (4, 9)): assert got == want",
    ),
    ("def f(x): raise StopIteration", HONEST, "assert all(map(lambda x: f(x) == x * x, (2, 3)))"),
    (
      "def f(x): raise StopIteration",
      HONEST,
      "assert [*filter(lambda x: f(x) != x * x, [2])] == []",
    ),
    ("def f(x): raise StopAsyncIteration", HONEST, "assert f(2) == 4"),
    (
      "class C:\n  def __len__(self): raise StopIteration\ndef f(x): return C()",
      "def f(x): return [x]",
      "for n, m in zip(map(len, [f(2)]), [1]): assert n == m == 1\nassert len(f(2)) == 1",
    ),
    (
      "class C:\n  def __getitem__(self, i): raise StopIteration\ndef f(x): return C()",
      "def f(x): return [x * x]",
      "assert all(map(lambda x: f(x)[0] == x * x, [2, 3]))",
    ),
    (
      "class C:\n  __array_interface__ = dict(shape=(1,), typestr='<i8', version=3,"
      " data=b'\\4' + b'\\0' * 7)\ndef f(x): return C()",
      "import numpy as np\ndef f(x): return np.array([4])",
      "import numpy as np\nassert np.array_equal(f(2), [4])",
    ),
    (
      "class C:\n  def __array__(self, *a, **k): return 4\n  def __float__(self): return 4.0\n"
      "  def __index__(self): return 4\n  def __eq__(self, x): return True\ndef f(x): return C()",
      "def f(x): return 4",
      "assert f(2) == 4 and float(f(2)) == 4.0 and range(f(2))[-1] == 3",
    ),
    (
      "class C:\n  def __getattr__(self, name): return lambda *a, **k: True\ndef f(x): return C()",
      "from decimal import Decimal\ndef f(x): return Decimal(4)",
      "assert f(2).__eq__(4) is True and f(2) == 4",
    ),
    (
      "class C(int):\n  def __eq__(self, x): return True\n  def __hash__(self): return 4\n"
      "def f(x): return C(3)",
      "def f(x): return 4",
      "assert f(2) in {4: 1}",
    ),
    (
      "class C:\n  @property\n  def __class__(self): return int\ndef f(x): return C()",
      "def f(x): return 4",
      "assert isinstance(f(2), int)",
    ),
  ],
)
def test_objects_of_a_program_do_not_answer_for_the_tests(program, honest, test):
  assert judge(program, test, entry_point="f") == 0
  assert judge(honest, test, entry_point="f") == 1


def test_values_that_are_data_arrive_as_data():
  program = "from collections import deque, OrderedDict, namedtuple\ndef f(x): return VALUE"
  for value, test in {
    "range(3)": "assert f(0) == range(3)",
    "deque([1, 2])": "from collections import deque\nassert f(0) == deque([1, 2])",
    "{1: 2}.keys()": "assert list(f(0)) == [1] and 1 in f(0)",
    "OrderedDict(a=1)": "assert f(0) == {'a': 1}",
    "namedtuple('P', 'x y')(1, 2)": "assert f(0) == (1, 2)",
    "iter([1, 2])": "assert next(iter(f(0))) == 1 and sum(f(0)) == 3",
    "map(str, [1])": "assert ''.join(f(0)) == '1'",
  }.items():
    assert judge(program.replace("VALUE", value), test, entry_point="f") == 1, value


def test_a_generator_that_ends_ends_a_loop_of_the_tests():
  program = "class C:\n  n = 0\n  def __next__(self):\n    self.n += 1\n"
  program += (
    "    if self.n > 2: raise StopIteration\n    return self.n\n  def __iter__(self): return self"
  )
  assert judge(f"{program}\ndef f(): return C()", "assert list(f()) == [1, 2]") == 1
