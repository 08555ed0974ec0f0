"""What the comparisons with OfflineRL-Kit share: its networks, its model of the dynamics, and what it learns from.

Every update of a comparison has three parts: the model is fitted (a few looks at its hold-out error), it makes
rollouts, and the agent takes a step. Rollouts end where the first number of an observation is large.
"""

import contextlib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from results import references as ref
from shared.transitions import FIELDS, Batch, Transitions

REFERENCE = "yihaosun1124/OfflineRL-Kit"
LOG_DET = "log(1 - tanh(u)^2) is computed in its stable form; the Kit adds 1e-6 inside the logarithm"
PARTS = (
    "With each update the model is fitted (3 looks at its hold-out error) and makes rollouts of 3 steps, whose rows "
    "are compared; both sides' members have the same rows, and the Kit's hold-out is ours."
)
COSINE = "The actor's cosine falls with each update on both sides; in the Kit's runs once in 1,000."
DECAYS = 2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4
FITTED, HELD_OUT, LOOKS, ROLLOUTS, STEPS = 2 * ref.ROWS, 8, 3, 12, 3
"""Rows that the model learns from and is judged by, looks at it in one update, rollouts, and their steps."""


class Sides(types.SimpleNamespace):
    """Both sides: checkout, torch, module, args, agent, rng, noise; actor, critics, dynamics of the Kit."""


def start(checkout: Path, algorithm: str, undo: frozenset[str], **settings: Any) -> Sides:
    """Our agent in general position and the Kit's networks; `settings`: our arguments."""
    torch, module = ref.torch_double(), ref.ours(algorithm)
    torch.float32 = torch.float64  # which the Kit asks for
    absent = (*ref.ABSENT, "tqdm", "matplotlib", "pandas", "torch.utils.tensorboard", "mujoco_py")
    file = ref.theirs(checkout, "offlinerlkit/dynamics/ensemble_dynamics.py", absent)
    from offlinerlkit.modules import ActorProb, Critic, EnsembleDynamicsModel, TanhDiagGaussian
    from offlinerlkit.nets import MLP
    from offlinerlkit.utils.scaler import StandardScaler

    sizes = {"batch_size": ref.ROWS, "rollout_steps": float(STEPS), "n_models": 4, "n_elites": 3}
    sizes |= {"hidden_dims": (32, 32), "model_hidden_dims": (16,) * 4}
    args, rng = module.Args(**sizes, **settings), np.random.default_rng(0)
    made = jax.jit(module.init, static_argnums=(1, 2))(jax.random.key(0), args, ref.SPEC)
    agent = ref.in_general_position(made, rng)
    if "log det" in undo:
        ref.replace(module, "tanh_gaussian_log_prob", with_their_epsilon)
    backbone = MLP(ref.OBS, args.hidden_dims)
    head = TanhDiagGaussian(backbone.output_dim, ref.ACTION, unbounded=True, conditioned_sigma=True)
    n_critics = len(jax.tree.leaves(agent.critic)[0])
    critics = [Critic(MLP(ref.OBS + ref.ACTION, args.hidden_dims)) for _ in range(n_critics)]
    members = args.n_models, args.n_elites
    model = EnsembleDynamicsModel(ref.OBS, ref.ACTION, args.model_hidden_dims, *members, weight_decays=DECAYS)
    dynamics = file.EnsembleDynamics(
        model,
        torch.optim.Adam(model.parameters(), lr=args.model_lr),
        StandardScaler(np.zeros((1, ref.OBS + ref.ACTION)), np.ones((1, ref.OBS + ref.ACTION))),
        lambda obs, action, next_obs: ends(next_obs)[:, None],
        penalty_coef=getattr(args, "reward_penalty", 0.0),
    )
    dynamics.save = lambda folder: None
    log_alpha = torch.zeros(1, requires_grad=True)
    alpha = -ref.ACTION, log_alpha, torch.optim.Adam([log_alpha], lr=args.actor_lr)
    sides = Sides(
        torch=torch, module=module, args=args, agent=agent, rng=rng, noise=ref.Noise(rng), file=file,
        actor=ActorProb(backbone, head), critics=critics, dynamics=dynamics, log_alpha=log_alpha, alpha=alpha,
    )  # fmt: skip
    sides.data = ref.batches(rng, FITTED + HELD_OUT)
    sides.fit = jax.jit(lambda agent, batch: module.update_model(agent, batch, args))
    return sides


