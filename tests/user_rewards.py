"""Rewards as a user would write them, for tests: functions named as "user_rewards:NAME"."""

import os
import sys
import time

from poise_jax.verifiers import Verdict


def odd(reference, response):
  return len(response) % 2


def half(reference, response):
  return 0.5


def unreadable(reference, response):
  return Verdict(0.0, status="unparsable", note="no answer in [/red]")


def any_options(reference, response, **options):
  return 0.5


def vowels(reference, response):
  """Rewards up to 10 vowels, and reports two of them."""
  counts = {vowel: response.lower().count(vowel) for vowel in "aeiou"}
  total = sum(counts.values())
  parts = {vowel: min(counts[vowel], 10) / 10 for vowel in "ae"}
  return Verdict(min(total, 10) / 10, answer=f"{total} Vowels", parts=parts)


def follow(reference, response):
  """Does what the response says; otherwise scores whether it equals the reference."""
  if response == "hang":
    while True:
      pass
  if response == "sleep":
    time.sleep(1000)
  if response == "die":
    os.kill(os.getpid(), 9)
  if response == "die once" and not os.path.exists(reference):
    open(reference, "w").close()
    os.kill(os.getpid(), 9)
  if response == "raise":
    raise KeyError("missing")
  if response == "memory":
    bytearray(6 << 30)
  if response == "endless":
    return float("inf")
  if response == "text":
    return "right"
  if response == "jax":
    return Verdict(float("jax" in sys.modules), note=",".join(sorted(sys.modules)))
  return float(response == reference)


def broken(reference, response):
  return 1 / 0
