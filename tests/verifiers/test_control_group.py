"""The limit on all processes of a program together, where the machine has control groups."""

import os
import signal
import subprocess
import sys

import pytest

from poise_jax.verifiers.sandbox import Sandbox, control_group

LIMITED = pytest.mark.skipif(
  not control_group._parent(), reason="no control group can be made here"
)
MANY = """
import os, time
held = []
for i in range(6):
  if not os.fork():
    held.append(bytearray({size} << 20))
    open(f'held_{{i}}', 'w').close()
    time.sleep(20)
    os._exit(0)
for _ in range(60):
  time.sleep(0.05)
  if len(os.listdir('.')) == 6: break
print(len(os.listdir('.')))
"""


def groups():
  """The groups of this process that exist."""
  parent, _ = control_group._parent()
  return [name for name in os.listdir(parent) if name.startswith(f"poise_jax_{os.getpid()}_")]


def holding(size):
  """How many of six processes can hold `size` MiB at the same time, within 512 MiB."""
  with Sandbox(MANY.format(size=size)) as sandbox:
    assert sandbox.wait(20) is not None
    return int(sandbox.output(100).strip() or 0)


@LIMITED
def test_all_processes_share_one_limit():
  assert holding(40) == 6
  assert holding(200) < 6  # each alone is within its limit; together they would hold 1,200 MiB
  assert not groups()


@LIMITED
def test_a_killed_program_leaves_no_group():
  forever = "import os, time\nos.fork()\ntime.sleep(60)"
  with Sandbox(forever) as sandbox:
    assert sandbox.wait(0.3) is None
    assert len(groups()) == 1
  assert not groups()


@LIMITED
def test_groups_of_a_killed_process_are_removed_by_the_next():
  program = (
    "from poise_jax.verifiers.sandbox import control_group\n"
    "import os, signal\n"
    "print(control_group.create(1 << 28), flush=True)\n"
    "os.kill(os.getpid(), signal.SIGKILL)"
  )
  killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
  left = killed.stdout.strip()
  assert killed.returncode == -signal.SIGKILL and os.path.isdir(left)
  control_group._parent.cache_clear()
  new = control_group.create(1 << 28)
  assert not os.path.exists(left) and os.path.isdir(new)
  control_group.remove(new)
  assert not os.path.exists(new)


@pytest.mark.parametrize("fault", ["no file", "no mount", "read-only"])
def test_without_control_groups_programs_run(monkeypatch, fault, tmp_path):
  faults = {
    "no file": lambda *_: open(tmp_path / "missing"),
    "no mount": lambda *_: None,
    "read-only": lambda *_: (str(tmp_path / "missing"), 2),
  }
  monkeypatch.setattr(control_group, "find", faults[fault])
  control_group._parent.cache_clear()
  monkeypatch.setattr(control_group, "_parent", control_group._parent.__wrapped__)
  assert control_group.create(1 << 28) is None
  with Sandbox("print(7)") as sandbox:
    assert sandbox.wait(20) == 0
    assert sandbox.output(10) == "7\n"


def mounted(place, kind, root="/", options="rw"):
  return f"30 25 0:26 {root} {place} rw,nosuid shared:4 - {kind} cgroup {options}\n"


def test_version_2_finds_the_nearest_group_that_limits_memory(tmp_path):
  """A real version 2 forbids limits below a group that has processes, so the place is above."""
  own = tmp_path / "user.slice" / "session.scope"
  own.mkdir(parents=True)
  (tmp_path / "cgroup.subtree_control").write_text("cpu memory pids\n")
  (own.parent / "cgroup.subtree_control").write_text("pids\n")
  (own / "cgroup.subtree_control").write_text("\n")
  mounts = mounted(tmp_path, "cgroup2")
  lines = "0::/user.slice/session.scope\n"
  assert control_group.find(lines, mounts) == (str(tmp_path), 2)
  (own.parent / "cgroup.subtree_control").write_text("memory\n")
  assert control_group.find(lines, mounts) == (str(own.parent), 2)
  # A container sees a part of the hierarchy only.
  part = mounted(own.parent, "cgroup2", root="/user.slice")
  assert control_group.find(lines, part) == (str(own.parent), 2)
  elsewhere = mounted(own.parent, "cgroup2", root="/machine.slice")
  assert control_group.find(lines, elsewhere) is None
  # Where version 1 has the memory controller, version 2 cannot limit memory.
  assert control_group.find("4:memory:/\n" + lines, mounts) is None


def test_a_group_outside_of_the_namespace_is_not_taken_for_another(tmp_path):
  (tmp_path / "outside").mkdir()
  for folder in (tmp_path, tmp_path / "outside"):
    (folder / "cgroup.subtree_control").write_text("memory\n")
  mounts = mounted(tmp_path, "cgroup2")
  for path in ("/../outside", "/.."):
    assert control_group.find(f"0::{path}\n", mounts) is None
    assert (
      control_group.find(f"4:memory:{path}\n", mounted(tmp_path, "cgroup", "/", "memory")) is None
    )


@pytest.mark.parametrize("name", ["pod:cri-containerd:1", "docker:2"])
def test_names_of_groups_may_have_colons(tmp_path, name):
  """And sources of other mounts may be empty."""
  (tmp_path / name).mkdir()
  (tmp_path / "cgroup.subtree_control").write_text("memory\n")
  other = "29 25 0:25 / /run rw shared:3 - tmpfs  rw\n"
  assert control_group.find(f"0::/{name}\n", other + mounted(tmp_path, "cgroup2")) == (
    str(tmp_path),
    2,
  )
  mounts = other + mounted(tmp_path, "cgroup", options="rw,memory")
  assert control_group.find(f"4:memory:/{name}\n", mounts) == (str(tmp_path / name), 1)


def test_version_1_uses_the_own_group(tmp_path):
  (tmp_path / "docker" / "1").mkdir(parents=True)
  mounts = mounted("/sys/fs/cgroup/cpu", "cgroup", options="rw,cpu")
  mounts += mounted(tmp_path, "cgroup", options="rw,memory")
  lines = "5:cpu,cpuacct:/\n4:memory:/docker/1\n0::/\n"
  assert control_group.find(lines, mounts) == (str(tmp_path / "docker" / "1"), 1)


def test_the_limit_is_written_in_the_words_of_each_version(tmp_path, monkeypatch):
  for version, expected in (
    (1, {"memory.limit_in_bytes": "4096", "memory.memsw.limit_in_bytes": "4096"}),
    (2, {"memory.max": "4096", "memory.swap.max": "0"}),
  ):
    monkeypatch.setattr(control_group, "_parent", lambda version=version: (str(tmp_path), version))
    group = control_group.create(4096)
    assert {name: open(f"{group}/{name}").read() for name in os.listdir(group)} == expected
