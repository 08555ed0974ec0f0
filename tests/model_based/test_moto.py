"""What moto adds to offline_dv2, whose functions it has line for line: cloning, the joint update, the way online."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jax.sharding import SingleDeviceSharding
from jobs import small
from reference import SPEC, B, agent_of, close, differences
from scipy.stats import truncnorm

from shared.errors import InputError
from shared.replay import init_replay
from shared.sequences import Sequences, Window
from shared.transitions import FIELDS, Transitions

SMALL = {
    "window_steps": 3, "imagination_steps": 2, "n_models": 3, "recurrent_dim": 4, "latent_variables": 2,
    "latent_classes": 3, "model_hidden_dims": (5,), "copy_every": 0, "learning_starts": 2,
}  # fmt: skip
T, A = 3, 2
OTHERS = {
    "hidden_dims": (6,), "batch_size": B, "free_nats": 0.001, "obs_weight": 1.5, "discount": 0.9, "entropy_cost": 0.3,
    "reward_penalty": 2.0, "clone_weight": 0.7, "online_clone_share": 0.3,
}  # fmt: skip


@pytest.fixture(scope="module")
def moto():
    """The module, its sibling, arguments, an agent in general position, windows, and one offline update."""
    module, dv2, r = load("moto"), load("offline_dv2"), np.random.default_rng(1)
    args = module.Args(**SMALL, **OTHERS)
    agent = agent_of(module, args)
    agent = agent.replace(
        model=jax.tree.map(lambda x: x + 0.3 * r.normal(size=x.shape).astype(np.float32), agent.model)
    )
    shape = lambda *more: r.normal(size=(B, T, *more)).astype(np.float32)  # noqa: E731
    batch = Window(
        mask=np.float32([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]]),
        obs=shape(3),
        action=np.clip(shape(A), -1, 1),
        reward=shape(),
        terminal=np.float32([[0, 0, 0], [0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]]),
        next_obs=shape(3),
        successor=np.ones((B, T), np.float32),
    )
    there = np.float32([[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 1, 1]])  # steps taken while the task went on
    key = jax.random.key(5)
    new, info = jax.jit(module.update)(agent, batch, key, args)
    frames = module.frames_of(batch)
    model_key, actor_key = jax.random.split(key)
    observe = jax.jit(lambda key: module.observe(agent.model, agent.nets, frames.obs, frames.action, key, args)[0])
    latent = observe(jax.random.split(model_key)[0])
    return types.SimpleNamespace(**locals())


def policy(f, h, z):
    """Mean and standard deviation of the agent's policy, in numpy."""
    x = np.concatenate([np.asarray(z).reshape(*z.shape[:-2], -1), h], -1).astype(np.float64)
    p = f.agent.actor["params"]
    for i in range(2):
        x = x @ np.float64(p[f"Dense_{i}"]["kernel"]) + np.float64(p[f"Dense_{i}"]["bias"])
        x = x if i else np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
    return np.tanh(x[..., :A]), 2 / (1 + np.exp(-0.5 * x[..., A:])) + 0.1


def log_prob(mean, std, action):
    return truncnorm.logpdf(action, (-1 - mean) / std, (1 - mean) / std, mean, std).sum(-1)


@pytest.mark.long
def test_moto_has_the_world_model_of_offline_dv2(moto):
    """Functions of both files have the same lines, but for these; offline_dv2's tests are theirs, too."""
    own = {"Args", "Networks", "init", "model_loss", "actor_loss", "update", "act", "train", "main"}
    assert differences(moto.module, moto.dv2) == own


@pytest.mark.long
def test_moto_log_prob_of_a_gaussian_cut_at_the_bounds(moto):
    mean, std = np.float64([[0.9, -0.3], [0.0, 0.5]]), np.float64([[0.5, 0.1], [2.0, 1.0]])
    action = np.float64([[1.0, -0.2], [-1.0, 0.3]])
    found = jax.jit(moto.module.truncated_log_prob)(*map(jnp.float32, (mean, std, action)))
    close(found, log_prob(mean, std, action))


def clone_loss(f, rows):
    h, z = (np.asarray(x)[:rows, :-1] for x in f.latent)
    return -(f.there[:rows] * log_prob(*policy(f, h, z), f.batch.action[:rows])).sum() / f.there[:rows].sum()


@pytest.mark.long
def test_moto_an_update_is_the_model_then_the_actor_in_it_then_the_critic(moto):
    """Losses of offline_dv2 at the right models: latent states are the old one's, imagination the new one's."""
    f = moto
    model_loss = jax.jit(lambda: f.dv2.model_loss(f.agent.model, f.agent, f.frames, f.model_key, f.args))
    loss, info = model_loss()
    close(f.info["model_loss"], loss)
    close(f.info["kl"], info["kl"])
    start = f.dv2.Latent(*(x.reshape(-1, *x.shape[2:]) for x in f.latent))
    mask = (f.frames.mask * (1 - f.frames.terminal)).reshape(-1)

    @jax.jit
    def imagined(model):
        agent = f.agent.replace(model=model)
        loss, (seen, info) = f.dv2.actor_loss(f.agent.actor, agent, start, mask, f.actor_key, f.args)
        return loss, f.dv2.critic_loss(f.agent.critic, agent, *seen)[0], info["penalty"]

    old, (loss, of_critic, penalty) = imagined(f.agent.model)[0], imagined(f.new.model)
    assert abs(old - loss) > 3e-4
    close(f.info["clone_loss"], clone_loss(f, B))
    close(f.info["actor_loss"], loss + 0.7 * clone_loss(f, B))
    close(f.info["critic_loss"], of_critic)
    close(f.info["penalty"], penalty)
    for name in ("model", "actor", "critic", "target_critic"):
        moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), getattr(f.agent, name), getattr(f.new, name))
        assert max(jax.tree.leaves(moved)) > (5e-5 if name != "target_critic" else 0.0)


