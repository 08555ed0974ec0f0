"""Lanes: one (seed, hyperparameter setting) each, all trained in one job.

`--seeds 8 --alpha 1 2.5 4` makes 24 lanes: sharded over the local devices by a one-axis mesh, and on each device mapped
one after the other (CPU) or vmapped (GPU, TPU), unless --layout says which. Lanes do not communicate.
"""

import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from shared.arguments import RunArgs, float_fields
from shared.errors import InputError

MAX_LANES = 100_000
"""Of one job: a list of all, and a row for each wherever something is logged."""


def use_cpu_devices(lanes: int) -> None:
    """On CPU, one virtual device per core that has a lane; before anything is computed."""
    with contextlib.suppress(RuntimeError):  # the backend is up already (a notebook): its devices are used
        jax.config.update("jax_num_cpu_devices", min(len(os.sched_getaffinity(0)), lanes))


def lane_settings(args: RunArgs) -> list[dict[str, float]]:
    """One dict per lane: its seed, and its value of every hyperparameter given several values.

    Settings are the outer loop and seeds the inner: lane = setting * args.seeds + (seed - args.seed).

    Raises:
      InputError: more than MAX_LANES lanes.
    """
    values = {name: getattr(args, name) for name in float_fields(type(args))}
    swept = {name: value for name, value in values.items() if isinstance(value, tuple)}
    if (lanes := math.prod(map(len, swept.values())) * args.seeds) > MAX_LANES:
        raise InputError(f"--seeds {args.seeds} and the values given make {lanes:,} lanes; at most {MAX_LANES:,} are.")
    return [
        {"seed": args.seed + s, **dict(zip(swept, setting, strict=True))}
        for setting in itertools.product(*swept.values())
        for s in range(args.seeds)
    ]


def with_settings(args: RunArgs, settings: list[dict[str, float]]) -> RunArgs:
    """`args` with every `Float` field an array [L] of the lanes' values."""
    values = {n: [s.get(n, getattr(args, n)) for s in settings] for n in float_fields(type(args))}
    return dataclasses.replace(args, **{n: np.array(v, np.float32) for n, v in values.items()})


def make_mesh(lanes: int) -> jax.sharding.Mesh:
    """A one-axis mesh over as many local devices as have a lane."""
    devices = jax.local_devices()[:lanes]
    return jax.make_mesh((len(devices),), ("lane",), (AxisType.Auto,), devices=devices)


def layout_on(mesh: jax.sharding.Mesh, layout: str) -> str:
    """ "map" or "vmap": `layout` itself, or for "auto" the faster one for networks on the mesh's kind of device.

    On CPU vmap is 15-50 % slower than one lane after the other.
    """
    return layout if layout != "auto" else "map" if mesh.devices.flat[0].platform == "cpu" else "vmap"


def replicated(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """`tree` for every device of the mesh: a copy on each, but in the memory of a CPU one that all of them read."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(x):
        keys = isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended)
        if keys or mesh.devices.flat[0].platform != "cpu":
            return jax.device_put(x, everywhere)
        return jax.device_put(np.asarray(x), everywhere, may_alias=True)

    return jax.tree.map(place, tree)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Empty:
    """Stands for an array without elements at the border of a `shard_map`, where XLA of JAX 0.11 dies of one."""

    shape: tuple[int, ...]
    dtype: np.dtype


def hollow(tree: Any) -> Any:
    """`tree` with `Empty` for its arrays without elements."""
    return jax.tree.map(lambda x: x if jnp.size(x) else Empty(jnp.shape(x), x.dtype), tree)


def whole(tree: Any, lanes: int | None) -> Any:
    """`tree` with such arrays again, of so many lanes; None: as they were."""

    def made(x):
        return jnp.zeros(x.shape if lanes is None else (lanes, *x.shape[1:]), x.dtype) if isinstance(x, Empty) else x

    return jax.tree.map(made, tree, is_leaf=lambda x: isinstance(x, Empty))


def over_lanes(
    f: Callable, mesh: jax.sharding.Mesh, in_axes: tuple, donate: bool = False, layout: str = "auto", at_once: int = 0
) -> Callable:
    """Compiles `f`, written for one lane, for all lanes; `in_axes` as in vmap: 0 per lane, None shared.

    Lanes are split over the mesh without communication; those of one device are laid out as `layout_on` says.
    `donate` gives up the first argument. `at_once`: lanes that are vmapped together, group after group; 0: all.
    """
    laned = [i for i, axis in enumerate(in_axes) if axis == 0]

    def on_device(*args):
        args = [whole(x, lanes_of(args) if axis == 0 else None) for x, axis in zip(args, in_axes, strict=True)]
        return hollow(by_lane(*args))

    def by_lane(*args):
        grouped, lanes = layout_on(mesh, layout) == "vmap", lanes_of(args)
        if grouped and not 0 < at_once < lanes:
            return jax.vmap(f, in_axes)(*args)

        def one_lane(lane_args):
            merged = list(args)
            for i, value in zip(laned, lane_args, strict=True):
                merged[i] = value
            return f(*merged)

        lane_args = [args[i] for i in laned]
        if lanes == 1:  # a loop of one would copy everything twice
            squeezed = jax.tree.map(lambda x: x[0], lane_args)
            return jax.tree.map(lambda x: x[None], one_lane(squeezed))
        return jax.lax.map(one_lane, lane_args, batch_size=at_once if grouped else None)

    def lanes_of(args):
        return len(jax.tree.leaves([args[i] for i in laned])[0])

    def program(*args):
        return whole(sharded(*map(hollow, args)), lanes_of(args))

    name = getattr(getattr(f, "func", f), "__name__", "lane")
    program.__name__ = name  # JAX_LOG_COMPILES and profiles say which program it is
    specs = tuple(PartitionSpec("lane") if axis == 0 else PartitionSpec() for axis in in_axes)
    sharded = jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("lane"), check_vma=False)
    return jax.jit(program, donate_argnums=(0,) if donate else ())
