"""The losses of a2pr against the same equations in plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from reference import B, agent_of, close, compiled, heads, mlp, smoothed_next_action

SMALL = {"actor_hidden_dims": (8, 8), "vae_hidden_dims": (8, 8)}


def args_of(**changes):
    sizes = {"hidden_dims": (8, 8), "actor_hidden_dims": (8, 8), "vae_hidden_dims": (8, 8), "batch_size": B}
    return load("a2pr").Args(**sizes | changes)


def agent_with(value, agent):
    """V(s) = value everywhere."""
    last = agent.value["params"]["Dense_2"]
    layers = {"Dense_2": {"kernel": 0 * last["kernel"], "bias": jnp.full(1, value, jnp.float32)}}
    return agent.replace(value={"params": {**agent.value["params"], **layers}})


def encoded(vae, obs, action):
    mean, log_std = np.split(mlp({"params": vae["params"]["encoder"]}, obs, action), 2, axis=-1)
    return mean, np.clip(log_std, -4, 15)


def reconstructed(vae, obs, action, key):
    mean, log_std = encoded(vae, obs, action)
    z = mean + np.exp(log_std) * np.asarray(jax.random.normal(key, mean.shape))
    return np.tanh(mlp({"params": vae["params"]["decoder"]}, obs, z))


@pytest.fixture
def agent(batch):
    """V between the Q of the data's actions: some are better than it."""
    agent = agent_of(compiled("a2pr"), args_of(), seed=3)
    return agent_with(np.median(heads(agent.critic, batch.obs, batch.action)[0]) - 1e-3, agent)


@pytest.mark.long
def test_a2pr_critic_and_value_have_targets_of_their_own(agent, batch):
    """V's target is the lower of that of the target critics and that of the online ones, with the same a'."""
    a2pr, key = compiled("a2pr"), jax.random.key(7)
    args = args_of(policy_noise=0.6, noise_clip=0.4, discount=0.9)
    next_action = smoothed_next_action(agent, batch, key, args)
    close(a2pr.next_action_of(agent, batch, key, args), next_action)
    y = [
        batch.reward + 0.9 * (1 - batch.terminal) * heads(critics, batch.next_obs, next_action).min(0)
        for critics in (agent.target_critic, agent.critic)
    ]
    assert (y[0] < y[1]).any() and (y[1] < y[0]).any()
    for critics, expected in zip((agent.target_critic, agent.critic), y, strict=True):
        close(a2pr.bellman_target(critics, agent, batch, jnp.asarray(next_action), args), expected)
    expected = sum(((q - y[0]) ** 2).mean() for q in heads(agent.critic, batch.obs, batch.action))
    close(a2pr.critic_loss(agent.critic, agent, batch, jnp.float32(y[0]), args)[0], expected)
    other = agent_of(a2pr, args, seed=9).value  # not constant
    expected = ((mlp(other, batch.obs)[..., 0] - np.minimum(*y)) ** 2).mean()
    close(a2pr.value_loss(other, agent, batch, jnp.float32(np.minimum(*y)), args)[0], expected)


