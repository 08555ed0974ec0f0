"""The losses of fowm against the same equations in plain numpy, its planner by hand, and the order of an update."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import load
from jax.sharding import SingleDeviceSharding
from jobs import small
from reference import SPEC, B, agent_of, close
from scipy.stats import norm

from shared.arguments import preset_for
from shared.errors import InputError
from shared.replay import init_replay
from shared.sequences import Sequences, Window
from shared.transitions import FIELDS, Transitions

SMALL = {
    "steps": 3, "plan_samples": 4, "policy_plans": 2, "plan_elites": 3, "encoder_hidden_dims": (8,), "n_critics": 3,
    "learning_starts": 2,
}  # fmt: skip
H, A = 3, 2
OTHERS = {
    "latent_dim": 4, "hidden_dims": (8, 8), "batch_size": B, "beta": 1.5, "expectile": 0.8, "rho": 0.6, "discount": 0.9,
    "uncertainty_cost": 0.7, "max_weight": 1.3,
}  # fmt: skip


def layer_norm(x, p):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * np.float64(p["scale"]) + np.float64(p["bias"])


def net(params, kind, *inputs):
    """Plain numpy: `kind` is encoder, mlp, latent (an mlp whose outputs are squashed) or critic."""
    p, x = params["params"], np.concatenate(inputs, -1).astype(np.float64)
    last = sum(k.startswith("Dense") for k in p) - 1
    for i in range(last):
        x = x @ np.float64(p[f"Dense_{i}"]["kernel"]) + np.float64(p[f"Dense_{i}"]["bias"])
        if kind in ("mlp", "latent"):
            x = layer_norm(x, p[f"LayerNorm_{i}"])
            x = x * np.tanh(np.logaddexp(0, x))
        elif kind == "critic" and i == 0:
            x = np.tanh(layer_norm(x, p["LayerNorm_0"]))
        else:
            x = np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
    x = x @ np.float64(p[f"Dense_{last}"]["kernel"]) + np.float64(p[f"Dense_{last}"]["bias"])
    if kind in ("encoder", "latent"):
        x = 1 / (1 + np.exp(-layer_norm(x, p["LayerNorm_0" if kind == "encoder" else "norm"])))
    return x[..., 0] if kind == "critic" else x


def critics(stacked, *inputs):
    """[E, ...]"""
    members = len(jax.tree.leaves(stacked)[0])
    return np.stack([net(jax.tree.map(lambda x, i=i: x[i], stacked), "critic", *inputs) for i in range(members)])


@pytest.fixture(scope="module")
def fowm():
    """The module, its arguments, an agent, sequences, and what is compiled once for all tests."""
    module, r = load("fowm"), np.random.default_rng(1)
    args = module.Args(**SMALL, **OTHERS)
    agent = agent_of(module, args)
    shape = lambda *more: r.normal(size=(B, H, *more)).astype(np.float32)  # noqa: E731
    batch = Window(
        mask=np.float32([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]]),
        obs=shape(3),
        action=np.clip(shape(A), -0.9, 0.9),
        reward=shape(),
        terminal=np.float32([[0, 0, 0], [0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]]),
        next_obs=shape(3),
        successor=np.float32([[1, 1, 1], [1, 1, 1], [1, 0, 1], [1, 1, 1], [1, 1, 1]]),
    )
    model = {name: getattr(agent, name) for name in module.LEARNED}
    new, info = jax.jit(module.update)(agent, batch, jax.random.key(5), args)
    pair, actor_pair = (np.asarray(jax.random.permutation(k, 3)[:2]) for k in jax.random.split(jax.random.key(5)))
    grads = jax.tree.map(lambda mu: 10.0 * np.asarray(mu), optax.tree_utils.tree_get(new.model_opt, "mu"))
    z0 = np.float32([0.1, 0.8, 0.4, 0.6])
    obs0 = batch.obs[:2, 0]
    assert optax.global_norm(grads) < 10.0  # nothing was clipped: Adam's first moment is a tenth of the gradient
    return types.SimpleNamespace(**locals())


def weights_by_hand():
    """0.6^t until the episode (rows 1, 3) or the task (rows 2, 3) ends."""
    return np.array([[1, 0.6, 0.36], [1, 0.6, 0], [1, 0.6, 0], [1, 0, 0], [1, 0.6, 0.36]])


def model_loss(f, model, fixed=None):
    """The terms and the total; latents at `fixed` where the target critics look, else where the model is."""
    z = [net(model["encoder"], "encoder", f.batch.obs[:, 0])]
    for t in range(H):
        z.append(net(model["dynamics"], "latent", z[-1], f.batch.action[:, t]))
    z = np.stack(z, 1)
    at, a, w = z[:, :-1], f.batch.action, weights_by_hand()
    next_v = net(f.agent.value, "critic", net(f.agent.encoder, "encoder", f.batch.next_obs))
    y = f.batch.reward + 0.9 * (1 - f.batch.terminal) * next_v
    u = critics(f.agent.target_critic, at if fixed is None else fixed, a)[f.pair].min(0)
    u = u - net(model["value"], "critic", at)
    terms = {
        "latent_loss": ((z[:, 1:] - net(f.agent.target_encoder, "encoder", f.batch.next_obs)) ** 2).mean(-1)
        * f.batch.successor,
        "reward_loss": (net(model["reward"], "mlp", at, a)[..., 0] - f.batch.reward) ** 2,
        "critic_loss": ((critics(model["critic"], at, a) - y) ** 2).sum(0),
        "value_loss": np.where(u < 0, 0.2, 0.8) * u**2,
    }
    terms = {name: (w * x).sum(1).mean() for name, x in terms.items()}
    total = 20 * terms["latent_loss"] + 0.5 * terms["reward_loss"]
    return terms, (total + 0.1 * (terms["critic_loss"] + terms["value_loss"])) / H, at


@pytest.mark.long
def test_fowm_model_loss(fowm):
    terms, total, at = model_loss(fowm, fowm.model)
    for name, value in terms.items():
        close(fowm.info[name], value)
    close(fowm.info["model_loss"], total)
    close(fowm.info["q_std"], critics(fowm.agent.critic, at, fowm.batch.action).std(0, ddof=1).mean())


@pytest.mark.long
def test_fowm_the_target_critics_give_the_latents_no_gradient(fowm):
    """The encoder's and the value's gradients are those of the loss in which they look at latents that stand still."""
    *_, at = model_loss(fowm, fowm.model)
    for name in ("encoder", "value"):
        bias = fowm.grads[name]["params"]["Dense_1"]["bias"]
        for i in range(2):

            def loss(step, name=name, i=i):
                moved = jax.tree.map(np.float64, fowm.model)
                moved[name]["params"]["Dense_1"]["bias"][i] += step
                return model_loss(fowm, moved, at)[1]

            np.testing.assert_allclose(bias[i], (loss(1e-4) - loss(-1e-4)) / 2e-4, rtol=2e-3, atol=2e-6)


def test_fowm_the_actor_learns_with_the_new_value_and_the_old_targets(fowm):
    """Its loss, at the latents before the step of the model; the policy itself has moved, too."""
    *_, z = model_loss(fowm, fowm.model)
    a, v = fowm.batch.action, net(fowm.new.value, "critic", z)
    adv = critics(fowm.agent.target_critic, z, a)[fowm.actor_pair].min(0) - v
    assert abs(v - net(fowm.agent.value, "critic", z)).mean() > 1e-4
    weight = np.minimum(np.exp(1.5 * adv), 1.3)
    assert (weight == 1.3).any() and (weight < 1.3).any()
    log_prob = norm.logpdf(a, np.tanh(net(fowm.agent.actor, "mlp", z))).sum(-1)
    close(fowm.info["actor_loss"], -(weights_by_hand() * weight * log_prob).mean())
    close(fowm.info["adv"], adv.mean())
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), fowm.agent.actor, fowm.new.actor)
    assert max(jax.tree.leaves(moved)) > 1e-4


def test_fowm_the_targets_follow_the_new_networks(fowm):
    for name in ("encoder", "critic"):
        old, now = getattr(fowm.agent, f"target_{name}"), getattr(fowm.new, name)
        wanted = jax.tree.map(lambda x, y: 0.995 * x + 0.005 * y, old, now)
        jax.tree.map(close, getattr(fowm.new, f"target_{name}"), wanted)


def test_fowm_gradients_are_clipped_together(fowm):
    """Of norm 5 to 2.5: half of each is Adam's first moment over 0.1; with 0 nothing is clipped."""
    grads = {"a": jnp.float32([3.0]), "b": jnp.float32([4.0])}

    @jax.jit
    def moments(args):
        optimizer = fowm.module.optimizer(1e-3, args)
        return optax.tree_utils.tree_get(optimizer.update(grads, optimizer.init(grads))[1], "mu")

    for limit, factor in ((2.5, 0.5), (10.0, 1.0), (0.0, 1.0)):
        mu = moments(fowm.module.Args(max_grad_norm=limit))
        close([mu["a"][0], mu["b"][0]], [0.3 * factor, 0.4 * factor])


