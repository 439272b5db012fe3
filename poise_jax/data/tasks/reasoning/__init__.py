"""Problems that a small model solves by thinking in writing, in several domains and levels."""

from poise_jax.data.tasks.reasoning.domains import DOMAINS
from poise_jax.data.tasks.reasoning.mixture import make

__all__ = ["DOMAINS", "make"]
