"""The world model and the imagination of offline_dv2 against the same equations in plain numpy, and numbers by hand."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import load
from jobs import small
from reference import B, agent_of, close
from scipy.stats import truncnorm

from shared.errors import InputError
from shared.sequences import Window
from shared.task import Spec

SMALL = {
    "window_steps": 3, "imagination_steps": 3, "n_models": 3, "model_updates": 4, "recurrent_dim": 4,
    "latent_variables": 2, "latent_classes": 3, "model_hidden_dims": (5,), "copy_every": 0,
}  # fmt: skip
T, F, H, E, S, K, A = 3, 4, 3, 3, 2, 3, 2
OTHERS = {
    "hidden_dims": (6,), "batch_size": B, "kl_balance": 0.7, "free_nats": 0.001, "obs_weight": 1.5,
    "model_reward_weight": 0.4, "discount": 0.9, "return_lambda": 0.8, "entropy_cost": 0.3, "reward_penalty": 2.0,
    "tau": 0.25,
}  # fmt: skip


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def net(params, *inputs, last=True):
    """Plain numpy: ELU after every layer, but for the last one if there is a linear one."""
    layers, x = params.get("params", params), np.concatenate(inputs, -1).astype(np.float64)
    n = sum(k.startswith("Dense") for k in layers)
    for i in range(n):
        x = x @ np.float64(layers[f"Dense_{i}"]["kernel"]) + np.float64(layers[f"Dense_{i}"]["bias"])
        x = x if last and i == n - 1 else elu(x)
    return x


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_softmax(x):
    x = x.reshape(*x.shape[:-1], S, K)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def recur(model, h, z, action):
    p = model["recurrence"]["params"]
    x = net(p["MLP_0"], z.reshape(*z.shape[:-2], -1), action, last=False)
    x = np.concatenate([x, h], -1) @ np.float64(p["Dense_0"]["kernel"]) + np.float64(p["Dense_0"]["bias"])
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * np.float64(p["LayerNorm_0"]["scale"]) + np.float64(p["LayerNorm_0"]["bias"])
    reset, new, gate = np.split(x, 3, -1)
    gate = sigmoid(gate - 1)
    return gate * np.tanh(sigmoid(reset) * new) + (1 - gate) * h


def drawn(logits, key):
    return np.eye(K)[np.asarray(jax.random.categorical(key, jnp.float32(logits)))]


def heads(model, h):
    """[E, ..., S, K] log-probabilities of the prior's heads."""
    return np.stack([log_softmax(net(jax.tree.map(lambda x, i=i: x[i], model["prior"]), h)) for i in range(E)])


def observe(model, obs, action, key):
    """h [B, F, D], z and the posterior's log-probabilities [B, F, S, K]."""
    h, z, found = np.zeros((B, 4)), np.zeros((B, S, K)), []
    for t, k in enumerate(jax.random.split(key, F)):
        h = recur(model, h, z, action[:, t])
        logits = log_softmax(net(model["posterior"], h, net(model["encoder"], obs[:, t], last=False)))
        z = drawn(logits, k)
        found.append((h, z, logits))
    return [np.stack(x, 1) for x in zip(*found, strict=True)]


def seen(h, z):
    return np.concatenate([z.reshape(*z.shape[:-2], -1), h], -1)


def kl(p, q):
    return (np.exp(p) * (p - q)).sum((-2, -1))


MASK = np.float32([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]])
"""Of the frames below: an episode of two rows, one that ends in row 1, one in row 0, and an unknown last one."""


