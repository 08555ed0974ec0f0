"""The losses of cal_ql against the same equations in plain numpy, its returns-to-go and its mixture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jax.sharding import SingleDeviceSharding
from jobs import train
from reference import SPEC, B, agent_of, close, compiled, heads, mlp, tanh_normal
from released import ANTMAZE, KITCHEN, every, wrong_settings
from scipy.special import logsumexp

from shared.data import Dataset
from shared.replay import init_replay
from shared.task import Task
from shared.transitions import FIELDS

SMALL = {"n_actions": 2, "actor_hidden_dims": (8, 8)}

N = 3
RETURNS = np.float32([-1.0, 40.0, 0.3, -40.0, 1.0])


def tiny(**changes):
    return load("cal_ql").Args(
        **{"hidden_dims": (8, 8), "actor_hidden_dims": (8,), "batch_size": B, "n_actions": N} | changes
    )


@pytest.fixture
def agent():
    return agent_of(compiled("cal_ql"), tiny()).replace(log_alpha=jnp.float32(-0.4), log_alpha_prime=jnp.float32(0.4))


@pytest.fixture
def batch(batch):
    return batch._replace(next_action=None, return_to_go=RETURNS)


def distribution(params, obs):
    mean, log_std = np.split(mlp(params, obs), 2, -1)
    p = params["params"]
    return mean, np.clip(np.float64(p["log_std_scale"]) * log_std + np.float64(p["log_std_offset"]), -20, 2)


def draws(agent, batch, key):
    """[(actions [N, B, A], log-densities [N, B])]: uniform, at s', at s."""
    keys = jax.random.split(key, 3)
    uniform = np.asarray(jax.random.uniform(keys[0], (N, B, 2), minval=-1.0, maxval=1.0))
    noise = [np.asarray(jax.random.normal(k, (N, B, 2))) for k in keys[1:]]
    now = tanh_normal(*distribution(agent.actor, batch.obs), noise[0])
    following = tanh_normal(*distribution(agent.actor, batch.next_obs), noise[1])
    return [(uniform, np.full((N, B), -2 * np.log(2.0))), following, now]


def gaps_of(agent, batch, key, calibrate, importance):
    """[E] gaps of eq. 5.1, state by state and action by action; and how many policy actions are under the return."""
    q, gaps, under = heads(agent.critic, batch.obs, batch.action), np.zeros((2, B)), []
    for i, b in np.ndindex(2, B):
        values = [] if importance else [q[i, b]]
        for kind, (actions, log_density) in enumerate(draws(agent, batch, key)):
            for k in range(N):
                value = heads(agent.critic, batch.obs[b], actions[k, b])[i]
                if kind > 0:
                    under.append(value < RETURNS[b])
                    value = max(value, RETURNS[b]) if calibrate else value
                values.append(value - log_density[k, b] if importance else value)
        gaps[i, b] = 0.7 * logsumexp(np.array(values) / 0.7) - q[i, b]
    return gaps.mean(1), np.mean(under)


@pytest.mark.long
@pytest.mark.parametrize(
    "calibrate, importance, lagrange",
    [(True, True, False), (False, True, False), (True, False, False), (True, True, True)],
)
def test_cal_ql_critic(agent, batch, calibrate, importance, lagrange):
    args = tiny(
        calibrate=calibrate, importance_sampling=importance, lagrange=lagrange, target_gap=0.5, cql_temperature=0.7,
        cql_alpha=2.0, max_q_backup=False, discount=0.9,
    )  # fmt: skip
    key = jax.random.key(2)
    target_key, gap_key = jax.random.split(key)
    noise = np.asarray(jax.random.normal(target_key, (1, B, 2)))[0]
    next_action, _ = tanh_normal(*distribution(agent.actor, batch.next_obs), noise)
    y = batch.reward + 0.9 * (1 - batch.terminal) * heads(agent.target_critic, batch.next_obs, next_action).min(0)
    bellman = ((heads(agent.critic, batch.obs, batch.action) - y) ** 2).mean(1).sum()
    gaps, under = gaps_of(agent, batch, gap_key, calibrate, importance)
    penalty = (np.exp(0.4) * (gaps - 0.5)).sum() if lagrange else gaps.sum()
    loss, info = compiled("cal_ql").critic_loss(agent.critic, agent, batch, key, args)
    close(loss, bellman + 2.0 * penalty)
    close([info["bound_rate"], info["gap"]], [under, gaps.mean()])
    assert 0.3 < under < 0.9


