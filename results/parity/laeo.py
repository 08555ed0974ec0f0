"""LAEO beside its authors' code, with the policy's head of acme (0.4), the rest of which no longer imports.

Needs dm-haiku, the JAX part of TensorFlow Probability and dm-acme (pip install --no-deps).
"""

import importlib.util
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from results.jax_references import HIDDEN, double, packages, pairs, same_numbers, start
from results.ogbench_references import nth, of_network
from results.references import ACTION, OBS, ROWS, Case, Step, _Finder, batches, in_double, module, ours
from shared.errors import InputError

FILE = "contrastive/learning_goals.py"
SHOWN, LATENT, KEPT = 40, 8, -1.5
EDGE, LEAST = 0.999, 1e-6
UNUSED = ("acme", "reverb", "wandb", "jax.experimental.host_callback")
HEAD = "jax/networks/distributional.py"
DEVIATIONS = {
    "deviation": "the actor's last layer is the logarithm of the standard deviation, clipped, not an inverse softplus",
    "edge": "log pi of an action beyond 0.999 is that of 0.999, or the action's own where the policy drew it, not the "
    "mean density between 0.999 and 1",
}


def compare(checkout, undo, learned):
    """`learned`: the temperature; else there is no entropy, as in the command lines of the reference."""
    code, load = ours("laeo"), packages(checkout)
    if "deviation" in undo:
        code.Actor = softplus(code.Actor)
    if "edge" in undo:
        code.tanh_gaussian_log_prob = as_in_acme
    stand_in_for_acme()
    package = types.ModuleType("contrastive")  # its own imports files that are not in the repository
    package.__path__ = [str(checkout / "contrastive")]
    sys.modules["contrastive"] = package
    peer = in_double(load("contrastive.learning_goals"))
    temperature = {"kept_entropy": KEPT} if learned else {"first_alpha": 0.0}
    args = code.Args(hidden_dims=HIDDEN, batch_size=ROWS, latent_dim=LATENT, bc_share=0.3, **temperature)
    rng = np.random.default_rng(0)
    examples, data = rng.standard_normal((SHOWN, OBS)), batches(rng)
    agent, seen = start(code, args), Log()
    agent = agent.replace(critic=shaken(agent.critic, rng), target_critic=shaken(agent.critic, rng))
    temperature = {"target_entropy": KEPT} if learned else {"entropy_coefficient": 0.0}
    config = load("contrastive.config_goals").ContrastiveConfigGoals(
        obs_dim=OBS, bc_coef=args.bc_share, random_goals=0.0, num_sgd_steps_per_step=1, **temperature
    )
    spec = types.SimpleNamespace(actions=np.zeros(ACTION), observations=np.zeros(2 * OBS))
    networks = load("contrastive.networks").make_networks(
        spec, OBS, LATENT, hidden_layer_sizes=HIDDEN, twin_q=True, slice_actor_goal=True
    )
    policy = networks.policy_network  # made for states, but the temperature's loss gives it the later state, too
    networks.policy_network = policy._replace(apply=lambda params, obs: policy.apply(params, obs[:, :OBS]))
    adam, rows = peer.optax.adam(args.learning_rate), []
    both = (types.SimpleNamespace(data=x) for x in iter(rows.pop, None))
    learner = peer.ContrastiveLearnerGoals(
        networks, jax.random.PRNGKey(0), adam, adam, both, both, Counter(1), seen, None, config, examples
    )
    actor, critic, target = (
        jax.tree.map(jnp.asarray, f(x))
        for f, x in ((of_actor, agent.actor), (of_pairs, agent.critic), (of_pairs, agent.target_critic))
    )
    learner.restore(
        double(learner.save())._replace(
            policy_params=actor, q_params=critic, target_q_params=target,
            policy_optimizer_state=adam.init(actor), q_optimizer_state=adam.init(critic),
        )
    )  # fmt: skip

    @jax.jit
    def our_step(agent, batch):
        agent, info = code.update(agent, batch, jax.random.key(0), args)
        return agent, info

    def view():
        state, leaves = learner.save(), jax.tree.leaves
        mine = {name: lambda x, f=f: leaves(f(x)) for name, f in (("actor", of_actor), ("critic", of_pairs))}
        both = {
            "actor": (
                (mine["actor"], agent.actor, of_network(agent.opt, nth(0))),
                (leaves, state.policy_params, state.policy_optimizer_state),
            ),
            "critic": (
                (mine["critic"], agent.critic, of_network(agent.opt, nth(1))),
                (leaves, state.q_params, state.q_optimizer_state),
            ),
            "target critic": ((mine["critic"], agent.target_critic, None), (leaves, state.target_q_params, None)),
        }
        if learned:
            both["log alpha"] = (
                (leaves, agent.log_alpha, of_network(agent.opt, nth(3))),
                (leaves, state.alpha_params, state.alpha_optimizer_state),
            )
        return pairs(*({name: sides[i] for name, sides in both.items()} for i in range(2)))

    yield Step({}, view())
    while True:
        drawn = next(data)
        drawn["action"][:2] = [[1.0], [-1.0]]  # beyond acme's 0.999
        future = rng.standard_normal((ROWS, OBS))
        with same_numbers():
            index = jax.random.randint(jax.random.key(0), (ROWS,), 0, SHOWN)
            x = {name: jnp.asarray(drawn[name]) for name in ("obs", "action", "next_obs", "terminal")}
            batch = code.ExampleBatch(**x, future=jnp.asarray(future), example=jnp.asarray(examples)[index])
            agent, info = our_step(agent, batch)
            goals = np.hstack([drawn["obs"], future])
            rows += 2 * [(goals, drawn["action"], drawn["reward"], 1.0 - drawn["terminal"], goals)]
            learner.step()
        names = {"critic_loss": "critic_loss", "actor_loss": "actor_loss", "bc_loss": "bc_loss"}
        names |= {"own_logit": "logits_pos"}
        yield Step({a: ([np.asarray(info[a])], [np.asarray(seen.last[b])]) for a, b in names.items()}, view())


