"""HNPG beside the authors' code: one iteration's critics and policies."""

import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from results.references import (
    ACTION,
    OBS,
    Case,
    Step,
    give,
    in_general_position,
    ours,
    scalar,
    theirs,
    tie,
    torch_double,
    values,
)  # fmt: skip
from shared.task import Spec
from shared.transitions import Batch

FILE = "trpo.py"
H, E = 3, 8
REGULARISER = "regulariser"
NOISE = np.linspace(-0.7, 0.9, ACTION)
"""What every draw of an action is, on both sides, in units of its standard deviation."""


class Offline:
    """The reference's buffer of one step: the rows that are put in."""

    capacity = E

    def sample(self, n):
        return self.rows


def compare(checkout, undo):
    torch, code = torch_double(), ours("hnpg")
    peer = theirs(checkout, FILE, ("torchvision", "gym", "cifar", "matplotlib"))
    rng = np.random.default_rng(0)
    args = code.Args(horizon=H, steps_per_iteration=H * E)
    spec = Spec((OBS + 1,), ACTION, False, (-1.0,) * ACTION, (1.0,) * ACTION)
    agent = in_general_position(code.init(jax.random.key(0), args, spec), rng)
    l2 = 0.0 if REGULARISER in undo else 1e-3
    trpo = peer.TRPO(OBS, ACTION, H, l2, 1.0, args.gae_lambda, args.max_kl, args.damping, 0.0)
    buffers = [Offline() for _ in range(H)]

    def tied():
        made = {}
        for h in range(H):
            actor, critic = (jax.tree.map(lambda x, h=h: x[h], tree) for tree in (agent.actor, agent.critic))
            policy = trpo.policy_net[h]
            made[f"actor {h}"] = tie(actor, policy, {"log_std": policy.action_log_std})
            made[f"critic {h}"] = tie(critic, trpo.q_net[h])
        return made

    def normal(key, shape=(), dtype=None):
        return jnp.broadcast_to(jnp.asarray(NOISE), shape)

    def torch_normal(mean, std):
        return mean + std * torch.tensor(NOISE)

    def rows(*names):
        sizes = {"obs": (OBS,), "next_obs": (OBS,), "action": (ACTION,), "reward": ()}
        return Batch(**{name: rng.standard_normal((H, E, *sizes[name])) for name in names})

    for network in tied().values():
        give(network)
    yield Step({}, {name: values(network) for name, network in tied().items()})
    update = jax.jit(lambda agent, *batches: code.update(agent, *batches, jax.random.key(0), args))
    while True:
        online, offline = rows("obs", "action", "reward"), rows("obs", "action", "reward", "next_obs")
        with mock.patch.object(jax.random, "normal", normal):
            agent, info = update(agent, online, offline)
        steps = [(e, h) for e in range(E) for h in range(H)]
        memory = types.SimpleNamespace(
            reward=[online.reward[h, e] for e, h in steps],
            mask=[float(h < H - 1) for _, h in steps],
            action=[online.action[h, e][None] for e, h in steps],
            state=[online.obs[h, e] for e, h in steps],
            horizon=[h for _, h in steps],
        )
        for h, buffer in enumerate(buffers):
            obs, action, reward, following = (
                torch.tensor(x[h]) for x in (offline.obs, offline.action, offline.reward[..., None], offline.next_obs)
            )
            buffer.rows = (obs, action, reward, following, None, None)
        with mock.patch.object(torch, "normal", torch_normal):
            on, off, before, after = trpo.update_params(memory, buffers, H, 0)
        losses = {
            "on-policy": (scalar(info["online_loss"]), scalar(on)),
            "offline": (scalar(info["offline_loss"]), scalar(off)),
            "improvement": (scalar(info["improvement"]), scalar(before - after)),
        }
        yield Step(losses, {name: values(network) for name, network in tied().items()})


DEVIATIONS = {REGULARISER: "no weight decay; the reference's reaches the output's bias of each critic alone"}
NOTE = "Every drawn action is the mean plus one fixed multiple of the standard deviation."
CASES = {"": Case("YifeiZhou02/HNPG", FILE, compare, DEVIATIONS, note=NOTE)}
