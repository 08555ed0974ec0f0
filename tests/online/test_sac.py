"""The losses of sac against the same equations in plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from reference import B, agent_of, close, heads, mlp, tanh_normal

from shared.errors import Interrupted
from shared.run import Run

SMALL = {"learning_starts": 4}


def sac_policy(params, obs):
    mean, log_std = np.split(mlp(params, obs), 2, -1)
    return mean, np.clip(log_std, -20, 2)


@pytest.mark.long
def test_sac_losses(batch):
    sac = load("sac")
    args = sac.Args(hidden_dims=(8, 8), batch_size=B)
    agent, key = agent_of(sac, args), jax.random.key(9)
    agent = agent.replace(log_alpha=jnp.float32(-0.5))
    alpha, noise = np.exp(-0.5), np.asarray(jax.random.normal(key, (B, 2)))
    next_action, next_lp = tanh_normal(*sac_policy(agent.actor, batch.next_obs), noise)
    target_v = heads(agent.target_critic, batch.next_obs, next_action).min(0) - alpha * next_lp
    y = batch.reward + 0.99 * (1 - batch.terminal) * target_v
    q = heads(agent.critic, batch.obs, batch.action)
    close(sac.critic_loss(agent.critic, agent, batch, key, args)[0], ((q - y) ** 2).mean(1).sum())

    action, lp = tanh_normal(*sac_policy(agent.actor, batch.obs), noise)
    expected = (alpha * lp - heads(agent.critic, batch.obs, action).min(0)).mean()
    close(sac.actor_loss(agent.actor, agent, batch, key, args)[0], expected)


def test_sac_temperature_grows_while_the_entropy_is_too_low():
    sac = load("sac")
    slope = jax.grad(sac.alpha_loss)
    assert slope(jnp.float32(0.0), -5.0, 3) < 0 < slope(jnp.float32(0.0), -1.0, 3)


def test_sac_exported_policy_is_the_actor(batch):
    sac = load("sac")
    args = sac.Args(hidden_dims=(8, 8))
    agent = agent_of(sac, args)
    p = sac.export_policy(agent)
    x = batch.obs
    for i in range(2):
        x = np.maximum(x @ p[f"W{i}"].T + p[f"b{i}"], 0)
    mean, log_std = sac_policy(agent.actor, batch.obs)
    close(x @ p["W2"].T + p["b2"], mean)
    close(np.clip(x @ p["logstd_W"].T + p["logstd_b"], -20, 2), log_std)


@pytest.mark.long
@pytest.mark.parametrize("every, steps", [(10, [10, 20, 30]), (15, [20, 30])])
def test_sac_policies_are_kept_also_where_the_run_is_stopped(every, steps, tmp_path, monkeypatch):
    """In chunks of 10: at the first chunk that passes the interval, once, and not lost to a signal."""
    sac, log = load("sac"), Run.log
    args = {
        "env": "Pendulum-v1", "env_steps": 30, "learning_starts": 20, "log_every": 10, "eval_every": 10,
        "eval_episodes": 1, "batch_size": 4, "hidden_dims": (8,), "save_policy_every": every,
    }  # fmt: skip

    def stop(run, *args, **kwargs):
        run._signals.number = 15 if run.done + run.chunk == 20 else None
        return log(run, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Run, "log", stop)
        sac.main(sac.Args(**args, out=str(tmp_path)))
    sac.main(sac.Args(**args, out=str(tmp_path), resume=True))
    assert sorted(p.name for p in (tmp_path / "policies").iterdir()) == [f"lane0-step{n:08d}.npz" for n in steps]


@pytest.mark.long
def test_sac_steps_critics_then_actor_then_temperature(batch):
    """The actor's loss is of the new critics; targets go a tenth of the way; Adam's first step is its rate's size."""
    sac = load("sac")
    args = sac.Args(hidden_dims=(8, 8), batch_size=B, learning_rate=0.05, tau=0.1)
    agent, key = agent_of(sac, args), jax.random.key(3)
    new, info = sac.update(agent, batch, key, args)
    noise = np.asarray(jax.random.normal(jax.random.split(key)[1], (B, 2)))
    action, lp = tanh_normal(*sac_policy(agent.actor, batch.obs), noise)
    loss = lambda critic: (np.exp(agent.log_alpha) * lp - heads(critic, batch.obs, action).min(0)).mean()  # noqa: E731
    close(info["actor_loss"], loss(new.critic))
    assert abs(loss(agent.critic) - loss(new.critic)) > 1e-2
    low_entropy = -lp.mean() < -2.0
    close(new.log_alpha - agent.log_alpha, 0.05 if low_entropy else -0.05)
    for target, old, critic in zip(
        *map(jax.tree.leaves, (new.target_critic, agent.target_critic, new.critic)), strict=True
    ):
        close(target, old + 0.1 * (critic - old))


@pytest.mark.parametrize(
    "steps, said", [(20, ["--learning-starts 20: nothing is learned in 20 environment steps."]), (30, [])]
)
def test_sac_says_that_nothing_is_learned(steps, said, tmp_path, monkeypatch):
    """A warm-up as long as the run would pass for training that has failed."""
    sac, told = load("sac"), []
    monkeypatch.setattr(Run, "note", lambda run, sentence: told.append(sentence))
    monkeypatch.setattr(sac, "Interaction", stopped(sac.Interaction))
    args = sac.Args(env_steps=steps, learning_starts=20, hidden_dims=(8, 8), out=str(tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt):
        sac.main(args)
    assert [sentence for sentence in told if sentence] == said


def stopped(interaction):
    """`interaction`, which nothing follows."""

    def made(*args, **kwargs):
        interaction(*args, **kwargs)
        raise KeyboardInterrupt

    return made
