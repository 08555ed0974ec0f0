"""What the tests of losses share: a tiny batch, an agent in general position, networks in plain numpy."""

import functools
import inspect

import jax
import numpy as np
from conftest import load
from scipy.stats import norm

from shared.task import Spec

SPEC = Spec((3,), 2, False, (-1.0, -1.0), (1.0, 1.0))
B = 5


class Compiled:
    """An algorithm's module whose functions are compiled when a test calls them; patch the module itself, `load`'s.

    Operation by operation each new shape of each is a program of its own. What is no tree of numbers is static.
    """

    def __init__(self, module):
        functions = {n: f for n, f in vars(module).items() if inspect.isfunction(f)}
        self.__dict__.update(_module=module, _functions=functions)

    def __getattr__(self, name: str):
        value = getattr(self._module, name)
        return self._program(value) if value is self._functions.get(name) else value

    def __setattr__(self, name: str, value):
        raise AttributeError(f"patch the module itself: load(...).{name}")

    def _program(self, f):
        @functools.wraps(f)
        def call(*args, **options):
            numbers = (float, np.ndarray, np.generic, jax.Array)
            trees = [jax.tree.leaves(x) for x in args]
            static = tuple(i for i, tree in enumerate(trees) if not all(isinstance(x, numbers) for x in tree))
            patched = any(getattr(self._module, n) is not own for n, own in self._functions.items())
            if patched or options or not all(_hashable(args[i]) for i in static):
                return f(*args, **options)  # a program of before would be without what stands in for a part
            return _jit(f, static)(*args)

        return call


def _hashable(x) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True


def compiled(name: str) -> Compiled:
    return _compiled(load(name))


@functools.cache
def _compiled(module) -> Compiled:
    """By module, not by name: with a defect (mutate.py) it is another one of the same name."""
    return Compiled(module)


@functools.cache
def _jit(f, static: tuple[int, ...]):
    return jax.jit(f, static_argnums=static)


@functools.cache
def _init(module):
    """Compiled once for all agents of the same sizes."""
    return jax.jit(module.init, static_argnums=2)


def agent_of(module, args, spec=SPEC, seed=0):
    """An agent whose targets differ from its online networks and whose biases are not zero."""
    agent = _init(module)(jax.random.key(seed), args, spec)
    other = _init(module)(jax.random.key(seed + 1), args, spec)

    def shake(tree, s):
        leaves, structure = jax.tree.flatten(tree)
        r = np.random.default_rng(s)
        values = [np.asarray(x) + 0.3 * r.normal(size=x.shape).astype(np.float32) for x in leaves]
        return jax.tree.unflatten(structure, [jax.device_put(x) for x in values])  # no program for each shape

    fields = {f: getattr(agent, f) for f in agent.__dataclass_fields__}
    networks = [f for f, tree in fields.items() if isinstance(tree, dict) and "params" in tree]
    changed = {f: shake(getattr(other if "target" in f else agent, f), len(f)) for f in networks}
    return agent.replace(**changed)


def relu(x):
    return np.maximum(x, 0)


def gelu(x):
    """JAX's, by a tanh."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def exact_gelu(x):
    """PyTorch's."""
    return x * norm.cdf(x)


def mlp(params, *inputs, activation=relu, layer_norm=False):
    """Plain numpy: the activation between the Dense layers, LayerNorm after it if asked for."""
    layers = params["params"]
    x = np.concatenate(inputs, -1).astype(np.float64)
    n = sum(k.startswith("Dense") for k in layers)
    for i in range(n):
        x = x @ np.float64(layers[f"Dense_{i}"]["kernel"]) + np.float64(layers[f"Dense_{i}"]["bias"])
        if i < n - 1:
            x = activation(x)
            if layer_norm:
                p = layers[f"LayerNorm_{i}"]
                x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
                x = x * np.float64(p["scale"]) + np.float64(p["bias"])
    return x


def heads(critics, *inputs, **kwargs):
    """[E, ...] outputs of stacked critics."""
    ensemble = len(jax.tree.leaves(critics)[0])
    one = [jax.tree.map(lambda x, i=i: x[i], critics) for i in range(ensemble)]
    return np.stack([mlp(c, *inputs, **kwargs)[..., 0] for c in one])


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=2e-5)


def log_std_of(params):
    return np.float64(params["params"]["log_std"])


def tanh_normal(mean, log_std, noise):
    u = mean + np.exp(log_std) * noise
    log_prob = norm.logpdf(u, mean, np.exp(log_std)) - np.log(1 - np.tanh(u) ** 2)
    return np.tanh(u), log_prob.sum(-1)


def smoothed_next_action(agent, batch, key, args):
    noise = np.clip(args.policy_noise * np.asarray(jax.random.normal(key, (B, 2))), -args.noise_clip, args.noise_clip)
    return np.clip(np.tanh(mlp(agent.target_actor, batch.next_obs)) + noise, -1, 1)


def differences(module, other) -> set[str]:
    """Names of functions and classes of `module` that `other` has, too, in other lines."""
    mine, others = (
        {n: x for n, x in vars(m).items() if getattr(x, "__module__", "") == m.__name__ and inspect.isroutine(x)}
        | {n: x for n, x in vars(m).items() if inspect.isclass(x) and x.__module__ == m.__name__}
        for m in (module, other)
    )
    return {n for n in mine.keys() & others.keys() if inspect.getsource(mine[n]) != inspect.getsource(others[n])}


def normed_v(params, obs):
    """V [B] of an MLP of two hidden layers, each with a layer norm before its activation."""
    layers, x = params["params"], np.float64(obs)
    for i in range(3):
        x = x @ np.float64(layers[f"Dense_{i}"]["kernel"]) + np.float64(layers[f"Dense_{i}"]["bias"])
        if i < 2:
            p = layers[f"LayerNorm_{i}"]
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
            x = np.maximum(x * np.float64(p["scale"]) + np.float64(p["bias"]), 0)
    return x[:, 0]