@pytest.mark.long
def test_cal_ql_does_not_push_down_what_is_under_the_return(agent, batch):
    """Nor does any action carry a gradient to the policy."""
    module, args, key = compiled("cal_ql"), tiny(), jax.random.key(0)
    low, high = (batch._replace(return_to_go=np.full(B, r, np.float32)) for r in (-1e3, 1e3))

    def push(critic, batch, args):
        q = jax.lax.stop_gradient(module.q_values(agent.nets.critic, critic, batch.obs, batch.action))
        return module.conservative_gap(critic, agent, batch, q, key, args)[0].sum()

    grads = {r: jax.grad(push)(agent.critic, b, args) for r, b in (("low", low), ("high", high))}
    plain = jax.grad(push)(agent.critic, high, tiny(calibrate=False))
    jax.tree.map(close, grads["low"], plain)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(plain)) > 1e-2
    assert all(float(jnp.abs(g).max()) < 1e-6 for g in jax.tree.leaves(grads["high"]))
    to_policy = jax.grad(lambda p: module.critic_loss(agent.critic, agent.replace(actor=p), batch, key, args)[0])
    assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(to_policy(agent.actor)))


def test_cal_ql_bootstraps_from_the_best_of_the_least(agent, batch):
    key = jax.random.key(1)
    noise = np.asarray(jax.random.normal(key, (N, B, 2)))
    mean, log_std = distribution(agent.actor, batch.next_obs)
    q = [heads(agent.target_critic, batch.next_obs, tanh_normal(mean, log_std, e)[0]).min(0) for e in noise]
    close(compiled("cal_ql").bootstrapped_q(agent, batch, key, tiny()), np.max(q, axis=0))


def test_cal_ql_policy_temperature_and_multiplier(agent, batch):
    module, key = compiled("cal_ql"), jax.random.key(4)
    noise = np.asarray(jax.random.normal(key, (1, B, 2)))[0]
    action, log_prob = tanh_normal(*distribution(agent.actor, batch.obs), noise)
    expected = (np.exp(-0.4) * log_prob - heads(agent.critic, batch.obs, action).min(0)).mean()
    close(module.actor_loss(agent.actor, agent, batch, key, tiny())[0], expected)
    assert jax.grad(module.alpha_loss)(0.0, -5.0, 3) < 0 < jax.grad(module.alpha_loss)(0.0, -1.0, 3)
    slope, args = jax.grad(module.alpha_prime_loss), tiny(target_gap=1.0)
    assert slope(0.3, 2.0, args) < 0 < slope(0.3, 0.5, args)


@pytest.mark.parametrize("share, online", [(0.5, 4), (0.25, 2), (1.0, 8), (0.0, 0)])
def test_cal_ql_batches_are_half_finished_episodes(share, online):
    module = compiled("cal_ql")
    args = tiny(batch_size=8, online_share=share)
    obs, last = np.arange(18, dtype=np.float32).reshape(6, 3), np.arange(6) == 5
    log = Dataset(
        Task("log", "", SPEC), obs, np.zeros((6, 2), np.float32), np.ones(6, np.float32), obs, np.zeros(6, bool), last
    )
    data = log.with_returns(np.float32([args.discount]))
    fields = (*FIELDS, "return_to_go")
    replay = init_replay(1, 20, SPEC, SingleDeviceSharding(jax.devices()[0]), fields)
    replay = jax.tree.map(lambda x: x[0], replay)
    for _ in range(5):  # an episode that goes on
        replay = replay.insert(jnp.full(replay.rows.shape[-1], 7.0), ready=False)
    batch = module.sample(jax.random.key(0), data, replay, args)
    assert batch.obs.shape == (8, 3) and batch.next_action is None
    assert (np.asarray(batch.reward) == 1.0).all() and (np.asarray(batch.return_to_go) < 6.0).all()
    ended = replay.__class__(**{**replay.__dict__, "ready": replay.inserted})
    batch = module.sample(jax.random.key(0), data, ended, args)
    assert np.asarray(batch.reward).tolist() == [1.0] * (8 - online) + [7.0] * online
    assert np.asarray(batch.return_to_go)[8 - online :].tolist() == [7.0] * online