@pytest.mark.long
def test_moto_online_only_the_datas_actions_are_cloned_with_the_smaller_weight(moto, monkeypatch):
    f, seen = moto, []
    monkeypatch.setattr(f.module, "learn", lambda agent, batch, key, args, weight, rows: seen.append((weight, rows)))
    args = f.module.Args(**SMALL, **OTHERS, online_share=0.4)
    f.module.update(f.agent, f.batch, f.key, args)
    f.module.update_online(f.agent, f.batch, f.key, args, 7)
    close([weight for weight, _ in seen], [0.7, 0.21])
    assert [rows for _, rows in seen] == [5, 3]
    loss = jax.jit(f.module.actor_loss, static_argnums=5)
    for rows, expected in ((3, clone_loss(f, 3)), (0, 0.0)):
        _, (_, info) = loss(f.agent.actor, f.agent, f.latent, f.batch, jnp.float32(0.2), rows, f.actor_key, f.args)
        close(info["clone_loss"], expected)


def test_moto_explores_with_a_sample_and_remembers_it(moto):
    """From the latent state in which `act` would be, had it the same key; the carry holds the action."""
    f, n = moto, 3000
    fresh = f.module.initial_carry(f.agent, f.args)
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape)), fresh)
    obs = jnp.broadcast_to(f.batch.obs[0, 0], (n, 3))
    action, after = jax.jit(f.module.explore)(f.agent, carry, obs, jnp.zeros(n), f.key, f.args)
    np.testing.assert_array_equal(action, after.action)
    mode, acted = jax.jit(f.module.act)(f.agent, carry, obs, jnp.zeros(n), jax.random.split(f.key)[0], f.args)
    np.testing.assert_array_equal(after.latent.z, acted.latent.z)
    mean, std = policy(f, after.latent.h, after.latent.z)
    close(mode, mean)
    a, b = (-1 - mean) / std, (1 - mean) / std
    share = truncnorm.cdf(action, a, b, mean, std)  # uniform, if they are drawn of it
    np.testing.assert_allclose(
        np.quantile(share, [0.1, 0.5, 0.9], axis=0), [[0.1] * A, [0.5] * A, [0.9] * A], atol=0.04
    )


@pytest.mark.parametrize(("share", "of_data"), [(0.25, 300), (1.0, 0)])
def test_moto_the_datas_windows_come_first(moto, share, of_data):
    """Rows of data are zeros, those of experience ones; episodes have 5 rows and, online, 4."""
    n = 10
    rows = jnp.zeros((n, 2 * 3 + A + 3))
    start = np.repeat(np.arange(0, n, 5), 5)
    data = Sequences(
        Transitions(rows, None, None, SPEC, (*FIELDS, "successor")), jnp.array(start), jnp.array(start + 4)
    )
    replay = jax.tree.map(lambda x: x[0], init_replay(1, 16, SPEC, SingleDeviceSharding(jax.devices()[0])))
    for _ in range(4):
        replay = replay.insert(jnp.ones(2 * 3 + A + 2).at[3 + A + 1].set(0.0))
    args = moto.module.Args(**SMALL, batch_size=400, online_share=share)
    drawn = jax.jit(moto.module.sample)(jax.random.key(0), data, replay, args)
    assert drawn.obs.shape == (400, T, 3)
    assert (drawn.reward[:of_data] == 0).all() and (drawn.reward[of_data:, 0] == 1).all()


class Opened(Exception):
    """Instead of a run."""


def test_moto_from_scratch_begins_with_nothing_and_draws_nothing_of_the_data(moto, pendulum, tmp_path, monkeypatch):
    def run(file, args, *rest):
        raise Opened(args.offline_updates, args.online_share)

    monkeypatch.setattr(moto.module, "Run", run)
    for scratch, expected in ((True, (0, 1.0)), (False, (4, 0.5))):
        with pytest.raises(Opened) as opened:
            moto.module.main(small("moto", pendulum, tmp_path / "run", from_scratch=scratch))
        assert opened.value.args == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_models": 1}, "a single head disagrees with none"),
        ({"from_scratch": True, "from_run": "there"}, "take one of them"),
        ({"window_steps": 301}, "300 rows; a window of --window-steps needs 301 or more"),
    ],
)
def test_moto_refuses(changes, said, pendulum, tmp_path):
    with pytest.raises(InputError, match=said):
        load("moto").main(small("moto", pendulum, tmp_path / "run", **changes))
