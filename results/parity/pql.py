"""PQL's two learners beside the authors' two processes, each with the other's network of before."""

import types
from copy import deepcopy
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from results import references as ref

FILE = "pql/algo/pql_v_learner.py"
DEVIATIONS = {"norm": "gradients are scaled to the clipped norm exactly; the reference adds 1e-6 to their norm"}
CRITIC, ACTOR = 4, 2
"""Updates of either learner per step of the environments."""


def compare(checkout, undo):
    torch, module = ref.torch_double(), ref.ours("pql")
    absent = (*ref.ABSENT, "ray", "loguru", "omegaconf")
    v_file = ref.theirs(checkout, FILE, absent)
    p_file = ref.theirs(checkout, "pql/algo/pql_p_learner.py", absent)
    for file in (v_file, p_file):  # both processes have GPUs of their own
        file.torch = OnCpu()
    rng = np.random.default_rng(0)
    noise, data = ref.Noise(rng), ref.batches(rng)
    args = module.Args(batch_size=ref.ROWS, critic_per_step=CRITIC, actor_per_step=ACTOR)
    if "norm" in undo:
        module.optimizer = with_their_norm
    agent = ref.agent_of(module, args, rng)
    mean, var = 0.1 * rng.standard_normal(ref.OBS), 0.5 + rng.random(ref.OBS)
    agent = agent.replace(obs_mean=jnp.asarray(mean), obs_var=jnp.asarray(var))
    settings = types.SimpleNamespace(
        v_learner_gpu=0, p_learner_gpu=0, distl=False, obs_norm=True, cri_class="DoubleQ", act_class="TanhMLPPolicy",
        critic_lr=args.critic_lr, actor_lr=args.actor_lr, max_grad_norm=args.max_grad_norm, memory_size=ref.ROWS,
        batch_size=ref.ROWS, gamma=args.discount, nstep=args.n_step, tau=args.tau,
        noise=types.SimpleNamespace(tgt_pol_std=args.policy_noise, tgt_pol_noise_bound=args.noise_clip),
    )  # fmt: skip
    config = types.SimpleNamespace(algo=settings, available_gpus=1, artifact=None)
    critics, actors = v_file.PQLVLearner(ref.OBS, ref.ACTION, config), p_file.PQLPLearner(ref.OBS, ref.ACTION, config)
    critics.normalize_tuple = actors.normalize_tuple = torch.tensor(mean), torch.tensor(var), 1e-4
    actors.cur_capacity = ref.ROWS

    def both(q):
        return [q.net_q1, q.net_q2]

    def networks():
        return {
            "actor": ref.tie(agent.actor, actors.actor),
            "critic": ref.tie(agent.critic, both(critics.critic)),
            "target critic": ref.tie(agent.target_critic, both(critics.critic_target)),
        }

    def update():
        nonlocal agent
        rows, states = [next(data) for _ in range(CRITIC)], [next(data)["obs"] for _ in range(ACTOR)]
        steps = np.full(ref.ROWS, float(args.n_step))
        batch = jax.tree.map(lambda *x: jnp.stack(x), *(ref.batch({**r, "n_steps": steps}, "n_steps") for r in rows))
        with noise.ours():
            agent, info = module.update(agent, batch, jnp.asarray(np.stack(states)), jax.random.key(0), args)
        critics.actor, actors.critic = deepcopy(actors.actor), deepcopy(critics.critic)
        losses = {"critic": [], "actor": []}
        with noise.theirs():
            for one in rows:
                theirs = ref.tensors(one, "obs", "action", "reward", "next_obs", "terminal")
                critics.memory = mock.Mock(sample_batch=lambda n, device, theirs=theirs: theirs)
                critics.learn()
                losses["critic"].append(critics.loss_tracker.moving_average[-1])
            for one in states:
                actors.memory = torch.tensor(one)
                actors.learn()
                losses["actor"].append(actors.loss_tracker.moving_average[-1])
        return {name: (ref.scalar(info[f"{name}_loss"]), ref.scalar(np.mean(x))) for name, x in losses.items()}

    return ref.side_by_side(networks, update)


class OnCpu:
    """torch, whose every device is the CPU, and of whose integers every one is drawn once."""

    def __getattr__(self, name):
        import torch

        own = {"device": lambda _: torch.device("cpu"), "randint": lambda n, **_: torch.arange(n)}
        return own[name] if name in own else getattr(torch, name)


def with_their_norm(learning_rate, args):
    def clip(grads, state, params=None):
        scale = jnp.minimum(1.0, args.max_grad_norm / (optax.global_norm(grads) + 1e-6))
        return jax.tree.map(lambda x: scale * x, grads), state

    clipping = optax.GradientTransformation(lambda params: optax.EmptyState(), clip)
    return optax.chain(clipping, optax.adamw(learning_rate, weight_decay=args.weight_decay))


CASES = {"": ref.Case("Improbable-AI/pql", FILE, compare, DEVIATIONS)}
