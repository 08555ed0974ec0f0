"""The losses of sac_n against the same equations in plain numpy, and what N does to actions without data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from reference import B, agent_of, close, heads, mlp, tanh_normal

from shared.arguments import preset_for
from shared.errors import InputError
from shared.transitions import Batch

SMALL = {"n_critics": 3}
SIZES = {**SMALL, "hidden_dims": (8, 8), "batch_size": B}


def distribution(params, obs):
    mean, log_std = np.split(mlp(params, obs), 2, -1)
    return mean, np.clip(log_std, -5, 2)


def drawn(actor, obs, key, *n):
    return tanh_normal(*distribution(actor, obs), np.asarray(jax.random.normal(key, (*n, B, 2))))


@pytest.fixture
def sac_n():
    return load("sac_n")


@pytest.fixture
def agent(sac_n):
    return agent_of(sac_n, sac_n.Args(**SIZES)).replace(log_alpha=jnp.float32(-0.3))


@pytest.mark.parametrize("backup_entropy", [True, False])
def test_sac_n_critics_share_the_target_of_the_least_target_critic(sac_n, agent, batch, backup_entropy):
    args, key = sac_n.Args(**SIZES, backup_entropy=backup_entropy), jax.random.key(2)
    action, log_prob = drawn(agent.actor, batch.next_obs, key)
    target_v = heads(agent.target_critic, batch.next_obs, action).min(0) - backup_entropy * np.exp(-0.3) * log_prob
    y = batch.reward + 0.99 * (1 - batch.terminal) * target_v
    expected = (
        ((heads(agent.critic, batch.obs, batch.action) - y) ** 2).mean(1).sum()
    )  # a mean over i would divide by N
    close(sac_n.critic_loss(agent.critic, agent, batch, key, args)[0], expected)


def test_sac_n_max_q_backup_takes_each_critics_best_action_then_the_least_critic(sac_n, agent, batch):
    args, key = sac_n.Args(**SIZES, max_q_backup=True), jax.random.key(2)
    actions, _ = drawn(agent.actor, batch.next_obs, key, 10)
    q = np.stack([heads(agent.critic, batch.next_obs, a) for a in actions])
    close(sac_n.next_value(agent, batch, key, args), q.max(0).min(0))
    assert not np.allclose(q.max(0).min(0), q.min(1).max(0), rtol=1e-4)  # the other order differs


def test_sac_n_actor_ascends_the_least_online_critic(sac_n, agent, batch):
    args, key = sac_n.Args(**SIZES), jax.random.key(2)
    action, log_prob = drawn(agent.actor, batch.obs, key)
    q = heads(agent.critic, batch.obs, action).min(0)
    close(sac_n.actor_loss(agent.actor, agent, batch, key, args)[0], (np.exp(-0.3) * log_prob - q).mean())
    assert sac_n.alpha_loss(1.0, jnp.float32(-3.0), 2) < 0  # entropy under its target: log alpha grows


def test_sac_n_updates_temperature_then_actor_then_critics(sac_n, agent, batch):
    """Each sees the ones before it: the critics' loss is of the new actor and temperature."""
    args, key = sac_n.Args(**SIZES), jax.random.key(3)
    new, metrics = jax.jit(sac_n.update)(agent, batch, key, args)
    alpha_key, actor_key, critic_key = jax.random.split(key, 3)
    _, log_prob = drawn(agent.actor, batch.obs, alpha_key)
    assert (new.log_alpha > agent.log_alpha) == (-log_prob.mean() < -2)  # its entropy is under the target of -dim(A)
    with_alpha = agent.replace(log_alpha=new.log_alpha)
    close(metrics["actor_loss"], sac_n.actor_loss(agent.actor, with_alpha, batch, actor_key, args)[0])
    with_actor = with_alpha.replace(actor=new.actor)
    close(metrics["critic_loss"], sac_n.critic_loss(agent.critic, with_actor, batch, critic_key, args)[0])
    old = sac_n.critic_loss(agent.critic, agent, batch, critic_key, args)[0]
    assert abs(float(old - metrics["critic_loss"])) > 1e-4