def ends(obs: Any) -> Any:
    """[B]: where rollouts terminate."""
    return obs[:, 0] > 0.7


def with_their_epsilon(mean, log_std, u):
    log_prob = jax.scipy.stats.norm.logpdf(u, mean, jnp.exp(log_std))
    return (log_prob - jnp.log(1.0 - jnp.tanh(u) ** 2 + 1e-6)).sum(-1)


def networks(sides: Sides, targets: list) -> dict[str, list[ref.Tied]]:
    """Everything that is compared; `targets`: the Kit's target critics."""
    agent, model = sides.agent, sides.dynamics.model
    return {
        "actor": ref.tie(ref.split_last(agent.actor), sides.actor),
        "critic": ref.tie(agent.critic, sides.critics),
        "target critic": ref.tie(agent.target_critic, targets),
        "log alpha": [ref.Tied(np.asarray(agent.log_alpha).reshape(1), sides.log_alpha)],
        "model": tie_model(agent.best_model, model),
    }


def tie_model(tree: dict, model: Any) -> list[ref.Tied]:
    """Layers and bounds of the ensemble; what the Kit keeps of its best members is in its layers by then."""
    layers, params = [*model.backbones, model.output_layer], tree["params"]
    tied = [
        ref.Tied(np.asarray(params[f"Dense_{i}"][ours]), getattr(layer, theirs))
        for i, layer in enumerate(layers)
        for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
    ]
    bounds = ref.Tied(np.asarray(params["max_log_var"]), model.max_logvar)
    return [*tied, bounds, ref.Tied(np.asarray(params["min_log_var"]), model.min_logvar)]


# ----------------------------------------------------------------------------------- the two model phases


