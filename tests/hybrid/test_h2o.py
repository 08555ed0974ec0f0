"""The losses, the mixture and the simulator of h2o."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jax.sharding import SingleDeviceSharding
from jobs import train
from reference import SPEC, B, agent_of, close, compiled, heads, mlp, tanh_normal
from scipy.special import log_softmax, logsumexp

from shared.errors import InputError
from shared.replay import init_replay
from shared.task import Task
from shared.transitions import FIELDS, Batch, Transitions

SMALL = {"gap_samples": 2, "learning_starts": 4}


def tiny(**changes):
    """Five rows: three real ones, then two simulated ones."""
    return load("h2o").Args(**{"hidden_dims": (8, 8), "batch_size": B, "sim_share": 0.4, "gap_samples": 3} | changes)


@pytest.fixture
def agent():
    return agent_of(compiled("h2o"), tiny()).replace(log_alpha=jnp.float32(-0.5))


@pytest.fixture
def other():
    """Another batch of five."""
    r = np.random.default_rng(1)
    return Batch(
        *(r.normal(size=s).astype(np.float32) for s in ((B, 3), (B, 2), (B,))),
        terminal=np.zeros(B, np.float32),
        next_obs=r.normal(size=(B, 3)).astype(np.float32),
    )


def actor(params, obs):
    mean, log_std = np.split(mlp(params, obs), 2, -1)
    p = params["params"]
    return mean, np.clip(float(p["log_std_scale"]) * log_std + float(p["log_std_offset"]), -20, 2)


def logits(params, *inputs):
    return 2.0 * np.tanh(mlp(params, *inputs))


def leaning(agent, by):
    """`agent` whose discriminator takes all transitions for more real by `by`."""
    p = agent.d_sas["params"]
    bias = p["Dense_2"]["bias"] + jnp.float32([by, -by])
    return agent.replace(d_sas={"params": {**p, "Dense_2": {**p["Dense_2"], "bias": bias}}})


def log_ratio_of(agent, *sas):
    """log P_real / P_sim from the four probabilities of the two classifiers."""
    sa = logits(agent.d_sa, *sas[:2])
    log_sa, log_sas = log_softmax(sa, -1), log_softmax(sa + logits(agent.d_sas, *sas), -1)
    return log_sas[..., 0] - log_sas[..., 1] - log_sa[..., 0] + log_sa[..., 1]


def test_h2o_begins_with_the_released_weights():
    """SimpleSAC/model.py (orthogonal_init off) and Network/Weight_net.py of t6-thu/H2O: PyTorch's, last ones small.

    Those of policy and critics are Xavier's with gain 1e-2: first Q are near 0, first actions near N(0, e^-1).
    """
    h2o, width = load("h2o"), 64
    init = jax.jit(h2o.init, static_argnums=2)
    agent = jax.device_get(init(jax.random.key(0), tiny(hidden_dims=(width, width)), SPEC))
    inputs = {"actor": 3, "critic": 5, "d_sa": 5, "d_sas": 8}
    for name, n in inputs.items():
        layers = getattr(agent, name)["params"]
        outputs = {"actor": 4, "critic": 1}.get(name)
        last = 1e-2 * (6 / (width + outputs)) ** 0.5 if outputs else width**-0.5
        for layer, bound in (("Dense_0", n**-0.5), ("Dense_1", width**-0.5), ("Dense_2", last)):
            assert 0.8 * bound < np.abs(layers[layer]["kernel"]).max() <= bound * 1.00001, (name, layer)


@pytest.mark.long
def test_h2o_discriminators_minimise_the_cross_entropies_of_both_classifications(agent, batch, other):
    h2o, key, args = compiled("h2o"), jax.random.key(3), tiny(input_noise=0.2)
    expected, gaps = 0.0, []
    for data, label, k in zip((batch, other), (0, 1), jax.random.split(key), strict=True):
        inputs = (data.obs, data.action, data.next_obs)
        keys = jax.random.split(k, 3)
        x = [np.asarray(x + 0.2 * jax.random.normal(i, x.shape)) for x, i in zip(inputs, keys, strict=True)]
        sa, sas = logits(agent.d_sa, *x[:2]), logits(agent.d_sas, *x)
        expected -= log_softmax(sa, -1)[:, label].mean() + log_softmax(sa + sas, -1)[:, label].mean()
        gaps.append(-log_ratio_of(agent, *x).mean())
    batches = h2o.Batches(batch, batch, other)
    loss, info = h2o.discriminator_loss((agent.d_sa, agent.d_sas), agent, batches, key, args)
    close(loss, expected)
    close([info["gap_real"], info["gap_sim"]], gaps)


def test_h2o_discriminators_see_no_next_observation_that_is_not_known(agent, batch):
    """A terminal row whose successor was not stored: whatever stands there changes nothing."""
    h2o, key, args = compiled("h2o"), jax.random.key(4), tiny(batch_size=B)
    known = np.float32([1, 0, 1, 1, 0])
    losses = []
    for filling in (0.0, 30.0):
        next_obs = np.where(known[:, None] > 0, batch.next_obs, np.float32(filling))
        real = batch._replace(next_obs=next_obs, successor=known)
        d = agent.d_sa, agent.d_sas
        losses.append(h2o.discriminator_loss(d, agent, h2o.Batches(batch, real, batch), key, args)[0])
    close(losses[0], losses[1])
    every = batch._replace(successor=np.ones(B, np.float32))
    with_column, without = (
        h2o.discriminator_loss((agent.d_sa, agent.d_sas), agent, h2o.Batches(batch, real, batch), key, args)[0]
        for real in (every, batch)
    )
    close(with_column, without)


def test_h2o_ratio_is_that_of_the_four_probabilities(agent, batch):
    sas = (batch.obs, batch.action, batch.next_obs)
    ratio = compiled("h2o").log_ratio(agent, *sas)
    close(ratio, log_ratio_of(agent, *sas))
    assert np.ptp(ratio) > 0.1 and np.abs(ratio).max() <= 4.0


def test_h2o_dynamics_gap_is_a_mean_over_noisy_next_observations_and_has_a_logarithm(agent, batch):
    h2o, key, std = compiled("h2o"), jax.random.key(5), np.float32([0.5, 1.0, 2.0])
    args, agent = tiny(next_obs_noise=0.7), leaning(agent, -0.17)
    noise = 0.7 * std * np.asarray(jax.random.normal(key, (3, B, 3)))
    gap = -np.mean([log_ratio_of(agent, batch.obs, batch.action, batch.next_obs + n) for n in noise], axis=0)
    assert (gap > 0.05).any() and (gap < -0.05).any()
    u = h2o.dynamics_gap(agent, batch, std, key, args)
    close(u, np.maximum(gap, 1e-8))
    assert np.isfinite(np.log(u / u.sum())).all()
    unlike = agent.replace(d_sas=jax.tree.map(jnp.zeros_like, agent.d_sas))  # u is 0 everywhere
    u = h2o.dynamics_gap(unlike, batch, std, key, args)
    close(jnp.log(u / u.sum()), np.full(B, -np.log(B)))


@pytest.mark.parametrize("backup_entropy", [False, True])
def test_h2o_critic_weighs_simulated_errors_and_penalises_over_the_batch(agent, batch, backup_entropy):
    h2o, key = compiled("h2o"), jax.random.key(9)
    args = tiny(discount=0.9, penalty_weight=0.3, backup_entropy=backup_entropy)
    weight, omega = np.float32([0.2, 0.9]), np.float32([0.7, 0.3])
    next_action, log_prob = tanh_normal(*actor(agent.actor, batch.next_obs), np.asarray(jax.random.normal(key, (B, 2))))
    next_q = heads(agent.target_critic, batch.next_obs, next_action).min(0) - backup_entropy * np.exp(-0.5) * log_prob
    y = batch.reward + 0.9 * (1 - batch.terminal) * next_q
    q = heads(agent.critic, batch.obs, batch.action)
    error = (q - y) ** 2
    expected = 0.0
    for i in range(2):
        soft_max = logsumexp(q[i, 3:], b=omega)  # over pairs, not over actions
        expected += error[i, :3].mean() + (weight * error[i, 3:]).mean() + 0.3 * (soft_max - q[i, :3].mean())
    close(h2o.critic_loss(agent.critic, agent, batch, weight, omega, key, args)[0], expected)


def test_h2o_penalty_pushes_down_the_pair_of_the_largest_gap_and_pushes_up_the_data(agent, batch):
    h2o, key, args = compiled("h2o"), jax.random.key(9), tiny()

    def penalty(shift, omega):
        """Where Q is a table: row b's is obs[b, 0] + shift[b]."""
        nets = agent.nets._replace(critic=type("Table", (), {"apply": staticmethod(lambda p, o, a: p + o[:, 0])})())
        lookup = agent.replace(nets=nets, target_critic=jnp.zeros((2, B)))
        return h2o.critic_loss(jnp.stack([shift, shift]), lookup, batch, jnp.ones(2), omega, key, args)[1]["penalty"]

    slope = jax.grad(penalty)(jnp.zeros(B), jnp.float32([0.999, 0.001]))
    close(slope[:3], np.full(3, -2 / 3))
    close(slope[3:].sum(), 2.0)
    assert slope[3] > 20 * slope[4] > 0
    assert not jax.grad(penalty)(jnp.full(B, 0.0).at[3:].set(5000.0), jnp.float32([0.5, 0.5])).any()  # clipped