@pytest.mark.long
def test_cal_ql_online_transitions_get_their_lanes_returns_when_their_episode_has_ended(pendulum, tmp_path):
    """210 steps of Pendulum are one episode of 200, which ends by a time limit, and 10 steps without a return yet."""
    train(
        "cal_ql", pendulum, tmp_path / "run", discount=(0.9, 0.97), endless=True, reward_scale=0.5, reward_shift=1.0,
        env_steps=210, eval_every=210, log_every=42, checkpoint_every=210, offline_updates=42, offline_eval_every=42,
    )  # fmt: skip
    with np.load(tmp_path / "run" / "checkpoint" / "state.npz") as file:
        rows, ready = (file[f"[1]['replay'].{name}"] for name in ("rows", "ready"))
    assert ready.tolist() == [200, 200] and (rows[:, :, 5] == 0).all()  # a time limit is no terminal
    reward, returns = rows[:, :200, 4], rows[:, :200, -1]
    assert reward.max() <= 1.0 and reward.min() < 0.5
    for lane, discount in enumerate((0.9, 0.97)):
        expected = reward[lane, -1] / (1 - discount)
        for t in reversed(range(200)):
            expected = reward[lane, t] + discount * expected if t < 199 else expected
            np.testing.assert_allclose(returns[lane, t], expected, rtol=1e-4)


def test_cal_ql_settings_are_those_released():
    """scripts/ of nakamotoo/Cal-QL at ac6eafe, Kitchen's of its branch dev/add-kitchen at c510025."""
    common = {
        "n_actions": 10, "discount": 0.99, "tau": 0.005, "batch_size": 256, "actor_lr": 1e-4, "critic_lr": 3e-4,
        "max_q_backup": True, "calibrate": True, "eval_episodes": 20,
    }  # fmt: skip
    sparse = {"reward_scale": 10.0, "online_share": 0.5, "endless": False, "importance_sampling": True}
    hand = {
        **common, **sparse, "cql_alpha": 1.0, "lagrange": False, "actor_hidden_dims": (512, 512),
        "hidden_dims": (512,) * 3, "offline_updates": 20_000, "reward_shift": 5.0, "failure_reward": -1.0,
    }  # fmt: skip
    expected = {
        **every(
            [d for d in ANTMAZE if "umaze" not in d], **common, **sparse, lagrange=True, target_gap=0.8,
            cql_alpha=5.0, actor_hidden_dims=(256, 256), hidden_dims=(256,) * 4, offline_updates=1_000_000,
            env_steps=1_000_000, reward_shift=-5.0, failure_reward=0.0,
        ),
        **every(
            KITCHEN, **common, cql_alpha=5.0, lagrange=False, importance_sampling=False, endless=True,
            actor_hidden_dims=(512,) * 3, hidden_dims=(512,) * 3, offline_updates=500_000, env_steps=1_500_000,
            online_share=0.75, reward_scale=1.0, reward_shift=0.0, failure_reward=None,
        ),
        "pen-binary-v0": {**hand, "env_steps": 200_000},
        **every(["door-binary-v0", "relocate-binary-v0"], **hand, env_steps=1_000_000),
    }  # fmt: skip
    assert not wrong_settings(load("cal_ql"), expected)