# ------------------------------------------------------------------------------------------- the planner


def test_fowm_weights_of_elites_by_hand(fowm):
    """Three of four plans of one step; weights in the ratio 4 : 2 : 1 by a temperature of ln 2 and values 2, 1, 0."""
    args = fowm.module.Args(
        **(SMALL | {"steps": 1}), plan_temperature=float(np.log(2)), plan_momentum=0.25, min_std=0.3, max_std=0.7
    )
    actions = jnp.float32([[[0.0, 1.0], [0.7, 1.0], [-1.0, 0.0], [0.35, -1.0]]])  # [1, N, 2]
    refit = jax.jit(fowm.module.refit)
    weights, elites, mean, std = refit(jnp.float32([0.0, 2.0, -9.0, 1.0]), actions, jnp.float32([[0.4, 0.0]]), args)
    close(weights, [4 / 7, 2 / 7, 1 / 7])
    close(elites, [[[0.7, 1.0], [0.35, -1.0], [0.0, 1.0]]])
    new = np.array([0.5, 4 / 7 - 2 / 7 + 1 / 7])
    close(mean, [0.25 * np.array([0.4, 0.0]) + 0.75 * new])
    first = np.sqrt(4 / 7 * 0.2**2 + 2 / 7 * 0.15**2 + 1 / 7 * 0.5**2)
    assert first < 0.3  # the least deviation takes its place; the second dimension's is more than the largest
    close(std, [[0.3, 0.7]])
    wide = refit(jnp.float32([0.0, 2.0, -9.0, 1.0]), actions, jnp.float32([[0.4, 0.0]]), fowm.module.Args(
        **(SMALL | {"steps": 1}), plan_temperature=float(np.log(2)), min_std=0.0
    ))[3]  # fmt: skip
    close(wide[0, 0], first)