def test_h2o_policy_learns_in_real_and_simulated_states(agent, batch):
    h2o, key, args = compiled("h2o"), jax.random.key(9), tiny()
    action, lp = tanh_normal(*actor(agent.actor, batch.obs), np.asarray(jax.random.normal(key, (B, 2))))
    expected = (np.exp(-0.5) * lp - heads(agent.critic, batch.obs, action).min(0)).mean()
    loss, info = h2o.actor_loss(agent.actor, agent, batch, key, args)
    close(loss, expected)
    close(info["entropy"], -lp.mean())
    slope = jax.grad(h2o.alpha_loss)
    assert slope(jnp.float32(0.0), -5.0, 3) < 0 < slope(jnp.float32(0.0), -1.0, 3)


@pytest.mark.long
@pytest.mark.parametrize("lean", [-0.5, 0.5])
@pytest.mark.parametrize("switches", [{}, {"weights": False, "adaptive": False}])
def test_h2o_update_weighs_with_the_new_discriminators_and_has_its_switches(agent, batch, other, switches, lean):
    h2o, key, agent = compiled("h2o"), jax.random.key(2), leaning(agent, lean)
    args = tiny(discriminator_lr=0.05, penalty_weight=0.3, **switches)
    new, info = h2o.update(agent, h2o.Batches(batch, other, batch), key, args)
    stepped = agent.replace(d_sa=new.d_sa, d_sas=new.d_sas)
    _, gap_key, critic_key, _ = jax.random.split(key, 4)
    sim = jax.tree.map(lambda x: x[3:], batch)
    ratio = np.exp(log_ratio_of(stepped, sim.obs, sim.action, sim.next_obs))
    assert (ratio < 0.9).any() if lean < 0 else (ratio > 1.1).any()
    weight, u = np.minimum(ratio, 1.0), h2o.dynamics_gap(stepped, sim, other.obs.std(0), gap_key, args)
    if switches:
        weight, u = np.ones(2), np.ones(2)
    expected = h2o.critic_loss(agent.critic, agent, batch, weight, u / u.sum(), critic_key, args)[0]
    close(info["critic_loss"], expected)
    for name in ("actor", "critic", "d_sa", "d_sas"):
        moved = jax.tree.map(lambda x, y: bool((x != y).any()), getattr(new, name), getattr(agent, name))
        assert any(jax.tree.leaves(moved))
    assert int(new.critic_opt[0].count) == int(new.actor_opt[0].count) == 1