@pytest.fixture(scope="module")
def dv2():
    """The module, its arguments, an agent in general position, windows, and what is compiled once for all tests."""
    module, r = load("offline_dv2"), np.random.default_rng(1)
    args = module.Args(**SMALL, **OTHERS)
    agent = agent_of(module, args)
    agent = agent.replace(
        model=jax.tree.map(lambda x: x + 0.3 * r.normal(size=x.shape).astype(np.float32), agent.model)
    )
    shape = lambda *more: r.normal(size=(B, T, *more)).astype(np.float32)  # noqa: E731
    batch = Window(
        mask=np.float32([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]]),
        obs=shape(3),
        action=np.clip(shape(A), -0.9, 0.9),
        reward=shape(),
        terminal=np.float32([[0, 0, 0], [0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]]),
        next_obs=shape(3),
        successor=np.float32([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0]]),
    )
    frames = module.frames_of(batch)
    fit, learn = jax.jit(module.update_model), jax.jit(module.update)
    fitted, fit_info = fit(agent, batch, jax.random.key(5), args)
    new, info = learn(agent, batch, jax.random.key(6), args)
    grads, pi_grads = (
        jax.tree.map(lambda mu: 10.0 * np.asarray(mu), optax.tree_utils.tree_get(opt, "mu"))
        for opt in (fitted.model_opt, new.actor_opt)
    )
    assert max(optax.global_norm(grads), optax.global_norm(pi_grads)) < 100.0  # Adam's first moment is a tenth of it
    return types.SimpleNamespace(**locals())


# ------------------------------------------------------------------------------------------- the model


@pytest.mark.long
def test_offline_dv2_frames_are_what_every_step_led_to(dv2):
    frames, batch = dv2.frames, dv2.batch
    close(frames.mask, MASK)
    close(frames.obs[:, 0], batch.obs[:, 0])
    close(frames.obs[:, 1:], batch.next_obs)
    for name in ("action", "reward", "terminal"):
        x = getattr(frames, name)
        assert not np.any(x[:, 0])
        close(x[:, 1:], getattr(batch, name))


@pytest.mark.long
def test_offline_dv2_balanced_kl_by_hand(dv2):
    """Two frames of one variable of two classes, and one that is not there."""
    p = np.log(np.float32([[[[0.5, 0.5]], [[0.9, 0.1]], [[0.2, 0.8]]]]))
    q = np.log(np.float32([[[[0.25, 0.75]], [[0.9, 0.1]], [[0.9, 0.1]]]]))
    mask = jnp.float32([[1, 1, 0]])
    first = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    close(dv2.module.kl(p, q)[0, :2], [first, 0.0])

    @jax.jit
    def loss_and_grads(p, q, args):
        log_p, log_q = jax.nn.log_softmax(p), jax.nn.log_softmax(q)
        loss = lambda p, q: dv2.module.kl_loss(  # noqa: E731
            jax.nn.log_softmax(p), jax.nn.log_softmax(q), mask, args
        )
        plain = lambda p, q: dv2.module.kl(jax.nn.log_softmax(p), jax.nn.log_softmax(q))[0, :2].mean()  # noqa: E731
        return loss(log_p, log_q), jax.grad(loss, (0, 1))(p, q), jax.grad(plain, (0, 1))(p, q)

    args = dataclasses.replace(dv2.args, free_nats=0.0)
    loss, (of_p, of_q), (plain_p, plain_q) = loss_and_grads(p, q, args)
    close(loss, first / 2)
    close(of_p, 0.3 * plain_p)  # the posterior's share
    close(of_q, 0.7 * plain_q)
    assert abs(plain_p).max() > 0.05 and abs(plain_q).max() > 0.05
    loss, grads, _ = loss_and_grads(p, q, dataclasses.replace(dv2.args, free_nats=0.1))  # the mean is under it
    assert first > 0.1 > first / 2
    close(loss, 0.1)
    assert not np.any(grads[0]) and not np.any(grads[1])


def test_offline_dv2_a_sample_is_one_hot_and_has_the_gradient_of_the_probabilities(dv2):
    logits, w = jnp.log(jnp.float32([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])), jnp.float32([[1, 2, 4], [3, 0, 5]])
    sample = lambda x: dv2.module.one_hot_sample(jax.nn.log_softmax(x), jax.random.key(0))  # noqa: E731
    z, grad = sample(logits), jax.jit(jax.grad(lambda x: (w * sample(x)).sum()))(logits)
    close(z, drawn(logits, jax.random.key(0)))
    probs = np.exp(logits)
    close(grad, probs * (w - (probs * w).sum(-1, keepdims=True)))


