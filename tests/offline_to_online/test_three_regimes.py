"""The fine-tuner of the three regimes against plain numpy: both regularisers, and what each intervention does."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jax.sharding import SingleDeviceSharding
from jobs import small, train
from reference import SPEC, B, agent_of, close, tanh_normal
from scipy.special import logsumexp
from scipy.stats import norm

from shared.errors import InputError
from shared.replay import init_replay
from shared.transitions import FIELDS, Transitions, TransitionsWithReturns

SMALL = {"n_actions": 2, "n_critics": 2, "actor_hidden_dims": (8, 8), "frozen_steps": 2.0}

E, N = 3, 2
RETURNS = np.float32([-1.0, 40.0, 0.3, -40.0, 1.0])
regimes = load("three_regimes")
critic_loss, actor_loss, bc_loss = (jax.jit(f) for f in (regimes.critic_loss, regimes.actor_loss, regimes.bc_loss))


def tiny(**changes):
    sizes = {"hidden_dims": (8,), "actor_hidden_dims": (8,), "batch_size": B, "n_actions": N, "n_critics": E}
    return regimes.Args(**sizes | {"discount": 0.9, "cql_alpha": 2.0, "alpha": 3.0} | changes)


@pytest.fixture(scope="module")
def agent():
    return agent_of(regimes, tiny()).replace(log_alpha=jnp.float32(-0.4))


@pytest.fixture
def batch(batch):
    return batch._replace(next_action=None, return_to_go=RETURNS)


def network(params, *inputs):
    """Dense, layer normalisation, ReLU; then Dense."""
    x, layers = np.concatenate(inputs, -1).astype(np.float64), params["params"]["Layers_0"]
    x = x @ np.float64(layers["Dense_0"]["kernel"]) + np.float64(layers["Dense_0"]["bias"])
    p = layers["LayerNorm_0"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = np.maximum(x * np.float64(p["scale"]) + np.float64(p["bias"]), 0)
    last = params["params"]["Dense_0"]
    return x @ np.float64(last["kernel"]) + np.float64(last["bias"])


def q_of(critics, obs, action):
    return np.stack([network(jax.tree.map(lambda x, i=i: x[i], critics), obs, action)[..., 0] for i in range(E)])


def distribution(params, obs):
    mean, log_std = np.split(network(params, obs), 2, -1)
    return mean, np.clip(log_std, np.log(1e-5), np.log(10.0))


def bellman_of(agent, batch, key):
    action_key, subset_key = jax.random.split(key)
    noise = np.asarray(jax.random.normal(action_key, (B, 2)))
    some = np.asarray(jax.random.permutation(subset_key, E))[:2]
    action, _ = tanh_normal(*distribution(agent.actor, batch.next_obs), noise)
    y = batch.reward + 0.9 * (1 - batch.terminal) * q_of(agent.target_critic, batch.next_obs, action)[some].min(0)
    return ((q_of(agent.critic, batch.obs, batch.action) - y) ** 2).mean()


def gap_of(agent, batch, key, bound):
    keys = jax.random.split(key, 3)
    uniform = np.asarray(jax.random.uniform(keys[0], (N, B, 2), minval=-1.0, maxval=1.0))
    noise = [np.asarray(jax.random.normal(k, (N, B, 2))) for k in keys[1:]]
    now = tanh_normal(*distribution(agent.actor, batch.obs), noise[0])
    following = tanh_normal(*distribution(agent.actor, batch.next_obs), noise[1])
    gaps = []
    for b in range(B):
        terms = []
        for kind, (actions, log_density) in enumerate([(uniform, np.full((N, B), -2 * np.log(2))), now, following]):
            for k in range(N):
                q = q_of(agent.critic, batch.obs[b], actions[k, b])
                terms.append((np.maximum(q, bound[b]) if kind else q) - log_density[k, b])
        gaps.append(logsumexp(terms, axis=0) - q_of(agent.critic, batch.obs[b], batch.action[b]))
    return np.mean(gaps)


@pytest.mark.parametrize("kept", (0.0, 0.5))
def test_critics_have_the_bellman_error_and_as_much_of_the_gap_as_is_kept(agent, batch, kept):
    key = jax.random.key(3)
    bellman_key, gap_key = jax.random.split(key)
    bellman, gap = bellman_of(agent, batch, bellman_key), gap_of(agent, batch, gap_key, RETURNS)
    loss, info = critic_loss(agent.critic, agent, batch, key, tiny(), kept)
    close(loss, bellman + kept * 2.0 * gap)
    close(info["gap"], gap if kept else 0.0)
    for other in ("bc", "td3_bc"):
        close(critic_loss(agent.critic, agent, batch, key, tiny(pretraining=other), kept)[0], bellman)


def test_targets_policy_and_sampled_actions_carry_no_gradient(agent, batch):
    def loss(parts):
        return regimes.critic_loss(agent.critic, agent.replace(**parts), batch, jax.random.key(3), tiny(), 1.0)[0]

    grads = jax.jit(jax.grad(loss))({"actor": agent.actor, "target_critic": agent.target_critic})
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("pretraining", ("cal_ql", "bc", "td3_bc"))
def test_the_policy_is_sacs_with_a_cloning_term_where_that_is_the_regulariser(agent, batch, pretraining):
    key, args = jax.random.key(4), tiny(pretraining=pretraining)
    batch = batch._replace(action=batch.action.copy())
    batch.action[0] = (1.0, -1.0)  # at the rim, where atanh has no value
    mean, log_std = distribution(agent.actor, batch.obs)
    action, log_prob = tanh_normal(mean, log_std, np.asarray(jax.random.normal(key, (B, 2))))
    q = q_of(agent.critic, batch.obs, action).min(0)
    clipped = np.clip(np.float64(batch.action), -0.999, 0.999)
    of_data = norm.logpdf(np.arctanh(clipped), mean, np.exp(log_std)) - np.log(1 - clipped**2)
    cloned = -of_data.sum(-1).mean()
    sac = (np.exp(-0.4) * log_prob - q).mean()
    weight = 0.0 if pretraining == "cal_ql" else 0.5 * np.abs(q).mean() / 3.0
    loss, info = actor_loss(agent.actor, agent, batch, key, args, 0.5)
    close(loss, sac + weight * cloned)
    close(info["entropy"], -log_prob.mean())
    close(bc_loss(agent.actor, agent, batch, key, args)[0], cloned)
    if pretraining == "td3_bc":  # the size of Q is a number: the gradient is linear in what is kept
        grad = jax.jit(jax.grad(lambda a, kept: actor_loss(a, agent, batch, key, args, kept)[0]))
        none, some = grad(agent.actor, 0.0), grad(agent.actor, 0.5)
        clone = jax.jit(jax.grad(lambda a: bc_loss(a, agent, batch, key, args)[0]))(agent.actor)
        jax.tree.map(lambda a, b, c: close(b, a + weight * np.asarray(c)), none, some, clone)


def test_the_temperature_grows_while_entropy_is_under_its_target():
    assert jax.grad(regimes.alpha_loss)(0.0, -5.0, 3) < 0 < jax.grad(regimes.alpha_loss)(0.0, -1.0, 3)


def counts(agent):
    return [int(opt[0].count) for opt in (agent.critic_opt, agent.actor_opt, agent.alpha_opt)]


def test_cloning_trains_critics_only_if_asked(agent, batch):
    for fit, expected in ((True, [1, 1, 0]), (False, [0, 1, 0])):
        args = tiny(pretraining="bc", fit_critic=fit)
        new, metrics = jax.jit(regimes.update)(agent, batch, jax.random.key(0), args)
        assert counts(new) == expected
        actor_key = jax.random.split(jax.random.key(0))[1]
        close(metrics["actor_loss"], bc_loss(agent.actor, agent, batch, actor_key, args)[0])
    new, metrics = jax.jit(regimes.update)(agent, batch, jax.random.key(0), tiny())
    keys = jax.random.split(jax.random.key(0))
    close(metrics["critic_loss"], critic_loss(agent.critic, agent, batch, keys[0], tiny(), 1.0)[0])
    close(metrics["actor_loss"], actor_loss(agent.actor, agent, batch, keys[1], tiny(), 1.0)[0])


def test_cloning_leaves_the_temperature_alone(agent, batch):
    update, new = jax.jit(regimes.update), agent
    for key in jax.random.split(jax.random.key(0), 3):
        new, metrics = update(new, batch, key, tiny(pretraining="bc"))
        close(metrics["temperature"], np.exp(-0.4))
    assert new.log_alpha == agent.log_alpha
    jax.tree.map(np.testing.assert_array_equal, new.alpha_opt, agent.alpha_opt)
    for pretraining in ("cal_ql", "td3_bc"):
        other, _ = update(agent, batch, jax.random.key(0), tiny(pretraining=pretraining))
        assert other.log_alpha != agent.log_alpha


def test_online_steps_wait_and_then_move_critics_before_the_policy(agent, batch):
    key, args = jax.random.key(5), tiny(utd=2, frozen_steps=3.0, regulariser=0.5)
    rows = jax.tree.map(lambda x: jnp.stack([x, x[::-1] + 0.1]), batch._replace(return_to_go=None))
    step = jax.jit(regimes.update_online)
    same, metrics = step(agent, rows, key, args, 2)
    jax.tree.map(np.testing.assert_array_equal, same, agent)
    assert not any(metrics.values())
    new, metrics = step(agent, rows, key, args, 3)
    assert counts(new) == [2, 1, 1]
    critic_key, actor_key = jax.random.split(key)
    expected, critic_step = agent, jax.jit(regimes.critic_step)
    for i, k in enumerate(jax.random.split(critic_key, 2)):
        mine = jax.tree.map(lambda x, i=i: x[i], rows)
        action = np.tanh(distribution(agent.prior_actor, mine.obs)[0])
        mine = mine._replace(return_to_go=jnp.float32(q_of(agent.prior_critic, mine.obs, action).min(0)))
        expected = expected.replace(**critic_step(expected, mine, k, args, 0.5)[0])
    for name in ("critic", "target_critic"):
        jax.tree.map(close, getattr(new, name), getattr(expected, name))
    close(metrics["actor_loss"], actor_loss(agent.actor, expected, mine, actor_key, args, 0.5)[0])


@pytest.mark.parametrize("share, offline", [(0.0, 0), (0.5, 4), (1.0, 8)])
def test_batches_hold_the_share_of_the_dataset(share, offline):
    args = tiny(batch_size=8, offline_share=share, utd=2)
    data = Transitions(jnp.ones((6, 10)), None, None, SPEC, FIELDS)
    data = TransitionsWithReturns(data, jnp.array([0.99]), jnp.zeros((1, 6)))
    replay = init_replay(1, 20, SPEC, SingleDeviceSharding(jax.devices()[0]))
    replay = jax.tree.map(lambda x: x[0], replay).insert(jnp.full(10, 7.0))
    batch = regimes.sample(jax.random.key(0), data, replay, args)
    assert batch.obs.shape == (2, 8, 3)
    assert np.asarray(batch.reward).tolist() == [[1.0] * offline + [7.0] * (8 - offline)] * 2
    assert np.asarray(batch.obs[0, :, 0]).tolist() == [1.0] * offline + [7.0] * (8 - offline)


def test_a_reset_draws_the_networks_anew_and_keeps_temperature_and_prior(agent, batch):
    """The temperature was learned: one step of Adam by hand, at its first one of the step size."""
    agent = jax.jit(regimes.update)(agent, batch, jax.random.key(0), tiny(actor_lr=0.01))[0]
    moved = float(agent.log_alpha)
    close(abs(moved + 0.4), 0.01)
    begin, key = jax.jit(partial(regimes.begin, spec=SPEC)), jax.random.key(8)
    old, new = (begin(agent, key, dataclasses.replace(tiny(), new_networks=x)) for x in (0.0, 1.0))
    fresh = jax.jit(regimes.init, static_argnums=2)(key, tiny(), SPEC)
    for name in ("actor", "critic", "target_critic", "actor_opt", "critic_opt"):
        jax.tree.map(np.testing.assert_array_equal, getattr(old, name), getattr(agent, name))
        jax.tree.map(close, getattr(new, name), getattr(fresh, name))
    assert counts(old) == [1, 1, 1] and counts(new) == [0, 0, 1]
    for begun in (old, new):
        assert begun.log_alpha == moved
        jax.tree.map(np.testing.assert_array_equal, begun.alpha_opt, agent.alpha_opt)
        jax.tree.map(np.testing.assert_array_equal, begun.prior_actor, agent.actor)
        jax.tree.map(np.testing.assert_array_equal, begun.prior_critic, agent.critic)


def test_interventions_are_lanes_of_one_job(pendulum, tmp_path):
    settings = {"frozen_steps": (0.0, 6.0, 8.0), "new_networks": (0.0, 1.0)}
    agent = train("three_regimes", pendulum, tmp_path / "run", pretraining="td3_bc", **settings)
    assert agent["[0].critic_opt[0].count"].tolist() == [4 + 8, 8, 4 + 2, 2, 4, 0]
    notes = json.loads((tmp_path / "run" / "run.json").read_text())["notes"]
    assert "--frozen-steps 8: nothing is learned in 8 steps." in notes
    kernel = "[0].{}['params']['Dense_0']['kernel']"
    prior = agent[kernel.format("prior_actor")]
    assert (prior == prior[0]).all()  # of one seed
    assert all(np.isfinite(value).all() for value in agent.values())


def test_three_regimes_refuses_a_subset_of_more_than_all_critics():
    module = load("three_regimes")
    with pytest.raises(InputError, match="--subset-size 4: there are --n-critics 3"):
        module.main(module.Args(n_critics=3, subset_size=4))


@pytest.mark.parametrize("pretraining", ("bc", "td3_bc"))
def test_three_regimes_refuses_imitation_of_infinite_weight(pretraining, pendulum, tmp_path):
    args = small("three_regimes", pendulum, tmp_path / "run", pretraining=pretraining, alpha=(2.5, 0.0))
    with pytest.raises(InputError, match="--alpha must be above 0"):
        regimes.main(args)
