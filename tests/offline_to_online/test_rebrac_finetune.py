"""The losses, the mixture and the two phases of rebrac_finetune."""

import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jax.sharding import SingleDeviceSharding
from jobs import train
from reference import SPEC, B, agent_of, close, heads, mlp, smoothed_next_action

from shared.replay import init_replay
from shared.transitions import FIELDS, Transitions


def tiny(**changes):
    return load("rebrac_finetune").Args(**{"hidden_dims": (8, 8), "batch_size": B, "env_steps": 100} | changes)


@pytest.fixture
def agent():
    return agent_of(load("rebrac_finetune"), tiny())


def bellman_error(agent, batch, key, args, penalty):
    next_action = smoothed_next_action(agent, batch, key, args)
    target_q = heads(agent.target_critic, batch.next_obs, next_action, layer_norm=True).min(0)
    target_q = target_q - penalty * ((next_action - batch.next_action) ** 2).sum(-1)
    y = batch.reward + args.discount * (1 - batch.terminal) * target_q
    q = heads(agent.critic, batch.obs, batch.action, layer_norm=True)
    return ((q - y) ** 2).mean(1).sum()


def test_rebrac_finetune_penalises_the_critic_offline_only(agent, batch):
    module, key, args = load("rebrac_finetune"), jax.random.key(3), tiny(critic_bc=0.3, discount=0.9)
    loss, info = module.critic_loss(agent.critic, agent, batch, key, args)
    close(loss, bellman_error(agent, batch, key, args, penalty=0.3))
    assert "critic_penalty" in info
    loss, info = module.critic_loss(agent.critic, agent, batch._replace(next_action=None), key, args)
    close(loss, bellman_error(agent, batch, key, args, penalty=0.0))
    assert "critic_penalty" not in info


def test_rebrac_finetune_actor_sums_over_dimensions_and_takes_the_least_critic(agent, batch):
    module, args = load("rebrac_finetune"), tiny(actor_bc=0.4)
    pi = np.tanh(mlp(agent.actor, batch.obs))
    q = heads(agent.critic, batch.obs, pi, layer_norm=True).min(0)
    expected = (0.4 * ((pi - batch.action) ** 2).sum(-1) - q / np.abs(q).mean()).mean()
    close(module.actor_loss(agent.actor, agent, batch, args)[0], expected)


def test_rebrac_finetune_penalty_falls_to_half_and_stays_there():
    module, args = load("rebrac_finetune"), tiny(env_steps=1000)
    close([module.remaining(t, args) for t in (0, 250, 500, 501, 999)], [1.0, 0.75, 0.5, 0.5, 0.5])
    close(module.remaining(999, tiny(env_steps=1000, min_decay=0.0)), 0.001)
    close(module.remaining(999, tiny(env_steps=1000, min_decay=1.0)), 1.0)


def test_rebrac_finetune_actor_step_has_the_penalty_of_its_environment_step(agent, batch):
    """At step 50 of 100 half of it; both targets move with it, and the metrics are of that step."""
    module, key, args = load("rebrac_finetune"), jax.random.key(4), tiny(actor_bc=2.0)
    batch = batch._replace(next_action=None)
    new, info = jax.jit(module.update_online)(agent, batch, key, args, 50)
    expected, _ = module.update_critic(agent, batch, key, args)
    expected, actor_info = module.update_actor(expected, batch, tiny(actor_bc=1.0))
    for name in ("actor", "critic", "target_actor", "target_critic"):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
            getattr(new, name),
            getattr(expected, name),
        )
    close(info["actor_bc"], 1.0)
    close(info["actor_loss"], 2 * actor_info["actor_loss"])  # every second step has none: their mean is it


def test_rebrac_finetune_leaves_the_actor_alone_at_odd_environment_steps(agent, batch):
    module, key, args = load("rebrac_finetune"), jax.random.key(4), tiny()
    new, info = jax.jit(module.update_online)(agent, batch._replace(next_action=None), key, args, 51)
    for name in ("actor", "target_actor", "target_critic", "actor_opt"):
        jax.tree.map(np.testing.assert_array_equal, getattr(new, name), getattr(agent, name))
    assert int(new.critic_opt[0].count) == 1 and info["actor_loss"] == info["q_pi"] == 0


