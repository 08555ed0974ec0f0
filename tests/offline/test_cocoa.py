"""The networks and losses of cocoa against the same equations in plain numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import small, train
from reference import B, agent_of, close, mlp, relu, tanh_normal
from scipy.special import logsumexp

from shared.errors import InputError

SMALL = {
    "transduction_dim": 2, "n_actions": 2, "backward_steps": 2, "dynamics_updates": 4, "seeker_updates": 4,
    "n_models": 3, "model_hidden_dims": (8,), "seeker_hidden_dims": (8,),
}  # fmt: skip
SIZES = {**SMALL, "hidden_dims": (8,), "batch_size": B}


@pytest.fixture(scope="module")
def cocoa():
    return load("cocoa")


@pytest.fixture(scope="module")
def args(cocoa):
    return cocoa.Args(**SIZES, cql_alpha=0.7, discount=0.9, direction_noise=0.3)


@pytest.fixture(scope="module")
def agent(cocoa, args):
    """In general position, with other scales for the inputs of both ways."""
    agent, r = agent_of(cocoa, args, seed=2), np.random.default_rng(4)
    mean, std = r.normal(size=(2, 5)), r.uniform(0.5, 2.0, (2, 5))
    more = {"input_mean": mean, "input_std": std, "pool": r.normal(size=(30, 3)), "log_alpha": -0.3}
    return agent.replace(**{k: jnp.float32(x) for k, x in more.items()})


@pytest.fixture(scope="module")
def jitted(cocoa):
    """Compiled once."""
    names = ("model_loss", "anchors_of", "backward_rollout", "critic_loss", "actor_loss", "update", "judge")
    return {name: jax.jit(getattr(cocoa, name)) for name in names}


@pytest.fixture
def known(batch):
    """The next observation of one of the terminal rows is not known."""
    return batch._replace(successor=np.float32([1, 0, 1, 1, 1]))


def dense(layer, x):
    return x @ np.float64(layer["kernel"]) + np.float64(layer["bias"])


def normed(layer, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * np.float64(layer["scale"]) + np.float64(layer["bias"])


def normed_mlp(layers, x):
    """Dense, ReLU, LayerNorm of the hidden layers; then the outputs."""
    hidden = len(layers) // 2
    for i in range(hidden):
        x = normed(layers[f"LayerNorm_{i}"], relu(dense(layers[f"Dense_{i}"], x)))
    return dense(layers[f"Dense_{hidden}"], x)


def transduction(params, obs, anchor, *action):
    layers = params["params"]
    if "LayerNorm_1" not in layers:
        return mlp({"params": layers["MLP_0"]}, obs, *action)
    f, g = (
        normed(layers[f"LayerNorm_{i}"], normed_mlp(layers[f"MLP_{i}"], np.concatenate([x, *action], -1)))
        for i, x in enumerate((obs - anchor, anchor))
    )
    x = np.stack([(f[..., 2 * t : 2 * t + 2] * g[..., 2 * t : 2 * t + 2]).sum(-1) for t in range(8)], -1)
    return mlp({"params": layers["MLP_2"]}, x)


def policy(params, obs, anchor):
    mean, log_std = np.split(transduction(params, obs, anchor), 2, -1)
    return mean, np.clip(log_std, -5, 2)


def q_of(critics, obs, anchor, action):
    one = [jax.tree.map(lambda x, i=i: x[i], critics) for i in range(2)]
    return np.stack([transduction(c, obs, anchor, action)[..., 0] for c in one])


def gaussians(model, agent, way, start, action):
    """Mean and log variance [E, B, 3] of one way."""
    x = (np.concatenate([start, action], -1) - np.asarray(agent.input_mean[way])) / np.asarray(agent.input_std[way])
    members = [jax.tree.map(lambda p, e=e: p[way, e], model) for e in range(3)]
    mean, log_var = np.split(np.stack([mlp(m, x) for m in members]), 2, -1)
    log_var = 0.5 - np.log1p(np.exp(0.5 - log_var))
    return mean, -10.0 + np.log1p(np.exp(log_var + 10.0))


def anchor_of(agent, obs):
    action = np.tanh(normed_mlp(agent.seeker["params"], obs))
    return obs + gaussians(agent.model, agent, 0, obs, action)[0].mean(0)


# ------------------------------------------------------------------------------ models and anchors


@pytest.mark.long
def test_cocoa_models_are_fitted_forwards_and_backwards(agent, known, jitted):
    """What follows an end only where it is known."""
    expected = 0.0
    for way, (start, end) in enumerate(((known.obs, known.next_obs), (known.next_obs, known.obs))):
        mean, log_var = gaussians(agent.model, agent, way, start, known.action)
        nll = ((mean - (end - start)) ** 2 * np.exp(-log_var) + log_var).mean(-1)
        expected += (known.successor * nll).mean(1).sum()
    close(jitted["model_loss"](agent.model, agent, known), expected)


def test_cocoa_steps_of_a_backward_rollout_lead_back(cocoa, agent, args, known, jitted):
    """s_k is a sample of a backward member for s_(k-1), k = 1, 2, and an action near to 0.8 times the direction.

    It begins in the next state, of a row without one in the state itself.
    """
    direction, key, members = known.action[::-1], jax.random.key(1), set()
    obs, action = jitted["backward_rollout"](agent, known, key, args)
    assert obs.shape == (2, B, 3) and action.shape == (2, B, 2)
    before = np.where(known.successor[:, None] > 0, known.next_obs, known.obs)
    for t, step_key in enumerate(jax.random.split(key, 2)):
        action_key, member_key, noise_key = jax.random.split(step_key, 3)
        noise = 0.3 * np.asarray(jax.random.normal(action_key, (B, 2)))
        close(action[t], np.clip(0.8 * direction + noise, -1, 1))
        member, rows = np.asarray(jax.random.randint(member_key, (B,), 0, 3)), np.arange(B)
        mean, log_var = gaussians(agent.model, agent, 1, before, np.asarray(action[t]))
        noise = np.asarray(jax.random.normal(noise_key, (B, 3)))
        close(obs[t], before + mean[member, rows] + np.exp(log_var[member, rows] / 2) * noise)
        before, members = np.asarray(obs[t]), members | set(member.tolist())
    assert members == {0, 1, 2}
    seeker = np.tanh(normed_mlp(agent.seeker["params"], np.asarray(obs)))
    close(cocoa.seeker_loss(agent.seeker, agent, obs, action), ((seeker - action) ** 2).mean())


def test_cocoa_anchors_are_where_seeker_and_forward_model_lead(cocoa, agent, args, batch, jitted):
    key = jax.random.key(2)
    expected = anchor_of(agent, batch.obs)
    close(jitted["anchors_of"](agent, batch.obs, key, args), expected)
    twice = dataclasses.replace(args, anchor_steps=2)
    close(jitted["anchors_of"](agent, batch.obs, key, twice), anchor_of(agent, expected))
    drawn = cocoa.anchors_of(agent, batch.obs, key, dataclasses.replace(args, anchors="random"))
    assert all((np.asarray(agent.pool) == x).all(1).any() for x in np.asarray(drawn))
    assert cocoa.anchors_of(agent, batch.obs, key, dataclasses.replace(args, anchors="none")) is batch.obs


def test_cocoa_distances_are_to_the_nearest_of_the_pool(agent, args, known, jitted):
    roll_key, _ = jax.random.split(jax.random.key(3))
    obs = np.asarray(jitted["backward_rollout"](agent, known, roll_key, args)[0]).reshape(-1, 3)
    found = jitted["judge"](agent, known, jax.random.key(3), args)
    for name, x in (("state", obs), ("anchor", anchor_of(agent, obs))):
        apart = (x[:, None] - np.asarray(agent.pool)) / np.asarray(agent.input_std)[0, :3]
        close(found[f"distance_{name}"], np.linalg.norm(apart, axis=-1).min(1).mean())
    close(found["model_loss"], jitted["model_loss"](agent.model, agent, known))


# ------------------------------------------------------------------------------------------- the agent


@pytest.mark.long
@pytest.mark.parametrize("anchors", ["seeker", "none"])
def test_cocoa_losses_are_cqls_on_transductive_networks(cocoa, agent, args, batch, jitted, anchors):
    args = dataclasses.replace(args, anchors=anchors)
    if anchors == "none":
        agent = agent_of(cocoa, args, seed=3).replace(log_alpha=jnp.float32(-0.3))
    key = jax.random.key(5)
    now, following = (
        cocoa.Seen(obs, obs if anchors == "none" else np.float32(anchor_of(agent, obs)))
        for obs in (batch.obs, batch.next_obs)
    )

    def drawn(seen, key, *n):
        mean, log_std = policy(agent.actor, *seen)
        return tanh_normal(mean, log_std, np.asarray(jax.random.normal(key, (*n, B, 2))))

    target_key, gap_key = jax.random.split(key)
    action, _ = drawn(following, target_key)
    y = batch.reward + 0.9 * (1 - batch.terminal) * q_of(agent.target_critic, *following, action).min(0)
    q = q_of(agent.critic, *now, batch.action)
    uniform_key, now_key, next_key = jax.random.split(gap_key, 3)
    uniform = np.asarray(jax.random.uniform(uniform_key, (2, B, 2), minval=-1.0, maxval=1.0))
    kinds = [(uniform, np.full((2, B), 2 * np.log(0.5))), drawn(now, now_key, 2), drawn(following, next_key, 2)]
    values = np.stack([q_of(agent.critic, *now, a[k]) - d[k] for a, d in kinds for k in range(2)])
    gap = (logsumexp(values, 0) - q).mean(1)
    loss, info = jitted["critic_loss"](agent.critic, agent, batch, now, following, key, args)
    close(loss, ((q - y) ** 2).mean(1).sum() + 0.7 * gap.sum())
    close(info["gap"], gap.mean())
    action, log_prob = drawn(now, key)
    expected = (np.exp(-0.3) * log_prob - q_of(agent.critic, *now, action).min(0)).mean()
    close(jitted["actor_loss"](agent.actor, agent, now, key, args)[0], expected)


@pytest.mark.long
def test_cocoa_updates_actor_then_critics_and_neither_models_nor_seeker(cocoa, agent, args, batch, jitted):
    key = jax.random.key(6)
    new, metrics = jitted["update"](agent, batch, key, args)
    *_, actor_key, critic_key = jax.random.split(key, 4)
    now, following = (cocoa.Seen(x, np.float32(anchor_of(agent, x))) for x in (batch.obs, batch.next_obs))
    close(metrics["actor_loss"], jitted["actor_loss"](agent.actor, agent, now, actor_key, args)[0])
    later = new.replace(critic=agent.critic, target_critic=agent.target_critic)
    loss, _ = jitted["critic_loss"](agent.critic, later, batch, now, following, critic_key, args)
    close(metrics["critic_loss"], loss)
    assert (new.log_alpha > agent.log_alpha) == (metrics["entropy"] < -2)
    for part in ("model", "seeker", "pool"):
        jax.tree.map(np.testing.assert_array_equal, getattr(new, part), getattr(agent, part))
    kernel = [x["params"]["MLP_0"]["Dense_0"]["kernel"] for x in (new.target_critic, agent.target_critic, new.critic)]
    close(kernel[0], 0.995 * kernel[1] + 0.005 * kernel[2])


# ------------------------------------------------------------------------------------------ the script


def test_cocoa_learns_the_models_then_the_seeker_alone(cocoa, agent, args, known):
    @jax.jit
    def fitted(agent):
        return [f(agent, known, jax.random.key(0), args)[0] for f in (cocoa.update_model, cocoa.update_seeker)]

    for new, part in zip(fitted(agent), ("model", "seeker"), strict=True):
        for other in {"model", "seeker", "actor", "critic"} - {part}:
            jax.tree.map(np.testing.assert_array_equal, getattr(new, other), getattr(agent, other))
        leaves = map(jax.tree.leaves, (getattr(new, part), getattr(agent, part)))
        assert all(np.any(x != y) for x, y in zip(*leaves, strict=True))


def test_cocoa_refuses_phases_that_no_chunk_divides(cocoa, pendulum, tmp_path):
    with pytest.raises(InputError, match="must be multiples of 2"):
        cocoa.main(small("cocoa", pendulum, tmp_path / "other", env="none", dynamics_updates=3, seeker_updates=1))


@pytest.mark.parametrize("left_out", ["dynamics_updates", "seeker_updates"])
def test_cocoa_seeks_no_anchors_with_what_has_learned_nothing(left_out, cocoa, pendulum, tmp_path):
    with pytest.raises(InputError, match="--anchors seeker: --dynamics-updates and --seeker-updates must be at least"):
        cocoa.main(small("cocoa", pendulum, tmp_path / "run", env="none", **{left_out: 0}))


@pytest.mark.long
def test_cocoa_needs_no_models_where_no_anchor_is_sought(cocoa, pendulum, tmp_path):
    phases = {"dynamics_updates": 0, "seeker_updates": 0}
    assert train("cocoa", pendulum, tmp_path / "run", env="none", anchors="random", **phases)


def test_cocoa_needs_a_hidden_layer_for_its_embeddings(cocoa, pendulum, tmp_path):
    with pytest.raises(InputError, match="^--hidden-dims: embeddings are as many as"):
        cocoa.main(small("cocoa", pendulum, tmp_path / "run", hidden_dims=()))