@pytest.mark.long
def test_h2o_with_simulated_data_only_is_sac(agent, batch):
    h2o, sac, key = compiled("h2o"), compiled("sac"), jax.random.key(2)
    args = tiny(sim_share=1.0, backup_entropy=True)
    new, info = h2o.update(agent, h2o.Batches(batch, None, None), key, args)
    jax.tree.map(np.testing.assert_array_equal, (new.d_sa, new.d_sas), (agent.d_sa, agent.d_sas))
    assert "penalty" not in info and "weight" not in info

    class Actor:
        apply = staticmethod(lambda params, obs: agent.nets.actor.apply(params, obs))

    nets = sac.Networks(Actor, agent.nets.critic)
    twin = sac.Agent(nets, agent.actor, agent.critic, agent.target_critic, agent.log_alpha, None, None, None)
    keys = jax.random.split(key, 4)
    close(info["critic_loss"], sac.critic_loss(agent.critic, twin, batch, keys[2], sac.Args(discount=0.99))[0])
    close(info["actor_loss"], sac.actor_loss(agent.actor, twin, batch, keys[3], sac.Args())[0])


@pytest.mark.long
def test_h2o_batches_have_the_shares_asked_for_real_rows_first():
    h2o, width = compiled("h2o"), 2 * 3 + 2 + 2
    data = Transitions(jnp.zeros((7, width)), None, None, SPEC, FIELDS)
    replay = init_replay(1, 16, SPEC, SingleDeviceSharding(jax.devices()[0]))
    replay = jax.tree.map(lambda x: x[0], replay).insert(jnp.ones(width))
    for share, real in ((0.5, 20), (0.25, 30), (1.0, 0)):
        args = tiny(batch_size=40, sim_share=share)
        drawn = h2o.sample(jax.random.key(0), data, replay, args)
        assert drawn.rows.reward.tolist() == [0.0] * real + [1.0] * (40 - real)
        if real:
            assert drawn.real.reward.tolist() == [0.0] * 40 and drawn.sim.reward.tolist() == [1.0] * 40
        else:
            assert drawn.real is drawn.sim is None
    assert h2o.Args().sim_share == 0.5 and h2o.real_rows(h2o.Args()) == 128


