"""A pool of killable processes that judge responses."""

from poise_jax.verifiers.pool.pool import Pool

__all__ = ["Pool"]
