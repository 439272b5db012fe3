from poise_jax.rollout.config import RolloutConfig
from poise_jax.rollout.features import feature_size, features_of
from poise_jax.rollout.sampler import sample

__all__ = ["RolloutConfig", "feature_size", "features_of", "sample"]
