"""CDE beside the authors' code: the dual, the data's policy and the policy's projection."""

from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from results import references as ref

FILE = "cde.py"
LOG_DET = {
    "log det": "log(1 - tanh(u)^2) is computed in its stable form; the reference adds 1e-6 inside the logarithm",
}
PROJECTION = {
    "draws": "actions away from the data are drawn at once; in the reference those too near are drawn again",
    **LOG_DET,
}
CLONING = {
    "weights": "weights are of the new E and its multiplier, in the reference of those before the step",
    **LOG_DET,
}
HIDDEN = (32, 32)


def compare(checkout, undo, deviations, **settings):
    torch, module = ref.torch_double(), ref.ours("cde")
    torch.float32 = torch.float64
    peer = ref.theirs(checkout, FILE)
    from utils.network import Critic, TanhMixtureNormalPolicy, TanhNormalPolicy

    rng = np.random.default_rng(0)
    noise, data = ref.Noise(rng), ref.batches(rng)
    args = module.Args(batch_size=ref.ROWS, hidden_dims=HIDDEN, divergence_weight=0.5, n_ood_actions=4, **settings)
    agent = ref.agent_of(module, args, rng)
    if "draws" in undo:
        ref.replace(module, "ood_actions", drawn_again)
    if "log det" in undo:
        ref.replace(module, "tanh_gaussian_log_prob", with_their_epsilon)
    sizes = ref.OBS, ref.ACTION
    nets = {
        "policy": TanhNormalPolicy(*sizes, list(HIDDEN)),
        "data_policy": TanhMixtureNormalPolicy(args.n_components, *sizes, hidden_dims=list(HIDDEN)),
        "v_network": Critic(ref.OBS, 0, list(HIDDEN)),
        "e_network": Critic(*sizes, list(HIDDEN)),
    }
    optimizers = {name.replace("network", "optim"): net for name, net in nets.items() if "network" in name}
    optimizers |= {f"{name}_optim": net for name, net in nets.items() if "policy" in name}
    trainer = peer.CDELearner(
        gamma=args.discount, alpha=args.divergence_weight, n_step_per_episode=1,
        num_repeat_actions=args.n_ood_actions, zeta_mix_dist=args.zeta, ood_eps=args.ood_ratio, mix_data_policy=False,
        e_value_type="adv", policy_ent_reg=True, target_ent=-ref.ACTION,
        policy_extract_mode="info_proj" if args.extraction == "projection" else "weighted_BC", **nets,
        **{name: torch.optim.Adam(net.parameters(), lr=3e-4) for name, net in optimizers.items()},
    )  # fmt: skip
    peer.tqdm = lambda steps, **_: steps
    peer.np = InOrder()
    # what it draws of the data's policy is looked at alone
    ref.replace(torch.distributions.MixtureSameFamily, "sample", lambda self: self.mean)

    def networks():
        scalars = {"eta_v": trainer._eta_v, "eta_e": trainer._eta_e, "log_alpha": trainer.log_ent_coef}
        return {
            "actor": ref.tie(in_their_order(agent.actor), trainer.policy),
            "data's policy": ref.tie(in_their_order(agent.behavior), trainer.data_policy),
            "V": ref.tie(agent.value, trainer.v_network),
            "E": ref.tie(agent.advantage, trainer.e_network),
            "multipliers": [ref.Tied(np.asarray(getattr(agent, name)), scalar) for name, scalar in scalars.items()],
        }

    def update():
        nonlocal agent
        rows = next(data)
        rows["optimal"], first = (rng.random(ref.ROWS) < 0.5).astype(float), rng.standard_normal((ref.ROWS, ref.OBS))
        ours = module.Rows(ref.batch(rows), jnp.asarray(rows["optimal"]), jnp.asarray(first))
        loss = stale(module.actor_loss, agent) if "weights" in undo else module.actor_loss
        with noise.ours(), mock.patch.object(module, "actor_loss", loss):
            agent, info = module.update(agent, ours, jax.random.key(0), args)
        names = {"obs": "obs", "act": "action", "rew": "reward", "terminal": "terminal", "obs_next": "next_obs"}
        names["is_optimal"] = "optimal"
        batch = Rows(**dict(zip(names, ref.tensors(rows, *names.values()), strict=True)))
        peer.wandb, left = mock.Mock(), noise.drawn
        if "draws" in deviations - undo:  # the first ones are ours, what is drawn again is not
            trainer.get_ood_a, left = begun_alike(torch, trainer, left[0]), left[1:]
        with noise.theirs(left):
            trainer.learn_w(batch, Rows(obs=torch.tensor(first)), ref.ROWS, 1, 0)
        log = peer.wandb.log.call_args.args[0]
        pairs = {"V": ("value_loss", "v_loss_minimax"), "E": ("advantage_loss", "adv_loss_mse")}
        pairs["actor"] = ("actor_loss", "policy")
        return {name: (ref.scalar(info[a]), ref.scalar(log[f"loss/{b}"])) for name, (a, b) in pairs.items()}

    return ref.side_by_side(networks, update)