def test_fowm_values_of_plans(fowm):
    """Rewards less c times the critics' deviation (n - 1 below), and at the end the smaller of two critics, less it."""
    r, key = np.random.default_rng(2), jax.random.key(8)
    actions, z0 = r.uniform(-1, 1, (H, 4, A)).astype(np.float32), fowm.z0
    found = jax.jit(fowm.module.plan_values)(fowm.agent, z0[None], actions[:, None], key, fowm.args)[0]
    action_key, pair_key = jax.random.split(key)
    z, total = np.repeat(np.float64(z0)[None], 4, 0), 0.0
    for t in range(H):
        u = critics(fowm.agent.critic, z, actions[t]).std(0, ddof=1)
        total = total + 0.9**t * (net(fowm.agent.reward, "mlp", z, actions[t])[:, 0] - 0.7 * u)
        z = net(fowm.agent.dynamics, "latent", z, actions[t])
    noise = np.clip(0.05 * np.asarray(jax.random.normal(action_key, (1, 4, A)))[0], -0.3, 0.3)
    last = np.clip(np.tanh(net(fowm.agent.actor, "mlp", z)) + noise, -1, 1)
    q = critics(fowm.agent.critic, z, last)
    least = q[np.asarray(jax.random.permutation(pair_key, 3)[:2])].min(0)
    close(found, total + 0.9**H * (least - 0.7 * q.std(0, ddof=1)))


@pytest.mark.long
def test_fowm_a_plan_goes_where_the_value_is_highest(fowm, monkeypatch):
    """And among the candidates are the policy's own plans, which win if values say so."""
    args = fowm.module.Args(
        **(SMALL | {"steps": 1, "plan_samples": 64, "plan_elites": 8}), plan_iterations=6, plan_temperature=50.0
    )
    best = jnp.float32([[0.3, -0.6], [-0.8, 0.1]])  # for each of two observations

    def distance(agent, z, actions, key, args):
        return -((actions - best[:, None]) ** 2).sum((0, 3))

    monkeypatch.setattr(fowm.module, "plan_values", distance)
    plan = jax.jit(lambda args: fowm.module.plan(fowm.agent, fowm.obs0, jax.random.key(0), args))
    action, std = plan(args)
    assert abs(action - best).max() < 0.15 and std.max() < 0.15

    own = np.tanh(net(fowm.agent.actor, "mlp", net(fowm.agent.encoder, "encoder", fowm.obs0)))

    def likeness(agent, z, actions, key, args):
        return -abs(actions[0] - jnp.float32(own)[:, None]).sum(-1)

    monkeypatch.setattr(fowm.module, "plan_values", likeness)
    close(plan(fowm.module.Args(**(SMALL | {"steps": 1, "plan_elites": 1}), min_std=0.0))[0], own)


