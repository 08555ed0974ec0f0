"""The losses, the family and the two phases of famo2o."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jax.sharding import SingleDeviceSharding
from jobs import train
from reference import SPEC, B, agent_of, close, compiled, heads, log_std_of, mlp
from scipy.stats import norm

from shared.errors import InputError
from shared.replay import init_replay
from shared.transitions import FIELDS, Batch, Transitions

BETA = np.float32([0.0, 1.0, 2.5, 4.0, 5.0])


def tiny(**changes):
    return load("famo2o").Args(**{"hidden_dims": (8, 8), "batch_size": B} | changes)


@pytest.fixture
def agent():
    """With V in the midst of the target critics' Q."""
    agent = agent_of(compiled("famo2o"), tiny(), seed=7)
    p = agent.value["params"]
    value = {"params": {**p, "Dense_2": {**p["Dense_2"], "bias": p["Dense_2"]["bias"] - 1.5}}}
    return agent.replace(value=value, log_alpha=jnp.float32(-0.7))


def code_of(beta, d=6, n=10_000.0):
    """Column 2 i is sin(beta / n^(2 i / d)), column 2 i + 1 its cosine."""
    code = np.zeros((len(beta), d))
    for i in range(d // 2):
        angle = np.float64(beta) / n ** (2 * i / d)
        code[:, 2 * i], code[:, 2 * i + 1] = np.sin(angle), np.cos(angle)
    return code


def policy(agent, obs, beta):
    return np.tanh(mlp(agent.actor, obs, code_of(beta)))


def balance(agent, obs, key, args):
    """beta and log pi_b(u) by hand."""
    mean, std = mlp(agent.balance, obs)[:, 0], np.exp(np.float64(agent.balance["params"]["log_std"]))
    z = mean + std * np.asarray(jax.random.normal(key, (len(obs),)))
    log_prob = norm.logpdf(z, mean, std) - np.log(1 - np.tanh(z) ** 2)
    return args.beta_min + (np.tanh(z) + 1) / 2 * (args.beta_max - args.beta_min), log_prob


def test_famo2o_encodes_beta_in_sines_and_cosines():
    close(compiled("famo2o").encode(jnp.array(BETA), 6), code_of(BETA))


@pytest.mark.long
def test_famo2o_actor_clones_with_the_weight_of_its_beta(agent, batch):
    famo2o, args = compiled("famo2o"), tiny(max_weight=3.0)
    adv = heads(agent.target_critic, batch.obs, batch.action).min(0) - mlp(agent.value, batch.obs)[:, 0]
    weight = np.minimum(np.exp(BETA * adv), 3.0)
    assert (weight == 3.0).any() and (weight < 1.0).any() and weight[0] == 1.0
    log_prob = norm.logpdf(batch.action, policy(agent, batch.obs, BETA), np.exp(log_std_of(agent.actor))).sum(-1)
    close(famo2o.actor_loss(agent.actor, agent, batch, BETA, jax.random.key(0), args)[0], -(weight * log_prob).mean())


@pytest.mark.parametrize("entropy", [True, False])
def test_famo2o_balance_maximises_q_of_the_policy_that_it_chooses(agent, batch, entropy):
    famo2o, args, key = compiled("famo2o"), tiny(beta_min=2.0, beta_max=9.0, balance_entropy=entropy), jax.random.key(4)
    beta_key, action_key = jax.random.split(key)
    beta, log_prob = balance(agent, batch.obs, beta_key, args)
    assert beta.min() >= 2.0 and beta.max() <= 9.0 and np.ptp(beta) > 0.5
    noise = np.asarray(jax.random.normal(action_key, (B, 2)))
    action = policy(agent, batch.obs, beta) + np.exp(log_std_of(agent.actor)) * noise
    q = heads(agent.target_critic, batch.obs, action).min(0)
    loss, info = famo2o.balance_loss(agent.balance, agent, batch, key, args)
    close(loss, (entropy * np.exp(-0.7) * log_prob - q).mean())
    close(info["balance_entropy"], -log_prob.mean())


def test_famo2o_balance_learns_through_the_policys_action(agent, batch):
    """Without its entropy nothing else moves it; the slope is that of the loss by finite differences."""
    famo2o, args, key = compiled("famo2o"), tiny(balance_entropy=False), jax.random.key(4)

    def loss(shift):
        p = agent.balance["params"]
        moved = {"params": {**p, "Dense_2": {**p["Dense_2"], "bias": p["Dense_2"]["bias"] + shift}}}
        return famo2o.balance_loss(moved, agent, batch, key, args)[0]

    slope = jax.grad(loss)(0.0)
    np.testing.assert_allclose(slope, (loss(1e-2) - loss(-1e-2)) / 2e-2, rtol=0.02)
    assert abs(slope) > 1e-3


def test_famo2o_value_and_critic_are_those_of_iql(agent, batch):
    famo2o, args = compiled("famo2o"), tiny(expectile=0.9, discount=0.9)
    u = heads(agent.target_critic, batch.obs, batch.action).min(0) - mlp(agent.value, batch.obs)[:, 0]
    assert (u > 0).any() and (u < 0).any()
    close(famo2o.value_loss(agent.value, agent, batch, args)[0], (np.where(u < 0, 0.1, 0.9) * u**2).mean())
    y = batch.reward + 0.9 * (1 - batch.terminal) * mlp(agent.value, batch.next_obs)[:, 0]
    q = heads(agent.critic, batch.obs, batch.action)
    close(famo2o.critic_loss(agent.critic, agent, batch, args)[0], ((q - y) ** 2).mean(1).sum())


def test_famo2o_temperature_grows_while_the_entropy_is_too_low():
    famo2o, args = compiled("famo2o"), tiny()
    slope = jax.grad(famo2o.alpha_loss)
    assert slope(jnp.float32(0.0), -2.0, args) < 0 < slope(jnp.float32(0.0), 0.5, args)
    assert args.target_entropy == -0.5


@pytest.mark.long
def test_famo2o_learns_random_betas_offline_and_chosen_ones_online(agent, batch):
    """And V's step comes first; each policy's is taken with the other one as it was."""
    famo2o, key = compiled("famo2o"), jax.random.key(4)
    args = tiny(beta_min=1.0, beta_max=3.0, value_lr=0.1, actor_lr=0.1, balance_lr=0.1)
    beta_key, actor_key, balance_key = jax.random.split(key, 3)
    uniform = 1.0 + (np.asarray(jax.random.uniform(beta_key, (B,), minval=-1.0, maxval=1.0)) + 1.0)
    for update, beta in (
        (famo2o.update, uniform),
        (famo2o.update_online, balance(agent, batch.obs, beta_key, args)[0]),
    ):
        new, info = update(agent, batch, key, args)
        after = agent.replace(value=new.value)
        close(info["actor_loss"], famo2o.actor_loss(agent.actor, after, batch, jnp.array(beta), actor_key, args)[0])
        close(info["balance_loss"], famo2o.balance_loss(agent.balance, after, batch, balance_key, args)[0])
        close(info["critic_loss"], famo2o.critic_loss(agent.critic, after, batch, args)[0])
        assert abs(float(info["critic_loss"] - famo2o.critic_loss(agent.critic, agent, batch, args)[0])) > 1e-3
        assert float(new.log_alpha) != float(agent.log_alpha)


def test_famo2o_random_betas_fill_the_range():
    famo2o, args = compiled("famo2o"), tiny(beta_min=8.0, beta_max=14.0)
    close(famo2o.to_range(jnp.float32([-1.0, 0.0, 1.0]), args), [8.0, 11.0, 14.0])


def test_famo2o_acts_at_the_mode_of_the_balance_policy(agent, batch):
    famo2o, args = compiled("famo2o"), tiny(beta_min=2.0, beta_max=9.0)
    beta = 2.0 + 3.5 * (np.tanh(mlp(agent.balance, batch.obs)[:, 0]) + 1.0)
    mean = policy(agent, batch.obs, beta)
    close(famo2o.act(agent, batch.obs, None, args), mean)
    key = jax.random.key(1)
    noise = np.asarray(jax.random.normal(key, (B, 2)))
    close(famo2o.explore(agent, batch.obs, key, args), mean + np.exp(log_std_of(agent.actor)) * noise)


def test_famo2o_samples_uniformly_from_data_and_experience():
    famo2o, width = compiled("famo2o"), 2 * 3 + 2 + 2
    data = Transitions(jnp.zeros((30, width)), None, None, SPEC, FIELDS)
    replay = init_replay(1, 16, SPEC, SingleDeviceSharding(jax.devices()[0]))
    replay = jax.tree.map(lambda x: x[0], replay)
    for _ in range(10):
        replay = replay.insert(jnp.ones(width))
    drawn = famo2o.sample(jax.random.key(0), data, replay, tiny(batch_size=8000))
    assert abs(float(drawn.reward.mean()) - 0.25) < 0.02


@pytest.mark.long
def test_famo2o_makes_one_update_per_step_in_both_phases(pendulum, tmp_path):
    out = tmp_path / "run"
    trained = train("famo2o", pendulum, out)
    counts = {k: int(v[0]) for k, v in trained.items() if k.endswith("opt[0].count")}
    assert len(counts) == 5 and set(counts.values()) == {12}
    for table in ("offline", "metrics"):
        assert {"family_width", "beta", "beta_std"} <= set(next(csv.DictReader((out / f"{table}.csv").open())))


@pytest.mark.long
def test_famo2o_becomes_a_family_and_chooses_the_improvement_where_it_pays():
    """Rewards are the action's where s > 0 and the opposite elsewhere: greater betas act farther from the data's mean.

    A policy that overlooks beta has no width; one that has it is chosen at the range's upper half.
    """
    famo2o, n = compiled("famo2o"), 64
    spec = SPEC._replace(obs_shape=(1,), action_dim=1, action_low=(-1.0,), action_high=(1.0,))
    rates = {f"{name}_lr": 3e-3 for name in ("actor", "critic", "value", "balance")}
    args = tiny(batch_size=n, hidden_dims=(32, 32), beta_min=0.0, beta_max=5.0, tau=0.05, expectile=0.5, **rates)

    @jax.jit
    def learn(agent):
        def step(agent, key):
            k = jax.random.split(key, 3)
            side = jnp.sign(jax.random.normal(k[0], (n, 1)))
            action = jax.random.uniform(k[1], (n, 1), minval=-1.0)
            batch = Batch(side, action, (side * action)[:, 0], jnp.ones(n), side)
            return famo2o.update(agent, batch, k[2], args)

        return jax.lax.scan(step, agent, jax.random.split(jax.random.key(0), 1500))

    agent, info = learn(famo2o.init(jax.random.key(1), args, spec))
    obs = jnp.float32([[-1.0], [1.0]])
    cloned, improved = (agent.nets.actor.apply(agent.actor, obs, jnp.full(2, b))[0][:, 0] for b in (0.0, 5.0))
    assert np.abs(cloned).max() < 0.25 and improved[0] < -0.5 and improved[1] > 0.5
    assert info["family_width"][-1] > 0.4 and famo2o.best_beta(agent, obs, args).min() > 2.5


def test_famo2o_refuses_an_encoding_of_no_pairs():
    famo2o = load("famo2o")
    with pytest.raises(InputError, match="--encoding-dim must be even, not 5"):
        famo2o.main(famo2o.Args(encoding_dim=5))
