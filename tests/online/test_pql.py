"""The losses of pql against the same equations in plain numpy; n-step sums, noise by environment, both learners."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jax.sharding import SingleDeviceSharding
from reference import SPEC, B, agent_of, close, heads, mlp

from shared.errors import InputError
from shared.jax_envs import JaxEnv, Moved
from shared.replay import init_replay
from shared.transitions import FIELDS

SMALL = {
    "env": "PendulumShortJax-v0", "n_envs": 2, "n_step": 2, "critic_per_step": 2, "actor_per_step": 2,
    "learning_starts": 4,
}  # fmt: skip

pql = load("pql")
ARGS = pql.Args(
    hidden_dims=(8, 8), batch_size=B, policy_noise=0.4, noise_clip=0.3, tau=0.1, n_step=3, n_envs=4,
    critic_per_step=2, actor_per_step=3, discount=0.9,
)  # fmt: skip
update = jax.jit(pql.update)
update_critic, update_actor = jax.jit(pql.update_critic), jax.jit(pql.update_actor)
critic_loss = jax.jit(jax.value_and_grad(pql.critic_loss, has_aux=True))
actor_loss = jax.jit(jax.value_and_grad(pql.actor_loss, has_aux=True))


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def policy(params, obs):
    return np.tanh(mlp(params, obs, activation=elu))


def q_of(critics, obs, action):
    return heads(critics, obs, action, activation=elu)


@pytest.fixture(scope="module")
def agent():
    """It has seen observations; its actions are near the limits, which the noise goes beyond."""
    agent = agent_of(pql, ARGS)
    agent = pql.observe(agent, np.random.default_rng(3).normal(1.0, 2.0, (6, 3)).astype(np.float32))
    return agent.replace(actor=jax.tree.map(lambda x: 2.0 * x, agent.actor))


@pytest.fixture
def batch(batch):
    return batch._replace(n_steps=np.float32([3, 2, 3, 1, 3]))


def scaled(agent, obs):
    return np.clip((obs - np.asarray(agent.obs_mean)) / np.sqrt(np.asarray(agent.obs_var) + 1e-4), -5, 5)


def test_pql_statistics_are_those_of_all_observations():
    agent, r = agent_of(pql, ARGS), np.random.default_rng(0)
    parts = [r.normal(2.0, 3.0, (n, 3)).astype(np.float32) for n in (4, 1, 7)]
    for part in parts:
        agent = pql.observe(agent, part)
    whole = np.concatenate(parts)
    np.testing.assert_allclose(agent.obs_mean, whole.mean(0), rtol=1e-3)
    np.testing.assert_allclose(agent.obs_var, whole.var(0), rtol=1e-3)
    assert float(agent.obs_count) == pytest.approx(12, abs=1e-3)
    far = np.asarray(agent.obs_mean) + np.float32([100, -100, 0])
    assert pql.normalize(agent, far).tolist() == [5, -5, 0]


def test_pql_critics_regress_on_n_step_targets_with_the_current_actor(agent, batch):
    key = jax.random.key(9)
    (loss, info), grads = critic_loss(agent.critic, agent, batch, key, ARGS)
    obs, next_obs = scaled(agent, batch.obs), scaled(agent, batch.next_obs)
    noise = np.clip(0.4 * np.asarray(jax.random.normal(key, (B, 2))), -0.3, 0.3)
    next_action = policy(agent.actor, next_obs) + noise
    assert (np.abs(next_action) > 1).any()
    target_q = q_of(agent.target_critic, next_obs, np.clip(next_action, -1, 1)).min(0)
    y = batch.reward + 0.9**batch.n_steps * (1 - batch.terminal) * target_q
    q = q_of(agent.critic, obs, batch.action)
    close(loss, ((q - y) ** 2).mean(1).sum())
    close(info["q"], q.mean())
    step = jax.tree.map(lambda p, g: p - 1e-3 * g, agent.critic, grads)
    assert critic_loss(step, agent, batch, key, ARGS)[0][0] < loss
    # terminal transitions do not see what comes after them
    elsewhere = batch._replace(next_obs=np.where(batch.terminal[:, None] > 0, 7.0, batch.next_obs))
    close(critic_loss(agent.critic, agent, elsewhere, key, ARGS)[0][0], loss)


def test_pql_actor_climbs_the_lesser_critic(agent, batch):
    obs = scaled(agent, batch.obs)
    close(actor_loss(agent.actor, agent, batch.obs, ARGS)[0][0],
          -q_of(agent.critic, obs, policy(agent.actor, obs)).min(0).mean())  # fmt: skip


def moved_apart(before, after):
    return [float(np.abs(x - y).max()) for x, y in zip(*map(jax.tree.leaves, (before, after)), strict=True)]


def test_pql_learners_work_side_by_side_with_each_others_former_networks(agent, batch):
    """The critics' steps are those under the old actor, the actor's those under the old critics; AdamW by hand."""
    batches = jax.tree.map(lambda x: np.stack([x, x[::-1]]), batch)
    states = np.stack([batch.obs, batch.next_obs, batch.obs])
    new, info = update(agent, batches, states, jax.random.key(0), ARGS)
    alone, keys = agent, jax.random.split(jax.random.key(0), 2)
    for i in range(2):
        alone, _ = update_critic(alone, jax.tree.map(lambda x, i=i: x[i], batches), keys[i], ARGS)
    for name in ("critic", "target_critic"):
        jax.tree.map(close, getattr(new, name), getattr(alone, name))
    actor, losses = agent, []
    for obs in states:
        actor, one = update_actor(actor, obs, ARGS)
        losses.append(one["actor_loss"])
    jax.tree.map(close, new.actor, actor.actor)
    close(info["actor_loss"], np.mean(losses))
    assert min(moved_apart(agent.critic, new.critic)) > 0 and min(moved_apart(agent.actor, new.actor)) > 0

    first, _ = update_actor(agent, batch.obs, ARGS)
    grads = actor_loss(agent.actor, agent, batch.obs, ARGS)[1]
    norm = np.sqrt(sum((np.float64(g) ** 2).sum() for g in jax.tree.leaves(grads)))
    step = lambda p, g: p - 5e-4 * (g / (np.abs(g) + 1e-8 * max(1, norm / 0.5)) + 0.01 * p)  # noqa: E731
    jax.tree.map(lambda p, g, now: close(now, step(p, np.float64(g))), agent.actor, grads, first.actor)


def test_pql_targets_follow_at_every_update_of_the_critics(agent, batch):
    one, _ = update_critic(agent, batch, jax.random.key(1), ARGS)
    jax.tree.map(lambda t, c, now: close(now, t + 0.1 * (c - t)), agent.target_critic, one.critic, one.target_critic)


def test_pql_sums_end_with_the_episode():
    """Four environments: none ends, the first step ends by terminal, the second by a time limit, the last both ways."""
    ends = np.zeros((3, 4), bool)
    terminal, truncated = ends.copy(), ends.copy()
    terminal[0, 1] = truncated[1, 2] = terminal[2, 3] = True
    reward = np.float32([[1, 1, 1, 1], [10, 10, 10, 10], [100, 100, 100, 100]])
    next_obs = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    window = pql.Window(next_obs + 0.5, next_obs[..., :1] / 12, Moved(next_obs, reward, terminal, truncated))
    found = pql.n_step_transitions(window, dataclasses.replace(ARGS, reward_scale=2.0))
    close(found.reward, 2 * np.float32([1 + 9 + 81, 1, 1 + 9, 1 + 9 + 81]))
    assert found.n_steps.tolist() == [3, 1, 2, 3] and found.terminal.tolist() == [False, True, False, True]
    assert found.next_obs[:, 0].tolist() == [8, 1, 6, 11]
    assert found.obs[:, 0].tolist() == [0.5, 1.5, 2.5, 3.5] and found.action.shape == (4, 1)


def test_pql_environments_explore_with_noise_of_all_strengths(agent):
    obs = np.zeros((4, 3), np.float32)
    key, args = jax.random.key(2), dataclasses.replace(ARGS, noise_min=0.1, noise_max=0.7)
    mean = policy(agent.actor, scaled(agent, obs))
    draw = np.asarray(jax.random.normal(key, (4, 2)))
    strengths = np.float32([0.1, 0.3, 0.5, 0.7])[:, None]
    close(pql.explore(agent, obs, key, args), np.clip(mean + strengths * draw, -1, 1))
    fixed = dataclasses.replace(args, noise_min=0.7)
    close(pql.explore(agent, obs, key, fixed), np.clip(mean + 0.7 * draw, -1, 1))
    close(pql.act(agent, obs, None, args), mean)


def counting(limit: int) -> JaxEnv:
    """Observations count the steps since reset; rewards are the action; a time limit ends the episode."""
    obs = lambda t: jnp.full(3, t, jnp.float32)  # noqa: E731
    step = lambda t, action, keys: (t + 1, obs(t + 1), action[0], False, t + 1 >= limit)  # noqa: E731
    return JaxEnv(lambda keys, params=None: (jnp.int32(0), obs(0)), step, None)


@pytest.mark.long
def test_pql_buffer_holds_every_whole_transition_once_and_learning_waits():
    """Warm-up of five steps of four environments; n-step transitions are whole from the third step on."""
    args = dataclasses.replace(ARGS, learning_starts=18, env_steps=40, critic_per_step=1, actor_per_step=1)
    env, agent = counting(limit=4), agent_of(pql, ARGS)
    replay = init_replay(1, 100, SPEC, SingleDeviceSharding(jax.devices()[0]), (*FIELDS, "n_steps"))
    env_state, obs, window = pql.begin(jax.random.key(0), args, env, SPEC)
    loop = pql.Loop(env_state, obs, window, jax.tree.map(lambda x: x[0], replay))
    train = jax.jit(lambda carry, keys, start: pql.train(carry, keys, args, start, env))
    keys = jax.random.split(jax.random.key(1), 40)
    (waited, loop), metrics = train((agent, loop), keys[:20], 0)
    assert pql.first_update(args) == 5 and float(metrics["critic_loss"]) == 0
    assert max(moved_apart(agent.actor, waited.actor)) == 0 and int(loop.replay.size()) == 12
    assert pql.first_update(dataclasses.replace(args, learning_starts=0)) == 2
    (learned, loop), metrics = train((waited, loop), keys[20:], 20)
    assert min(moved_apart(agent.actor, learned.actor)) > 0 and float(metrics["critic_loss"]) > 0
    assert float(learned.obs_count) == pytest.approx(40, abs=1e-3)
    rows = loop.replay.take(jnp.arange(32))  # ten steps of four: the last two are not whole yet
    assert int(loop.replay.size()) == 32
    at = rows.obs[::4, 0][::-1].astype(int).tolist()
    assert at == [0, 1, 2, 3, 0, 1, 2, 3]
    assert rows.n_steps[::4][::-1].tolist() == [3, 3, 2, 1, 3, 3, 2, 1]
    assert rows.next_obs[::4, 0][::-1].tolist() == [3, 4, 4, 4, 3, 4, 4, 4] and not rows.terminal.any()
    assert np.abs(np.asarray(rows.action)).max() <= 1


def test_pql_refuses_environments_that_are_not_written_in_jax(tmp_path):
    with pytest.raises(InputError, match="so Pendulum-v1 would have to be written in JAX"):
        pql.main(pql.Args(env="Pendulum-v1", out=str(tmp_path / "run")))
    with pytest.raises(InputError, match="--buffer-size 3 is less than one step of 4 environments"):
        pql.main(dataclasses.replace(ARGS, buffer_size=3, out=str(tmp_path / "run")))


@pytest.mark.parametrize("steps, says", [(16, True), (20, False)])
def test_pql_says_that_nothing_is_learned(steps, says, tmp_path, monkeypatch):
    """Of steps of 4 environments: 16 in the warm-up, whose default is longer than many a run."""
    told = []

    def note(run, sentence):
        told.append(sentence)

    def stop(run, init):
        raise KeyboardInterrupt

    monkeypatch.setattr(pql.Run, "note", note)
    monkeypatch.setattr(pql.Run, "init", stop)
    args = dataclasses.replace(ARGS, n_envs=4, learning_starts=16, env_steps=steps, out=str(tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt):
        pql.main(args)
    assert told == ["--learning-starts 16 and --n-step 3: nothing is learned in 16 environment steps."] * says
