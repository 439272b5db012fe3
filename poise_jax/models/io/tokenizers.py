"""Text to token ids and back, with one interface for Hugging Face, GGUF and sentencepiece."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from poise_jax.errors import UserError
from poise_jax.models.config import ModelConfig
from poise_jax.models.io import run_checkpoint
from poise_jax.models.io.gguf import read_header
from poise_jax.models.io.sources import local_path
from poise_jax.models.io.tensors import parse_json

# Regular expressions that split a text into words before byte-level BPE, by tokenizer.ggml.pre.
# They are those of the original tokenizer.json files; each splits the pieces of the one before it.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
  r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
  "gpt-2": [_GPT2],
  "smollm": [r"\p{N}", _GPT2],
  "llama-bpe": [_LLAMA3],
  "qwen2": [_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")],
  # llama.cpp's choice for files without a name, whose model its converter did not know.
  "default": [r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"],
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # one of them is required
_OPTIONAL_FILES = (
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "merges.txt",
  "chat_template.jinja",
  "generation_config.json",
)
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # tokenizer.ggml.token_type


@dataclasses.dataclass(frozen=True)
class Tokenizer:
  """The interface that training needs of a tokenizer."""

  encode: Callable[[str], list[int]]  # text to ids, without adding special tokens
  decode: Callable[[Sequence[int]], str]  # ids to text, without special tokens
  # (messages {"role", "content"}, **arguments of the template) to ids, up to the start of the
  # assistant's turn; raises UserError if there is no template, or none that reads an argument.
  apply_chat_template: Callable[..., list[int]]
  eos_ids: tuple[int, ...]  # ids that end a turn
  pad_id: int  # id of padding
  vocab_size: int  # largest id plus one
  # text of each special token, which `decode` leaves out -> its id
  special_ids: Mapping[str, int] = dataclasses.field(default_factory=dict)
  bos_ids: tuple[int, ...] = ()  # ids with which every prompt begins; chats have them already


def load_tokenizer(source: str | os.PathLike) -> Tokenizer:
  """Reads a tokenizer.

  Args:
    source: a source of `models.load` (Hugging Face folder, hub id, *.gguf, package:NAME/FILE.gguf,
      a run or its checkpoint), or a sentencepiece *.model file.

  Raises:
    FileNotFoundError: the file or folder does not exist.
    UserError: the file is broken, or its kind of tokenizer is not supported.
  """
  path = _local_path(source)
  if path.suffix == ".model":
    return _sentencepiece(path)
  if path.is_file():
    return _wrap(path, *_gguf(path))
  # Without these files transformers silently makes an empty tokenizer for some families.
  if not any((path / file).is_file() for file in TOKENIZER_FILES):
    raise FileNotFoundError(
      f"{path} has no tokenizer ({', '.join(TOKENIZER_FILES)}); copy the tokenizer files of the "
      "original model into it"
    )
  if not any((path / f"tokenizer{end}").is_file() for end in ("_config.json", ".json")):
    if (path / "tokenizer.model").is_file():  # as experiments.warm_start leaves it
      return _sentencepiece(path / "tokenizer.model")
  try:
    tokenizer = _transformers().AutoTokenizer.from_pretrained(path)
  except Exception as error:  # transformers passes on the errors of several parsers
    reason = " ".join(str(error).split())
    raise UserError(f"{path} has a tokenizer that transformers cannot load: {reason}") from error
  return _wrap(path, tokenizer, _ends(path), _adds_bos(tokenizer))


def _adds_bos(tokenizer) -> bool:
  bos = tokenizer.bos_token_id
  return bos is not None and tokenizer.encode("", add_special_tokens=True)[:1] == [bos]


def _ends(folder) -> list[int]:
  """The ids that end a turn: those of generation_config.json or else, as before it, config.json."""
  for file in (folder / "generation_config.json", folder / "config.json"):
    ends = parse_json(file).get("eos_token_id") if file.is_file() else None
    if ends is None:
      continue
    ends = ends if isinstance(ends, list) else [ends]
    if not all(isinstance(end, int) for end in ends):
      raise UserError(f"{file}: eos_token_id must be an id or a list of ids, got {ends}")
    return ends
  return []


def save_tokenizer(source: str | os.PathLike, folder: str | os.PathLike) -> None:
  """Writes a tokenizer's files to a folder, which load_tokenizer and transformers can read.

  A sentencepiece model is copied as it is, which transformers cannot read.

  Args:
    source: a source of `load_tokenizer`, which lists the errors.
    folder: an existing folder.
  """
  path, folder = _local_path(source), pathlib.Path(folder)
  if path.suffix == ".model":
    shutil.copyfile(path, folder / "tokenizer.model")
  elif path.is_file():
    tokenizer, ends, adds_bos = _gguf(path)
    if adds_bos:
      tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{tokenizer.bos_token} $A",
        special_tokens=[(tokenizer.bos_token, tokenizer.bos_token_id)],
      )
    tokenizer.save_pretrained(folder)
    _write_ends(folder, list(_wrap(path, tokenizer, ends, adds_bos).eos_ids))
  else:
    for name in (*TOKENIZER_FILES, *_OPTIONAL_FILES):
      if (path / name).is_file():
        shutil.copyfile(path / name, folder / name)
    if not (path / "generation_config.json").is_file() and (ends := _ends(path)):
      _write_ends(folder, ends)  # config.json alone has them, and it is not copied


def _write_ends(folder, ends):
  (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}) + "\n")


def _local_path(source):
  path = local_path(source, weights=False)
  checkpoint = run_checkpoint.find(path)
  return _local_path(run_checkpoint.tokenizer_source(checkpoint)) if checkpoint else path


def check_fits(tokenizer: Tokenizer, config: ModelConfig) -> None:
  """Raises UserError if the tokenizer has ids without an embedding in the model."""
  if tokenizer.vocab_size > config.vocab_size:
    raise UserError(
      f"the tokenizer's vocab_size {tokenizer.vocab_size} is larger than the model's vocab_size "
      f"{config.vocab_size}; use the tokenizer of the same model"
    )


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
  """The text that each token adds; joined, the texts are decode(ids).

  A token that ends inside a character adds nothing; the token that completes it adds all of it.
  """
  texts, context, done = [], 0, 0  # a token's text can depend on the one before it: " 2" or "2"
  for i in range(len(ids)):
    before, now = tokenizer.decode(ids[context:done]), tokenizer.decode(ids[context : i + 1])
    text = now[len(before) :]
    unfinished = text.endswith("\ufffd") and i - done < 3 and i + 1 < len(ids)  # of 4 bytes at most
    if unfinished or not text:
      texts.append("")
      continue
    texts.append(text)
    context, done = done, i + 1
  return texts


def _transformers():
  """The transformers package, imported without its advice to install PyTorch."""
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  import transformers

  return transformers


def _wrap(path, tokenizer, ends, adds_bos):
  """Wraps a transformers tokenizer.

  `ends` are ids, or None, that end a turn like its EOS. `adds_bos` says whether every text that the
  model was trained on begins with the BOS, whether or not a chat template writes it.
  """
  bos_ids = (tokenizer.bos_token_id,) if adds_bos else ()

  def apply_chat_template(messages, **arguments):
    if not tokenizer.chat_template:
      raise UserError(f"the tokenizer of {path} has no chat template; encode a plain prompt")
    for name in arguments:  # Jinja ignores what a template does not read
      if not re.search(rf"\b{re.escape(name)}\b", str(tokenizer.chat_template)):
        raise UserError(f"task.template_args.{name}: the chat template of {path} does not read it")
    text = tokenizer.apply_chat_template(
      messages, add_generation_prompt=True, tokenize=False, **arguments
    )
    ids = encode(text)  # the template has written the special tokens, but some lack the BOS
    return ids if tuple(ids[: len(bos_ids)]) == bos_ids else [*bos_ids, *ids]

  def encode(text):
    return tokenizer.encode(text, add_special_tokens=False)

  def decode(ids):
    # No clean-up: it would rewrite " ." as ".", and rewards must read the model's text.
    return tokenizer.decode(
      [int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )

  eos_ids = tuple(dict.fromkeys(i for i in [tokenizer.eos_token_id, *ends] if i is not None))
  if not eos_ids:
    raise UserError(f"the tokenizer of {path} has no end-of-sequence token")
  pad = tokenizer.pad_token_id
  return Tokenizer(
    encode=encode,
    decode=decode,
    apply_chat_template=apply_chat_template,
    eos_ids=eos_ids,
    pad_id=eos_ids[0] if pad is None else pad,
    vocab_size=max(tokenizer.get_vocab().values()) + 1,
    special_ids={str(t): i for i, t in tokenizer.added_tokens_decoder.items() if t.special},
    bos_ids=bos_ids,
  )


def _gguf(path):
  """The arguments of _wrap behind `path`."""
  fields = read_header(path).fields

  def get(key, default=None):
    return fields[f"tokenizer.{key}"].contents() if f"tokenizer.{key}" in fields else default

  kind, pre = get("ggml.model"), get("ggml.pre", "default")
  if kind != "gpt2" or pre not in PRE_TOKENIZERS:
    raise UserError(
      f"{path} has a {kind!r} tokenizer of type {pre!r}; only 'gpt2' of types "
      f"{', '.join(PRE_TOKENIZERS)} is supported. Load the tokenizer from the model's Hugging Face "
      "folder instead"
    )
  words = get("ggml.tokens")
  types = get("ggml.token_type", [1] * len(words))
  # Unused ids only pad the embedding to a round size; no text contains them.
  vocabulary = {w: i for i, w in enumerate(words) if types[i] != _UNUSED}
  merges = [tuple(merge.split(" ")) for merge in get("ggml.merges")]
  # Llama 3 takes a word that is in the vocabulary whole, even if no merges produce it.
  backend = tokenizers.Tokenizer(
    models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe")
  )
  if pre == "qwen2":
    backend.normalizer = normalizers.NFC()
  splits = [pre_tokenizers.Split(tokenizers.Regex(r), "isolated") for r in PRE_TOKENIZERS[pre]]
  to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, to_bytes])
  backend.decoder = decoders.ByteLevel()
  backend.add_tokens(
    [
      tokenizers.AddedToken(word, normalized=False, special=kind == _CONTROL)
      for word, kind in zip(words, types, strict=True)
      if kind in (_CONTROL, _USER_DEFINED)
    ]
  )
  names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
  special = {
    f"{ours}_token": words[i]
    for ours, theirs in names.items()
    if (i := get(f"ggml.{theirs}_token_id")) is not None
  }
  tokenizer = _transformers().PreTrainedTokenizerFast(tokenizer_object=backend, **special)
  tokenizer.chat_template = get("chat_template")
  # The EOS of a base model can be <|endoftext|> although its chats end with <|im_end|>.
  adds_bos = bool(get("ggml.add_bos_token", False)) and tokenizer.bos_token_id is not None
  return tokenizer, [vocabulary.get("<|im_end|>")], adds_bos


def _sentencepiece(path):
  pieces = sentencepiece.SentencePieceProcessor()
  try:
    pieces.Load(str(path))
  except (OSError, RuntimeError) as error:
    raise UserError(f"{path} is truncated or not a sentencepiece model") from error

  def apply_chat_template(messages, **arguments):
    raise UserError(f"the sentencepiece model {path} has no chat template; encode a plain prompt")

  eos = pieces.eos_id()
  if eos < 0:
    raise UserError(f"the sentencepiece model {path} has no end-of-sequence token")
  return Tokenizer(
    encode=pieces.EncodeAsIds,
    decode=lambda ids: pieces.DecodeIds([int(i) for i in ids if not pieces.IsControl(int(i))]),
    apply_chat_template=apply_chat_template,
    eos_ids=(eos,),
    pad_id=pieces.pad_id() if pieces.pad_id() >= 0 else eos,
    vocab_size=pieces.GetPieceSize(),
  )
