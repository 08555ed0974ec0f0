"""Hy-Q: fitted Q iteration of finite horizon against plain numpy, its exploration, and its mixture of data."""

import csv
import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import make
import numpy as np
import pytest
from conftest import LOCK, load
from environments.combination_lock import Lock
from reference import close, compiled

from shared.errors import InputError
from shared.evaluation import load_run
from shared.task import Spec
from shared.transitions import Batch

SMALL = {"horizon": 10, "episodes_per_step": 2, "critic_updates": 2}

hy_q, jitted = load("hy_q"), compiled("hy_q")
H, D, A, B = 3, 8, 10, 5
SPEC = Spec((D + 1,), A, True)
LOCK_OF_3 = Lock(H)
OFFLINE = 30  # rows of the dataset for each step


def args_of(**changes):
    values = {"horizon": H, "episodes_per_step": 4, "critic_updates": 3, "batch_size": B}
    return hy_q.Args(**(values | {"env_steps": 48} | changes))


def agent_of(args, seed=0):
    """Biases are not zero."""
    agent = jax.device_get(jitted.init(jax.random.key(seed), args, SPEC))
    leaves, structure = jax.tree.flatten(agent.critic)
    r = np.random.default_rng(seed)
    shaken = [x + 0.3 * r.normal(size=x.shape).astype(np.float32) for x in leaves]
    return agent.replace(critic=jax.tree.unflatten(structure, shaken))


def q_numpy(critic, h, obs, encoder_temperature=1.0):
    """[B, A]"""
    p = jax.tree.map(lambda x: np.float64(x[h]), critic)["params"]
    z = np.float64(obs) @ p["encoder"]["kernel"] / encoder_temperature
    state = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    return np.stack([np.kron(np.eye(A)[a], state) @ p["head"]["kernel"][:, 0] for a in range(A)], 1) + p["head"]["bias"]


def rows(n=B, seed=0):
    r = np.random.default_rng(seed)
    x = Batch(
        obs=r.normal(size=(n, D)), action=r.integers(A, size=n), reward=r.random(n), next_obs=r.normal(size=(n, D))
    )
    return jax.tree.map(lambda v: v.astype(np.int32 if v.dtype.kind == "i" else np.float32), x)


def one(tree, h):
    return jax.tree.map(lambda x: x[h], tree)


def test_critic_targets_and_loss():
    args = args_of(encoder_temperature=0.7)
    agent, pool = agent_of(args), rows()
    net = agent.nets.critic
    assert "bias" not in agent.critic["params"]["encoder"]
    close(jax.jit(net.apply)(one(agent.critic, 1), pool.obs, 0.7), q_numpy(agent.critic, 1, pool.obs, 0.7))
    y = pool.reward + q_numpy(agent.critic, 1, pool.next_obs, 0.7).max(1)
    close(jitted.targets(one(agent.critic, 1), net, pool, False, args), y)
    close(jitted.targets(one(agent.critic, 1), net, pool, True, args), pool.reward)
    q = q_numpy(agent.critic, 0, pool.obs, 0.7)[np.arange(B), pool.action]
    loss, _ = jitted.critic_loss(one(agent.critic, 0), net, pool.obs, pool.action, np.float32(y), args)
    close(loss, ((q - y) ** 2).mean())


def test_targets_are_those_of_the_critic_just_fitted():
    """With one update per fit: step h's target is from the new Q_{h+1}, the last step's is the reward."""
    args = args_of(critic_updates=1, learning_rate=0.1, batch_size=7, mode="offline")
    agent, data = agent_of(args), jax.tree.map(lambda *x: np.stack(x), *[rows(30, seed=h) for h in range(H)])
    key = jax.random.key(3)
    new = jax.device_get(jitted.update(agent, data, OFFLINE, jnp.int32(0), key, args)[0])
    slope = jax.jit(jax.grad(lambda c, obs, action, y: hy_q.critic_loss(c, agent.nets.critic, obs, action, y, args)[0]))
    for h, k in zip(range(H), jax.random.split(key, H)):
        row = np.asarray(jitted.sample(k, OFFLINE, jnp.int32(0), args))[0]
        batch, last = jax.tree.map(lambda x, h=h, row=row: x[h, row], data), h == H - 1
        y = batch.reward + (0.0 if last else q_numpy(new.critic, h + 1, batch.next_obs).max(1))
        start = one(agent.critic, h)["params"]
        encoder = start["encoder"] if last else one(new.critic, h + 1)["params"]["encoder"]  # warm start
        start = {"params": start | {"encoder": encoder}}
        grads = jax.device_get(slope(start, batch.obs, batch.action, np.float32(y)))
        expected = jax.tree.map(lambda p, g: p - 0.1 * np.sign(g) * (np.abs(g) > 1e-6), start, grads)
        for a, b, g in zip(*map(jax.tree.leaves, (one(new.critic, h), expected, grads))):
            sure = (np.abs(g) > 1e-4) | (np.asarray(g) == 0)  # Adam's first step is the sign, but for tiny gradients
            np.testing.assert_allclose(np.asarray(a)[sure], np.asarray(b)[sure], atol=2e-3)


