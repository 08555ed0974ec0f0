"""The losses of rlpd against the same equations in plain numpy; its mixture and its number of updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from reference import SPEC, B, agent_of, close, compiled, heads, mlp, tanh_normal

from shared.errors import InputError
from shared.replay import init_replay
from shared.transitions import FIELDS, Batch, Transitions

SMALL = {"n_critics": 3, "learning_starts": 4, "utd": 2}

E, G = 4, 3


def args_of(**changes):
    return load("rlpd").Args(hidden_dims=(8, 8), batch_size=B, n_critics=E, utd=G, **changes)


def policy(params, obs):
    mean, log_std = np.split(mlp(params, obs), 2, -1)
    return mean, np.clip(log_std, -20, 2)


def normed(critics, *inputs):
    """[E, B]: Dense, LayerNorm, ReLU, ...; plain numpy."""
    out = []
    for e in range(E):
        p = jax.tree.map(lambda x, e=e: np.float64(x[e]), critics)["params"]
        x = np.concatenate(inputs, -1)
        for i in range(2):
            x = x @ p[f"Dense_{i}"]["kernel"] + p[f"Dense_{i}"]["bias"]
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
            x = np.maximum(x * p[f"LayerNorm_{i}"]["scale"] + p[f"LayerNorm_{i}"]["bias"], 0)
        out.append((x @ p["Dense_2"]["kernel"] + p["Dense_2"]["bias"])[..., 0])
    return np.stack(out)


@pytest.mark.long
@pytest.mark.parametrize(("subset_size", "entropy"), [(2, True), (1, False)])
def test_critic_loss(subset_size, entropy, batch):
    rlpd = compiled("rlpd")
    args, key = args_of(subset_size=subset_size, backup_entropy=entropy), jax.random.key(9)
    agent = agent_of(rlpd, args).replace(log_alpha=jnp.float32(-0.5))
    subset_key, action_key = jax.random.split(key)
    noise = np.asarray(jax.random.normal(action_key, (B, 2)))
    next_action, next_lp = tanh_normal(*policy(agent.actor, batch.next_obs), noise)
    chosen = np.asarray(jax.random.permutation(subset_key, E))[:subset_size]
    target = normed(agent.target_critic, batch.next_obs, next_action)[chosen].min(0)
    target = target - np.exp(-0.5) * next_lp if entropy else target
    y = batch.reward + 0.99 * (1 - batch.terminal) * target
    expected = ((normed(agent.critic, batch.obs, batch.action) - y) ** 2).mean()
    close(rlpd.critic_loss(agent.critic, agent, batch, key, args)[0], expected)


def test_actor_loss_takes_the_mean_of_the_ensemble(batch):
    rlpd = compiled("rlpd")
    args, key = args_of(critic_layer_norm=False), jax.random.key(9)
    agent = agent_of(rlpd, args).replace(log_alpha=jnp.float32(-0.5))
    action, lp = tanh_normal(*policy(agent.actor, batch.obs), np.asarray(jax.random.normal(key, (B, 2))))
    expected = (np.exp(-0.5) * lp - heads(agent.critic, batch.obs, action).mean(0)).mean()
    close(rlpd.actor_loss(agent.actor, agent, batch, key, args)[0], expected)


def test_the_target_entropy_is_minus_half_the_action_dimensions():
    slope = jax.grad(compiled("rlpd").alpha_loss)
    assert slope(jnp.float32(0.0), -1.6, 3) < 0 < slope(jnp.float32(0.0), -1.4, 3)


def test_target_critics_are_drawn_without_replacement_and_anew():
    rlpd, critics, args = compiled("rlpd"), jnp.arange(10), load("rlpd").Args(n_critics=10, subset_size=2)
    drawn = np.array([rlpd.random_subset(critics, jax.random.key(s), args) for s in range(200)])
    assert (drawn[:, 0] != drawn[:, 1]).all() and set(drawn.ravel()) == set(range(10))


@pytest.mark.parametrize(("share", "offline"), [(0.5, 4), (1.0, 0), (0.75, 2)])
def test_every_minibatch_has_the_stated_share_of_data(share, offline):
    rlpd = compiled("rlpd")
    args = rlpd.Args(batch_size=8, utd=G, online_share=share)
    width = 2 * 3 + 2 + 2
    data = Transitions(jnp.full((50, width), 1.0), None, None, SPEC, FIELDS)
    replay = jax.tree.map(lambda x: x[0], init_replay(1, 10, SPEC, jax.sharding.SingleDeviceSharding(jax.devices()[0])))
    for _ in range(5):
        replay = replay.insert(jnp.full(width, 2.0))
    batch = rlpd.sample(jax.random.key(0), data, replay, args)
    assert batch.obs.shape == (G, 8, 3)
    assert (np.asarray(batch.reward) == 1.0).sum(1).tolist() == [offline] * G
    assert (np.asarray(batch.reward) == 2.0).sum(1).tolist() == [8 - offline] * G


@pytest.mark.long
def test_one_step_is_g_critic_updates_and_one_of_the_actor_on_the_last_minibatch(batch):
    rlpd = compiled("rlpd")
    args, key = args_of(), jax.random.key(3)
    agent = agent_of(rlpd, args)
    batches = Batch(*(None if x is None else np.float32([x, 0.5 * x, -x]) for x in batch))
    after, _ = rlpd.update(agent, batches, key, args)
    assert int(after.critic_opt[0].count) == G and int(after.actor_opt[0].count) == 1 == int(after.alpha_opt[0].count)

    critic_key, actor_key = jax.random.split(key)
    by_hand = agent
    for g, k in enumerate(jax.random.split(critic_key, G)):
        by_hand, _ = rlpd.update_critic(by_hand, jax.tree.map(lambda x, g=g: x[g], batches), k, args)
    agent, after, by_hand = jax.device_get((agent, after, by_hand))
    for a, b in zip(jax.tree.leaves(after.target_critic), jax.tree.leaves(by_hand.target_critic), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    last = jax.tree.map(lambda x: x[-1], batches)
    slope = jax.jit(jax.grad(lambda a: rlpd.actor_loss(a, by_hand, last, actor_key, args)[0]))
    grads = jax.device_get(slope(agent.actor))
    moved = jax.tree.map(lambda x, y: x - y, after.actor, agent.actor)
    for g, m in zip(jax.tree.leaves(grads), jax.tree.leaves(moved), strict=True):
        big = np.abs(g) > 1e-6
        np.testing.assert_allclose(np.asarray(m)[big], -3e-4 * np.sign(np.asarray(g)[big]), rtol=2e-2)


def test_layer_norm_bounds_what_critics_say_far_from_the_data(batch):
    """The norm of the last layer's weights bounds Q (section 4.2); without LayerNorm it grows with the input."""
    rlpd = compiled("rlpd")
    far = 1e4 * np.ones_like(batch.action)
    spread = {}
    for layer_norm in (True, False):
        agent = agent_of(rlpd, args_of(critic_layer_norm=layer_norm))
        q = np.asarray(rlpd.q_values(agent.nets.critic, agent.critic, batch.obs, far))
        spread[layer_norm] = np.abs(q).max()
    assert spread[True] < 100 < spread[False]


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"subset_size": E + 1}, f"^--subset-size {E + 1} is more than --n-critics {E}\\.$"),
    ],
)
def test_what_does_not_go_is_refused(wrong, said):
    with pytest.raises(InputError, match=said):
        load("rlpd").main(args_of(**wrong))
