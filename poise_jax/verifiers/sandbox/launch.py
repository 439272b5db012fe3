"""Runs a Python program where it can do no harm: python -I -S launch.py FD (see sandbox.py).

The file descriptor holds the job as JSON. The process isolates itself and then runs the program in
a child, so that all other processes of the program end with it. Standard library only.
"""

import json
import os
import sys
import types


def main(descriptor: int):
  """Runs a job; exits with isolation.FAILED, and the reason as output, if it cannot be isolated."""
  with open(descriptor) as file:
    job = json.load(file)
  sys.path.insert(0, job["here"])
  import isolation

  try:
    join(job["group"])
    isolation.enter(job["folders"], job["limits"]["disk"], job["filter"], job["parent"])
    isolation.limit(**job["limits"])
    second = os.fork()
  except (OSError, ValueError, KeyError, MemoryError) as error:
    os.write(1, f"{type(error).__name__}: {error}".encode())
    os._exit(isolation.FAILED)
  if second:  # this is the namespace's first process: when it ends, all others do
    while True:
      ended, status = os.wait()
      if ended == second:
        os._exit(min(os.waitstatus_to_exitcode(status) % 256, isolation.FAILED - 1))
  os.environ.update(isolation.ONE_THREAD)
  del sys.modules["isolation"], sys.path[0]
  sys.argv, sys.path = ["main.py"], [*sys.path[1:], *job["paths"]]
  module = sys.modules["__main__"] = types.ModuleType("__main__")
  vars(module).update(DATA=job["data"], PIPE=job["pipe"])
  exec(compile(job["program"], "main.py", "exec"), vars(module))


def join(group: str | None):
  """Moves this process to a control group, if it may."""
  try:
    if group:
      with open(os.path.join(group, "cgroup.procs"), "w") as file:
        file.write("0")  # the process that writes
  except OSError:
    pass  # a group in a hierarchy that was delegated to this user without its own group


if __name__ == "__main__":
  main(int(sys.argv[1]))