def test_every_fit_takes_its_updates_and_begins_with_the_next_steps_encoder():
    args = args_of(learning_rate=0.0)
    agent = agent_of(args)
    data = jax.tree.map(lambda x: np.stack([x] * H), rows(40))
    new, _ = jitted.update(agent, data, OFFLINE, jnp.int32(10), jax.random.key(0), args)
    new = jax.device_get(new)
    assert (np.asarray(new.critic_opt[0].count) == args.critic_updates).all()
    for h in range(H):
        np.testing.assert_array_equal(
            one(new.critic, h)["params"]["encoder"]["kernel"], one(agent.critic, H - 1)["params"]["encoder"]["kernel"]
        )
        np.testing.assert_array_equal(
            one(new.critic, h)["params"]["head"]["kernel"], one(agent.critic, h)["params"]["head"]["kernel"]
        )


@pytest.mark.parametrize("collected", (0, 10, 300))
def test_the_mixture_keeps_as_many_offline_as_online_rows_beside_the_dataset(collected):
    args = args_of(critic_updates=200, batch_size=100)
    change = partial(dataclasses.replace, args)
    draw = lambda **c: np.asarray(jitted.sample(jax.random.key(1), OFFLINE, jnp.int32(collected), change(**c)))  # noqa: E731
    x = draw()
    assert x.shape == (200, 100) and x.min() == 0 and x.max() == 29 + collected
    share = collected / (30 + 2 * collected)
    assert abs((x >= 30).mean() - share) < 0.01
    counts = np.bincount(x.ravel(), minlength=30 + collected) / x.size
    np.testing.assert_allclose(counts[:30], (1 - share) / 30, atol=0.006)
    assert draw(mode="offline").max() == 29
    if collected:
        only = draw(mode="online")
        assert only.min() == 30 and only.max() == 29 + collected


def knowing(agent, args):
    """Every step's critic prefers the correct action of good state 0, wherever it is."""
    table = LOCK_OF_3.correct()
    kernel = np.zeros_like(agent.critic["params"]["head"]["kernel"]).reshape(args.horizon, A, -1)
    kernel[np.arange(args.horizon), table[:, 0]] = 1.0
    params = agent.critic["params"]
    head = params["head"] | {"kernel": kernel.reshape(args.horizon, -1, 1)}
    return agent.replace(critic={"params": params | {"head": head}})


def test_a_round_explores_each_step_with_random_actions_after_greedy_ones():
    args = args_of(episodes_per_step=4_000, env_steps=1)
    args = hy_q.whole_rounds(args)
    lock = LOCK_OF_3
    agent = knowing(agent_of(args), args)
    empty = jitted.init_buffer(args, SPEC)
    buffer, info = jax.device_get(jitted.collect(agent, empty, jax.random.key(0), args, lock))
    assert buffer.rows.obs.shape == (H, 4_000, D) and int(buffer.inserted) == 4_000
    latent = np.asarray(buffer.rows.obs) @ lock.rotation() / D
    np.testing.assert_array_equal(latent[..., 3:].argmax(-1), np.repeat(np.arange(H)[:, None], 4_000, 1))
    good = (latent[..., :3].argmax(-1) < 2).mean(1)
    both = lock.correct()[:, 0] == lock.correct()[:, 1]  # then the action is correct in both good states
    expected = np.cumprod(np.r_[1.0, np.where(both, 1.0, 0.5)])[:H]
    np.testing.assert_allclose(good, expected, atol=0.03)
    np.testing.assert_allclose(info["good_state_at_end"], good[-1], atol=1e-6)
    for h in range(H):
        np.testing.assert_allclose(np.bincount(buffer.rows.action[h], minlength=A) / 4_000, 0.1, atol=0.025)


def test_the_ring_keeps_the_newest_rows():
    args = hy_q.whole_rounds(args_of(env_steps=10_000, buffer_size=2 * 4 * H))
    agent, buffer, seen = agent_of(args), jax.device_get(jitted.init_buffer(args, SPEC)), []
    assert buffer.rows.reward.shape == (H, 8)
    for i in range(3):
        before = buffer.rows.obs
        buffer, _ = jax.device_get(jitted.collect(agent, buffer, jax.random.key(i), args, LOCK_OF_3))
        seen.append(buffer.rows.obs[:, 4 * (i % 2) : 4 * (i % 2) + 4])
        assert not np.array_equal(before, buffer.rows.obs)
    np.testing.assert_array_equal(buffer.rows.obs, np.concatenate([seen[2], seen[1]], 1))
    assert int(buffer.inserted) == 12


