"""What the comparisons with references in JAX share, beside `references`: parameters, random numbers, old names.

Both sides are compiled as they are. Random numbers are a table per shape: whatever its key and whenever it is made,
a draw of a shape gives the same numbers on both sides, whose axes are known by their sizes, so that [n, B, A] and
[B, n, A] are the same draw. That leaves a reference's order of draws and splitting of keys out of the comparison.

Most references need distrax, ml_collections and the JAX part of TensorFlow Probability beside requirements.txt.
"""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import flax
import jax
import jax.numpy as jnp
import numpy as np

from results.references import ABSENT, SPEC, Arrays, Pair, Step, _Finder, batch, batches
from shared.errors import InputError
from shared.transitions import Batch

HIDDEN = (24, 24)
N = 4
"""Sampled actions. Rows, actions and N are different numbers: draws know their axes by their sizes."""

# ------------------------------------------------------------------------------------ weights


def double(tree: Any) -> Any:
    """All floating-point leaves in float64."""
    floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)  # noqa: E731
    return jax.tree.map(lambda x: x.astype(jnp.float64) if floating(x) else x, jax.tree.map(jnp.asarray, tree))


def start(module: types.ModuleType, args: Any) -> Any:
    """An agent in float64 and in general position: no bias is zero, targets differ from their networks."""
    agent = double(module.init(jax.random.key(0), args, SPEC))
    rng = np.random.default_rng(1)
    shake = lambda x: x + 0.1 * rng.standard_normal(x.shape)  # noqa: E731
    fields = {name: getattr(agent, name) for name in agent.__dataclass_fields__}
    networks = [name for name, tree in fields.items() if isinstance(tree, dict) and "params" in tree]
    return agent.replace(**{name: jax.tree.map(shake, fields[name]) for name in networks})


