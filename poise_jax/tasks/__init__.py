from poise_jax.tasks import arithmetic
from poise_jax.tasks.base import Example, Task

__all__ = ["Example", "Task", "arithmetic"]
