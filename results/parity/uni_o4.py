"""Uni-O4's three stages beside its authors' code, each on its own."""

import sys
import types
from copy import deepcopy
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from results import references as ref

REFERENCE = "Lei-Kun/Uni-O4"
P, WIDTH, T = 3, 64, 40
"""Policies; width of all layers; updates over which stage 2 decays."""
ORDER = "obs", "action", "reward", "next_obs", "next_action", "terminal", "return_to_go"


class Memory:
    """Their replay buffer's face, over one batch."""

    def __init__(self, rows):
        rows = {**rows, "terminal": 1 - rows["terminal"]}
        self.tensors = [*ref.tensors(rows, *ORDER), None]

    def sample(self, size):
        return self.tensors


def start(**settings):
    torch, module = ref.torch_double(), ref.ours("uni_o4")
    rng = np.random.default_rng(0)
    args = module.Args(
        batch_size=ref.ROWS,
        n_actors=P,
        n_models=2,
        hidden_dims=(WIDTH,) * 3,
        critic_hidden_dims=(WIDTH,) * 2,
        value_hidden_dims=(WIDTH,) * 3,
        model_hidden_dims=(8,),
        offline_updates=T,
        clip_decay_updates=8,
        **settings,
    )
    return torch, module, rng, ref.Noise(rng), ref.batches(rng), args, ref.agent_of(module, args, rng)


def iql(critic, args):
    return critic.IQL_Q_V(
        "cpu", ref.OBS, ref.ACTION, WIDTH, 2, 1e-4, 1, args.tau, 0.99, ref.ROWS, WIDTH, 3, 1e-4, args.expectile, True
    )


def exact_clip(torch):
    """PyTorch divides by the norm + 1e-6."""

    def clip(parameters, largest):
        parameters = list(parameters)
        norm = torch.sqrt(sum((p.grad**2).sum() for p in parameters))
        for p in parameters:
            p.grad.mul_(largest / max(norm, largest))

    ref.replace(torch.nn.utils, "clip_grad_norm_", clip)


def population_std(torch):
    std = torch.Tensor.std
    ref.replace(torch.Tensor, "std", lambda x: std(x, correction=0))


# ------------------------------------------------------------------------------ stage 1: what PPO needs

PRETRAIN = {
    "KL": "the disagreement is a KL divergence under the policy's own actions; the authors' is the ratio at the data's",
    "at once": "all policies are updated at once; the authors' in turn",
}


def pretrain(checkout, undo):
    disagreement = "data" if "KL" in undo else "kl"
    torch, module, rng, noise, data, args, agent = start(tau=0.005, disagreement=disagreement)
    clones = ref.theirs(checkout, "BC_ensemble.py")
    critic = ref.theirs(checkout, "critic.py")
    theirs = iql(critic, args)
    ensemble = clones.BC_ensemble(P, "cpu", ref.OBS, WIDTH, 3, ref.ACTION, 1e-4, ref.ROWS)

    def networks():
        q, target = theirs._Q, theirs._target_Q
        return {
            "clones": ref.tie(agent.actors, [bc._policy for bc in ensemble.ensemble]),
            "critic": ref.tie(agent.critic, [q._net1, q._net2]),
            "target critic": ref.tie(agent.target_critic, [target._net1, target._net2]),
            "value": ref.tie(agent.value, theirs._value),
        }

    def their_clones(memory):
        if "at once" not in undo:
            return ensemble.joint_train(memory, 0.1, shuffle=False)
        before, losses = deepcopy(ensemble.ensemble), []
        for i, bc in enumerate(ensemble.ensemble):
            lists = {"all_prob_a": [], "means": [], "stds": []}
            others = before[:i] + before[i + 1 :]
            losses.append(bc.update(*memory.tensors[:2], others, 0.1, "data", **lists)[0])
        return losses

    def update():
        nonlocal agent
        rows = next(data)
        with noise.ours():
            agent, info = module.update_critic(agent, ref.batch(rows), args)
            agent, of_clones = module.update_clones(agent, ref.batch(rows), jax.random.key(0), args)
        memory = Memory(rows)
        q_loss, v_loss = theirs.update(memory)
        return {
            "critic": (ref.scalar(info["critic_loss"]), ref.scalar(q_loss)),
            "value": (ref.scalar(info["value_loss"]), ref.scalar(v_loss)),
            "clones": (ref.scalar(of_clones["clone_loss"]), ref.scalar(np.sum(their_clones(memory)))),
        }

    return ref.side_by_side(networks, update)


