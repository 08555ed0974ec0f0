"""The losses of wsrl against the same equations in plain numpy, its phases and its ablations."""

import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jax.sharding import SingleDeviceSharding
from jobs import train
from reference import SPEC, B, agent_of, close, compiled, tanh_normal
from released import ANTMAZE, KITCHEN, every, wrong_settings
from scipy.special import logsumexp

from shared.errors import InputError
from shared.replay import init_replay
from shared.transitions import FIELDS, Transitions, TransitionsWithReturns

SMALL = {"n_actions": 2, "n_critics": 3, "actor_hidden_dims": (8, 8), "learning_starts": 4, "utd": 2}

E, N, UTD = 4, 3, 2
RETURNS = np.float32([-1.0, 40.0, 0.3, -40.0, 1.0])


def tiny(**changes):
    sizes = {"hidden_dims": (8, 8), "actor_hidden_dims": (8,), "batch_size": B, "n_actions": N, "n_critics": E}
    return load("wsrl").Args(**sizes | {"utd": UTD} | changes)


def make(**changes):
    agent = agent_of(compiled("wsrl"), tiny(**changes))
    return agent.replace(log_alpha=jnp.float32(-0.4), log_alpha_prime=jnp.float32(0.4))


@pytest.fixture
def batch(batch):
    return batch._replace(next_action=None, return_to_go=RETURNS)


def dense(x, p):
    return x @ np.float64(p["kernel"]) + np.float64(p["bias"])


def network(params, *inputs, layer_norm=True):
    """Dense, layer normalisation, ReLU; then Dense."""
    x, layers = np.concatenate(inputs, -1).astype(np.float64), params["params"]["Layers_0"]
    for i in range(sum(k.startswith("Dense") for k in layers)):
        x = dense(x, layers[f"Dense_{i}"])
        if layer_norm:
            p = layers[f"LayerNorm_{i}"]
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
            x = x * np.float64(p["scale"]) + np.float64(p["bias"])
        x = np.maximum(x, 0)
    return dense(x, params["params"]["Dense_0"])


def q_of(critics, *inputs, **kwargs):
    n = len(jax.tree.leaves(critics)[0])
    return np.stack([network(jax.tree.map(lambda x, i=i: x[i], critics), *inputs, **kwargs)[..., 0] for i in range(n)])


def distribution(params, obs):
    mean, log_std = np.split(network(params, obs), 2, -1)
    return mean, np.clip(log_std, np.log(1e-5), np.log(10.0))


def pair(key):
    return np.asarray(jax.random.permutation(key, E))[:2]


def bellman_of(agent, batch, key, best_of_actions, discount=0.9):
    action_key, subset_key = jax.random.split(key)
    noise = np.asarray(jax.random.normal(action_key, (N if best_of_actions else 1, B, 2)))
    mean, log_std = distribution(agent.actor, batch.next_obs)
    some = pair(subset_key)
    next_q = [q_of(agent.target_critic, batch.next_obs, tanh_normal(mean, log_std, e)[0])[some].min(0) for e in noise]
    y = batch.reward + discount * (1 - batch.terminal) * np.max(next_q, axis=0)
    return ((q_of(agent.critic, batch.obs, batch.action) - y) ** 2).mean()


@pytest.mark.parametrize("best_of_actions", [False, True])
def test_wsrl_critics_regress_to_the_least_of_two_random_targets(batch, best_of_actions):
    """Without entropy in the target, which alpha is in general position to show."""
    agent, args = make(), tiny(discount=0.9)
    assert len({tuple(pair(jax.random.key(i))) for i in range(30)}) > 6
    for i in range(3):
        loss, _ = compiled("wsrl").critic_loss(agent.critic, agent, batch, jax.random.key(i), args, best_of_actions)
        close(loss, bellman_of(agent, batch, jax.random.key(i), best_of_actions))


