"""The losses of gorl_guided against the same equations in plain numpy; its gradient through the gradient by the paper's
theorem and by differences."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import load
from jobs import small, train
from reference import SPEC, B, agent_of, close, differences, heads, mlp, smoothed_next_action

from shared.data import load_dataset
from shared.errors import InputError
from shared.transitions import Batch

SMALL = {"demo_episodes": 1, "n_guides": 6, "guide_batch_size": 3, "guide_every": 4, "guide_hidden_dims": (4,)}
SIZES = {"hidden_dims": (8, 8), "guide_hidden_dims": (4,), "batch_size": B}


@pytest.fixture(scope="module")
def gorl():
    return load("gorl_guided")


@pytest.fixture(scope="module")
def args(gorl):
    return gorl.Args(**SIZES, actor_lr=0.03, weight=0.3)


@pytest.fixture(scope="module")
def agent(gorl, args):
    return agent_of(gorl, args, seed=2)


@pytest.fixture(scope="module")
def guides():
    r = np.random.default_rng(7)
    return Batch(obs=r.normal(size=(3, 3)).astype(np.float32), action=r.uniform(-1, 1, (3, 2)).astype(np.float32))


def constraint(actor, batch):
    return ((np.tanh(mlp(actor, batch.obs)) - batch.action) ** 2).mean(-1)


def weights(guide, loss):
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    return sigmoid(mlp(guide, loss[:, None], activation=sigmoid))[:, 0]


@pytest.mark.long
def test_gorl_guided_critics_are_td3s(gorl, agent, args, batch):
    key = jax.random.key(3)
    target_q = heads(agent.target_critic, batch.next_obs, smoothed_next_action(agent, batch, key, args)).min(0)
    y = batch.reward + 0.99 * (1 - batch.terminal) * target_q
    q = heads(agent.critic, batch.obs, batch.action)
    close(gorl.critic_loss(agent.critic, agent, batch, key, args)[0], ((q - y) ** 2).mean(1).sum())
    assert not differences(gorl, load("td3_bc")) & {"Actor", "Critic", "critic_loss", "q_values"}


def test_gorl_guided_weighs_each_samples_constraint(gorl, agent, args, batch, guides):
    loss = constraint(agent.actor, batch)
    weight = gorl.weights(agent, agent.guide, batch, args)
    close(weight, weights(agent.guide, loss))
    assert np.ptp(weight) > 1e-3 and weight.min() > 0 and weight.max() < 1
    q = heads(agent.critic, batch.obs, np.tanh(mlp(agent.actor, batch.obs)))[0]
    expected = -2.5 / np.abs(q).mean() * q.mean() + (np.array(weight) * loss).mean()
    close(gorl.actor_loss(agent.actor, agent, batch, weight, guides, args)[0], expected)


def test_gorl_guided_constant_weights_and_cloned_guides(gorl, agent, args, batch, guides):
    loss = constraint(agent.actor, batch)
    q = heads(agent.critic, batch.obs, np.tanh(mlp(agent.actor, batch.obs)))[0]
    plain = -2.5 / np.abs(q).mean() * q.mean() + 0.3 * loss.mean()
    for guidance, extra in (("constant", 0.0), ("mixed", 0.0), ("cloned", constraint(agent.actor, guides).mean())):
        one = dataclasses.replace(args, weighting=guidance)
        weight = gorl.weights(agent, agent.guide, batch, one)
        close(weight, np.full(B, 0.3))
        close(gorl.actor_loss(agent.actor, agent, batch, weight, guides, one)[0], plain + extra)


@pytest.fixture(scope="module")
def gradients(gorl, agent, args):
    """Compiled: the virtual actor, and every gradient that the theorem is about."""

    def by_weight(weight, batch, guides):
        grads, _ = jax.grad(gorl.actor_loss, has_aux=True)(agent.actor, agent, batch, weight, guides, args)
        return jax.tree.map(lambda p, g: p - args.actor_lr * g, agent.actor, grads)

    @jax.jit
    def found(guide, batch, guides):
        weight = gorl.weights(agent, guide, batch, args)
        virtual = by_weight(weight, batch, guides)
        of_weight = jax.grad(lambda w: gorl.constraint(agent, by_weight(w, batch, guides), guides).mean())(weight)
        of_guides = jax.grad(lambda actor: gorl.constraint(agent, actor, guides).mean())(virtual)
        of_samples = jax.jacobian(lambda actor: gorl.constraint(agent, actor, batch))(agent.actor)
        loss, of_net = jax.value_and_grad(gorl.guide_loss)(guide, agent, batch, guides, args)
        weights_by_net = jax.jacobian(lambda w: gorl.weights(agent, w, batch, args))(guide)
        return virtual, of_weight, of_guides, of_samples, loss, of_net, weights_by_net

    return found


def test_gorl_guided_a_weight_rises_where_its_gradient_points_as_the_experts_do(agent, args, batch, guides, gradients):
    """Theorem 1: d L_G / d B_i = -actor_lr / B <grad L_G(virtual), grad L_pc(i)>; then the chain rule to w."""
    virtual, of_weight, of_guides, of_samples, loss, of_net, by_net = gradients(agent.guide, batch, guides)
    close(loss, constraint(virtual, guides).mean())
    inner = sum(
        (np.float64(s) * np.float64(g)).reshape(B, -1).sum(1)
        for s, g in zip(jax.tree.leaves(of_samples), jax.tree.leaves(of_guides), strict=True)
    )
    np.testing.assert_allclose(of_weight, -0.03 / B * inner, rtol=1e-3, atol=1e-7)
    assert np.ptp(inner) > 0.1 * np.abs(inner).max()
    expected = jax.tree.map(lambda j: np.tensordot(np.float64(of_weight), np.float64(j), 1), by_net)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7), of_net, expected)


def test_gorl_guided_the_virtual_step_is_one_plain_step_of_the_actors_loss(gorl, agent, args, batch, guides, gradients):
    virtual = gradients(agent.guide, batch, guides)[0]
    weight = weights(agent.guide, constraint(agent.actor, batch))

    def loss(actor):
        q = heads(agent.critic, batch.obs, np.tanh(mlp(actor, batch.obs)))[0]
        return -lam * q.mean() + (weight * constraint(actor, batch)).mean()

    lam = 2.5 / np.abs(heads(agent.critic, batch.obs, np.tanh(mlp(agent.actor, batch.obs)))[0]).mean()
    grads = jax.tree.map(lambda p, v: (np.float64(p) - np.float64(v)) / 0.03, agent.actor, virtual)
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))

    def along(step):
        return loss(jax.tree.map(lambda p, g: np.float64(p) + step * g / norm, agent.actor, grads))

    np.testing.assert_allclose((along(1e-4) - along(-1e-4)) / 2e-4, norm, rtol=2e-3)


def test_gorl_guided_constant_weights_leave_the_guiding_network(gorl, agent, args, batch, guides):
    for guidance, moves in (("network", True), ("constant", False)):
        one = dataclasses.replace(args, weighting=guidance)
        new, _ = jax.jit(gorl.update_guide)(agent, batch, guides, one)
        moved = max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), new.guide, agent.guide)))
        assert (moved > 0) == moves
        jax.tree.map(np.testing.assert_array_equal, new.actor, agent.actor)


@pytest.mark.long
def test_gorl_guided_learns_to_trust_the_samples_that_are_like_the_experts(gorl):
    """Most of the data are near the policy's action and right, others far and wrong: weights fall with the loss."""
    r = np.random.default_rng(0)
    right = np.arange(64) % 4 > 0
    action = np.where(right[:, None], 0.4, -0.9) + 0.02 * r.normal(size=(64, 2))
    obs = np.ones((64, 3), np.float32)
    zeros = np.zeros(64, np.float32)
    batch = Batch(obs=obs, action=action.astype(np.float32), reward=zeros, terminal=zeros, next_obs=obs)
    guides = Batch(obs=obs[:4], action=np.full((4, 2), 0.4, np.float32))
    args = gorl.Args(hidden_dims=(8,), batch_size=64, guide_lr=1e-2, actor_lr=1e-2, alpha=0.0)

    @jax.jit
    def run(key):
        agent = gorl.init(key, args, SPEC)

        def step(agent, _):
            agent, _ = gorl.update_guide(agent, batch, guides, args)
            agent, _ = gorl.update_actor(agent, batch, guides, args)
            return agent, None

        agent = jax.lax.scan(step, agent, None, length=800)[0]
        return gorl.weights(agent, agent.guide, batch, args), gorl.act(agent, obs[:1], None, args)[0]

    weight, policy = run(jax.random.key(1))
    assert weight[right].mean() > 10 * weight[~right].mean()
    np.testing.assert_allclose(policy, 0.4, atol=0.15)  # constant weights would lead to 0.075