@pytest.mark.long
def test_a2pr_an_update_uses_what_the_step_before_has_learned(agent, batch):
    """Critics, then V on the lower target with the new critics, then the VAE with the new critics and V."""
    a2pr = compiled("a2pr")
    args = args_of(critic_lr=0.01, value_lr=0.02, vae_lr=0.03)
    keys = jax.random.split(jax.random.key(3))
    new, info = a2pr.update_values(agent, batch, keys, args)
    next_action = a2pr.next_action_of(agent, batch, keys[0], args)
    y = a2pr.bellman_target(agent.target_critic, agent, batch, next_action, args)
    close(info["critic_loss"], a2pr.critic_loss(agent.critic, agent, batch, y, args)[0])
    lower = np.minimum(y, a2pr.bellman_target(new.critic, agent, batch, next_action, args))
    assert (lower < y).any()
    close(info["value_loss"], a2pr.value_loss(agent.value, agent, batch, lower, args)[0])
    later = agent.replace(critic=new.critic, value=new.value)
    close(info["vae_loss"], a2pr.vae_loss(agent.vae, later, batch, keys[1], args)[0])

    def first_step(x, g, lr):  # of Adam
        return x - lr * g / (jnp.abs(g) + 1e-8)

    grads = jax.grad(lambda p: a2pr.value_loss(p, agent, batch, lower, args)[0])(agent.value)
    jax.tree.map(lambda x, g, n: close(n, first_step(x, g, 0.02)), agent.value, grads, new.value)
    grads = jax.grad(lambda p: a2pr.vae_loss(p, later, batch, keys[1], args)[0])(agent.vae)
    jax.tree.map(lambda x, g, n: close(n, first_step(x, g, 0.03)), agent.vae, grads, new.vae)
    jax.tree.map(np.testing.assert_array_equal, new.actor, agent.actor)
    jax.tree.map(np.testing.assert_array_equal, new.target_critic, agent.target_critic)


def test_a2pr_vae_reconstructs_the_better_actions_only_and_keeps_the_whole_kl(agent, batch):
    a2pr, key = compiled("a2pr"), jax.random.key(1)
    better = heads(agent.critic, batch.obs, batch.action)[0] > mlp(agent.value, batch.obs)[..., 0]
    assert 0 < better.sum() < B
    mean, log_std = encoded(agent.vae, batch.obs, batch.action)
    kl = (-0.5 * (1 + 2 * log_std - mean**2 - np.exp(2 * log_std))).mean()
    error = (reconstructed(agent.vae, batch.obs, batch.action, key) - batch.action) ** 2
    expected = 1.5 * (better[:, None] * error).mean() + 0.5 * kl
    close(a2pr.vae_loss(agent.vae, agent, batch, key, args_of(vae_weight=1.5))[0], expected)
    none = a2pr.vae_loss(agent.vae, agent_with(1e6, agent), batch, key, args_of())[0]
    close(none, 0.5 * kl)


@pytest.mark.parametrize("value", ["between", 1e6, -1e6])
def test_a2pr_actor_is_pulled_to_the_better_guide_where_one_is_better_than_v(agent, batch, value):
    a2pr, key = compiled("a2pr"), jax.random.key(5)
    args = args_of(alpha=1.7, guide_weight=0.4)
    pi = np.tanh(mlp(agent.actor, batch.obs))
    decoded = reconstructed(agent.vae, batch.obs, pi, key)
    q, q_decoded, q_data = (heads(agent.critic, batch.obs, a)[0] for a in (pi, decoded, batch.action))
    v = np.median(np.maximum(q_decoded, q_data)) + 1e-3 if value == "between" else value
    agent = agent_with(v, agent)
    target = np.where((q_decoded >= q_data)[:, None], decoded, batch.action)
    gate = 0.4 * ((q_decoded >= v) | (q_data > v))  # 0.4 too where both are
    if value == "between":
        assert len({*(q_decoded >= q_data)}) == 2 and len({*gate}) == 2
    expected = -1.7 / np.abs(q).mean() * q.mean() + (gate[:, None] * (pi - target) ** 2).mean()
    loss, info = a2pr.actor_loss(agent.actor, agent, batch, key, args)
    close(loss, expected)
    close(info["gate"], gate.mean())
    assert {1e6: 0.0, -1e6: np.float32(0.4)}.get(value, float(info["gate"])) == float(info["gate"])