@pytest.mark.parametrize(
    "calibrate, importance, lagrange", [(True, True, False), (False, True, True), (True, False, False)]
)
def test_wsrl_pretrains_two_random_critics_conservatively(batch, calibrate, importance, lagrange):
    options = {"calibrate": calibrate, "importance_sampling": importance, "lagrange": lagrange}
    args = tiny(**options, cql_alpha=2.0, target_gap=0.5, discount=0.9)
    agent, key = make(), jax.random.key(2)
    bellman_key, gap_key, subset_key = jax.random.split(key, 3)
    keys = jax.random.split(gap_key, 3)
    uniform = np.asarray(jax.random.uniform(keys[0], (N, B, 2), minval=-1.0, maxval=1.0))
    noise = [np.asarray(jax.random.normal(k, (N, B, 2))) for k in keys[1:]]
    now = tanh_normal(*distribution(agent.actor, batch.obs), noise[0])
    following = tanh_normal(*distribution(agent.actor, batch.next_obs), noise[1])
    kinds = [(uniform, np.full((N, B), -2 * np.log(2.0))), following, now]
    q, gaps, under = q_of(agent.critic, batch.obs, batch.action), [], []
    for i in pair(subset_key):
        for b in range(B):
            values = [] if importance else [q[i, b]]
            for kind, (actions, log_density) in enumerate(kinds):
                for k in range(N):
                    value = q_of(agent.critic, batch.obs[b], actions[k, b])[i]
                    if kind > 0:
                        under.append(value < RETURNS[b])
                        value = max(value, RETURNS[b]) if calibrate else value
                    values.append(value - log_density[k, b] if importance else value)
            gaps.append(logsumexp(values) - q[i, b])
    penalty = np.exp(0.4) * (np.mean(gaps) - 0.5) if lagrange else 2.0 * np.mean(gaps)
    loss, info = compiled("wsrl").conservative_critic_loss(agent.critic, agent, batch, key, args)
    close(loss, bellman_of(agent, batch, bellman_key, best_of_actions=True) + penalty)
    close(info["bound_rate"], np.mean(under))


def test_wsrl_policy_takes_the_least_of_all_critics_and_temperature_its_entropy(batch):
    module, agent, key = compiled("wsrl"), make(), jax.random.key(4)
    noise = np.asarray(jax.random.normal(key, (1, B, 2)))[0]
    action, log_prob = tanh_normal(*distribution(agent.actor, batch.obs), noise)
    expected = (np.exp(-0.4) * log_prob - q_of(agent.critic, batch.obs, action).min(0)).mean()
    close(module.actor_loss(agent.actor, agent, batch, key, tiny())[0], expected)
    assert jax.grad(module.alpha_loss)(0.0, -5.0, 3) < 0 < jax.grad(module.alpha_loss)(0.0, -1.0, 3)


def test_wsrl_networks_without_normalisation_and_with_one_std(batch):
    module = compiled("wsrl")
    agent = make(layer_norm=False, state_dependent_std=False)
    q = module.q_values(agent.nets.critic, agent.critic, batch.obs, batch.action)
    close(q, q_of(agent.critic, batch.obs, batch.action, layer_norm=False))
    mean, log_std = agent.nets.actor.apply(agent.actor, batch.obs)
    close(mean, network(agent.actor, batch.obs, layer_norm=False))
    close(log_std, np.broadcast_to(agent.actor["params"]["log_std"], (B, 2)))


def test_wsrl_online_step_is_utd_critic_steps_then_one_policy_step_on_all_rows(batch):
    """No penalty: the same critics come out of steps along critic_loss alone, one after the other."""
    module, agent, args, key = compiled("wsrl"), make(), tiny(), jax.random.key(3)
    batches = jax.tree.map(lambda x: jnp.stack([x, x[::-1] + 0.1]), batch._replace(return_to_go=None))
    new, metrics = jax.jit(module.update_online)(agent, batches, key, args)
    counts = [int(opt[0].count) for opt in (new.critic_opt, new.actor_opt, new.alpha_opt)]
    assert counts == [UTD, 1, 1] and not {"gap", "bound_rate"} & metrics.keys()
    critic_key, actor_key = jax.random.split(key)
    expected = agent
    for i, k in enumerate(jax.random.split(critic_key, UTD)):
        rows = jax.tree.map(lambda x, i=i: x[i], batches)
        grads = jax.grad(lambda c: module.critic_loss(c, expected, rows, k, args, False)[0])(expected.critic)  # noqa: B023
        expected = expected.replace(**module.critic_step(expected, grads, args))
    for name in ("critic", "target_critic"):
        jax.tree.map(close, getattr(new, name), getattr(expected, name))
    rows = jax.tree.map(lambda x: x.reshape(UTD * B, *x.shape[2:]), batches)
    close(metrics["actor_loss"], module.actor_loss(agent.actor, expected, rows, actor_key, args)[0])


@pytest.mark.parametrize("share, online", [(1.0, 8), (0.5, 4)])
def test_wsrl_batches_are_online_unless_data_is_retained(share, online):
    module, args = compiled("wsrl"), tiny(batch_size=8, online_share=share)
    rows = jnp.ones((6, 10))
    data = TransitionsWithReturns(Transitions(rows, None, None, SPEC, FIELDS), jnp.array([0.99]), jnp.zeros((1, 6)))
    replay = init_replay(1, 20, SPEC, SingleDeviceSharding(jax.devices()[0]))
    replay = jax.tree.map(lambda x: x[0], replay).insert(jnp.full(10, 7.0))
    batch = module.sample(jax.random.key(0), data, replay, args)
    assert batch.obs.shape == (UTD, 8, 3)
    assert np.asarray(batch.reward).tolist() == [[1.0] * (8 - online) + [7.0] * online] * UTD


