"""The contracts of lanes can fail: defects put into an algorithm's source, one at a time, must each be caught."""

import sys
import types

import pytest
import test_lanes
from conftest import load
from jax.errors import KeyReuseError
from test_lanes import job  # noqa: F401

pytestmark = pytest.mark.long

INIT = "def init(key, args: Args, spec: Spec) -> Agent:\n"
RESTORE = "agent = run.restore(agent)\n"
CALL = "agent, metrics = train_lanes(agent, keys, run.lane_args, transitions)\n"
END = "    return agent, jax.tree.map(jnp.mean, metrics)\n"
MEAN = 'jax.lax.pmean(x, "lane")'
BATCHED = """
    one = jax.custom_batching.custom_vmap(lambda x: x)
    one.def_vmap(lambda size, batched, x: (x + 0.1 * x[::-1], True))
"""
"""Right where lanes are mapped, wrong where they are vmapped."""
TARGET = "agent.target_critic, args.tau)"


def floats(change: str) -> str:
    """The agent with `change` of every array x of floats."""
    return f"jax.tree.map(lambda x: {change} if jnp.issubdtype(x.dtype, jnp.floating) else x, agent)"


BOTH = ("td3_bc", "iql")
ALL = (*BOTH, "rlpd")
MUTANTS = {
    "one initialisation for all seeds": dict.fromkeys(ALL, (INIT, f"{INIT}    key = jax.random.key(0)\n")),
    "all seeds draw the same": {
        "td3_bc": (
            "batch_key, noise_key = jax.random.split(key)",
            "batch_key, noise_key = jax.random.split(jax.random.key(0))",
        ),
        "iql": (
            "batch_key, update_key = jax.random.split(key)",
            "batch_key, update_key = jax.random.split(jax.random.key(0))",
        ),
    },
    "a key used twice": {
        "td3_bc": ("args.batch_size), noise_key", "args.batch_size), batch_key"),
        "rlpd": ("agent, batch, actor_key, args)", "agent, batch, critic_key, args)"),
    },
    "lanes mixed at the start": dict.fromkeys(
        BOTH, (RESTORE, f"{RESTORE}        agent = {floats('0.5 * (x + x.mean(0))')}\n")
    ),
    "devices mixed in a step": dict.fromkeys(BOTH, (END, f"    agent = {floats(MEAN)}\n{END}")),
    "a divergence that leaks": dict.fromkeys(
        BOTH, (CALL, f"{CALL}            agent = {floats('x + 0.0 * x.sum(0)')}\n")
    ),
    "a divergence unseen": dict.fromkeys(
        BOTH, ("run.log(agent, metrics)", "run.log(agent, jax.tree.map(jnp.nan_to_num, metrics))")
    ),
    "a target that is the network": dict.fromkeys(ALL, (TARGET, "agent.target_critic, 1.0)")),
    "a target that stands still": dict.fromkeys(ALL, (TARGET, "agent.target_critic, 0.0)")),
    "a batching rule that mixes lanes": dict.fromkeys(BOTH, (END, f"{BATCHED}    agent = {floats('one(x)')}\n{END}")),
}


def mutant(name: str, old: str, new: str) -> types.ModuleType:
    """The module of an algorithm with one change in its source."""
    path = load(name).__file__
    with open(path) as file:
        source = file.read()
    assert source.count(old) == 1, f"{name} has no single {old!r}"
    module = types.ModuleType(name)
    module.__file__ = path
    sys.modules[name] = module
    exec(compile(source.replace(old, new), path, "exec"), module.__dict__)
    return module


@pytest.mark.parametrize("defect, name", [(defect, name) for defect, files in MUTANTS.items() for name in files])
def test_the_contracts_of_lanes_catch(defect, name, job, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, name, load(name))  # put back afterwards
    mutant(name, *MUTANTS[defect][name])
    with pytest.raises((AssertionError, KeyReuseError)) as caught:
        test_lanes.test_the_contracts_of_lanes(name, job)
        test_lanes.test_a_lane_is_the_same_in_the_other_layout_and_beside_others(name, job)
    print(f"{defect} in {name}: {type(caught.value).__name__} {str(caught.value).strip().splitlines()[0]}")