class Rows:
    """A batch of theirs, which is sampled whole."""

    def __init__(self, **columns):
        self.__dict__.update(columns)

    def __len__(self):
        return len(self.obs)

    def sample(self, size):
        return self


class InOrder:
    """numpy, of whose integers every one is drawn once."""

    class random:
        randint = staticmethod(lambda low, high, size: np.arange(low, high))

    def __getattr__(self, name):
        return getattr(np, name)


def in_their_order(tree):
    """Mean, deviation and weights as layers after the others."""
    layers = dict(tree["params"])
    heads = [layers.pop(name) for name in ("mean", "log_std", "weight") if name in layers]
    return {"params": layers | {f"Dense_{len(layers) + i}": head for i, head in enumerate(heads)}}


def drawn_again(agent, batch, key, args):
    """As in the reference: up to ten new draws where an action is near to the row's."""
    near = jnp.zeros(())
    if args.extraction == "projection":
        log_std = agent.nets.behavior.apply(agent.behavior, batch.obs)[1]
        near = jnp.minimum(jnp.exp(log_std).mean(-2), args.ood_distance)
    shape = args.n_ood_actions, *batch.action.shape
    action = jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
    for _ in range(10):
        if not (jnp.abs(action - batch.action) < near).any():
            break
        new = jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)
        action = jnp.where(jnp.abs(action - batch.action) < near, new, action)
    return action


def begun_alike(torch, trainer, first):
    """Their draw of actions, whose first random numbers are `first`."""

    def draw(batch):
        given, rng = [first.array], np.random.default_rng(0)

        def uniform_(x, low, high):
            return x.copy_(torch.tensor(low + (high - low) * (given.pop() if given else rng.random(x.shape))))

        with mock.patch.object(torch.Tensor, "uniform_", uniform_):
            return type(trainer).get_ood_a(trainer, batch)

    return draw


def stale(actor_loss, old):
    def loss(actor, agent, *others):
        return actor_loss(actor, agent.replace(advantage=old.advantage, eta_e=old.eta_e), *others)

    return loss


def with_their_epsilon(mean, log_std, u):
    log_prob = jax.scipy.stats.norm.logpdf(u, mean, jnp.exp(log_std))
    return (log_prob - jnp.log(1.0 - jnp.tanh(u) ** 2 + 1e-6)).sum(-1)


NOTE = "Alpha 0.5, 4 actions away from the data for each row."
CASES = {
    "": ref.Case("czp16/cde-offline-rl", FILE, partial(compare, deviations=PROJECTION.keys()), PROJECTION, note=NOTE),
    "cloning": ref.Case(
        "czp16/cde-offline-rl",
        FILE,
        partial(compare, deviations=CLONING.keys(), extraction="cloning"),
        CLONING,
        still=("data's policy",),
        note=NOTE,
    ),
}