# ------------------------------------------------------------------------ stage 2: PPO on the dataset

CLIP = "gradients are scaled to the largest norm itself; PyTorch divides by the norm + 1e-6"
STD = "advantages are normalised by their deviation over the batch; the authors' is the estimate with n - 1"
OFFLINE = {
    "clip": CLIP,
    "std": STD,
    "epsilon": "1e-8 is added to that deviation; the authors add 1e-10",
    "bound": "actions are clipped to [-1, 1]; the authors', where they clip, to [-1 + 1e-5, 1 + 1e-5]",
    "lag": "the step size of an update is that of the update; the authors' is that of the one before",
}


def offline(checkout, undo):
    torch, module, rng, noise, data, args, agent = start(max_grad_norm=0.5)
    peer, critic = ref.theirs(checkout, "abppo.py"), ref.theirs(checkout, "critic.py")
    theirs = iql(critic, args)
    settings = {
        "policy_lr": args.actor_lr,
        "clip_ratio": args.clip,
        "entropy_weight": 0.0,
        "decay": 0.96,
        "omega": 0.7,
        "batch_size": ref.ROWS,
        "belief_dim": P,
        "discount": 0.99,
        "is_iql": True,
        "kl_update": False,
        "kl_strategy": "max",
        "alpha_bppo": 0.0,
        "is_clip_action": True,
    }
    ensemble = peer.AdaptiveBehaviorProximalPolicyOptimization("cpu", ref.OBS, WIDTH, 3, ref.ACTION, **settings)
    if "clip" in undo:
        exact_clip(torch)
    if "std" in undo:
        population_std(torch)
    if "epsilon" in undo:
        peer.CONST_EPS = 1e-8
    if "bound" in undo:
        clamp = torch.Tensor.clamp

        def bounded(x, low, high):
            return clamp(x, -1.0, 1.0) if high == 1.0 + 1e-5 else clamp(x, low, high)

        ref.replace(torch.Tensor, "clamp", bounded)

    def networks():
        q = theirs._Q
        return {
            "actors": ref.tie(agent.actors, [one._policy for one in ensemble.bppo_ensemble]),
            "old actors": ref.tie(agent.old_actors, [one._old_policy for one in ensemble.bppo_ensemble]),
            "critic": ref.tie(agent.critic, [q._net1, q._net2]),
            "value": ref.tie(agent.value, theirs._value),
        }

    t = -1

    def update():
        nonlocal agent, t
        t += 1
        rows = next(data)
        with noise.ours():
            agent, info = module.update(agent, ref.batch(rows), jax.random.key(0), args, t)
        draws = [ref.Draw("normal", x) for x in noise.drawn[0].array]
        clip_now = args.clip * (1 - min(t, args.clip_decay_updates) / T)
        lr_now = args.actor_lr * (1 - (t + ("lag" in undo)) / T)
        with noise.theirs(draws):
            losses = ensemble.joint_train(Memory(rows), None, True, False, True, lr_now, clip_now, iql=theirs)
        return {"actors": (ref.scalar(info["actor_loss"]), ref.scalar(losses.sum()))}

    return ref.side_by_side(networks, update)


# ------------------------------------------------------------------------- stage 3: PPO on rollouts

ONLINE = {
    "clip": CLIP,
    "std": STD,
    "tanh": "the log standard deviation is a tanh's output; in the authors' PPO the tanh is taken twice",
}
ROLLOUT, MINIBATCH = 32, 8


