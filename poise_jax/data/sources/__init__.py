"""Published datasets and a user's own files, built once and read back."""

from poise_jax.data.sources.builder import Problems, find, load, normalized
from poise_jax.data.sources.catalog import SOURCES, Source

__all__ = ["SOURCES", "Problems", "Source", "find", "load", "normalized"]
