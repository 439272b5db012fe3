"""The mesh and the one table from logical axis names to mesh axes. Nothing else knows mesh axes.

The mesh has three axes: `data` replicates parameters, `fsdp` shards parameters and the batch,
`tensor` shards heads, MLP width and vocabulary. On one device all of it is a no-op.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from poise_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # mesh axes that split the batch

RULES = {
  "batch": BATCH,
  "embed": "fsdp",
  "heads": "tensor",
  "kv_heads": "tensor",
  "mlp": "tensor",
  "vocab": "tensor",
  "layers": None,
  "head_dim": None,
  None: None,
}
SAMPLING_RULES = {**RULES, "embed": None}  # decoding reads every weight for every token: no fsdp


def make_mesh(
  data: int = 1, fsdp: int = -1, tensor: int = 1, devices: Sequence | int | None = None
) -> Mesh | AbstractMesh:
  """A mesh over all devices, over `devices`, or of so many that are imagined only: then shapes have
  shardings, but nothing can be compiled. One size may be -1: what is left.

  Raises:
    UserError: the sizes do not multiply to the number of devices.
  """
  sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
  devices = jax.devices() if devices is None else devices
  count = devices if isinstance(devices, int) else len(devices)
  free = [axis for axis, size in sizes.items() if size == -1]
  known = math.prod(size for size in sizes.values() if size != -1)
  for axis, size in sizes.items():
    if size < 1 and size != -1:
      raise UserError(f"mesh.{axis}={size} must be positive, or -1 for what is left")
  if len(free) > 1:
    raise UserError(f"only one mesh axis can be -1, got {' and '.join(free)}")
  if free and count % known == 0:
    sizes[free[0]] = count // known
  if math.prod(sizes.values()) != count:
    shape = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
    raise UserError(f"mesh {shape} does not fit {count} devices; the sizes must multiply to it")
  kinds = (AxisType.Auto,) * len(AXES)
  if isinstance(devices, int):
    return AbstractMesh(tuple(sizes.values()), AXES, axis_types=kinds)
  # An axis may be part of a ring of chips: v6e:8x8 has no ring of the 4 that tensor=4 asks for.
  placed = mesh_utils.create_device_mesh(
    tuple(sizes.values()), devices, allow_split_physical_axes=True
  )
  return Mesh(placed, AXES, axis_types=kinds)


def platform() -> str:
  """Of the devices that a program is traced for: those of the mesh in use, or JAX's default one."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def batch_shards(mesh: Mesh) -> int:
  """How many ways the batch is split."""
  return math.prod(mesh.shape[axis] for axis in BATCH)


def spec(names: tuple, rules: dict = RULES) -> P:
  """The PartitionSpec of logical axis `names`."""
  return P(*(rules[name] for name in names))


def param_shardings(mesh: Mesh, shapes: Any, logical_axes: Any, rules: dict = RULES) -> Any:
  """NamedShardings for a parameter tree.

  Raises:
    UserError: a dimension does not divide its mesh axis; names parameter, dimension and axis.
  """

  def one(path, shape, names):
    for size, name in zip(shape.shape, names, strict=True):
      axis = rules[name]
      if axis is not None and size % mesh.shape[axis]:
        raise UserError(
          f"parameter {jax.tree_util.keystr(path)} {tuple(shape.shape)}: its {name!r} size {size} "
          f"is not a multiple of mesh.{axis}={mesh.shape[axis]}"
        )
    return NamedSharding(mesh, spec(names, rules))

  return jax.tree_util.tree_map_with_path(one, shapes, logical_axes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Leading axis over the batch axes, the rest whole."""
  return NamedSharding(mesh, P(BATCH))


def place(tree: Any, shardings: Any) -> Any:
  """Arrays of this process, which every other process holds alike, laid out as `shardings` say."""
  if jax.process_count() == 1:
    return jax.device_put(tree, shardings)

  def one(x, sharding):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)

  return jax.tree.map(one, tree, shardings)


def spread(mesh: Mesh, tree: Any) -> Any:
  """`tree` with those jax.Arrays that lie on no mesh yet whole on each of this one's devices."""
  whole = NamedSharding(mesh, P())

  def one(x):
    off_mesh = isinstance(x, jax.Array) and not isinstance(x.sharding, NamedSharding)
    return place(x, whole) if off_mesh else x

  return jax.tree.map(one, tree)


def fetch(tree: Any) -> Any:
  """`tree` as NumPy arrays, whole in every process; all processes must call this."""

  def whole(x):
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
      return x
    return _copy_to(NamedSharding(x.sharding.mesh, P()))(x)

  return jax.device_get(jax.tree.map(whole, tree))


@functools.cache
def _copy_to(sharding):
  return jax.jit(lambda x: x, out_shardings=sharding)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Pins the layout of an activation inside jit; does nothing outside a mesh (`jax.set_mesh`)."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec(names))


def put_batch(mesh: Mesh, batch: Any) -> Any:
  """NumPy arrays, the same in every process, onto the mesh; see `put_rows`."""
  size = len(jax.tree.leaves(batch)[0])
  return put_rows(mesh, size, lambda rows: jax.tree.map(lambda x: np.asarray(x)[rows], batch))


def put_rows(mesh: Mesh, size: int, rows: Callable[[list[int]], Any]) -> Any:
  """A batch on the mesh, leading axis over the batch axes; a process makes its devices' part alone.

  Args:
    mesh: of all processes.
    size: of the whole batch.
    rows: numbers of rows -> NumPy arrays of these, [rows, ...].

  Raises:
    UserError: the size does not divide.
  """
  shards = batch_shards(mesh)
  if size % shards:
    raise UserError(
      f"a batch of {size} does not divide over the {shards} batch shards of the mesh "
      f"(data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']})"
    )
  sharding = batch_sharding(mesh)
  parts = sharding.addressable_devices_indices_map((size,)).values()
  here = sorted({row for (part,) in parts for row in range(*part.indices(size))})
  place_of = {row: i for i, row in enumerate(here)}

  def one(x):
    def shard(index):
      start, stop, _ = index[0].indices(size)
      return x[place_of[start] : place_of[start] + stop - start][:, *index[1:]]

    return jax.make_array_from_callback((size, *x.shape[1:]), sharding, shard)

  return jax.tree.map(one, rows(here))