def test_fowm_acts_as_planned_and_explores_with_the_plans_deviation(fowm, monkeypatch):
    def planned(agent, obs, key, args):
        return jnp.float32([0.25, -0.5]) + 0 * obs[:, :1], jnp.float32([0.1, 0.4]) + 0 * obs[:, :1]

    monkeypatch.setattr(fowm.module, "plan", planned)
    obs, key = np.repeat(fowm.batch.obs[:1, 0], 2000, 0), jax.random.key(1)
    close(jax.jit(fowm.module.act)(fowm.agent, obs[:2], key, fowm.args), [[0.25, -0.5]] * 2)
    noise = np.asarray(jax.jit(fowm.module.explore)(fowm.agent, obs, key, fowm.args)) - [0.25, -0.5]
    np.testing.assert_allclose(noise.std(0), [0.1, 0.4], rtol=0.05)

    args = fowm.module.Args(**SMALL, **OTHERS, planning=False)
    mean = np.tanh(net(fowm.agent.actor, "mlp", net(fowm.agent.encoder, "encoder", obs[:1])))
    close(jax.jit(fowm.module.act)(fowm.agent, obs[:1], key, args), mean)
    noise = np.asarray(jax.jit(fowm.module.explore)(fowm.agent, obs, key, args)) - mean
    np.testing.assert_allclose(noise.std(0), [0.05, 0.05], rtol=0.05)


# ---------------------------------------------------------------------------------------------- the rest


def test_fowm_half_of_an_online_batch_is_the_datas(fowm):
    """Rows of data are zeros, those of experience ones; episodes have 5 rows and, online, 4."""
    width, n = 2 * 3 + A + 3, 10
    rows = jnp.zeros((n, width))
    start = np.repeat(np.arange(0, n, 5), 5)
    data = Sequences(
        Transitions(rows, None, None, SPEC, (*FIELDS, "successor")), jnp.array(start), jnp.array(start + 4)
    )
    replay = jax.tree.map(lambda x: x[0], init_replay(1, 16, SPEC, SingleDeviceSharding(jax.devices()[0])))
    for _ in range(4):
        replay = replay.insert(jnp.ones(width - 1).at[3 + A + 1].set(0.0))
    args = fowm.module.Args(**(SMALL | {"steps": 2}), batch_size=400, online_share=0.25)
    drawn = jax.jit(fowm.module.sample)(jax.random.key(0), data, replay, args)
    assert drawn.obs.shape == (400, 2, 3) and drawn.reward[:, 0].sum() == 100
    assert (drawn.reward[:300] == 0).all() and (drawn.reward[300:, 0] == 1).all()
    assert 0.74 < drawn.mask[:300, 1].mean() < 0.86 and 0.65 < drawn.mask[300:, 1].mean() < 0.85


def test_fowm_presets():
    module = load("fowm")
    wanted = {
        "antmaze-medium-play-v2": "antmaze",
        "hopper-medium": "hopper",
        "xarm-lift": "xarm",
        "pendulum-half": None,
    }
    assert {d: preset_for(d, module.PRESETS) for d in wanted} == wanted
    assert module.PRESETS["hopper"]["uncertainty_cost"] == 20.0 and module.PRESETS["antmaze"]["beta"] == 10.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_critics": 1}, "--n-critics 1: .* at least 2"),
        ({"plan_elites": 7}, "--plan-elites 7: a plan has 6 candidates"),
        ({"min_std": -0.1}, "--min-std -0.1 must be at least 0"),
        ({"min_std": (0.1, 0.5), "max_std": (0.4, 2.0)}, "at most --max-std"),  # each meets each
        ({"steps": 301}, "300 rows; a window of --steps needs 301 or more"),
    ],
)
def test_fowm_refuses(changes, said, pendulum, tmp_path):
    with pytest.raises(InputError, match=said):
        load("fowm").main(small("fowm", pendulum, tmp_path / "run", **changes))