def test_gorl_guided_expert_pairs_are_seen_as_the_data_are(gorl, pendulum, tmp_path):
    args = small("gorl_guided", pendulum, tmp_path)
    data = load_dataset(args).scale_rewards(shift=-1.0).normalize_obs()
    demos = load_dataset(args)
    guides = gorl.guides_of(data, demos, 20)
    assert len(guides.obs) == 20
    at = [int(np.abs(data.obs - row).sum(1).argmin()) for row in guides.obs]
    for field in ("obs", "next_obs", "action", "reward", "terminal"):
        np.testing.assert_allclose(getattr(guides, field), getattr(data, field)[at], atol=1e-5)
    again = gorl.guides_of(data, demos, 20)
    np.testing.assert_array_equal(guides.obs, again.obs)
    with pytest.raises(InputError, match="--n-guides 10000"):
        gorl.guides_of(data, demos, 10_000)


@pytest.mark.long
def test_gorl_guided_steps_the_guiding_network_once_in_every_so_many_updates(gorl, pendulum, tmp_path):
    found = train("gorl_guided", pendulum, tmp_path / "run", updates=8, log_every=8, env="none", weighting="mixed")
    counts = {k.split(".")[1]: v for k, v in found.items() if k.endswith("opt[0].count")}
    assert {k.split("[")[0]: v.tolist() for k, v in counts.items()} == {
        "actor_opt": [4], "critic_opt": [8], "guide_opt": [2]
    }  # fmt: skip
    with pytest.raises(InputError, match="--guide-every must be a multiple of --policy-delay 2"):
        train("gorl_guided", pendulum, tmp_path / "odd", guide_every=3)
    with pytest.raises(InputError, match="at least one episode must be chosen"):
        train("gorl_guided", pendulum, tmp_path / "none", demo_episodes=0)