def model_terms(f, model, key):
    """The terms of the model's loss, and its total."""
    key, member_key = jax.random.split(key)
    h, z, posterior = observe(model, np.asarray(f.frames.obs), np.asarray(f.frames.action), key)
    member = np.asarray(jax.random.randint(member_key, (F,), 0, E))
    prior = heads(model, h)[member, :, np.arange(F)].swapaxes(0, 1)
    x, led = seen(h, z), MASK.copy()
    led[:, 0] = 0
    mean = lambda x, m: (x * m).sum() / m.sum()  # noqa: E731
    missed = (net(model["decoder"], x) - f.frames.obs) ** 2
    p = sigmoid(net(model["end"], x)[..., 0])
    terms = {
        "obs_loss": mean(0.5 * missed.sum(-1), MASK),
        "reward_loss": mean((net(model["reward"], x)[..., 0] - f.frames.reward) ** 2, led),
        "end_loss": mean(-np.where(f.frames.terminal > 0, np.log(p), np.log(1 - p)), led),
        "kl": mean(kl(posterior, prior), MASK),
    }
    total = 1.5 * terms["obs_loss"] + 0.4 * terms["reward_loss"] + terms["end_loss"] + terms["kl"]
    return terms, total, member


def test_offline_dv2_model_loss(dv2):
    """And only the heads that were drawn for a frame learn."""
    terms, total, member = model_terms(dv2, dv2.agent.model, jax.random.key(5))
    for name, value in terms.items():
        close(dv2.fit_info[name], value)
    assert terms["kl"] > 0.001  # its free nats
    close(dv2.fit_info["model_loss"], total)
    moved = [np.abs(dv2.grads["prior"]["params"]["Dense_0"]["kernel"][i]).max() > 0 for i in range(E)]
    assert moved == [i in member for i in range(E)] and 0 < sum(moved) < E


def test_offline_dv2_what_lies_behind_an_end_teaches_nothing(dv2):
    """Other values in the frames that are masked, and in the window's padding, leave the gradient as it is."""
    r = np.random.default_rng(3)
    behind = MASK[:, 1:] == 0
    other = lambda x: np.where(behind.reshape(B, T, *(1,) * (x.ndim - 2)), r.normal(size=x.shape), x)  # noqa: E731
    changed = dv2.batch._replace(**{n: np.float32(other(getattr(dv2.batch, n))) for n in ("reward", "next_obs")})
    new, info = dv2.fit(dv2.agent, changed, jax.random.key(5), dv2.args)
    close(info["model_loss"], dv2.fit_info["model_loss"])
    jax.tree.map(close, new.model, dv2.fitted.model)


# ---------------------------------------------------------------------------------------- imagination


def test_offline_dv2_disagreement_by_hand(dv2):
    """Two heads, one variable: means 0.5, 0.5; each is (0.3, -0.3) or its negative away from it."""
    probs = jnp.float32([[[[0.8, 0.2]], [[0.4, 0.6]]], [[[0.2, 0.8]], [[0.4, 0.6]]]])  # [E, N, S, K]
    close(dv2.module.disagreement(probs), [np.sqrt(0.18), 0.0])
    two = jnp.concatenate([probs, probs], axis=2)  # the norm is over both variables
    close(dv2.module.disagreement(two)[0], np.sqrt(0.36))


def test_offline_dv2_lambda_returns_by_hand(dv2):
    reward, discount, value = (jnp.float32(x)[:, None] for x in ([1, 2, 3], [0.5, 1.0, 0.9], [10, 20, 30]))
    third = 3 + 0.9 * 30
    second = 2 + 1.0 * (0.2 * 20 + 0.8 * third)
    first = 1 + 0.5 * (0.2 * 10 + 0.8 * second)
    close(dv2.module.lambda_returns(reward, discount, value, dv2.args)[:, 0], [first, second, third])


