"""The losses of edac against the same equations in plain numpy; the diversity loss against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import load
from jobs import small
from reference import SPEC, B, agent_of, close, compiled, heads, mlp, tanh_normal
from released import ANTMAZE, MAZE2D, every, table, wrong_settings

from shared.arguments import preset_for
from shared.errors import InputError
from shared.task import Spec

SMALL = {"n_critics": 3}
SIZES = {**SMALL, "hidden_dims": (8, 8), "batch_size": B}


def drawn(actor, obs, key, *n):
    mean, log_std = np.split(mlp(actor, obs), 2, -1)
    return tanh_normal(mean, np.clip(log_std, -5, 2), np.asarray(jax.random.normal(key, (*n, B, 2))))


def pairwise(critics, obs, action, step=1e-5):
    """[B] sum over i != j of the cosines of dQ_i/da and dQ_j/da, by central differences, over N - 1."""
    moves = step * np.eye(2)
    columns = [(heads(critics, obs, action + m) - heads(critics, obs, action - m)) / (2 * step) for m in moves]
    gradient = np.stack(columns, -1)  # [N, B, A]
    n, total = len(gradient), 0.0
    for i in range(n):
        for j in range(n):
            if i != j:
                dot = (gradient[i] * gradient[j]).sum(-1)
                total = total + dot / (np.linalg.norm(gradient[i], axis=-1) * np.linalg.norm(gradient[j], axis=-1))
    return total / (n - 1)


@pytest.fixture
def edac():
    return compiled("edac")


@pytest.fixture
def agent(edac):
    return agent_of(edac, edac.Args(**SIZES)).replace(log_alpha=jnp.float32(-0.3))


def target(agent, batch, key):
    action, log_prob = drawn(agent.actor, batch.next_obs, key)
    least = heads(agent.target_critic, batch.next_obs, action).min(0)
    return batch.reward + 0.99 * (1 - batch.terminal) * (least - np.exp(-0.3) * log_prob)


def test_edac_diversity_is_the_cosine_of_pairs_of_action_gradients(edac, agent, batch):
    expected = pairwise(agent.critic, batch.obs, np.float64(batch.action))
    assert expected.std() > 0.05 and abs(expected.mean()) > 0.05
    close(edac.diversity_loss(agent.critic, agent, batch), expected.mean())


def test_edac_diversity_moves_the_critics_through_their_action_gradients(edac, agent, batch):
    """Its slope along its own gradient, by finite differences of the sum over pairs above: nothing is stopped."""
    grads = jax.jit(jax.grad(edac.diversity_loss))(agent.critic, agent, batch)
    norm = np.sqrt(sum((np.float64(g) ** 2).sum() for g in jax.tree.leaves(grads)))
    step = 1e-4

    def along(sign):
        moved = jax.tree.map(lambda p, g: np.float64(p) + sign * step * np.float64(g) / norm, agent.critic, grads)
        return pairwise(moved, batch.obs, np.float64(batch.action)).mean()

    assert norm > 0.01
    np.testing.assert_allclose((along(1) - along(-1)) / (2 * step), norm, rtol=1e-3)


def test_edac_a_critic_without_a_slope_has_no_direction_and_no_nan(edac, agent, batch):
    flat = jax.tree.map(lambda x: np.where(np.arange(3).reshape(3, *(1,) * (x.ndim - 1)) == 0, 0, x), agent.critic)
    two = jax.tree.map(lambda x: np.asarray(x)[1:], agent.critic)
    loss, grads = jax.jit(jax.value_and_grad(edac.diversity_loss))(flat, agent, batch)
    close(loss, pairwise(two, batch.obs, np.float64(batch.action)).mean() / 2)  # N - 1 of all, not of those with one
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_edac_of_one_dimension_directions_are_signs_without_a_slope(edac, batch):
    spec = Spec((3,), 1, False, (-1.0,), (1.0,))
    agent, batch = agent_of(edac, edac.Args(**SIZES), spec), batch._replace(action=batch.action[:, :1])
    loss, grads = jax.jit(jax.value_and_grad(edac.diversity_loss))(agent.critic, agent, batch)
    assert all((g == 0).all() for g in jax.tree.leaves(grads))
    up, down = (heads(agent.critic, batch.obs, batch.action + step) for step in (1e-4, -1e-4))
    signs = np.sign(up - down)
    close(loss, ((signs.sum(0) ** 2 - 3) / 2).mean())


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_edac_critic_loss_is_sac_ns_and_eta_times_diversity(edac, agent, batch, reduction):
    args, key = edac.Args(**SIZES, diversity_weight=3.0, critic_reduction=reduction), jax.random.key(2)
    errors = ((heads(agent.critic, batch.obs, batch.action) - target(agent, batch, key)) ** 2).mean(1)
    diversity = pairwise(agent.critic, batch.obs, np.float64(batch.action)).mean()
    loss, info = edac.critic_loss(agent.critic, agent, batch, key, args)
    close(loss, getattr(errors, reduction)() + 3.0 * diversity)
    close(info["diversity_loss"], diversity)


@pytest.mark.long
def test_edac_without_diversity_is_sac_n(edac, agent, batch):
    sac_n, key = compiled("sac_n"), jax.random.key(3)
    plain, metrics = jax.jit(edac.update)(agent, batch, key, edac.Args(**SIZES, diversify=False, diversity_weight=5.0))
    assert "diversity_loss" not in metrics
    args = sac_n.Args(**SIZES)
    other = sac_n.init(jax.random.key(0), args, SPEC)
    fields = {f: getattr(agent, f) for f in agent.__dataclass_fields__ if f != "nets"}
    theirs, _ = jax.jit(sac_n.update)(other.replace(**fields), batch, key, args)
    for name in fields:
        jax.tree.map(close, getattr(plain, name), getattr(theirs, name))


def test_edac_max_q_backup_takes_each_critics_best_action_then_the_least_critic(edac, agent, batch):
    args, key = edac.Args(**SIZES, max_q_backup=True), jax.random.key(2)
    actions, _ = drawn(agent.actor, batch.next_obs, key, 10)
    q = np.stack([heads(agent.critic, batch.next_obs, a) for a in actions])
    close(edac.next_value(agent, batch, key, args), q.max(0).min(0))


def test_edac_actor_ascends_the_least_online_critic(edac, agent, batch):
    args, key = edac.Args(**SIZES), jax.random.key(2)
    action, log_prob = drawn(agent.actor, batch.obs, key)
    q = heads(agent.critic, batch.obs, action).min(0)
    close(edac.actor_loss(agent.actor, agent, batch, key, args)[0], (np.exp(-0.3) * log_prob - q).mean())
    assert edac.alpha_loss(1.0, jnp.float32(-3.0), 2) < 0  # entropy under its target: log alpha grows


def test_edac_updates_temperature_then_actor_then_critics(edac, agent, batch):
    args, key = edac.Args(**SIZES, tau=0.2), jax.random.key(3)
    new, metrics = jax.jit(edac.update)(agent, batch, key, args)
    alpha_key, actor_key, critic_key = jax.random.split(key, 3)
    _, log_prob = drawn(agent.actor, batch.obs, alpha_key)
    assert (new.log_alpha > agent.log_alpha) == (-log_prob.mean() < -2)
    with_alpha = agent.replace(log_alpha=new.log_alpha)
    close(metrics["actor_loss"], edac.actor_loss(agent.actor, with_alpha, batch, actor_key, args)[0])
    with_actor = with_alpha.replace(actor=new.actor)
    close(metrics["critic_loss"], edac.critic_loss(agent.critic, with_actor, batch, critic_key, args)[0])
    old = edac.critic_loss(agent.critic, agent, batch, critic_key, args)[0]
    assert abs(float(old - metrics["critic_loss"])) > 1e-4
    jax.tree.map(lambda t, n, o: close(t, 0.2 * n + 0.8 * o), new.target_critic, new.critic, agent.target_critic)


@pytest.mark.long
def test_edac_diversity_turns_critics_apart_beside_the_data(edac):
    """Data on a disc of radius 0.3, rewards linear there: with eta the critics spread more off it than without."""
    r = np.random.default_rng(0)
    angle, radius = r.uniform(0, 2 * np.pi, 64), 0.3 * np.sqrt(r.uniform(size=64))
    action = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).astype(np.float32)
    ones, obs = np.ones(64, np.float32), np.zeros((64, 1), np.float32)
    ring = 0.9 * np.stack([np.cos(angle), np.sin(angle)], -1)
    args = edac.Args(n_critics=5, hidden_dims=(16, 16), batch_size=64, critic_lr=3e-3)
    agent = edac.init(jax.random.key(0), args, Spec((1,), 2, False, (-1.0, -1.0), (1.0, 1.0)))
    batch = edac.Batch(obs=obs, action=action, reward=action[:, 0], terminal=ones, next_obs=obs)

    @jax.jit
    def run(eta):
        one = edac.Args(**{**vars(args), "diversity_weight": eta})
        adam = optax.adam(3e-3)

        def step(carry, key):
            critic, opt = carry
            grads, _ = jax.grad(edac.critic_loss, has_aux=True)(critic, agent, batch, key, one)
            updates, opt = adam.update(grads, opt)
            return (optax.apply_updates(critic, updates), opt), None

        start = agent.critic, adam.init(agent.critic)
        return jax.lax.scan(step, start, jax.random.split(jax.random.key(1), 400))[0][0]

    spread, cosine, error = {}, {}, {}
    for eta in (0.0, 0.01):
        critic = run(jnp.float32(eta))
        spread[eta] = heads(critic, np.zeros((64, 1)), ring).std(0).mean()
        cosine[eta] = float(edac.diversity_loss(critic, agent, batch))
        error[eta] = np.abs(heads(critic, obs, action) - action[:, 0]).mean()
    assert cosine[0.01] < 0.0 < cosine[0.0] and spread[0.01] > 3 * spread[0.0]
    assert max(error.values()) < 0.1  # of rewards up to 0.3: they agree where there is data


def test_edac_settings_are_those_released(edac):
    """configs/offline/edac of CORL (MuJoCo, mazes); random, expert, full-replay: configs/edac of tinkoff-ai/lb-sac."""
    mujoco = table(
        """
        halfcheetah-random-v2 10 0
        halfcheetah-medium-v2 10 1
        halfcheetah-medium-replay-v2 10 1
        halfcheetah-medium-expert-v2 10 5
        halfcheetah-expert-v2 10 1
        halfcheetah-full-replay-v2 10 1
        hopper-random-v2 50 0
        hopper-medium-v2 50 1
        hopper-medium-replay-v2 50 1
        hopper-medium-expert-v2 50 1
        hopper-expert-v2 50 1
        hopper-full-replay-v2 50 1
        walker2d-random-v2 10 1
        walker2d-medium-v2 10 1
        walker2d-medium-replay-v2 10 1
        walker2d-medium-expert-v2 10 5
        walker2d-expert-v2 10 5
        walker2d-full-replay-v2 10 1
        """,
        n_critics=int,
        diversity_weight=float,
    )
    adroit = {f"{hand}-{kind}-v1": (50, 200) for hand in ("door", "hammer", "relocate") for kind in ("human", "cloned")}
    adroit |= {"pen-human-v1": (20, 1000), "pen-cloned-v1": (20, 10), "pen-expert-v1": (20, 10)}
    hands = {
        name: {"n_critics": n, "diversity_weight": eta, "updates": 200_000, "actor_lr": 3e-5, "critic_lr": 3e-4,
               "standardize_reward": True, "max_q_backup": name == "pen-cloned-v1"}
        for name, (n, eta) in adroit.items()
    }  # fmt: skip
    mazes = every(ANTMAZE, n_critics=10, diversity_weight=1.0) | every(
        [m for m in MAZE2D if "dense" not in m], n_critics=10, diversity_weight=0.1
    )
    assert not wrong_settings(load("edac"), mujoco | mazes)
    assert not wrong_settings(load("edac"), every([*mujoco, *mazes], batch_size=256, updates=3_000_000, actor_lr=3e-4))
    assert not wrong_settings(load("edac"), hands)  # README of snu-mllab/EDAC, N and eta of CORL
    assert preset_for("pendulum-mixed", edac.PRESETS) is None


def test_edac_lb_sac_presets_are_those_released(edac):
    """configs/lb-sac of tinkoff-ai/lb-sac; picked by name only."""
    critics = {
        "halfcheetah": (2, 4, 10, 8, 6, 4), "hopper": (25, 25, 20, 40, 50, 25), "walker2d": (15, 10, 10, 10, 30, 4),
        "ant": (None, 50),
    }  # fmt: skip
    for robot, sizes in critics.items():
        for level, n in zip(("random", "medium", "medium-replay", "medium-expert", "expert", "full-replay"), sizes):  # noqa: B905
            if n is None:
                continue
            preset = edac.PRESETS[preset_for("hopper-medium-v2", edac.PRESETS, f"lb-sac-{robot}-{level}")]
            args = edac.Args(**preset)
            assert (args.n_critics, args.batch_size, args.actor_lr, args.critic_lr) == (n, 10_000, 0.0018, 0.0018)
            assert (args.diversify, args.critic_reduction, args.tau) == (False, "mean", 0.005)
            assert args.updates == (500_000 if (robot, level) == ("hopper", "expert") else 350_000)
            assert args.critic_layer_norm == ((robot, level) == ("hopper", "medium"))
            assert (args.first_weights == "edac") == ((robot, level) == ("walker2d", "expert"))
    assert not any(key.startswith("lb-sac") for key in (preset_for(f"{r}-medium-v2", edac.PRESETS) for r in critics))


@pytest.mark.parametrize("first_weights", ["edac", "pytorch"])
def test_edac_first_weights(edac, first_weights):
    args = edac.Args(**SIZES | {"hidden_dims": (64, 64)}, first_weights=first_weights, critic_layer_norm=True)
    agent = edac.init(jax.random.key(0), args, SPEC)
    for net, last, inputs in ((agent.actor, 1e-3, 3), (agent.critic, 3e-3, 5)):
        hidden, end = net["params"]["Dense_0"], net["params"]["Dense_2"]
        bounds = [inputs**-0.5, 0.1] + ([last, last] if first_weights == "edac" else [1 / 8, 1 / 8])
        if first_weights == "pytorch":
            bounds[1] = inputs**-0.5
        found = [np.abs(layer[k]).max() for layer in (hidden, end) for k in ("kernel", "bias")]
        assert all(0.5 * b < f <= b * 1.001 for f, b in zip(found, bounds, strict=True)), (found, bounds)
        assert (np.ptp(hidden["bias"]) == 0) == (first_weights == "edac")
    assert "LayerNorm_1" in agent.critic["params"] and "LayerNorm_0" not in agent.actor["params"]


def test_edac_one_critic_has_none_to_differ_from(edac, pendulum, tmp_path):
    with pytest.raises(InputError, match="at least 2"):
        load("edac").main(small("edac", pendulum, tmp_path / "run", n_critics=1))
