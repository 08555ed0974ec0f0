"""What the comparisons with OGBench's own agents share: batches with goals, one optimiser for all networks, losses."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from results.jax_references import HIDDEN, double, packages, pairs, plain, read, same_numbers, write
from results.references import ACTION, OBS, ROWS, SPEC, Arrays, Step, ours

REFERENCE, ROOT = "seohongpark/ogbench", "impls"
GOAL_SPEC = SPEC._replace(goal_shape=SPEC.obs_shape)
TARGETS = "targets"
DEVIATION = {TARGETS: "targets follow the networks after their step, in the reference before it"}
GOALS = ("goal", "actor_goal", "low_goal", "subgoal")


def goal_batches() -> Iterator[dict]:
    """Batches {name: numpy array} without end; some rows achieve their goal."""
    rng = np.random.default_rng(0)
    while True:
        made = {name: rng.standard_normal((ROWS, OBS)) for name in ("obs", "next_obs", *GOALS)}
        made["action"] = np.tanh(rng.standard_normal((ROWS, ACTION)))
        yield made | {"terminal": (rng.random(ROWS) < 0.3).astype(np.float64)}


def theirs_of(rows: dict) -> dict[str, jax.Array]:
    """A batch by OGBench's names."""
    names = {"observations": "obs", "next_observations": "next_obs", "actions": "action", "value_goals": "goal"}
    names |= {"actor_goals": "actor_goal", "low_actor_goals": "low_goal", "high_actor_goals": "actor_goal"}
    made = {name: jnp.asarray(rows[own]) for name, own in (names | {"high_actor_targets": "subgoal"}).items()}
    return made | {"rewards": jnp.asarray(rows["terminal"] - 1.0), "masks": jnp.asarray(1.0 - rows["terminal"])}


def start(module: Any, args: Any) -> Any:
    """An agent in float64 and in general position: every number of every network is shaken."""
    agent, rng = double(module.init(jax.random.key(0), args, GOAL_SPEC)), np.random.default_rng(1)
    networks = [name for name in agent.__dataclass_fields__ if name not in ("nets", "net", "opt")]
    shake = lambda x: x + 0.1 * rng.standard_normal(x.shape)  # noqa: E731
    return agent.replace(**{name: jax.tree.map(shake, getattr(agent, name)) for name in networks})


def of_network(opt: Any, number: Callable[[Any], Any]) -> Any:
    """Adam's state with the moments of one network, `number(mu)`, alone."""
    adam = lambda x: hasattr(x, "mu")  # noqa: E731
    (found,) = (x for x in jax.tree.leaves(opt, is_leaf=adam) if adam(x))
    return optax.ScaleByAdamState(found.count, number(found.mu), number(found.nu))


def compare(
    checkout: Path,
    undo: frozenset[str],
    algorithm: str,
    networks: dict[str, tuple[str, Callable[[Any], Any]]],
    losses: dict[str, tuple[str, ...]],
    their_losses: dict[str, tuple[str, ...]],
    target: str = "",
    batch_of: Callable[[Any, dict], Any] | None = None,
    reader: Callable[[Any], Arrays] = read,
    writer: Callable[[Any, Arrays], Any] = write,
    settings: dict | None = None,
    config: dict | None = None,
) -> Iterator[Step]:
    """Our update beside an agent of OGBench.

    Args:
      networks: {field of our agent: (its name there, with what is below it, which part of our optimiser's tree it is)}.
      losses, their_losses: {name: metrics whose sum it is}.
      target: the field that has a target network.
      batch_of: (our module, rows) -> our batch; by default a GoalBatch.
      reader, writer: of one network's parameters, on both sides; see `read` and `write`.
      settings, config: arguments of ours and of theirs, beyond the sizes.
    """
    module, peer = ours(algorithm), packages(checkout, ROOT)(f"agents.{algorithm}")
    args = module.Args(hidden_dims=HIDDEN, batch_size=ROWS, **(settings or {}))
    agent, made = start(module, args), peer.get_config()
    made.update(batch_size=ROWS, actor_hidden_dims=HIDDEN, **(config or {}))
    if "value_hidden_dims" in made:
        made.update(value_hidden_dims=HIDDEN)
    agents = [cls for name, cls in vars(peer).items() if name.lower() == f"{algorithm}agent"]
    theirs = agents[0].create(0, jnp.zeros((1, OBS)), jnp.zeros((1, ACTION)), made)
    params = plain(theirs.network.params)
    stored = {name: f"modules_{key}" for name, (key, _) in networks.items()}
    if target:
        stored[f"target_{target}"] = f"modules_target_{networks[target][0]}"
    for name, key in stored.items():
        *above, last = key.split("/")
        node = functools.reduce(lambda node, below: node[below], above, params)
        node[last] = writer(node[last], reader(getattr(agent, name)))
    network = theirs.network.replace(params=params, opt_state=theirs.network.tx.init(params))
    theirs = theirs.replace(network=network)

    @jax.jit
    def our_step(agent, batch):
        new, info = module.update(agent, batch, jax.random.key(0), args)
        if target and TARGETS in undo:
            old = optax.incremental_update(getattr(agent, target), getattr(agent, f"target_{target}"), args.tau)
            new = new.replace(**{f"target_{target}": old})
        return new, {name: sum(info[part] for part in parts) for name, parts in losses.items()}

    def view(agent, theirs):
        of_ours, of_theirs = {}, {}
        for name, (_, part) in networks.items():
            of_ours[name] = (reader, getattr(agent, name), of_network(agent.opt, part))
            of_theirs[name] = (below(stored[name], reader), theirs.network.params, theirs.network.opt_state)
        if target:
            name = f"target_{target}"
            of_ours[name] = (reader, getattr(agent, name), None)
            of_theirs[name] = (below(stored[name], reader), theirs.network.params, None)
        return pairs(of_ours, of_theirs)

    batch_of = batch_of or goal_batch
    yield Step({}, view(agent, theirs))
    for rows in goal_batches():
        with same_numbers():
            agent, found = our_step(agent, batch_of(module, rows))
            theirs, info = theirs.update(theirs_of(rows))
        sums = {name: sum(info[part] for part in parts) for name, parts in their_losses.items()}
        yield Step({k: ([np.asarray(found[k])], [np.asarray(sums[k])]) for k in found}, view(agent, theirs))


def below(key: str, reader: Callable[[Any], Arrays]) -> Callable[[Any], Arrays]:
    """What reads the network `key` (with what is below it) of a tree of all."""
    return lambda tree: reader(functools.reduce(lambda node, part: node[part], key.split("/"), tree))


def goal_batch(module: Any, rows: dict) -> Any:
    """Our GoalBatch."""
    own = {name: jnp.asarray(rows[name]) for name in ("obs", "action", "next_obs", "goal", "terminal", "actor_goal")}
    return module.GoalBatch(**own, reward=own["terminal"] - 1.0)


def nth(*path: int) -> Callable[[Any], Any]:
    """The part of a tuple of tuples at `path`."""

    def part(tree: Any) -> Any:
        for i in path:
            tree = tree[i]
        return tree

    return part
