"""The losses of idql and of its flow form, and of idql_finetune that has the same, against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import load
from reference import SPEC, B, agent_of, close, gelu, heads, mlp
from released import ANTMAZE, MUJOCO, every, wrong_settings

from shared.arguments import preset_for
from shared.densities import Density
from shared.errors import InputError
from shared.task import Spec
from shared.transitions import Batch

SMALL = {"residual_dim": 8, "residual_blocks": 2, "time_dim": 4, "n_candidates": 3, "diffusion_steps": 3}
SIZES = {**SMALL, "hidden_dims": (8, 8), "batch_size": B, "dropout": 0.0}


@pytest.fixture(params=["idql", "idql_finetune"])
def idql(request):
    return load(request.param)


@pytest.fixture(params=["diffusion", "flow"])
def form(request, idql):
    """(arguments, agent) of both forms."""
    args = idql.Args(**SIZES, model=request.param, expectile=0.8, discount=0.9)
    agent = agent_of(idql, args, seed=2)
    return args, agent.replace(average_actor=jax.tree.map(lambda x: 0.9 * x + 0.02, agent.actor))


def norm(x, p):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * np.float64(p["scale"]) + np.float64(p["bias"])


def swish(x):
    return x / (1 + np.exp(-x))


def v_of(args, value, obs):
    if args.model == "flow":
        return mlp(value, obs, activation=gelu, layer_norm=True)[..., 0]
    return mlp(value, norm(obs, value["params"]["LayerNorm_0"]))[..., 0]


def q_of(args, critics, obs, action):
    options = {"activation": gelu, "layer_norm": True} if args.model == "flow" else {}
    return heads(critics, obs, action, **options)


def residual(params, obs, action, t):
    """The diffusion's network, layer by layer."""
    p = params["params"]

    def dense(i, x):
        return x @ np.float64(p[f"Dense_{i}"]["kernel"]) + np.float64(p[f"Dense_{i}"]["bias"])

    angle = 2 * np.pi * t @ np.float64(p["frequency"]).T
    time = dense(1, swish(dense(0, np.concatenate([np.cos(angle), np.sin(angle)], -1))))
    x = dense(2, np.concatenate([action, obs, time], -1))
    for b in range(2):
        x = x + dense(4 + 2 * b, swish(dense(3 + 2 * b, norm(x, p[f"LayerNorm_{b}"]))))
    return dense(7, swish(x))


def test_idql_schedule_keeps_the_variance(idql):
    """T = 5, by hand: beta_1 = 1 - exp(-0.02 - 0.198), beta_5 = 1 - exp(-0.02 - 1.782)."""
    beta, left = idql.schedule(5)
    close([beta[0], beta[-1]], [1 - np.exp(-0.218), 1 - np.exp(-1.802)])
    close(left, [np.prod(1 - beta[: i + 1]) for i in range(5)])


def test_idql_value_is_an_expectile_of_the_least_target_critic(idql, form, batch):
    args, agent = form
    q, v = q_of(args, agent.target_critic, batch.obs, batch.action).min(0), v_of(args, agent.value, batch.obs)
    expected = (np.where(q >= v, 0.8, 0.2) * (q - v) ** 2).mean()
    close(idql.value_loss(agent.value, agent, batch, args)[0], expected)


def test_idql_v_without_the_norm_sees_how_large_observations_are(idql, batch):
    """Normalised over its three numbers an observation and its double are one; so says V, unless told otherwise."""
    value = {}
    for normed in (True, False):
        args = idql.Args(**SIZES, value_layer_norm=normed)
        agent = agent_of(idql, args, seed=2)
        value[normed] = [agent.nets.value.apply(agent.value, scale * batch.obs)[..., 0] for scale in (1.0, 2.0)]
    close(value[False][0], mlp(agent.value, batch.obs)[..., 0])
    assert np.abs(value[True][0] - value[True][1]).max() < 1e-3 < 0.01 < np.abs(value[False][0] - value[False][1]).max()


def test_idql_critics_learn_from_the_next_value(idql, form, batch):
    args, agent = form
    y = batch.reward + 0.9 * (1 - batch.terminal) * v_of(args, agent.value, batch.next_obs)
    errors = ((q_of(args, agent.critic, batch.obs, batch.action) - y) ** 2).mean(1)
    expected = errors.sum() if args.model == "flow" else errors.mean()
    close(idql.critic_loss(agent.critic, agent.value, agent, batch, args)[0], expected)