def stand_in_for_acme():
    """What the reference's update calls of acme, about its head."""
    if "acme" in sys.modules:
        return
    if (found := importlib.util.find_spec("acme")) is None:
        raise InputError("This comparison needs the package dm-acme: pip install --no-deps dm-acme.")
    head = module(Path(found.submodule_search_locations[0]) / HEAD, "acme_head")
    squashed = head.TanhTransformedDistribution
    head.TanhTransformedDistribution = partial(
        squashed, threshold=np.float64(EDGE)
    )  # of a plain number float32 is made
    sys.meta_path.insert(0, _Finder(UNUSED))
    networks, utils = (importlib.import_module(f"acme.jax.{name}") for name in ("networks", "utils"))
    networks.NormalTanhDistribution, networks.FeedForwardNetwork = head.NormalTanhDistribution, Network
    utils.zeros_like, utils.add_batch_dim = np.zeros_like, lambda x: x[None]
    utils.process_multiple_batches = lambda step, number: step
    importlib.import_module("acme.types").Transition = Transition


class Network(NamedTuple):
    init: Any
    apply: Any


class Transition(NamedTuple):
    observation: Any
    action: Any
    reward: Any
    discount: Any
    next_observation: Any


class Log:
    """What the reference logs."""

    def write(self, values):
        self.last = values


class Counter(int):
    """Of steps, which no update asks for."""

    def increment(self, **_):
        return {}


def shaken(tree, rng):
    return jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape), tree)


def layers(tree, *names):
    """Dense layers by their haiku names."""
    found = {name: tree["params"][f"Dense_{i}"] for i, name in enumerate(names)}
    return {name: {"w": layer["kernel"], "b": layer["bias"]} for name, layer in found.items()}


def of_actor(tree):
    made = layers(tree, "mlp/~/linear_0", "mlp/~/linear_1", "heads")
    heads = {name: jnp.split(x, 2, axis=-1) for name, x in made.pop("heads").items()}
    return made | {f"Normal/~/linear{end}": {n: x[i] for n, x in heads.items()} for i, end in enumerate(("", "_1"))}


def of_pairs(critic):
    made = {}
    for i, end in enumerate(("", "_1")):
        for tree, name in zip(critic, ("sa_encoder", "g_encoder")):
            member = jax.tree.map(lambda x, i=i: x[i], tree)
            made |= layers(member, *(f"{name}{end}/~/linear_{k}" for k in range(3)))
    return made


def softplus(actor):
    """Our actor with the reference's standard deviation, of the same parameters."""

    class Actor(actor):
        @nn.compact
        def __call__(self, obs):
            x = obs
            for i, size in enumerate(self.hidden_dims):
                x = nn.relu(nn.Dense(size, name=f"Dense_{i}")(x))
            heads = nn.Dense(2 * self.action_dim, name=f"Dense_{len(self.hidden_dims)}")(x)
            mean, raw = jnp.split(heads, 2, axis=-1)
            return mean, jnp.log(nn.softplus(raw) + LEAST)

    return Actor


def as_in_acme(mean, log_std, u):
    """log pi of tanh(u); of actions beyond the edge the logarithm of their mean density."""
    edge, std, norm = np.arctanh(EDGE), jnp.exp(log_std), jax.scipy.stats.norm
    inside = jnp.clip(u, -edge, edge)
    own = norm.logpdf(inside, mean, std) - 2.0 * (jnp.log(2.0) - inside - nn.softplus(-2.0 * inside))
    left, right = (norm.logcdf((-edge - sign * mean) / std) - np.log(1.0 - EDGE) for sign in (1.0, -1.0))
    close = edge - 1e-9  # of an action that was clipped there
    return jnp.where(u <= -close, left, jnp.where(u >= close, right, own)).sum(-1)


CASES = {
    name: Case(
        "khatch31/laeo",
        FILE,
        partial(compare, learned=not name),
        DEVIATIONS,
        note="The draw of later states is left out, and the arm with a learned reward. "
        + ("There is no entropy." if name else "Temperature and actor see the same noise, and theirs states alone."),
    )
    for name in ("", "no entropy")
}