class Numpy:
    """numpy as one file of the Kit sees it: float64 where it says float32, and draws that are given."""

    float32 = np.float64

    def __init__(self, **draws: Any):
        self.random = types.SimpleNamespace(**draws)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def fit_both(sides: Sides) -> tuple[dict[str, ref.Pair], Batch]:
    """A whole model phase of both sides: `LOOKS` passes over new data and looks at the hold-out error -> losses, data.

    The Kit's hold-out is the first rows, as ours is; its members' rows are drawn once and come in the same order.
    """
    rows, agent, args = next(sides.data), sides.agent, sides.args
    data = ref.batch(rows)._replace(successor=jnp.ones(len(rows["reward"])))
    inputs = np.concatenate([rows["obs"], rows["action"]], axis=1)[HELD_OUT:]
    agent = agent.replace(
        model=agent.best_model,
        holdout_error=jnp.full(args.n_models, 1e10),
        waited=jnp.int32(0),
        input_mean=jnp.asarray(inputs.mean(0)),
        input_std=jnp.asarray(inputs.std(0)),
    )
    drawn = sides.rng.integers(0, FITTED, (args.n_models, FITTED))
    for _ in range(LOOKS):
        losses = []
        for part in np.split(HELD_OUT + drawn, FITTED // ref.ROWS, axis=1):
            agent, info = sides.fit(agent, jax.tree.map(lambda x, part=part: x[part], data))
            losses.append(info["model_loss"])
        agent = sides.module.judge(agent, jax.tree.map(lambda x: x[:HELD_OUT], data))
    sides.agent = agent
    error = sides.module.squared_error(agent.model, agent, jax.tree.map(lambda x: x[:HELD_OUT], data))

    def split(numbers, sizes):
        return types.SimpleNamespace(indices=range(HELD_OUT, len(numbers))), types.SimpleNamespace(
            indices=range(HELD_OUT)
        )

    sides.file.np = Numpy(
        randint=lambda *_, **__: drawn, uniform=lambda size: np.broadcast_to(np.arange(size[1]), size)
    )
    ref.replace(sides.torch.utils.data, "random_split", split)
    log = mock.Mock()
    theirs = {"observations": rows["obs"], "actions": rows["action"], "next_observations": rows["next_obs"]}
    theirs["rewards"] = rows["reward"][:, None]
    ratio = HELD_OUT / (HELD_OUT + FITTED)
    sides.dynamics.train(theirs, log, max_epochs=LOOKS, batch_size=ref.ROWS, holdout_ratio=ratio)
    logged = dict(call.args for call in log.logkv.call_args_list)
    elites = np.argsort(agent.holdout_error)[: args.n_elites]
    return {
        "model": (ref.scalar(np.mean(losses)), ref.scalar(logged["loss/dynamics_train_loss"])),
        "hold-out": (
            ref.scalar(np.sort(error)[: args.n_elites].mean()),
            ref.scalar(logged["loss/dynamics_holdout_loss"]),
        ),
        "elites": ([elites], [sides.dynamics.model.elites.numpy()]),
    }, data


# ------------------------------------------------------------------------------------------- rollouts


class Recorder(NamedTuple):
    """In place of the ring that our rollouts fill."""

    rows: tuple = ()

    def extend(self, batch: Batch, valid: jax.Array) -> "Recorder":
        return Recorder((*self.rows, (batch, np.asarray(valid))))

    def size(self) -> jax.Array:
        return jnp.asarray(sum(valid.sum() for _, valid in self.rows))


@contextlib.contextmanager
def chosen(sides: Sides) -> Iterator[list[np.ndarray]]:
    """jax.random.choice draws from the same generator as all else -> what it drew, in order."""
    drawn = []

    def choice(key, a, shape=()):
        drawn.append(np.asarray(a)[sides.rng.integers(0, len(a), shape)])
        return jnp.asarray(drawn[-1])

    with mock.patch.object(jax.random, "choice", choice):
        yield drawn


def packed(data: Batch) -> Transitions:
    """Rows as `Dataset.transitions` has them, in the process's precision."""
    fields = (*FIELDS, "successor")
    columns = [jnp.asarray(getattr(data, name), float).reshape(len(data.reward), -1) for name in fields]
    return Transitions(jnp.concatenate(columns, axis=1), None, None, ref.SPEC, fields)


def roll_both(sides: Sides, policy: Any, data: Batch) -> dict[str, ref.Pair]:
    """Rollouts of both sides from the same states: every row that either keeps."""
    args = sides.args.__class__(**{**vars(sides.args), "rollout_batch": ROLLOUTS})
    noise, transitions = sides.noise, packed(data)
    with noise.ours(), chosen(sides) as members:
        kept, _ = sides.module.rollout(
            sides.agent, Recorder(), jax.random.key(0), args, transitions, STEPS, ends, exact=None
        )
    starts, *draws = noise.drawn
    alive = [valid for _, valid in kept.rows]
    for_them = [[d.array[valid] for d in pair] for pair, valid in zip(zip(draws[::2], draws[1::2]), alive)]
    picked, outcomes = [m[valid] for m, valid in zip(members, alive)], [pair[1] for pair in for_them]
    sides.file.np = Numpy(normal=lambda size: np.broadcast_to(outcomes.pop(0), size))
    sides.dynamics.model.random_elite_idxs = lambda size: picked.pop(0)
    with noise.theirs([ref.Draw("normal", pair[0]) for pair, valid in zip(for_them, alive) if valid.any()]):
        theirs, _ = policy.rollout(np.asarray(data.obs)[starts.array], STEPS)
    names = {"obs": "obss", "action": "actions", "reward": "rewards", "terminal": "terminals", "next_obs": "next_obss"}
    return {
        f"rollouts' {name}": (
            [np.concatenate([np.asarray(getattr(batch, name))[valid] for batch, valid in kept.rows])],
            [theirs[their_name].reshape(-1, *getattr(kept.rows[0][0], name).shape[1:])],
        )
        for name, their_name in names.items()
    }


def parts(sides: Sides, rows: dict) -> dict[str, dict]:
    """A batch as the Kit takes it: rows of the data first, then the model's."""
    names = {"observations": "obs", "actions": "action", "next_observations": "next_obs", "rewards": "reward"}
    columns = dict(zip([*names, "terminals"], ref.tensors(rows, *names.values(), "terminal"), strict=True))
    real = int(sides.args.real_share * sides.args.batch_size)
    return {
        "real": {name: x[:real] for name, x in columns.items()},
        "fake": {name: x[real:] for name, x in columns.items()},
    }


def update_losses(info: dict, log: dict) -> dict[str, ref.Pair]:
    """Of one update of a policy: ours by their names, theirs of two critics or of all at once."""
    critic = log["loss/critic"] if "loss/critic" in log else log["loss/critic1"] + log["loss/critic2"]
    return {
        "critic": (ref.scalar(info["critic_loss"]), ref.scalar(critic)),
        "actor": (ref.scalar(info["actor_loss"]), ref.scalar(log["loss/actor"])),
        "alpha": (ref.scalar(info["alpha"]), ref.scalar(log["alpha"])),
    }
