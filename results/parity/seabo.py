"""SEABO's labels and IQL beside its authors' code."""

import sys
import types
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np

from results import references as ref

FILE = "IQL/main_iql.py"
SHOWN = 40
DEVIATIONS = {
    "policy": "the policy is Gaussian and cloned by its log-likelihood, not deterministic with a squared error"
}


def compare(checkout, undo, key, neighbour, by_dimensions):
    torch, module = ref.torch_double(), ref.in_double(ref.ours("seabo"))
    ref.constants_in_double(module)
    labeller = ref.theirs(checkout, FILE, (*ref.ABSENT, "log", "utils", "coolname", "tqdm"))
    rng = np.random.default_rng(0)
    data = ref.batches(rng)
    args = module.Args(
        batch_size=ref.ROWS, updates=1_000_000, key=key, neighbour=neighbour, by_dimensions=by_dimensions,
        squash_alpha=1.5, squash_beta=0.4,
    )  # fmt: skip
    if "policy" in undo:
        module.actor_loss = partial(squared, module)
    agent = ref.agent_of(module, args, rng)
    trainer = sys.modules["IQL"].IQL(
        None, ref.OBS, ref.ACTION, args.expectile, args.discount, args.tau, args.beta, None
    )
    log = Log()
    ours = jax.jit(lambda agent, batch: module.update(agent, batch, jax.random.key(0), args))

    def networks():
        layers = {name: x for name, x in agent.actor["params"].items() if name != "log_std"}
        *hidden, last = trainer.actor.mlp.affines
        head = types.SimpleNamespace(weight=last.weight[: ref.ACTION], bias=last.bias[: ref.ACTION])
        named = {f"Dense_{i}": layer for i, layer in enumerate((*hidden, head))}
        critics = trainer.critic, trainer.critic_target
        pairs = [[pair(c, 1), pair(c, 4)] for c in critics]
        return {
            "actor": ref.tie_by_name({"params": layers}, named, trainer.actor, (last,)),
            "critic": ref.tie(agent.critic, pairs[0]),
            "target critic": ref.tie(agent.target_critic, pairs[1]),
            "value": ref.tie(agent.value, trainer.value),
        }

    def pair(critic, first):
        return torch.nn.ModuleList(getattr(critic, f"l{i}") for i in range(first, first + 3))

    def update():
        nonlocal agent
        rows, shown = next(data), next(ref.batches(rng, SHOWN))
        parts = {"sas": ("obs", "action", "next_obs"), "sa": ("obs", "action"), "ss": ("obs", "next_obs")}[key]
        spec = types.SimpleNamespace(spec=ref.SPEC)
        made = partial(types.SimpleNamespace, spec=ref.SPEC)
        own, demos = (made(**x, successor=np.ones(len(x["obs"]), bool)) for x in (rows, shown))
        found = types.SimpleNamespace(transitions=spec, distance=jnp.asarray(module.distances(own, demos, args)))
        label = module.labels(found, args)
        tree, queried = (np.hstack([x[name] for name in parts]) for x in (shown, rows))
        given = labeller.KDTree(tree), queried, neighbour, ref.ACTION, args.squash_beta, args.squash_alpha
        reward = labeller.rewarder(*given, not by_dimensions)
        agent, info = ours(agent, ref.batch({**rows, "reward": np.asarray(label)}))
        tensors = ref.tensors(
            {**rows, "reward": reward[:, 0], "not_done": 1 - rows["terminal"]},
            "obs",
            "action",
            "next_obs",
            "reward",
            "not_done",
        )
        trainer.total_it = 9999  # it logs every 10,000th
        trainer.train(types.SimpleNamespace(sample=lambda n: tensors), ref.ROWS, log)
        losses = {
            name: (ref.scalar(info[name]), ref.scalar(log.seen[f"train/{name}"]))
            for name in ("value_loss", "actor_loss", "critic_loss")
        }
        return {"labels": ([np.asarray(label)], [reward[:, 0]]), **losses}

    return ref.side_by_side(networks, update)


class Log:
    """What the reference logs."""

    def __init__(self):
        self.seen = {}

    def log(self, name, value, step):
        self.seen[name] = value.detach()


def squared(module, actor, agent, batch, key, args):
    """The released code's loss of the actor."""
    q = module.q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action).min(0)
    adv = q - agent.nets.critic.apply(agent.value, batch.obs)
    weight = jnp.minimum(jnp.exp(args.beta * adv), args.max_weight)
    mean, _ = agent.nets.actor.apply(actor, batch.obs)
    chex.assert_equal_shape([mean, batch.action])
    return (weight[:, None] * (mean - batch.action) ** 2).mean(), {"adv": adv.mean(), "weight": weight.mean()}


CASES = {
    name: ref.Case(
        "dmksjfl/SEABO",
        FILE,
        partial(compare, **options),
        DEVIATIONS,
        note=f"The labels of every batch by {SHOWN} other transitions, then IQL's update with them, without dropout.",
    )
    for name, options in {
        "sas": {"key": "sas", "neighbour": 1, "by_dimensions": True},
        "ss, third neighbour": {"key": "ss", "neighbour": 3, "by_dimensions": False},
    }.items()
}
