from poise_jax.data.sources.builder import Problems, find, load, same_question
from poise_jax.data.sources.sources import SOURCES, Source

__all__ = ["SOURCES", "Problems", "Source", "find", "load", "same_question"]
