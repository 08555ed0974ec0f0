"""RAMBO beside OfflineRL-Kit's: the model's phase, rollouts, SAC's step, and the model's turn in the game."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from results import kit_references as kit
from results import references as ref

FILE = "offlinerlkit/policy/model_based/rambo.py"
DEVIATIONS = {
    "anew": "rollouts of the game begin anew where they terminate; the Kit's go on",
    "rows": "in the game each member has rows of its own, as in the authors' code; the Kit's share them",
    "bounds": "in the game the bounds of the log variance weigh 0.01 as before it; in the Kit 0.001",
    "deviation": "the advantage's variance divides by the rows, as in the authors' code; in the Kit by one less",
    "temperature": "SAC's temperature may exceed 1, as in the authors' code; the Kit's may not",
    "log det": kit.LOG_DET,
}
GAME = 2 * kit.STEPS


def compare(checkout, undo):
    sides = kit.start(checkout, "rambo", undo, adversary_updates=GAME, adversary_weight=0.5)
    torch, module, args = sides.torch, sides.module, sides.args
    sides.agent = sides.agent.replace(log_alpha=jnp.full((), 0.05))  # where the Kit holds the temperature at 1
    from offlinerlkit.policy import RAMBOPolicy

    if "temperature" in undo:
        ref.replace(module, "temperature", lambda agent: jnp.minimum(jnp.exp(agent.log_alpha), 1.0))
    if "deviation" in undo:
        ref.replace(module, "advantage", with_their_deviation(module))
    optimizers = [torch.optim.Adam(sides.actor.parameters(), lr=args.actor_lr)]
    optimizers += [torch.optim.Adam(critic.parameters(), lr=args.critic_lr) for critic in sides.critics]
    optimizers.append(torch.optim.Adam(sides.dynamics.model.parameters(), lr=args.adversary_lr))
    policy = RAMBOPolicy(
        sides.dynamics, sides.actor, *sides.critics, *optimizers, alpha=sides.alpha, adv_weight=args.adversary_weight,
        adv_train_steps=GAME, adv_rollout_batch_size=ref.ROWS, adv_rollout_length=kit.STEPS,
    )  # fmt: skip
    batches = ref.batches(sides.rng)

    def networks():
        return kit.networks(sides, [policy.critic1_old, policy.critic2_old])

    def play(data):
        """The model's turn, on both sides -> its mean loss."""
        patches, randint = [], None

        def shared_rows(key, shape, *limits, **others):
            drawn = randint(key, shape, *limits, **others)
            if "rows" in undo and len(shape) == 2:
                drawn = jnp.broadcast_to(drawn[:1], shape)
                sides.noise.drawn[-1] = ref.Draw("integers", np.asarray(drawn))
            return drawn

        if "bounds" in undo:
            patches.append(mock.patch.object(module, "model_loss", looser(module.model_loss)))
        if "anew" in undo:
            patches.append(mock.patch.object(module, "jnp", GoingOn()))
        with sides.noise.ours(), kit.chosen(sides) as members:
            randint = jax.random.randint
            with mock.patch.object(jax.random, "randint", shared_rows):
                for patch in patches:
                    patch.start()
                sides.agent, info = module.adversary(
                    sides.agent, jax.random.key(0), args, kit.packed(data), kit.ends, kit.HELD_OUT
                )
                for patch in patches:
                    patch.stop()
        steps = [sides.noise.drawn[i : i + 4] for i in range(0, 4 * GAME, 4)]  # start, action, outcome, rows
        asked = []
        for t, (first, _, _, rows) in enumerate(steps):
            asked += [first.array] if t % kit.STEPS == 0 else []
            asked.append(kit.HELD_OUT + rows.array[0])
        names = {"observations": "obs", "actions": "action", "next_observations": "next_obs", "rewards": "reward"}

        class Real:
            def sample(self, size):
                at = asked.pop(0)
                arrays = {name: np.asarray(getattr(data, own))[at] for name, own in names.items()}
                return {name: torch.tensor(x[:, None] if x.ndim == 1 else x) for name, x in arrays.items()}

        shape = (args.n_models, ref.ROWS, ref.OBS + 1)
        sides.dynamics.model.random_elite_idxs = lambda size: members.pop(0)
        draws = [[one[1], one[2]._replace(array=np.broadcast_to(one[2].array, shape))] for one in steps]
        with sides.noise.theirs([draw for pair in draws for draw in pair]):
            log = policy.update_dynamics(Real())
        return ref.scalar(info["adversary_loss"]), ref.scalar(log["adv_dynamics_update/all_loss"])

    def update():
        losses, data = kit.fit_both(sides)
        losses |= kit.roll_both(sides, policy, data)
        rows = next(batches)
        with sides.noise.ours():
            sides.agent, info = module.update(sides.agent, ref.batch(rows), jax.random.key(0), args)
        with sides.noise.theirs():
            log = policy.learn(kit.parts(sides, rows))
        return losses | kit.update_losses(info, log) | {"game": play(data)}

    return ref.side_by_side(networks, update)


class GoingOn:
    """jax.numpy, whose `where` does not begin a rollout anew."""

    def __getattr__(self, name):
        return getattr(jnp, name)

    def where(self, condition, new, old):
        return old if condition.shape == (ref.ROWS, 1) else jnp.where(condition, new, old)


def looser(model_loss):
    def loss(model, *others):
        value, info = model_loss(model, *others)
        bounds = model["params"]["max_log_var"].sum() - model["params"]["min_log_var"].sum()
        return value - 0.009 * bounds, info

    return loss


def with_their_deviation(module):
    def advantage(agent, obs, action, outcome, terminal, args):
        next_obs, critic = outcome[:, :-1], agent.nets.critic
        next_action = jnp.tanh(agent.nets.actor.apply(agent.actor, next_obs)[0])
        adv = module.q_values(critic, agent.critic, next_obs, next_action).min(0) * (1.0 - terminal)
        adv = outcome[:, -1] + args.discount * adv - module.q_values(critic, agent.critic, obs, action).min(0)
        return (adv - adv.mean()) / (adv.std(ddof=1) + 1e-6)

    return advantage


NOTE = f"{kit.PARTS} The game has 6 steps, weight 0.5. Cloning is left out: the Kit's loss is another."
CASES = {"": ref.Case(kit.REFERENCE, FILE, compare, DEVIATIONS, note=NOTE)}
