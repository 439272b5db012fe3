"""Bias and variance of gradients where both are known, and scores of a real policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import load
from tiny_models import *  # noqa: F403 - see below

from experiments import gradient_noise as noise

gradients = load("gradients")
P, N, S = 400, 8, 12
