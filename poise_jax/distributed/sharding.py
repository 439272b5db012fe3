"""The device mesh, and the one table from logical axes of arrays to mesh axes.

The mesh has three axes: `data` replicates parameters, `fsdp` shards parameters, both split the
batch, and `tensor` shards heads, MLP width and vocabulary. On one device none of it does anything.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree, Shaped

from poise_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # mesh axes that split the batch

Rules = Mapping[str | None, str | tuple[str, ...] | None]  # logical axis -> mesh axes

RULES: Rules = {
  "batch": BATCH,
  "replica": "data",  # the batch where fsdp splits the features
  "embed": "fsdp",
  "heads": "tensor",
  "kv_heads": "tensor",
  "mlp": "tensor",
  "vocab": "tensor",
  "layers": None,
  "head_dim": None,
  None: None,
}
SAMPLING_RULES: Rules = {**RULES, "embed": None}  # decoding reads every weight for every token


def make_mesh(
  data: int = 1,
  fsdp: int = -1,
  tensor: int = 1,
  devices: Sequence[jax.Device] | int | None = None,
) -> Mesh | AbstractMesh:
  """Creates a mesh.

  Args:
    data: size of the axis that replicates parameters and splits the batch.
    fsdp: size of the axis that shards parameters and splits the batch.
    tensor: size of the axis that shards heads, MLP width and vocabulary. One of the three sizes
      may be -1, for all remaining devices.
    devices: default: all. A number makes an abstract mesh, on which shapes have shardings, but
      nothing can be compiled.

  Raises:
    UserError: the product of the sizes is not the number of devices.
  """
  sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
  devices = jax.devices() if devices is None else devices
  count = devices if isinstance(devices, int) else len(devices)
  for axis, size in sizes.items():
    if size < 1 and size != -1:
      raise UserError(
        f"mesh.{axis} must be at least 1, or -1 for all remaining devices, got {size}"
      )
  free = [axis for axis, size in sizes.items() if size == -1]
  if len(free) > 1:
    raise UserError(f"only one mesh axis can be -1, got {' and '.join(free)}")
  fixed = math.prod(size for size in sizes.values() if size != -1)
  if free and count % fixed == 0:
    sizes[free[0]] = count // fixed
  if math.prod(sizes.values()) != count:
    shape = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
    raise UserError(f"{_needed(sizes, count)} (mesh {shape}); {_way_out(sizes, count)}")
  axis_types = (AxisType.Auto,) * len(AXES)
  if isinstance(devices, int):
    return AbstractMesh(tuple(sizes.values()), AXES, axis_types=axis_types)
  # An axis may be a part of a ring of chips: v6e:8x8 has no ring of the 4 that tensor=4 needs.
  grid = mesh_utils.create_device_mesh(
    tuple(sizes.values()), devices, allow_split_physical_axes=True
  )
  return Mesh(grid, AXES, axis_types=axis_types)


def _needed(sizes: dict[str, int], count: int) -> str:
  """What a mesh needs and there is not, as the beginning of a sentence."""
  fixed = {axis: size for axis, size in sizes.items() if size > 1}
  names = " x ".join(f"mesh.{axis}={size}" for axis, size in fixed.items()) or "the mesh"
  product = math.prod(fixed.values())
  multiple = "a multiple of " if -1 in sizes.values() and count > product else ""
  needs = "device" if product == 1 else "devices"
  there = "is 1" if count == 1 else f"are {count}"
  verb = "need" if len(fixed) > 1 else "needs"
  return f"{names} {verb} {multiple}{product} {needs}, and there {there}"


def _way_out(sizes: dict[str, int], count: int) -> str:
  """Options with which the mesh fits the devices, as the end of a sentence."""
  fitting = {axis: 1 for axis, size in sizes.items() if size > 1}
  if -1 not in sizes.values():
    fitting["fsdp"] = count
  options = " ".join(f"--config.mesh.{axis}={size}" for axis, size in fitting.items())
  product = math.prod(size for size in sizes.values() if size > 1)
  several = "a multiple of " if -1 in sizes.values() else ""
  plan = (
    f"a --topology of {several}{product} device{'s' * (product > 1)} in python -m "
    "experiments.compile_topology"
  )
  return f"set {options}, or plan with {plan}"


def platform() -> str:
  """Platform, such as "tpu", of the mesh in use (`jax.set_mesh`), or else JAX's default."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
  """Number of shards of the batch."""
  return math.prod(mesh.shape[axis] for axis in BATCH)


def spec(names: tuple[str | None, ...], rules: Rules = RULES) -> P:
  """PartitionSpec of an array with these logical axes."""
  return P(*(rules[name] for name in names))


def param_shardings(
  mesh: Mesh | AbstractMesh, shapes: PyTree, logical_axes: PyTree, rules: Rules = RULES
) -> PyTree[NamedSharding]:
  """Shardings of a tree of parameters.

  Args:
    mesh: in which the parameters are placed.
    shapes: tree of arrays or shapes.
    logical_axes: the same tree with a tuple of logical axes in place of each array.
    rules: from logical axes to mesh axes.

  Raises:
    UserError: a dimension is not a multiple of the size of its mesh axis.
  """

  def leaf(path, x, names):
    for size, name in zip(x.shape, names, strict=True):
      axis = rules[name]
      if axis is not None and size % mesh.shape[axis]:
        raise UserError(
          f"parameter {jax.tree_util.keystr(path)} of shape {tuple(x.shape)}: size {size} of axis "
          f"{name!r} is not a multiple of mesh.{axis}={mesh.shape[axis]}"
        )
    return NamedSharding(mesh, spec(names, rules))

  return jax.tree_util.tree_map_with_path(leaf, shapes, logical_axes)