@pytest.mark.long
@pytest.mark.parametrize("detach", [False, True])
def test_a2pr_gradient_reaches_the_actor_through_the_vae_unless_told_not_to(agent, batch, detach):
    a2pr, key = compiled("a2pr"), jax.random.key(5)
    agent = agent_with(-1e6, agent)  # every gate is open
    grads = jax.grad(lambda a: a2pr.actor_loss(a, agent, batch, key, args_of(alpha=0.0, detach_guide=detach))[0])

    def pull(actor, hold):
        pi = agent.nets.actor.apply(actor, batch.obs)
        decoded = hold(agent.nets.vae.apply(agent.vae, batch.obs, pi, key)[2])
        q = [
            agent.nets.critic.apply(jax.tree.map(lambda x: x[0], agent.critic), batch.obs, a)
            for a in (decoded, batch.action)
        ]
        return 0.5 * ((pi - jnp.where((q[0] >= q[1])[:, None], decoded, batch.action)) ** 2).mean()

    holds = {False: lambda x: x, True: jax.lax.stop_gradient}
    jax.tree.map(close, grads(agent.actor), jax.grad(pull)(agent.actor, holds[detach]))
    other = jax.grad(pull)(agent.actor, holds[not detach])
    differences = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), grads(agent.actor), other)
    assert max(jax.tree.leaves(differences)) > 1e-3


def test_a2pr_lambda_carries_no_gradient(agent, batch):
    """With lambda differentiated, -lambda Q is the constant -alpha (Q > 0)."""
    a2pr, args = compiled("a2pr"), args_of(alpha=50.0, guide_weight=0.0)
    layer = agent.critic["params"]["Dense_2"]
    critic = {"params": {**agent.critic["params"], "Dense_2": {**layer, "bias": layer["bias"] + 1000.0}}}
    agent = agent.replace(critic=critic)
    grads = jax.grad(lambda a: a2pr.actor_loss(a, agent, batch, jax.random.key(0), args)[0])(agent.actor)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) > 1e-4


@pytest.mark.long
def test_a2pr_moves_actor_and_targets_once_per_delay(agent, batch):
    a2pr, args = compiled("a2pr"), args_of()
    batches = jax.tree.map(lambda x: jnp.stack([x, x]), batch)
    keys = [jax.random.split(jax.random.key(i)) for i in range(3)]
    new, _ = a2pr.update(agent, batches, keys, args)
    counts = [int(getattr(new, f"{n}_opt")[0].count) for n in ("critic", "value", "vae", "actor")]
    assert counts == [2, 2, 2, 1]
    expected = jax.tree.map(lambda old, online: 0.995 * old + 0.005 * online, agent.target_critic, new.critic)
    jax.tree.map(close, new.target_critic, expected)


@pytest.mark.long
def test_a2pr_vae_generates_the_better_half_of_the_actions():
    """Good and bad actions in every state, V in between: decoded actions end among the good ones."""
    a2pr = compiled("a2pr")
    args = args_of(batch_size=64, kl_weight=0.05, vae_hidden_dims=(32, 32), vae_lr=1e-2)
    agent = a2pr.init(jax.random.key(0), args, compiled("td3_bc").Spec((3,), 2, False, (-1.0,) * 2, (1.0,) * 2))
    r = np.random.default_rng(0)
    obs, sign = r.normal(size=(64, 3)).astype(np.float32), np.where(np.arange(64) % 2, 0.8, -0.8)
    action = (sign[:, None] + r.uniform(-0.1, 0.1, (64, 2))).astype(np.float32)
    agent = agent.replace(nets=agent.nets._replace(critic=FirstActionIsQ()))  # V is near 0
    batch = a2pr.Batch(obs=obs, action=action)

    @jax.jit
    def step(agent, key):
        grads = jax.grad(lambda p: a2pr.vae_loss(p, agent, batch, key, args)[0])(agent.vae)
        updates, vae_opt = a2pr.optax.adam(args.vae_lr).update(grads, agent.vae_opt)
        return agent.replace(vae=a2pr.optax.apply_updates(agent.vae, updates), vae_opt=vae_opt), None

    agent, _ = jax.lax.scan(step, agent_with(0.0, agent), jax.random.split(jax.random.key(1), 300))
    decoded = agent.nets.vae.apply(agent.vae, obs, jnp.zeros((64, 2)), jax.random.key(2))[2]
    assert (np.asarray(decoded) > 0.5).mean() > 0.95


class FirstActionIsQ:
    def apply(self, critic, obs, action):
        return action[..., 0]
