"""Runs untrusted Python programs in isolation."""

from poise_jax.verifiers.sandbox.sandbox import Sandbox

__all__ = ["Sandbox"]