def test_offline_dv2_the_policy_is_a_gaussian_cut_at_the_bounds(dv2):
    mean, std = np.float64([[0.9, -0.3, 0.0]]), np.float64([[0.5, 0.1, 2.0]])
    a, b = (-1 - mean) / std, (1 - mean) / std
    key = jax.random.key(2)
    u = np.asarray(jax.random.uniform(key, (1000, 3), minval=1e-6, maxval=1.0 - 1e-6))
    tile = lambda x: jnp.float32(np.repeat(x, 1000, 0))  # noqa: E731
    action = jax.jit(dv2.module.sample_truncated)(tile(mean), tile(std), key)
    np.testing.assert_allclose(action, truncnorm.ppf(u, a, b, mean, std), rtol=1e-3, atol=1e-3)
    assert abs(action).max() < 1
    entropy = jax.jit(dv2.module.truncated_entropy)(jnp.float32(mean), jnp.float32(std))
    close(entropy, truncnorm.entropy(a, b, mean, std).sum(-1))
    edge = lambda m: dv2.module.sample_truncated(m, jnp.float32(0.1), jax.random.key(4))  # noqa: E731
    value, slope = jax.jit(jax.value_and_grad(edge))(jnp.float32(0.99999))  # the policy's utmost
    assert 0.7 < value < 1 and 0 < slope < 2


def policy(actor, x):
    out = net(actor, x)
    return np.tanh(out[..., :A]), 2 * sigmoid(0.5 * out[..., A:]) + 0.1


def imagined(f, actor, key):
    """What the actor's loss is made of, from the frames of the windows on."""
    observe_key, key = jax.random.split(key)
    model = f.agent.model
    h, z, _ = observe(model, np.asarray(f.frames.obs), np.asarray(f.frames.action), observe_key)
    h, z = h.reshape(B * F, -1), z.reshape(B * F, S, K)
    mask = (MASK * (1 - np.asarray(f.frames.terminal))).reshape(-1)
    xs, rewards, discounts, values, entropies, u = [], [], [], [], [], []
    for k in jax.random.split(key, H):
        action_key, member_key, latent_key = jax.random.split(k, 3)
        x = seen(h, z)
        mean, std = policy(actor, x)
        a, b = (-1 - mean) / std, (1 - mean) / std
        xs.append(x)
        entropies.append(truncnorm.entropy(a, b, mean, std).sum(-1))
        drawn_u = np.asarray(jax.random.uniform(action_key, (B * F, A), minval=1e-6, maxval=1.0 - 1e-6))
        h = recur(model, h, z, truncnorm.ppf(drawn_u, a, b, mean, std))
        priors = heads(model, h)
        z = drawn(priors[int(jax.random.randint(member_key, (), 0, E))], latent_key)
        probs = np.exp(priors)
        u.append(np.sqrt(((probs - probs.mean(0)) ** 2).sum((-2, -1))).mean(0))
        rewards.append(net(model["reward"], seen(h, z))[..., 0])
        discounts.append(0.9 * (1 - sigmoid(net(model["end"], seen(h, z))[..., 0])))
        values.append(net(f.agent.target_critic, seen(h, z))[..., 0])
    returns, later = [], values[-1]
    for t in reversed(range(H)):
        later = rewards[t] - 2.0 * u[t] + discounts[t] * (0.2 * values[t] + 0.8 * later)
        returns.insert(0, later)
    weight = mask * np.cumprod([np.ones(B * F), *discounts[:-1]], axis=0)
    return np.stack(xs), np.stack(returns), weight, np.stack(entropies), np.stack(u), mask


def test_offline_dv2_actor_and_critic_learn_from_the_same_imagined_returns(dv2):
    """Starts are the frames after which the task goes on; targets are the slow critic's; the critic has not moved."""
    x, returns, weight, entropy, u, mask = imagined(dv2, dv2.agent.actor, jax.random.key(6))
    assert mask.sum() == MASK.sum() - 2  # the frames at which the task had ended, and were seen
    close(dv2.info["actor_loss"], -(weight * (returns + 0.3 * entropy)).sum() / (H * mask.sum()))
    v = net(dv2.agent.critic, x)[..., 0]
    close(dv2.info["critic_loss"], 0.5 * (weight * (v - returns) ** 2).sum() / weight.sum())
    close(dv2.info["disagreement"], (mask * u).sum() / (H * mask.sum()))
    close(dv2.info["penalty"], 2.0 * dv2.info["disagreement"])
    close(dv2.info["imagined_return"], (mask * returns).sum() / (H * mask.sum()))