def test_idql_model_clones_the_data_without_weights(idql, form, batch):
    args, agent = form
    key = jax.random.key(1)
    if args.model == "flow":
        noise_key, time_key = jax.random.split(key)
        noise, t = np.asarray(jax.random.normal(noise_key, (B, 2))), np.asarray(jax.random.uniform(time_key, (B, 1)))
        x = (1 - t) * noise + t * batch.action
        velocity = mlp(agent.actor, batch.obs, x, t, activation=gelu)
        close(idql.flow_loss(agent.actor, agent, batch, key, args), ((velocity - (batch.action - noise)) ** 2).mean())
    else:
        time_key, noise_key, _ = jax.random.split(key, 3)
        t = np.asarray(jax.random.randint(time_key, (B, 1), 0, 3))
        noise, left = np.asarray(jax.random.normal(noise_key, (B, 2))), idql.schedule(3)[1][t]
        noisy = np.sqrt(left) * batch.action + np.sqrt(1 - left) * noise
        found = residual(agent.actor, batch.obs, noisy, np.float64(t))
        close(idql.diffusion_loss(agent.actor, agent, batch, key, args), ((found - noise) ** 2).sum(-1).mean())


def drawn(idql, args, agent, obs, key):
    """[N, B, A] candidates."""
    obs = np.broadcast_to(obs, (3, *obs.shape))
    if args.model == "flow":
        x = np.float64(jax.random.normal(key, (3, B, 2)))
        for i in range(10):
            x = x + mlp(agent.actor, obs, x, np.full((3, B, 1), i / 10), activation=gelu) / 10
        return np.clip(x, -1, 1)
    beta, left = (np.float64(x) for x in idql.schedule(3))
    first_key, key = jax.random.split(key)
    keys, x = jax.random.split(key, 3), np.float64(jax.random.normal(first_key, (3, B, 2)))
    for t in (2, 1, 0):
        noise = residual(agent.average_actor, obs, x, np.full((3, B, 1), float(t)))
        x = (x - beta[t] / np.sqrt(1 - left[t]) * noise) / np.sqrt(1 - beta[t])
        x = x + (t > 0) * np.sqrt(beta[t]) * np.asarray(jax.random.normal(keys[t], (3, B, 2)))
        x = np.clip(x, -1, 1)
    return x


@pytest.mark.parametrize("choice", ["best", "implicit"])
def test_idql_acts_by_q_among_the_models_actions(idql, form, batch, choice):
    args, agent = form
    args, key = idql.Args(**{**vars(args), "choice": choice}), jax.random.key(4)
    draw_key, choice_key = jax.random.split(key)
    action = drawn(idql, args, agent, batch.obs, draw_key)
    critics = agent.critic if args.model == "flow" else agent.target_critic
    q = np.stack([q_of(args, critics, batch.obs, a).min(0) for a in action])
    chosen = q.argmax(0)
    if choice == "implicit":
        weight = np.where(q >= v_of(args, agent.value, batch.obs), 0.8, 0.2)
        chosen = np.asarray(jax.random.categorical(choice_key, np.log(weight), axis=0))
    np.testing.assert_allclose(
        idql.act(agent, batch.obs, key, args), action[chosen, np.arange(B)], rtol=1e-3, atol=1e-4
    )


@pytest.mark.long
def test_idql_updates_the_value_before_q_and_the_flow_all_at_once(idql, form, batch):
    args, agent = form
    args, key = idql.Args(**{**vars(args), "tau": 0.2, "average_step": 0.3}), jax.random.key(3)
    new, metrics = jax.jit(idql.update)(agent, batch, key, args)
    close(metrics["value_loss"], idql.value_loss(agent.value, agent, batch, args)[0])
    losses = [float(idql.critic_loss(agent.critic, v, agent, batch, args)[0]) for v in (agent.value, new.value)]
    close(metrics["critic_loss"], losses[0 if args.model == "flow" else 1])
    assert abs(losses[0] - losses[1]) > 1e-5
    jax.tree.map(lambda t, n, o: close(t, 0.2 * n + 0.8 * o), new.target_critic, new.critic, agent.target_critic)
    jax.tree.map(lambda t, n, o: close(t, 0.3 * n + 0.7 * o), new.average_actor, new.actor, agent.average_actor)


def test_idql_the_diffusion_models_rate_decays_and_its_weights_too():
    idql = load("idql")
    args = idql.Args(**SIZES, updates=10, actor_lr=0.1, actor_weight_decay=0.5)
    optimizer, one = idql.actor_optimizer(args), jnp.ones(())
    state = optimizer.init(one)
    for count in range(3):
        rate = 0.1 * (1 + np.cos(np.pi * count / 10)) / 2
        step, state = optimizer.update(jnp.zeros(()), state, one)
        close(step, -rate * 0.5)
    plain = idql.actor_optimizer(idql.Args(**SIZES, model="flow"))
    assert plain.update(jnp.zeros(()), plain.init(one), one)[0] == 0
    assert isinstance(optimizer, optax.GradientTransformation)


