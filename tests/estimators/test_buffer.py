"""The buffer against a queue of groups for each domain."""

import collections

import jax
import jax.numpy as jnp
import numpy as np

from poise_jax.estimators import buffer as buffers


def test_a_domain_is_a_queue_of_groups():
  num_domains, groups, n, num_features = 3, 5, 2, 4
  buffer = buffers.empty(groups * n + 1, n, num_features, num_domains)
  queues = [collections.deque(maxlen=groups) for _ in range(num_domains)]
  rng = np.random.default_rng(0)
  for arrivals in [1, 3, 17, 3, 3, 1, 17, 3, 1, 1, 3, 17, 17] + [3] * 12:
    features = rng.normal(size=(arrivals, n, num_features)).astype(np.float32)
    targets = rng.random((arrivals, n)).astype(np.float32)
    # The last domain is empty at first; batches of a single domain overflow its ring.
    domains = rng.integers(0, 2 + (queues[0].maxlen == len(queues[0])), arrivals)
    domains = np.full_like(domains, domains[0]) if rng.random() < 0.3 else domains
    buffer = buffers.insert(buffer, features, targets, domains)
    for group, target, domain in zip(features, targets, domains, strict=True):
      queues[domain].append((group, target))
    for domain, queue in enumerate(queues):
      count = int(buffer.count[domain])
      slots = [j % groups for j in range(max(count - groups, 0), count)]
      assert len(slots) == len(queue)
      for slot, (group, target) in zip(slots, queue, strict=True):
        np.testing.assert_array_equal(buffer.features[domain, slot], group)
        np.testing.assert_array_equal(buffer.targets[domain, slot], target)
  assert buffer.count.sum() > 3 * groups * num_domains


def test_domains_have_rings_of_their_own_size():
  sizes, n = (7, 2, 5), 2  # groups
  buffer = buffers.empty([2 * size + 1 for size in sizes], n, 1, 3)
  queues = [collections.deque(maxlen=size) for size in sizes]
  rng = np.random.default_rng(0)
  for number in range(30):
    domains = rng.integers(0, 3, 4 if number % 5 else 11)
    values = rng.random((len(domains), n)).astype(np.float32)
    buffer = buffers.insert(buffer, values[..., None], values, domains)
    for domain, value in zip(domains, values, strict=True):
      queues[domain].append(value)
    assert buffer.filled.tolist() == [len(queue) for queue in queues]
  for domain, queue in enumerate(queues):
    stored = np.asarray(buffer.targets[domain, : len(queue)])
    np.testing.assert_array_equal(np.sort(stored, 0), np.sort(np.array(queue), 0))
    assert not buffer.targets[domain, len(queue) :].any()


def test_groups_of_unknown_domains_are_dropped():
  buffer = buffers.empty(rows=4, n=2, num_features=2, num_domains=2)
  after = buffers.insert(buffer, jnp.ones((3, 2, 2)), jnp.ones((3, 2)), jnp.array([-1, 2, 5]))
  jax.tree.map(np.testing.assert_array_equal, after, buffer)