def test_offline_dv2_the_actor_climbs_through_the_model_and_its_features_stand_still(dv2):
    """No latent state tells the policy's loss of itself; the model and the critics are not the actor's to change."""
    latent = dv2.module.Latent(jnp.ones((1, 4)), jnp.ones((1, S, K)) / 3)
    of_latent = jax.jit(jax.grad(lambda x: dv2.module.policy(dv2.agent, dv2.agent.actor, x)[0].sum()))(latent)
    assert not any(np.any(x) for x in jax.tree.leaves(of_latent))
    alone, _ = dv2.learn(dv2.agent, dv2.batch, jax.random.key(6), dataclasses.replace(dv2.args, entropy_cost=0.0))
    mu = optax.tree_utils.tree_get(alone.actor_opt, "mu")  # without the entropy only the returns have a gradient
    assert max(np.abs(g).max() for g in jax.tree.leaves(mu)) > 1e-4
    jax.tree.map(np.testing.assert_array_equal, dv2.new.model, dv2.agent.model)
    for name in ("actor", "critic", "target_critic", "updates"):
        jax.tree.map(np.testing.assert_array_equal, getattr(dv2.fitted, name), getattr(dv2.agent, name))


def test_offline_dv2_the_target_follows_the_new_critic_or_is_copied(dv2):
    wanted = jax.tree.map(lambda x, y: 0.75 * x + 0.25 * y, dv2.agent.target_critic, dv2.new.critic)
    jax.tree.map(close, dv2.new.target_critic, wanted)
    assert int(dv2.new.updates) == 1
    args = dataclasses.replace(dv2.args, copy_every=3)
    for done, expected in ((1, dv2.agent.target_critic), (2, dv2.agent.critic)):  # the third update copies
        moved = dv2.module.move_target(dv2.agent.replace(updates=jnp.int32(done)), args)
        jax.tree.map(close, moved.target_critic, expected)


# ----------------------------------------------------------------------------------- acting and images


def test_offline_dv2_remembers_what_it_saw_and_did(dv2):
    """Three steps by `act` against the filter by hand: the policy's mode, the action of the step before."""
    r, model = np.random.default_rng(4), dv2.agent.model
    fresh = dv2.module.initial_carry(dv2.agent, dv2.args)
    carry = jax.tree.map(lambda x: jnp.broadcast_to(x, (2, *x.shape)), fresh)
    h, z, action = np.zeros((2, 4)), np.zeros((2, S, K)), np.zeros((2, A))
    act = jax.jit(dv2.module.act)
    for step in range(3):
        obs, key = r.normal(size=(2, 3)).astype(np.float32), jax.random.key(step)
        found, carry = act(dv2.agent, carry, obs, jnp.zeros(2), key, dv2.args)
        h = recur(model, h, z, action)
        z = drawn(log_softmax(net(model["posterior"], h, net(model["encoder"], obs, last=False))), key)
        action, _ = policy(dv2.agent.actor, seen(h, z))
        close(found, action)
        close(carry.latent.z, z)