@pytest.mark.long
def test_idql_finds_the_best_of_four_modes_though_it_is_rare():
    """A bandit of two dimensions with modes at the corners (+-0.7, +-0.7); the best one has a tenth of the data."""
    idql = load("idql")
    r = np.random.default_rng(0)
    modes = 0.7 * np.float32([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    which = r.choice(4, 256, p=[0.1, 0.3, 0.3, 0.3])
    action = modes[which] + 0.03 * r.normal(size=(256, 2)).astype(np.float32)
    obs, ones = np.zeros((256, 1), np.float32), np.ones(256, np.float32)
    batch = Batch(obs=obs, action=action, reward=np.float32(which == 0), terminal=ones, next_obs=obs)
    args = idql.Args(
        model="flow",
        hidden_dims=(32, 32),
        batch_size=256,
        actor_lr=3e-3,
        critic_lr=3e-3,
        n_candidates=32,
        expectile=0.9,
    )
    agent = idql.init(jax.random.key(0), args, Spec((1,), 2, False, (-1.0, -1.0), (1.0, 1.0)))

    @jax.jit
    def fit(agent):
        keys = jax.random.split(jax.random.key(1), 800)
        return jax.lax.scan(lambda a, key: (idql.update(a, batch, key, args)[0], None), agent, keys)[0]

    agent, near = fit(agent), {}
    for n in (1, 32):
        acted = idql.act(agent, obs[:64], jax.random.key(2), idql.Args(**{**vars(args), "n_candidates": n}))
        near[n] = (np.linalg.norm(np.asarray(acted) - modes[0], axis=1) < 0.3).mean()
    assert near[32] > 0.8 and near[1] < 0.4
    draw = lambda key, n: jnp.asarray(action)[jax.random.randint(key, (n,), 0, 256)]  # noqa: E731
    judge = jax.jit(lambda agent: idql.judge(agent, jax.random.key(3), args, obs, Density(draw, modes, 0.35)))
    found = judge(agent)
    assert float(found["modes_covered"]) == 4 and float(found["energy_distance"]) < 0.1
    untrained = judge(agent.replace(actor=jax.tree.map(jnp.zeros_like, agent.actor)))
    assert float(untrained["energy_distance"]) > 2 * float(found["energy_distance"])


@pytest.mark.long
def test_idql_settings_are_those_released():
    """launcher/examples/train_ddpm_iql_offline.py of philippe-eecs/IDQL; agents/ifql.py of seohongpark/fql."""
    idql = load("idql")
    all_sets = [d for d in MUJOCO if not d.endswith(("random-v2", "-expert-v2", "full-replay-v2"))] + ANTMAZE
    assert not wrong_settings(idql, every(ANTMAZE, expectile=0.9, reward_shift=-1.0, normalize_return=False))
    assert not wrong_settings(idql, every([d for d in all_sets if "ant" not in d], expectile=0.7, reward_shift=0.0))
    assert not wrong_settings(
        idql,
        every(
            all_sets, n_candidates=64, diffusion_steps=5, dropout=0.1, residual_blocks=3, batch_size=512,
            updates=3_000_000, average_step=0.001, tau=0.005, actor_lr=3e-4, critic_lr=3e-4, time_dim=128,
        ),
    )  # fmt: skip
    for name, discount in (("ifql", 0.99), ("ifql-humanoidmaze", 0.995)):
        args = idql.Args(**idql.PRESETS[preset_for("x", idql.PRESETS, name)])
        assert (args.model, args.expectile, args.n_candidates, args.flow_steps) == ("flow", 0.9, 32, 10)
        assert (args.hidden_dims, args.batch_size, args.tau, args.discount) == ((512,) * 4, 256, 0.005, discount)
    assert preset_for("humanoidmaze-medium-navigate-v0", idql.PRESETS) is None
    agent = idql.init(jax.random.key(0), idql.Args(**SIZES, model="flow"), SPEC)
    assert "LayerNorm_1" in agent.value["params"] and "LayerNorm_0" not in agent.actor["params"]


def test_idql_refuses_an_embedding_of_less_than_a_pair():
    module = load("idql")
    with pytest.raises(InputError, match="--time-dim must be at least 2"):
        module.main(module.Args(time_dim=1))