def online(checkout, undo):
    torch, module, rng, noise, data, args, agent = start(
        steps_per_iteration=ROLLOUT, minibatch_size=MINIBATCH, epochs=2, env_steps=1000, online_actor_lr=1e-4
    )
    peer = ref.theirs(checkout, "ppo_finetune/ppo.py")
    settings = {
        "max_action": 1.0,
        "batch_size": ROLLOUT,
        "mini_batch_size": MINIBATCH,
        "max_train_steps": args.env_steps,
        "lr_a": args.online_actor_lr,
        "lr_c": args.online_value_lr,
        "gamma": args.discount,
        "lamda": args.gae_lambda,
        "epsilon": args.online_clip,
        "K_epochs": args.epochs,
        "entropy_coef": args.entropy_weight,
        "set_adam_eps": True,
        "use_grad_clip": True,
        "use_lr_decay": True,
        "use_adv_norm": True,
        "is_decay_pi": False,
        "is_clip_value": True,
        "scale_strategy": None,
        "use_tanh": False,
        "std_upper_bound": 0.0,
        "state_dim": ref.OBS,
        "action_dim": ref.ACTION,
        "hidden_width": WIDTH,
        "depth": 3,
        "v_hidden_width": WIDTH,
        "v_depth": 3,
    }
    trainer = peer.PPO(types.SimpleNamespace(**settings), "cpu")
    if "clip" in undo:
        exact_clip(torch)
    if "std" in undo:
        population_std(torch)
    if "tanh" in undo:
        once = lambda x, bound: bound[0] + 0.5 * (bound[1] - bound[0]) * (x + 1)  # noqa: E731
        ref.replace(sys.modules["net"], "soft_clamp", once)

    def networks():
        return {"actor": ref.tie(agent.actor, trainer.actor), "value": ref.tie(agent.value, trainer.critic)}

    t = 0

    def update():
        """One rollout: two epochs of four gradient steps."""
        nonlocal agent, t
        t += ROLLOUT
        rows = next(ref.batches(rng, ROLLOUT))
        with torch.no_grad():  # what such a policy would have done
            policy = trainer.actor.get_dist(torch.tensor(rows["obs"]))
            action = policy.mean + policy.stddev * torch.tensor(rng.standard_normal(rows["action"].shape))
            rows["action"] = action.clamp(-1.0, 1.0).numpy()
        ended, order = np.maximum(rows["terminal"], rng.random(ROLLOUT) < 0.2), rng.permutation(ROLLOUT)
        shuffled = mock.patch.object(jax.random, "permutation", lambda key, x: jnp.asarray(order))
        with noise.ours(), shuffled:
            last = ref.batch(rows), jnp.asarray(ended), jax.random.key(0), args, t - 1
            agent, info = module.update_online(agent, *last)
        peer.SubsetRandomSampler = lambda rows: order.tolist()
        obs, action, reward, next_obs, terminal = ref.tensors(rows, "obs", "action", "reward", "next_obs", "terminal")
        rollout = obs, action, policy.log_prob(action), reward, next_obs, terminal, torch.tensor(ended[:, None])
        actor, critic = trainer.update(mock.Mock(numpy_to_tensor=lambda: rollout), t)
        return {
            "actor": (ref.scalar(info["online_actor_loss"]), ref.scalar(actor)),
            "value": (ref.scalar(info["baseline_loss"]), ref.scalar(critic)),
        }

    return ref.side_by_side(networks, update)


CASES = {
    "stage 1": ref.Case(
        REFERENCE,
        "BC_ensemble.py",
        pretrain,
        PRETRAIN,
        note="Q, V and 3 clones; targets follow at every update on both sides.",
    ),
    "stage 2": ref.Case(
        REFERENCE,
        "abppo.py",
        offline,
        OFFLINE,
        still=("old actors", "critic", "value"),
        note="PPO on the dataset, 3 policies; without the gate (AM-Q is not compared).",
    ),
    "stage 3": ref.Case(
        REFERENCE,
        "ppo_finetune/ppo.py",
        online,
        ONLINE,
        note="PPO on rollouts, with the same V; one update is a rollout of 32 steps, two epochs of it.",
    ),
}
