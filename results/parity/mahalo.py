"""MAHALO beside its authors' code, which needs microsoft/lightATAC on the PYTHONPATH."""

from functools import partial
from importlib import import_module
from unittest import mock

import jax
import numpy as np

from results import references as ref
from shared.task import Spec

FILE = "mahalo/mahalo.py"
SPEC = Spec((ref.OBS,), 1, False, (-1.0,), (1.0,))


def one_last(tree):
    """The actor's last two layers, of the mean and of the deviation, as one."""
    layers = dict(tree["params"])
    mean, deviation = layers.pop("Dense_3"), layers.pop("Dense_4")
    return {"params": {**layers, "Dense_3": {k: np.concatenate([mean[k], deviation[k]], -1) for k in mean}}}


def compare(checkout, undo, relative=True):
    torch, module = ref.torch_double(), ref.ours("mahalo")
    peer = ref.theirs(checkout, FILE, (*ref.ABSENT, "torchaudio"))
    reward_functions = ref.theirs(checkout, "mahalo/reward_functions.py")
    policy, value_functions = (import_module(f"lightATAC.{name}") for name in ("policy", "value_functions"))

    rng = np.random.default_rng(0)
    noise, data = ref.Noise(rng), ref.batches(rng, action=1)
    args = module.Args(
        batch_size=ref.ROWS, consistency_weight=4.0, reward_weight=3.0, actor_lr=1e-3, critic_lr=1e-3, max_norm=5.0,
        relative=relative,
    )  # fmt: skip
    agent = ref.agent_of(module, args, rng, SPEC)
    agent = agent.replace(critic=module.bounded(agent.critic, args))
    bounds = module.Bounds(np.float64(-0.2), np.float64(0.3))
    sizes = {"hidden_dim": 256, "n_hidden": 3}
    actor = policy.GaussianPolicy(ref.OBS, 1, use_tanh=True, std_type="diagonal", **sizes)
    critic = value_functions.TwinQ(ref.OBS, 1, **sizes)
    reward = reward_functions.StateTransitionRewardFunction(ref.OBS, **sizes)
    for network in (actor, critic, reward):  # made in float32
        network.double()
    trainer = peer.MAHALO(
        policy=actor,
        qf=critic,
        rf=reward,
        optimizer=torch.optim.Adam,
        discount=args.discount,
        Vmin=-1.0 / (1.0 - args.discount),
        Vmax=1.0 / (1.0 - args.discount),
        rmin=-0.2,
        rmax=0.3,
        action_shape=1,
        policy_lr=1e-3,
        qf_lr=1e-3,
        beta=4.0,
        norm_constraint=5.0,
        alpha_beta_ratio=3.0,
        buffer_batch_size=ref.ROWS,
    )
    trainer._alpha_optimizer.param_groups[0]["lr"] = args.alpha_lr

    def networks():
        target = trainer._target_qf
        return {
            "actor": ref.tie(one_last(agent.actor), actor),
            "critic": ref.tie(agent.critic, [critic.q1, critic.q2]),
            "target critic": ref.tie(agent.target_critic, [target.q1, target.q2]),
            "reward": ref.tie(agent.reward, reward),
            "log alpha": [ref.Tied(np.asarray(agent.log_alpha).reshape(1), trainer._log_alpha)],
        }

    def update():
        nonlocal agent
        rows, shown, states = next(data), next(data), None if relative else next(data)["obs"]
        with noise.ours():
            agent, info = module.update(
                agent, ref.batch(rows), ref.batch(shown), jax.random.key(0), bounds, args, states=states
            )
        given = [torch.tensor(rows[name]) for name in ("obs", "action", "next_obs", "terminal")]
        given += [torch.tensor(shown[name]) for name in ("obs", "next_obs", "reward", "terminal")]
        trainer._init_observations = None if relative else torch.tensor(states)
        draw = noise.drawn[0]
        in_order = mock.patch.object(np.random, "choice", lambda n, size: np.arange(size))
        with in_order, noise.theirs([draw._replace(array=x) for x in draw.array]):
            log = trainer.update(*given)
        return {
            "critic and reward": (ref.scalar(info["critic_loss"]), ref.scalar(log["qf_loss"])),
            "reward's fit": (ref.scalar(info["reward_error"]), ref.scalar(log["rf_loss"])),
            "actor": (ref.scalar(info["actor_loss"]), ref.scalar(log["policy_loss"])),
        }

    return ref.side_by_side(networks, update)


NOTE = (
    "The game's update, not the warm start; one action dimension, where sum and mean of log-probabilities are "
    "one; weights of 4 and 3 (10 and 1e5 by default), and a norm of 5 (100), so that every term counts."
)
CASES = {
    "": ref.Case("AnqiLi/mahalo", FILE, compare, note=NOTE),
    "PSPI": ref.Case(
        "AnqiLi/mahalo", FILE, partial(compare, relative=False), note="With --no-relative; settings as above."
    ),
}