def test_offline_dv2_pictures_are_halved_by_convolutions_and_doubled_in_their_places(dv2):
    r = np.random.default_rng(0)
    x, kernel = r.normal(size=(2, 8, 8, 3)).astype(np.float32), r.normal(size=(4, 4, 3, 5)).astype(np.float32)
    right = jax.lax.conv_general_dilated(
        x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(dv2.module.blocks(x) @ kernel.reshape(48, 5), right, rtol=1e-4, atol=1e-4)
    decoder = dv2.module.ImageDecoder(2, 1, (8, 8, 3))
    params = jax.jit(decoder.init)(jax.random.key(0), jnp.ones((1, 2, 6)))
    p = params["params"]
    z = r.normal(size=(1, 2, 6)).astype(np.float32)
    cells = elu(z @ np.asarray(p["Dense_0"]["kernel"])).reshape(1, 2, 4, 4, 2)
    doubled = (cells @ np.asarray(p["Dense_1"]["kernel"])).reshape(1, 2, 4, 4, 2, 2, 3)
    image = np.asarray(jax.jit(decoder.apply)(params, z))
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        close(image[:, :, i::2, j::2], doubled[..., i, j, :])


@pytest.mark.long
def test_offline_dv2_learns_from_pictures_as_bytes(dv2):
    """A picture of twos is 2 / 255 - 0.5 to the encoder, and to the loss."""
    spec = Spec((8, 8, 3), A, False, (-1.0,) * A, (1.0,) * A)
    args = dataclasses.replace(dv2.args, image_channels=2)
    agent = jax.jit(dv2.module.init, static_argnums=2)(jax.random.key(0), args, spec)
    images = np.full((B, T, 8, 8, 3), 2, np.uint8)
    batch = dv2.module.frames_of(dv2.batch._replace(obs=images, next_obs=images))
    black = {**agent.model, "decoder": jax.tree.map(jnp.zeros_like, agent.model["decoder"])}
    _, info = jax.jit(dv2.module.model_loss)(black, agent, batch, jax.random.key(1), args)
    close(info["obs_loss"], 0.5 * 192 * (2 / 255 - 0.5) ** 2)
    see = jax.jit(agent.nets.encoder.apply)
    close(see(agent.model["encoder"], images), see(agent.model["encoder"], np.float32(images)))


@pytest.mark.parametrize("shape", [(8, 16, 3), (12, 12, 3), (4, 4, 3)])
def test_offline_dv2_refuses_pictures_that_cannot_be_halved(dv2, shape):
    with pytest.raises(InputError, match=f"of 8, 16, 32, 64, ... pixels, not {shape[0]}x{shape[1]}"):
        dv2.module.levels(Spec(shape, A, False))
    assert [dv2.module.levels(Spec((side, side, 3), A, False)) for side in (8, 16, 64)] == [1, 2, 4]


def test_offline_dv2_refuses_behaviour_without_a_world_model(pendulum, tmp_path):
    with pytest.raises(InputError, match="--model-updates must be at least 1"):
        load("offline_dv2").main(small("offline_dv2", pendulum, tmp_path / "run", model_updates=0))


def test_offline_dv2_refuses_data_of_less_than_a_window(pendulum, tmp_path):
    with pytest.raises(InputError, match="300 rows; a window of --window-steps needs 301 or more"):
        load("offline_dv2").main(small("offline_dv2", pendulum, tmp_path / "run", window_steps=301))


def test_offline_dv2_refuses_to_penalise_what_one_head_cannot_say(pendulum, tmp_path):
    with pytest.raises(InputError, match="a single head disagrees with none"):
        load("offline_dv2").main(small("offline_dv2", pendulum, tmp_path / "run", n_models=1))


def test_offline_dv2_gradients_are_clipped_together(dv2):
    """Of norm 5 to 2.5: half of each is Adam's first moment over 0.1; with 0 nothing is clipped."""
    grads = {"a": jnp.float32([3.0]), "b": jnp.float32([4.0])}

    @jax.jit
    def moments(args):
        optimizer = dv2.module.optimizer(1e-3, args)
        return optax.tree_utils.tree_get(optimizer.update(grads, optimizer.init(grads))[1], "mu")

    for limit, factor in ((2.5, 0.5), (10.0, 1.0), (0.0, 1.0)):
        mu = moments(dataclasses.replace(dv2.args, max_grad_norm=limit))
        close([mu["a"][0], mu["b"][0]], [0.3 * factor, 0.4 * factor])


@pytest.mark.long
def test_offline_dv2_std_is_never_below_a_tenth(dv2):
    actor = jax.tree.map(lambda x: jnp.zeros_like(x), dv2.agent.actor)
    bias = actor["params"]["Dense_1"]["bias"].at[:].set(-50.0)
    actor["params"]["Dense_1"]["bias"] = bias
    latent = dv2.module.Latent(jnp.ones((1, 4)), jnp.ones((1, S, K)))
    mean, std = dv2.module.policy(dv2.agent, actor, latent)
    close(std, [[0.1, 0.1]])
    close(mean, [[-1.0, -1.0]])