def test_rebrac_finetune_actor_steps_stay_conditional_over_lanes(agent, batch):
    """A step counter that were one per lane would make every lane compute both branches."""
    module, args, keys = load("rebrac_finetune"), tiny(), jax.random.split(jax.random.key(0))
    agents, batches = jax.tree.map(lambda x: jnp.stack([x, x]), (agent, batch._replace(next_action=None)))
    lanes = jax.vmap(module.update_online, (0, 0, 0, None, None))
    assert " cond[" in str(jax.make_jaxpr(lanes)(agents, batches, keys, args, jnp.int32(3)))


def test_rebrac_finetune_batches_are_half_data_half_experience():
    module, args = load("rebrac_finetune"), tiny(batch_size=40)
    width = 2 * 3 + 2 + 2
    data = Transitions(jnp.zeros((7, width + 2)), None, None, SPEC, (*FIELDS, "next_action"))
    replay = init_replay(1, 16, SPEC, SingleDeviceSharding(jax.devices()[0]))
    replay = jax.tree.map(lambda x: x[0], replay).insert(jnp.ones(width))  # one row is enough
    for share, online in ((0.5, 20), (0.25, 10), (0.0, 0), (1.0, 40)):
        drawn = module.sample(jax.random.key(0), data, replay, dataclasses.replace(args, online_share=share))
        assert drawn.reward.shape == (40,) and drawn.reward.sum() == online and drawn.next_action is None
        assert drawn.obs.sum() == 3 * online and drawn.action.sum() == 2 * online


def test_rebrac_finetune_explores_with_the_policy_and_the_noise_asked_for(agent, batch):
    module, obs = load("rebrac_finetune"), np.repeat(batch.obs[:1], 4000, axis=0)
    policy = np.tanh(mlp(agent.actor, batch.obs[:1]))
    close(module.explore(agent, obs[:3], jax.random.key(0), tiny()), np.repeat(policy, 3, axis=0))
    close(module.act(agent, obs[:3], None, tiny(exploration_noise=0.3)), np.repeat(policy, 3, axis=0))
    noise = module.explore(agent, obs, jax.random.key(0), tiny(exploration_noise=0.3)) - policy
    np.testing.assert_allclose(noise.std(0), 0.3, rtol=0.05)


def test_rebrac_finetune_does_as_many_updates_as_it_says(pendulum, tmp_path):
    """4 offline and 8 online ones of the critics, half as many of the actor."""
    out = tmp_path / "run"
    trained = train("rebrac_finetune", pendulum, out)
    assert trained["[0].critic_opt[0].count"].tolist() == [12] and trained["[0].actor_opt[0].count"].tolist() == [6]
    rows = {n: list(csv.DictReader((out / f"{n}.csv").open())) for n in ("offline", "metrics")}
    assert "critic_penalty" in rows["offline"][0] and "critic_penalty" not in rows["metrics"][0]
    decay = [float(r["actor_bc"]) / 0.01 for r in rows["metrics"]]  # means of two steps' each
    close(decay, [1 - 0.5 / 8, 1 - 2.5 / 8, 0.5, 0.5])


def test_rebrac_finetune_goes_on_from_a_run_of_rebrac(pendulum, tmp_path, capfd):
    """All that it has learned, optimisers included; the critic's first online step is its fifth."""
    train("rebrac", pendulum, tmp_path / "offline", seeds=2)
    capfd.readouterr()
    trained = train("rebrac_finetune", pendulum, tmp_path / "online", seeds=2, from_run=str(tmp_path / "offline"))
    assert "starts anew" not in "".join(capfd.readouterr())
    assert trained["[0].critic_opt[0].count"].tolist() == [12, 12]
    assert not (tmp_path / "online" / "offline.csv").exists()


@pytest.mark.parametrize("name", sorted(load("rebrac_finetune").PRESETS))
def test_rebrac_finetune_presets_that_scale_rewards_normalise_q(name):
    """The weights mean nothing without it, and gamma is near one where rewards are a hundred."""
    module = load("rebrac_finetune")
    args = dataclasses.replace(module.Args(), **module.PRESETS[name])
    assert args.normalize_q and (args.reward_scale == 100.0) == (args.discount == 0.999) == ("antmaze" in name)
