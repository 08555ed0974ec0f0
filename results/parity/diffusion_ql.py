"""Diffusion-QL beside its authors' code."""

import sys
from functools import partial
from unittest import mock

import jax
import numpy as np

from results import references as ref

FILE = "agents/ql_diffusion.py"
DEVIATIONS = {"clip": "gradients are scaled to the largest norm itself; PyTorch divides by the norm + 1e-6"}


def compare(checkout, undo, max_q_backup):
    torch = ref.torch_double()
    module, peer = ref.in_double(ref.ours("diffusion_ql")), ref.theirs(checkout, FILE)
    rng = np.random.default_rng(0)
    noise, data = ref.Noise(rng), ref.batches(rng)
    args = module.Args(
        batch_size=ref.ROWS, eta=2.0, target_start=2, target_every=3, max_grad_norm=0.5, max_q_backup=max_q_backup
    )
    agent = ref.agent_of(module, args, rng)
    schedule, helpers = sys.modules["agents.diffusion"], sys.modules["agents.helpers"]
    ref.replace(schedule, "vp_beta_schedule", partial(helpers.vp_beta_schedule, dtype=torch.float64))
    trainer = peer.Diffusion_QL(
        ref.OBS,
        ref.ACTION,
        1.0,
        "cpu",
        0.99,
        0.005,
        max_q_backup=max_q_backup,
        eta=2.0,
        beta_schedule="vp",
        n_timesteps=5,
        step_start_ema=2,
        update_ema_every=3,
        grad_norm=0.5,
    )
    if "clip" in undo:
        ref.replace(torch.nn.utils, "clip_grad_norm_", partial(exact_clip, torch))

    def networks():
        q, target_q = trainer.critic, trainer.critic_target
        return {
            "actor": ref.tie(agent.actor, trainer.actor),
            "critic": ref.tie(agent.critic, [q.q1_model, q.q2_model]),
            "target actor": ref.tie(agent.target_actor, trainer.ema_model),
            "target critic": ref.tie(agent.target_critic, [target_q.q1_model, target_q.q2_model]),
        }

    def update():
        nonlocal agent
        rows = next(data)
        with noise.ours():
            agent, info = module.update(agent, ref.batch(rows), jax.random.key(0), args)
        *critic, step, z, steps, first, which = noise.drawn
        draws = [*chain(*critic), step, z, *chain(steps, first)]
        tensors = ref.tensors(rows, "obs", "action", "next_obs", "reward", "terminal")
        tensors[-1] = 1 - tensors[-1]
        memory = mock.Mock(sample=lambda n: tensors)
        with noise.theirs(draws), mock.patch.object(np.random, "uniform", lambda: float(which.array == 0)):
            log = trainer.train(memory, 1, ref.ROWS)
        names = "critic_loss", "actor_loss", "bc_loss"
        return {name: (ref.scalar(info[name]), ref.scalar(log[name][0])) for name in names}

    return ref.side_by_side(networks, update)


def chain(steps, first):
    """Our draws of a reverse chain, [T, n, B, A] and [n, B, A], in the order and layout of theirs: [B, n, A]."""

    def laid(x):
        return ref.Draw("normal", x.swapaxes(0, 1) if x.ndim == 3 else x)

    return [laid(first.array), *map(laid, steps.array)]


def exact_clip(torch, parameters, max_norm, norm_type=2):
    grads = [p.grad for p in parameters]
    norm = torch.sqrt(sum((g**2).sum() for g in grads))
    for g in grads:
        g.mul_(max_norm / max(norm, max_norm))
    return norm


CASES = {
    name: ref.Case(
        "Zhendong-Wang/Diffusion-Policies-for-Offline-RL",
        FILE,
        partial(compare, max_q_backup=bool(name)),
        DEVIATIONS,
        note="eta 2, gradients' norm at most 0.5, the averaged policy from the third update on, every third.",
    )
    for name in ("", "max-Q backup")
}