def _paths(tree: Any, first: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Paths of the leaves: dense layers (kernel, bias), then normalisations, then the rest.

    Of each kind, those below `first[0]` come first, then those below `first[1]`, ...; then the deeper ones, by the
    numbers in their names.
    """
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    paths = [tuple(str(getattr(key, "key", key)) for key in path) for path, _ in flat]

    def rank(path: tuple[str, ...]) -> tuple:
        layer = "/".join(path[:-1])
        of = {other[-1] for other in paths if other[:-1] == path[:-1]}
        kind = 0 if "kernel" in of else 1 if "scale" in of else 2
        place = next((i for i, name in enumerate(first) if f"{layer}/{path[-1]}".startswith(name)), len(first))
        numbers = [(int(x), "") if x.isdigit() else (-1, x) for x in re.split(r"(\d+)", layer)]
        return kind, place, -len(path), numbers, path[-1] == "bias", path[-1]

    return sorted(paths, key=rank)


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    return functools.reduce(lambda node, key: node[key], path, tree)


def read(tree: Any, *first: str) -> Arrays:
    """The arrays of a network's parameters (or of a tree like them), in the order of `_paths`."""
    return [_at(tree, path) for path in _paths(tree, first)]


def plain(tree: Any) -> Any:
    """Nested dicts, copied."""
    return {k: plain(v) for k, v in tree.items()} if hasattr(tree, "items") else tree


def write(tree: Any, arrays: Arrays, *first: str) -> Any:
    """`tree` with `arrays`, which are in the order of `read`.

    Raises:
      InputError: their number or a shape is another.
    """
    paths, made = _paths(tree, first), plain(tree)
    if len(paths) != len(arrays):
        raise InputError(f"{len(arrays)} arrays of ours, {len(paths)} of the reference: {paths}.")
    for path, array in zip(paths, arrays, strict=True):
        node = _at(made, path[:-1])
        if jnp.shape(node[path[-1]]) != jnp.shape(array):
            raise InputError(f"{'/'.join(path)}: {jnp.shape(array)}, in the reference {jnp.shape(node[path[-1]])}.")
        node[path[-1]] = jnp.asarray(array)
    return flax.core.freeze(made) if isinstance(tree, flax.core.FrozenDict) else made


def member(arrays: Arrays, i: int) -> Arrays:
    """Network i of a stack."""
    return [x[i] for x in arrays]


def stack(*networks: Arrays) -> Arrays:
    return [jnp.stack(x) for x in zip(*networks, strict=True)]


def two_heads(arrays: Arrays, layer: int) -> Arrays:
    """The arrays of a network with its dense layer `layer`, of mean and log std, as two layers."""
    kernel, bias = (jnp.split(x, 2, axis=-1) for x in arrays[2 * layer : 2 * layer + 2])
    heads = [kernel[0], bias[0], kernel[1], bias[1]]
    return [*arrays[: 2 * layer], *heads, *arrays[2 * layer + 2 :]]


def moments(opt_state: Any) -> tuple[Any, Any]:
    """Adam's running means of the gradient and of its square: unlike a step of Adam they show the gradient's size."""
    adam = lambda x: hasattr(x, "mu")  # noqa: E731
    (found,) = (x for x in jax.tree.leaves(opt_state, is_leaf=adam) if adam(x))
    return found.mu, found.nu


def pairs(ours: dict[str, tuple], theirs: dict[str, tuple]) -> dict[str, Pair]:
    """{network: both sides' arrays} of {network: (reader, parameters, optimiser state or None)}.

    With an optimiser state, Adam's moments are there too, as "<network>, gradient" and "<network>, its square".
    """
    made = {}
    for name, (reader, params, opt) in ours.items():
        their_reader, their_params, their_opt = theirs[name]
        made[name] = (reader(params), their_reader(their_params))
        if opt is not None:
            for what, a, b in zip(("gradient", "its square"), moments(opt), moments(their_opt), strict=True):
                made[f"{name}, {what}"] = (reader(a), their_reader(b))
    return made


# ------------------------------------------------------------------------- random numbers


def _table(kind: str, shape: Any, draw: Callable) -> jax.Array:
    shape = (shape,) if isinstance(shape, int) else tuple(int(size) for size in shape)
    sizes = [size for size in shape if size > 1]
    if 0 in shape:
        return jnp.zeros(shape)
    if len(set(sizes)) < len(sizes):  # flax asks initialisers for shapes; whoever used the numbers would notice
        return jnp.full(shape, jnp.nan)
    order = np.argsort(sizes, kind="stable")
    table = draw(np.random.default_rng([len(kind), *sorted(sizes)]), tuple(sorted(sizes)))
    return jnp.asarray(np.transpose(table, np.argsort(order)).reshape(shape))


def _normal(key, shape=(), dtype=None, **_):
    return _table("normal", shape, lambda rng, s: rng.standard_normal(s))


def _uniform(key, shape=(), dtype=None, minval=0.0, maxval=1.0, **_):
    """A single number is 0.75: heads of a coin."""
    drawn = _table("uniform", shape, lambda rng, s: rng.random(s)) if shape else 0.75
    return minval + (maxval - minval) * drawn


def _distinct(n: int, drawn: int) -> np.ndarray:
    return np.random.default_rng(n).permutation(n)[:drawn]


def _randint(key, shape, minval, maxval, dtype=None, **_):
    """Without repetition where there are enough numbers: as a draw without replacement. A single number: the least."""
    if shape == ():
        return jnp.asarray(minval)
    count, n = int(np.prod(shape)), int(maxval - minval)
    if not np.prod(shape) > n:
        return minval + jnp.asarray(_distinct(n, count).reshape(shape))
    return _table("integer", shape, lambda rng, s: rng.integers(minval, maxval, s))


def _permutation(key, n, **_):
    return jnp.asarray(_distinct(n, n))


def _choice(key, a, shape=(), replace=True, **_):
    n = a if isinstance(a, int) else len(a)
    index = _randint(key, shape, 0, n)
    return index if isinstance(a, int) else a[index]


def _bernoulli(key, p=0.5, shape=None, **_):
    return _table("bernoulli", shape, lambda rng, s: rng.random(s)) < p


@contextlib.contextmanager
def same_numbers() -> Iterator[None]:
    """What is compiled in here draws from tables."""
    functions = {f.__name__[1:]: f for f in (_normal, _uniform, _randint, _permutation, _choice, _bernoulli)}
    with contextlib.ExitStack() as patches:
        for name, function in functions.items():
            patches.enter_context(mock.patch.object(jax.random, name, function))
        yield


# ----------------------------------------------------------------------------------- both sides


def side_by_side(
    ours: Any,
    our_step: Callable[[Any, Batch], tuple[Any, dict]],
    theirs: Any,
    their_step: Callable[[Any, dict], tuple[Any, dict]],
    view: Callable[[Any, Any], dict[str, Pair]],
    rows: int = 1,
) -> Iterator[Step]:
    """The start, then one step per update, without end.

    Args:
      ours, theirs: the states, both with the same weights.
      our_step: (state, batch) -> state, losses. `rows` > 1: the batch is [rows, B, ...].
      their_step: (state, the same batch as a list of `rows` dicts of numpy arrays, or one dict) -> state, losses.
      view: of both states, the parameters to compare.
    """
    data = batches(np.random.default_rng(0))
    yield Step({}, view(ours, theirs))
    while True:
        drawn = [next(data) for _ in range(rows)]
        mine = [batch(x, "next_action", "return_to_go") for x in drawn]
        with same_numbers():
            ours, losses = our_step(ours, mine[0] if rows == 1 else jax.tree.map(lambda *x: jnp.stack(x), *mine))
            theirs, their_losses = their_step(theirs, drawn[0] if rows == 1 else drawn)
        if losses.keys() != their_losses.keys():
            raise InputError(f"Losses {sorted(losses)} of ours, {sorted(their_losses)} of the reference.")
        alike = {name: ([np.asarray(losses[name])], [np.asarray(their_losses[name])]) for name in losses}
        yield Step(alike, view(ours, theirs))


def theirs_of(rows: dict, dones: bool = False) -> dict[str, jax.Array]:
    """A batch by the names that most references have; masks (or dones) as floats."""
    names = {"obs": "observations", "action": "actions", "reward": "rewards", "next_obs": "next_observations"}
    names |= {"next_action": "next_actions", "return_to_go": "mc_returns"}
    made = {new: jnp.asarray(rows[old]) for old, new in names.items()}
    return made | {"dones": jnp.asarray(rows["terminal"]), "masks": jnp.asarray(1.0 - rows["terminal"])}


class Space:
    """What references ask of an observation or action space in [-1, 1]."""

    def __init__(self, size: int):
        self.shape = (size,)
        self.low, self.high = -np.ones(size), np.ones(size)

    def sample(self) -> np.ndarray:
        return np.zeros(self.shape)


# -------------------------------------------------------------------------------------- references


def old_names() -> None:
    """Names of JAX that older code calls."""
    for name in ("tree_map", "tree_multimap"):
        if not hasattr(jax, name):
            setattr(jax, name, jax.tree.map)
    if "a_max" not in inspect.signature(jnp.clip).parameters:
        new_clip = jnp.clip

        def clip(x, min=None, max=None, a_min=None, a_max=None):
            return new_clip(x, a_min if min is None else min, a_max if max is None else max)

        jnp.clip = clip


def lenient_jit(function: Callable | None = None, **options: Any) -> Callable:
    """jax.jit that passes over names of static arguments that the function does not have, as it did before 0.4.40."""
    if function is None:
        return functools.partial(lenient_jit, **options)
    names = options.get("static_argnames") or ()
    names = (names,) if isinstance(names, str) else tuple(names)
    if names:
        own = inspect.signature(function).parameters
        options["static_argnames"] = tuple(name for name in names if name in own)
    return _jit(function, **options)


_jit = jax.jit
MORE_ABSENT = (
    "tensorboardX",
    "cloudpickle",
    "mlxu",
    "overrides",
    "dm_control",
    "pandas",
    "suboptimal_offline_datasets",
)


def packages(checkout: Path, root: str = "", frozen: bool = False) -> Callable[[str], types.ModuleType]:
    """What imports a module of a checkout by its dotted name.

    Args:
      root: the folder in the checkout from which its modules are named.
      frozen: networks are initialised as FrozenDicts, as flax did before 0.7.
    """
    folder = checkout / root
    if not folder.is_dir():
        raise InputError(f"There is no {folder}: is it a checkout of the repository that the comparison names?")
    old_names()
    with contextlib.suppress(ImportError):  # its package names what is below it only once that is imported
        importlib.import_module("tensorflow_probability.substrates.jax")
    flax.config.update("flax_return_frozendict", frozen)
    absent = tuple(name for name in (*ABSENT, *MORE_ABSENT) if importlib.util.find_spec(name) is None)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(absent))
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

    def load(name: str) -> types.ModuleType:
        try:
            with mock.patch.object(jax, "jit", lenient_jit):
                return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise InputError(f"{folder} needs a package that is not here: {error.name}.") from None

    return load