@pytest.mark.long
def test_sac_n_more_critics_lower_what_has_no_data(sac_n):
    """A bandit of one dimension (section 3): data in [-1, 0.2], the reward rises to its edge.

    The spread of the critics is larger off the data than on it, so that the least of 20 falls further below their mean
    there than the least of 2.
    """
    n, steps = 20, 400
    args = sac_n.Args(n_critics=n, hidden_dims=(16, 16), batch_size=64, critic_lr=3e-3)
    r = np.random.default_rng(0)
    action = r.uniform(-1.0, 0.2, (64, 1)).astype(np.float32)
    obs, reward = np.zeros((64, 1), np.float32), action[:, 0] + 0.05 * r.normal(size=64).astype(np.float32)
    batch = Batch(obs=obs, action=action, reward=reward, terminal=np.ones(64, np.float32), next_obs=obs)
    agent = sac_n.init(jax.random.key(0), args, sac_n.Spec((1,), 1, False, (-1.0,), (1.0,)))

    def step(agent, key):
        return sac_n.update(agent, batch, key, args)

    agent, _ = jax.jit(lambda a, keys: jax.lax.scan(step, a, keys))(agent, jax.random.split(jax.random.key(1), steps))

    def q(value):
        return heads(agent.critic, np.zeros((1, 1)), np.full((1, 1), value))[:, 0]

    on, off = np.stack([q(a) for a in (-0.8, -0.4, 0.0)]), np.stack([q(a) for a in (0.8, 1.0)])
    assert off.std(1).mean() > 2 * on.std(1).mean()
    gap = {k: (off[:, :k].mean(1) - off[:, :k].min(1)).mean() for k in (2, n)}
    assert gap[n] > 1.5 * gap[2]


@pytest.mark.long
def test_sac_n_the_least_of_the_first_critics_is_what_so_many_critics_learn_alone(sac_n, batch):
    """With the same weights, keys and batch: policy, temperature and these critics, whatever the others are."""
    few, many = sac_n.Args(**SIZES), sac_n.Args(**{**SIZES, "n_critics": 7}, n_least=3.0)
    two = [sac_n.init(jax.random.key(0), x, sac_n.Spec((3,), 2, False, (-1.0,) * 2, (1.0,) * 2)) for x in (few, many)]
    first = lambda critics: jax.tree.map(lambda x: x[:3], critics)  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, first(two[1].critic), two[0].critic)  # lanes of one job begin alike
    update = jax.jit(sac_n.update)
    new = [update(a, batch, jax.random.key(3), x) for a, x in zip(two, (few, many), strict=True)]
    for name in ("actor", "log_alpha", "critic", "target_critic"):
        mine = [getattr(a, name) for a, _ in new]
        jax.tree.map(close, first(mine[1]) if "critic" in name else mine[1], mine[0])
    for name in ("alpha", "actor_loss", "q_std", "q_pi_std"):
        close(new[1][1][name], new[0][1][name])
    everyone = update(two[1], batch, jax.random.key(3), sac_n.Args(**{**SIZES, "n_critics": 7}))[1]
    assert abs(float(everyone["actor_loss"] - new[1][1]["actor_loss"])) > 1e-5


def test_sac_n_refuses_the_least_of_more_critics_than_there_are(sac_n, pendulum, tmp_path):
    with pytest.raises(InputError, match="--n-least"):
        sac_n.main(sac_n.Args(dataset=pendulum, n_critics=3, n_least=(2.0, 4.0), out=str(tmp_path / "run")))


def test_sac_n_presets_are_the_papers_table(sac_n):
    def critics(dataset):
        return sac_n.PRESETS[preset_for(dataset, sac_n.PRESETS)]["n_critics"]

    assert [critics(f"hopper-{kind}-v2") for kind in ("medium", "medium-replay", "medium-expert")] == [500, 200, 200]
    assert critics("D4RL/walker2d/medium-v2") == 20 and critics("mujoco/halfcheetah/medium-v0") == 10
    assert critics("D4RL/pen/human-v2") == 100 and critics("antmaze-umaze-v2") == 25
    assert preset_for("pendulum-mixed", sac_n.PRESETS) is None


def test_sac_n_standardised_rewards_need_rewards_that_differ(sac_n, pendulum, tmp_path):
    with np.load(pendulum) as file:
        arrays = dict(file)
    np.savez(pendulum, **arrays | {"rewards": np.ones(len(arrays["rewards"]), np.float32)})
    with pytest.raises(InputError, match="equal"):
        sac_n.main(sac_n.Args(dataset=pendulum, standardize_reward=True, out=str(tmp_path / "run")))