def test_wsrl_warm_up_acts_with_the_frozen_pretrained_policy(pendulum, tmp_path):
    """Nothing is learned or reset in it; then utd critic updates a step, from a buffer that began empty."""
    settings = {"actor_lr": (1e-3, 1e-1), "calibrate": False}
    warm = train("wsrl", pendulum, tmp_path / "warm", **settings, learning_starts=8)
    assert (warm["[0].critic_opt[0].count"] == 4).all() and (warm["[0].actor_opt[0].count"] == 4).all()
    assert (warm["[0].log_alpha"] != 0.0).all()
    with np.load(tmp_path / "warm" / "checkpoint" / "state.npz") as file:
        rows, inserted = (file[f"[1]['replay'].{name}"] for name in ("rows", "inserted"))
    assert inserted.tolist() == [8, 8]
    assert (rows[0, :, 3] != rows[1, :, 3]).all()  # the policies' own actions: uniform ones would be the same
    later = train("wsrl", pendulum, tmp_path / "later", **settings, learning_starts=4)
    assert (later["[0].critic_opt[0].count"] == 4 + 2 * 4).all() and (later["[0].actor_opt[0].count"] == 4 + 4).all()
    with (tmp_path / "later" / "metrics.csv").open() as f:
        assert [(r["update"], r["env_step"]) for r in csv.DictReader(f)][::2] == [("8", "6"), ("12", "8")]


def test_wsrl_without_warm_up_learns_from_the_first_step(pendulum, tmp_path):
    agent = train("wsrl", pendulum, tmp_path / "run", learning_starts=0, online_share=0.5)
    assert agent["[0].critic_opt[0].count"].tolist() == [4 + 2 * 8]
    assert all(np.isfinite(value).all() for value in agent.values())


def test_wsrl_settings_are_those_released():
    """experiments/ of zhouzypaul/wsrl at 891ee35."""
    common = {"n_actions": 10, "n_critics": 10, "subset_size": 2, "actor_lr": 1e-4, "critic_lr": 3e-4, "discount": 0.99}
    common |= {"max_q_backup": True, "utd": 4, "learning_starts": 5_000, "batch_size": 256, "eval_episodes": 20}
    hand = {"cql_alpha": 1.0, "offline_updates": 20_000, "reward_scale": 10.0, "reward_shift": 5.0}
    hand |= {"hidden_dims": (512,) * 3, "actor_hidden_dims": (512, 512), "lagrange": False}
    gym = {"cql_alpha": 5.0, "offline_updates": 250_000, "lagrange": False, "hidden_dims": (256, 256)}
    expected = {
        **every(
            ANTMAZE, **common, lagrange=True, target_gap=0.8, offline_updates=1_000_000, reward_scale=10.0,
            reward_shift=-5.0, hidden_dims=(256,) * 4, state_dependent_std=False, online_max_q_backup=True,
        ),
        **every(
            KITCHEN, **common, cql_alpha=5.0, lagrange=False, importance_sampling=False, offline_updates=250_000,
            reward_scale=1.0, reward_shift=-4.0, hidden_dims=(512,) * 3, actor_hidden_dims=(512,) * 3, endless=False,
        ),
        **every(["pen-binary-v0", "door-binary-v0", "relocate-binary-v0"], **common, **hand),
        **every(["halfcheetah-medium-replay-v2", "hopper-medium-v2"], **common, **gym, reward_shift=0.0),
    }  # fmt: skip
    assert not wrong_settings(load("wsrl"), expected)


def test_wsrl_the_multiplier_begins_at_one(batch):
    """cql_alpha_lagrange_init of experiments/configs/cql_config.py, without a factor beside it."""
    wsrl, args = compiled("wsrl"), tiny(lagrange=True, cql_alpha=5.0, target_gap=0.5)
    agent = wsrl.init(jax.random.key(0), args, SPEC)
    values = [
        wsrl.conservative_critic_loss(agent.critic, agent, batch, jax.random.key(1), a)
        for a in (args, dataclasses.replace(args, lagrange=False, cql_alpha=1.0))
    ]
    close(values[0][0], values[1][0] - 0.5)
    close(jax.grad(wsrl.alpha_prime_loss)(jnp.float32(0.0), 2.0, args), -(2.0 - 0.5))


def test_wsrl_refuses_a_subset_of_more_than_all_critics():
    wsrl = load("wsrl")
    with pytest.raises(InputError, match="--subset-size 4: there are --n-critics 3"):
        wsrl.main(wsrl.Args(n_critics=3, subset_size=4))
