"""Killable processes that judge answers."""

from poise_jax.verifiers.pool.pool import Pool

__all__ = ["Pool"]