def batch_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
  """Sharding that splits the leading axis over the batch axes of the mesh."""
  return NamedSharding(mesh, P(BATCH))


def place(tree: PyTree, shardings: PyTree[jax.sharding.Sharding]) -> PyTree[jax.Array]:
  """Arrays with the given shardings, from arrays that every process holds in full and alike."""
  if jax.process_count() == 1:
    return jax.device_put(tree, shardings)

  def leaf(x, sharding):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)

  return jax.tree.map(leaf, tree, shardings)


def spread(mesh: Mesh, tree: PyTree) -> PyTree:
  """Replicates over the mesh those jax.Arrays of `tree` that are not on a mesh yet."""
  replicated = NamedSharding(mesh, P())

  def leaf(x):
    off_mesh = isinstance(x, jax.Array) and not isinstance(x.sharding, NamedSharding)
    return place(x, replicated) if off_mesh else x

  return jax.tree.map(leaf, tree)


def fetch(tree: PyTree) -> PyTree:
  """NumPy arrays, complete in every process. All processes must call this."""

  def leaf(x):
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
      return x
    return _copy_to(NamedSharding(x.sharding.mesh, P()))(x)

  return jax.device_get(jax.tree.map(leaf, tree))


@functools.cache
def _copy_to(sharding):
  return jax.jit(lambda x: x, out_shardings=sharding)


def constrain(x: Shaped[Array, "..."], *names: str | None) -> Shaped[Array, "..."]:
  """Fixes the sharding of an array inside jit by its logical axes; without a mesh
  (`jax.set_mesh`) does nothing. Inside a shard_map, its mesh axes are left out."""
  if not _automatic_axes():
    return x
  return jax.lax.with_sharding_constraint(x, _automatic_spec(names))


def per_device(
  function: Callable[..., PyTree[Array]],
  inputs: Sequence[tuple[str | None, ...]],
  outputs: tuple[str | None, ...] | list[tuple[str | None, ...]],
) -> Callable[..., PyTree[Array]]:
  """`function` of each device's own part of its arguments, because GSPMD cannot split a kernel.

  Without a mesh, and inside a shard_map over all of its axes, it is `function` itself.

  Args:
    function: sends nothing between devices.
    inputs: logical axes of each argument; of a tree, those that all its leaves begin with.
    outputs: likewise, of the result; a list, of each element of a tuple.
  """
  axes = _automatic_axes()
  if not axes:
    return function
  several = isinstance(outputs, list)
  return jax.shard_map(
    function,
    in_specs=tuple(_automatic_spec(names) for names in inputs),
    out_specs=tuple(map(_automatic_spec, outputs)) if several else _automatic_spec(outputs),
    axis_names=axes,
    check_vma=False,  # a kernel does not declare the axes over which its results vary
  )


def _automatic_axes() -> frozenset[str]:
  """Axes of the mesh in use that no shard_map around this code has split."""
  mesh = jax.sharding.get_abstract_mesh()
  types = zip(mesh.axis_names, mesh.axis_types, strict=True) if not mesh.empty else ()
  return frozenset(name for name, kind in types if kind == AxisType.Auto)


def _automatic_spec(names):
  """PartitionSpec over the automatic axes only."""
  automatic = _automatic_axes()

  def only_automatic(axes):
    axes = axes if isinstance(axes, tuple) else (axes,)
    return tuple(axis for axis in axes if axis in automatic) or None

  return P(*(only_automatic(axes) for axes in spec(names)))


def put_batch(mesh: Mesh, batch: PyTree) -> PyTree[jax.Array]:
  """Puts NumPy arrays, the same in every process, onto the mesh; see `put_rows`."""
  size = len(jax.tree.leaves(batch)[0])
  return put_rows(mesh, size, lambda rows: jax.tree.map(lambda x: np.asarray(x)[rows], batch))


def put_rows(
  mesh: Mesh, size: int, make_rows: Callable[[list[int]], PyTree[np.ndarray]]
) -> PyTree[jax.Array]:
  """Makes a batch on the mesh, its leading axis split over the batch axes; each process makes the
  rows of its own devices only.

  Args:
    mesh: of all processes.
    size: number of rows of the whole batch.
    make_rows: indices of rows -> NumPy arrays of these rows, [rows, ...].

  Raises:
    UserError: the size is not a multiple of the number of shards.
  """
  shards = batch_shards(mesh)
  if size % shards:
    raise UserError(
      f"a batch of {size} is not a multiple of the {shards} batch shards of the mesh "
      f"(data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']})"
    )
  sharding = batch_sharding(mesh)
  slices = sharding.addressable_devices_indices_map((size,))
  local_rows = sorted({row for (part,) in slices.values() for row in range(*part.indices(size))})
  position = {row: i for i, row in enumerate(local_rows)}

  def leaf(x):
    def shard(rows):
      start, stop, _ = rows.indices(size)
      return x[position[start] : position[start] + stop - start]

    shards = [jax.device_put(shard(rows), device) for device, (rows,) in slices.items()]
    shape = (size, *x.shape[1:])
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)

  return jax.tree.map(leaf, make_rows(local_rows))
