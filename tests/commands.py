"""Imports of commands, of which several have flags of the same name."""

import importlib

from absl import flags

from experiments import cli, train  # noqa: F401 - what commands import defines its flags first


def load(name: str):
  """experiments.NAME without its flags, for tests that call its functions."""
  earlier = {flag: flags.FLAGS[flag] for flag in flags.FLAGS}
  modules = {module: list(own) for module, own in flags.FLAGS.flags_by_module_dict().items()}
  for flag in earlier:
    delattr(flags.FLAGS, flag)
  try:
    return importlib.import_module(f"experiments.{name}")
  finally:
    for flag in list(flags.FLAGS):
      delattr(flags.FLAGS, flag)
    for flag in {id(flag): flag for flag in earlier.values()}.values():
      flags.FLAGS[flag.name] = flag  # and its short name
    for module, own in modules.items():  # --help shows the flags of a command by its module
      for flag in own:
        flags.FLAGS.register_flag_by_module(module, flag)