def test_the_policy_takes_each_observations_own_step():
    args = args_of()
    agent, obs = agent_of(args), np.random.default_rng(0).normal(size=(9, D)).astype(np.float32)
    h = np.arange(9) % H
    actions = jitted.act(agent, np.float32(np.c_[obs, h]), jax.random.key(0), args)
    expected = [q_numpy(agent.critic, i, o[None])[0].argmax() for i, o in zip(h, obs)]
    np.testing.assert_array_equal(actions, expected)


def test_steps_are_environment_steps_and_whole_rounds():
    args = hy_q.Args(horizon=10, env_steps=100_000, log_every=1, eval_every=2_750, checkpoint_every=2_751)
    assert hy_q.round_steps(args) == sum(50 * (h + 1) for h in range(10)) == 2_750
    whole = hy_q.whole_rounds(args)
    assert (whole.env_steps, whole.log_every, whole.eval_every, whole.checkpoint_every) == (
        101_750,
        2_750,
        2_750,
        5_500,
    )


@pytest.mark.parametrize("mode", ("hybrid", "online", "offline"))
def test_the_modes_learn_from_what_they_say(mode, tmp_path):
    """Other offline data changes the agent unless it is online only, other collected data unless offline only."""
    args = args_of(mode=mode)
    agent = agent_of(args)
    data = jax.device_get(LOCK_OF_3.offline_data(jax.random.key(0), OFFLINE, "trajectory"))
    pool = lambda old, new: jax.tree.map(lambda *x: np.concatenate(x, 1), old, new)  # noqa: E731
    other = lambda x: x._replace(reward=x.reward + 1.0)  # noqa: E731
    fit = lambda p: jax.tree.leaves(jitted.update(agent, p, OFFLINE, jnp.int32(30), jax.random.key(1), args)[0].critic)  # noqa: E731
    as_they_are = fit(pool(data, data))
    same = lambda p: all(np.array_equal(a, b) for a, b in zip(as_they_are, fit(p)))  # noqa: E731
    assert same(pool(other(data), data)) == (mode == "online")
    assert same(pool(data, other(data))) == (mode == "offline")


def run(out, **changes):
    """Two rounds of 4 episodes for each of 10 steps, 220 environment steps each; what is in the checkpoint."""
    values = {"eval_episodes": 2, "checkpoint_every": 220, "eval_every": 440, "env_steps": 440, "out": str(out)}
    hy_q.main(args_of(dataset=LOCK, horizon=0, **(values | changes)))
    with np.load(out / "checkpoint" / "state.npz") as file:
        return {k: file[k] for k in file.files if k != "__header__"}


@pytest.fixture(scope="module")
def whole_run(folder):
    """The folder of a dataset and of a run on it, and the run's checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder / "minari"))
        make.make(LOCK, steps=300)
        return folder, run(folder / "whole")


@pytest.fixture
def lock_folder(whole_run, monkeypatch):
    monkeypatch.setenv("OFFLINE_RL_CACHE", str(whole_run[0] / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(whole_run[0] / "minari"))
    return whole_run[0]


@pytest.mark.long
def test_a_killed_run_goes_on_with_its_buffer(whole_run, lock_folder, tmp_path):
    whole = whole_run[1]
    with pytest.MonkeyPatch.context() as patch:
        log = hy_q.Run.log

        def stop(self, *args, **kwargs):
            log(self, *args, **kwargs)
            if self.done == 220:
                raise KeyboardInterrupt

        patch.setattr(hy_q.Run, "log", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut")
    resumed = run(tmp_path / "cut", resume=True)
    assert any(".rows" in k for k in whole)
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    metrics = list(csv.DictReader((tmp_path / "cut" / "metrics.csv").open()))
    assert [m["env_step"] for m in metrics] == ["220", "440"]
    assert [m["update"] for m in metrics] == [str(10 * 3), str(2 * 10 * 3)]


@pytest.mark.long
def test_the_horizon_is_the_locks(lock_folder, pendulum, cartpole):
    """It is recorded, so that a stored run knows how many critics it has; data of something else are refused."""
    out = lock_folder / "whole"
    assert json.loads((out / "run.json").read_text())["args"]["horizon"] == 10
    assert jax.tree.leaves(load_run(out).agent.critic)[0].shape[:2] == (1, 10)
    with pytest.raises(InputError, match="10 steps"):
        hy_q.main(args_of(dataset=LOCK, horizon=7))
    with pytest.raises(InputError, match="no combination lock"):
        hy_q.main(args_of(dataset=cartpole, horizon=0))
    with pytest.raises(InputError, match="discrete"):
        hy_q.main(args_of(dataset=pendulum, horizon=0))
