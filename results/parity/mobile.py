"""MOBILE beside OfflineRL-Kit's, whose authors are its own: the model's phase, rollouts, and the penalised target."""

import jax
import numpy as np

from results import kit_references as kit
from results import references as ref

FILE = "offlinerlkit/policy/model_based/mobile.py"
DEVIATIONS = {
    "sum": "the critics' errors are summed, in the Kit averaged: the same for Adam but for its epsilon",
    "log det": kit.LOG_DET,
}
UPDATES = 20
"""Of the whole run: over which the actor's cosine falls."""


def compare(checkout, undo):
    settings = {"real_share": 0.25, "next_samples": 2, "inconsistency": 1.5, "target_floor": 0.0}
    sides = kit.start(checkout, "mobile", undo, updates=UPDATES, **settings)
    torch, module, args = sides.torch, sides.module, sides.args
    from offlinerlkit.policy import MOBILEPolicy

    if "sum" in undo:
        ref.replace(module, "critic_loss", averaged(module.critic_loss, args.n_critics))
    critics = torch.nn.ModuleList(sides.critics)
    actor_optimizer = torch.optim.Adam(sides.actor.parameters(), lr=args.actor_lr)
    critics_optimizer = torch.optim.Adam(critics.parameters(), lr=args.critic_lr)
    policy = MOBILEPolicy(
        sides.dynamics, sides.actor, critics, actor_optimizer, critics_optimizer,
        alpha=sides.alpha, penalty_coef=args.inconsistency, num_samples=args.next_samples, deterministic_backup=True,
    )  # fmt: skip
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(actor_optimizer, UPDATES)
    batches = ref.batches(sides.rng)

    def networks():
        return kit.networks(sides, list(policy.critics_old))

    def update():
        losses, data = kit.fit_both(sides)
        losses |= kit.roll_both(sides, policy, data)
        rows = next(batches)
        with sides.noise.ours():
            sides.agent, info = module.update(sides.agent, ref.batch(rows), jax.random.key(0), args)
        of_model, *others = sides.noise.drawn  # theirs has rewards too, which it does not look at
        of_model = [ref.Draw("normal", np.pad(x, ((0, 0), (0, 0), (0, 1)))) for x in of_model.array]
        with sides.noise.theirs([*of_model, *others]):
            log = policy.learn(kit.parts(sides, rows))
        cosine.step()
        return losses | kit.update_losses(info, log)

    return ref.side_by_side(networks, update)


def averaged(critic_loss, n):
    def loss(*args):
        summed, info = critic_loss(*args)
        return summed / n, info

    return loss


NOTE = f"{kit.PARTS} {kit.COSINE} Targets are held at 0 or above, as in the Kit and in the presets."
CASES = {"": ref.Case(kit.REFERENCE, FILE, compare, DEVIATIONS, note=NOTE)}