@pytest.mark.long
def test_gorl_guided_asks_for_the_guides_rewards_where_they_count(gorl, pendulum, tmp_path):
    """Among the data they would be rows of reward 0; as guides they need none."""
    with np.load(pendulum) as file:
        np.savez(tmp_path / "pendulum-mute.npz", **{name: file[name] for name in file.files if name != "rewards"})
    mute = {"demos": (str(tmp_path / "pendulum-mute.npz"),), "demo_episodes": 0, "env": "none"}
    mute |= {"updates": 8, "log_every": 8, "eval_every": 8, "checkpoint_every": 8}
    with pytest.raises(InputError, match="learns from rewards; '.*pendulum-mute.npz' has none"):
        train("gorl_guided", pendulum, tmp_path / "mixed", weighting="mixed", **mute)
    train("gorl_guided", pendulum, tmp_path / "guided", **mute)


def test_gorl_guided_settings_are_the_papers(gorl):
    """Table VI."""
    args = gorl.Args()
    assert (args.guide_lr, args.guide_every, args.n_guides, args.guide_batch_size) == (1e-5, 500, 200, 20)
    assert (args.guide_hidden_dims, args.hidden_dims, args.alpha) == ((100,), (256, 256), 2.5)
    assert (args.actor_lr, args.critic_lr, args.tau, args.policy_delay, args.batch_size) == (3e-4, 3e-4, 5e-3, 2, 256)
    assert gorl.PRESETS["pen-"] == {"alpha": 0.1}
