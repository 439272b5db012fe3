from poise_jax.rollout.config import RolloutConfig, RolloutOptions
from poise_jax.rollout.features import feature_size, features_of
from poise_jax.rollout.sampler import sample

__all__ = ["RolloutConfig", "RolloutOptions", "feature_size", "features_of", "sample"]