@pytest.mark.long
def test_h2o_discriminators_find_the_dynamics_and_not_the_behaviour():
    """Pairs differ in both cases; in the second s' follows from them in the same way, and the weights stay near one."""
    h2o, n = compiled("h2o"), 64
    args = tiny(batch_size=n, hidden_dims=(16, 16), sim_share=0.5)

    def draws(key, shift, gap):
        k = jax.random.split(key, 3)
        obs = jax.random.normal(k[0], (n, 3)) + jnp.float32([shift, 0, 0])
        action = jax.random.uniform(k[1], (n, 2), minval=-1.0)
        next_obs = obs.at[:, 1].add(action[:, 0] + gap) + 0.3 * jax.random.normal(k[2], (n, 3))
        return Batch(obs, action, jnp.zeros(n), jnp.zeros(n), next_obs)

    @jax.jit
    def train_discriminators(agent, gap):
        def step(agent, key):
            k = jax.random.split(key, 3)
            batches = h2o.Batches(None, draws(k[0], -0.5, 0.0), draws(k[1], 0.5, gap))
            d = (agent.d_sa, agent.d_sas)
            grads, info = jax.grad(h2o.discriminator_loss, has_aux=True)(d, agent, batches, k[2], args)
            d = jax.tree.map(lambda p, g: p - 0.3 * g, d, grads)
            return agent.replace(d_sa=d[0], d_sas=d[1]), info

        return jax.lax.scan(step, agent, jax.random.split(jax.random.key(0), 600))

    agent = h2o.init(jax.random.key(0), args, SPEC)
    _, same = train_discriminators(agent, 0.0)
    _, far = train_discriminators(agent, 1.5)
    last = {name: [float(info[name][-100:].mean()) for info in (same, far)] for name in ("gap_real", "gap_sim")}
    assert abs(last["gap_sim"][0]) < 0.25 and abs(last["gap_real"][0]) < 0.25, last
    assert last["gap_sim"][1] > 1.0 and last["gap_real"][1] < -1.0, last


@pytest.mark.long
def test_h2o_interacts_with_the_simulator_and_is_evaluated_in_the_real_environment(pendulum, tmp_path, monkeypatch):
    """theta'' = 3 g / (2 l) sin(theta) + 3 u / (m l^2) in what was collected, with the simulator's g."""
    out = tmp_path / "run"
    monkeypatch.setattr(load("h2o"), "update", lambda agent, batches, *_: (agent, {}))  # the first agent will do
    train("h2o", pendulum, out, sim_gravity=1.5, discount=0.9)
    with np.load(out / "checkpoint" / "state.npz") as file:
        rows = file[next(k for k in file.files if k.endswith("rows"))][0]
    assert rows.shape == (8, 9)
    obs, u, next_obs = rows[:, :3], 2.0 * rows[:, 3], rows[:, 6:]
    speed = obs[:, 2] + 0.05 * (1.5 * 15.0 * obs[:, 1] + 3.0 * u)
    np.testing.assert_allclose(next_obs[:, 2], np.clip(speed, -8, 8), rtol=1e-4, atol=1e-4)
    record = json.loads((out / "run.json").read_text())
    assert record["task"]["env"]["id"] == "Pendulum-v1" and record["args"]["sim_gravity"] == 1.5


def test_h2o_evaluates_what_the_task_of_the_data_makes(pendulum, tmp_path, monkeypatch):
    h2o, made = load("h2o"), []

    def changed(task, *change, **kwargs):
        made.append((task, change, kwargs))
        return dataclasses.replace(task, id="simulator")

    def run(file, args, task, act):
        made.append(task)
        raise KeyboardInterrupt

    monkeypatch.setattr(Task, "in_env", changed)
    monkeypatch.setattr(h2o, "Run", run)
    with pytest.raises(KeyboardInterrupt):
        h2o.main(tiny(dataset=pendulum, env="Pendulum-v1", sim_gravity=3.0, sim_friction=0.5, sim_noise=0.1))
    real = {"id": "Pendulum-v1", "kwargs": {}, "max_episode_steps": 200}
    assert made[0][1:] == (("ChangedPhysics-v0",), {"env": real, "gravity": 3.0, "friction": 0.5, "noise": 0.1})
    assert made[1] is made[0][0]
    with pytest.raises(InputError, match="sim-share"):
        h2o.main(dataclasses.replace(tiny(), sim_share=0.0))
