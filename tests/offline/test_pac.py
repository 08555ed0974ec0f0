"""The network and the losses of pac against the same equations in plain numpy, and what it makes of bad data."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import small, train
from reference import SPEC, B, close, gelu
from scipy.special import log_softmax, softmax

from shared.errors import InputError
from shared.task import Spec
from shared.transitions import Batch

SMALL = {
    "width": 8, "layers": 1, "heads": 2, "n_latents": 2, "n_bins": 5, "n_atoms": 5, "policy_samples": 3,
    "warmup_updates": 1,
}  # fmt: skip
SIZES = {**SMALL, "batch_size": B, "v_min": -2.0, "v_max": 2.0}
Z = np.linspace(-2, 2, 5)
UPDATES = {"updates": 300}
DISCRETE = Spec((3,), 4, True)
compiled = functools.cache(jax.jit)
"""Once for all tests of a function, whose floats are traced."""


@pytest.fixture(scope="module")
def pac():
    return load("pac")


def agent_for(pac, system="pac", spec=SPEC, **settings):
    """An agent in general position, whose initialisation need not be compiled."""
    args, r = pac.Args(**{**SIZES, "system": system, **settings}), np.random.default_rng(2)
    agent = jax.eval_shape(lambda key: pac.init(key, args, spec), jax.random.key(0))

    def fill(path, x):
        own = "_opt" in jax.tree_util.keystr(path[:1])
        return np.zeros(x.shape, x.dtype) if own else r.normal(scale=0.5, size=x.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, agent), args


@pytest.fixture
def choices(batch):
    return batch._replace(action=np.int32([0, 3, 1, 2, 3]), next_action=None)


# --------------------------------------------------------------------------- the network in numpy


def dense(p, x):
    return x @ np.float64(p["kernel"]) + np.float64(p["bias"])


def norm(p, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * np.float64(p["scale"]) + np.float64(p["bias"])


def block(p, x, tokens=None, heads=2):
    """One state: x [Q, W] reads tokens [N, W]; the layers are numbered as they are made."""
    normal, size = norm(p["LayerNorm_0"], x), x.shape[-1] // heads
    q, kv = dense(p["Dense_0"], normal), (normal if tokens is None else tokens) @ np.float64(p["Dense_1"]["kernel"])
    k, v = np.split(kv, 2, axis=-1)
    each = [slice(i * size, (i + 1) * size) for i in range(heads)]
    read = [softmax(q[:, h] @ k[:, h].T / np.sqrt(size), axis=-1) @ v[:, h] for h in each]
    x = x + dense(p["Dense_2"], np.concatenate(read, axis=-1))
    return x + dense(p["Dense_4"], gelu(dense(p["Dense_3"], norm(p["LayerNorm_1"], x))))


def head(p, queries, latents):
    return dense(p["Dense_0"], norm(p["LayerNorm_0"], block(p["Block_0"], queries, latents)))


def scales(x):
    return np.tanh(np.float64(x)[..., None] * np.array([0.1, 1, 10]))


def encoded(params, obs):
    """[B, N, W]"""
    p = params["params"]
    states = []
    for o in obs:
        tokens = norm(p["normal_tokens"], dense(p["embed_obs"], scales(o)) + p["entries"])
        latents = block(p["read"], np.float64(p["latents"]), tokens)
        states.append(norm(p["normal_latents"], block(p["think_0"], latents)))
    return np.stack(states)


def policy(params, obs, dims=2):
    p = params["params"]
    each = [head(p["policy_head"], np.float64(p["policy_query"]), z) for z in encoded(params, obs)]
    return np.stack(each).reshape(len(obs), dims, -1)


def returns(params, obs, seen):
    """[B, n, atoms] of what is seen of actions [B, n, I]."""
    p = params["params"]
    pairs = zip(encoded(params, obs), seen, strict=True)
    return np.stack([head(p["q_head"], dense(p["embed_action"], np.float64(a)), z) for z, a in pairs])


def value(params, obs):
    p = params["params"]
    return np.stack([head(p["value_head"], np.float64(p["value_query"]), z)[0] for z in encoded(params, obs)])


def seen(action):
    return scales(action).reshape(*action.shape[:-1], -1)


def mean(logits):
    return softmax(logits, axis=-1) @ Z


def projected(batch, probs, discount):
    """Atom by atom: what a return has is shared by its two neighbours."""
    y = np.zeros((B, 5))
    for b in range(B):
        for z, p in zip(Z, probs[b], strict=True):
            at = (np.clip(batch.reward[b] + discount * (1 - batch.terminal[b]) * z, -2, 2) + 2) / 1.0
            low = int(np.floor(at))
            y[b, low] += p * (1 - (at - low))
            y[b, min(low + 1, 4)] += p * (at - low)
    return y


def chosen(logits, bins):
    """[B, n] of bins [B, n, D]"""
    logs = log_softmax(logits, axis=-1)
    return np.array([[sum(logs[b, d, k] for d, k in enumerate(one)) for one in bins[b]] for b in range(len(bins))])


def of_data(batch):
    return np.round((batch.action + 1) / 2 * 4).astype(int)[:, None]


def drawn(agent, batch, key):
    """Bins [2 B, n, D] of the target policy at the next states and the states, and their target returns' logits."""
    obs = np.concatenate([batch.next_obs, batch.obs])
    logits = np.float32(policy(agent.target_actor_critic, obs))
    bins = np.moveaxis(np.asarray(jax.random.categorical(key, logits, shape=(3, 2 * B, 2))), 0, 1)
    return bins, returns(agent.target_actor_critic, obs, seen(bins / 4 * 2 - 1))


def test_pac_the_network_is_a_perceiver(pac, batch):
    agent, _ = agent_for(pac, "pac_v")
    params = agent.actor_critic
    latents = compiled(lambda p, o: pac.part(agent, p, "encode", o))(params, batch.obs)
    close(latents, encoded(params, batch.obs))
    close(compiled(lambda p, z: pac.part(agent, p, "policy", z))(params, latents), policy(params, batch.obs))
    close(compiled(lambda p, z: pac.part(agent, p, "value", z))(params, latents), value(params, batch.obs))
    actions = np.random.default_rng(0).uniform(-1, 1, (B, 4, 2))  # each as if it were alone
    of_all = compiled(lambda p, z, a: pac.part(agent, p, "returns", z, a))(params, latents, seen(actions))
    close(of_all, returns(params, batch.obs, seen(actions)))


def test_pac_many_actions_cost_little_beside_the_trunk(pac):
    """No action enters the trunk: ten of them are a fraction of ten passes."""
    agent, _ = agent_for(pac, width=32, layers=2, n_latents=8)

    def flops(n):
        def q(params, obs, actions):
            return pac.part(agent, params, "returns", pac.part(agent, params, "encode", obs), actions)

        program = jax.jit(q).lower(agent.actor_critic, np.zeros((B, 3)), np.zeros((B, n, 6)))
        return program.cost_analysis()["flops"]

    assert flops(1) < flops(10) < 2.5 * flops(1)


# --------------------------------------------------------------------------------------- the losses


def test_pac_bins_lie_evenly_and_actions_go_to_the_nearest(pac):
    agent, _ = agent_for(pac)
    action = jnp.array([[-1.0, -0.8], [0.2, 0.3], [1.0, 0.74]])
    bins = pac.to_bins(action, agent)
    np.testing.assert_array_equal(bins, [[0, 0], [2, 3], [4, 3]])
    close(pac.from_bins(bins, agent), [[-1, -1], [0, 0.5], [1, 0.5]])
    discrete, _ = agent_for(pac, spec=DISCRETE)
    bins = pac.to_bins(jnp.int32([3, 0]), discrete)
    np.testing.assert_array_equal(bins, [[3], [0]])
    np.testing.assert_array_equal(pac.from_bins(bins, discrete), [3, 0])


def test_pac_target_is_a_mixture_of_returns_and_improvement_a_share_of_each_sample(pac, batch):
    agent, args = agent_for(pac, discount=0.9, improvement_temperature=0.1)
    key = jax.random.key(1)
    bins, logits = drawn(agent, batch, key)
    y = projected(batch, softmax(logits[:B], axis=-1).mean(1), 0.9)
    close(y.sum(1), np.ones(B))
    judged = compiled(pac.judge)(agent, batch, key, args)
    close(judged.y, y)
    assert batch.terminal.any()
    ended = (y @ Z)[batch.terminal > 0]
    close(ended, np.clip(batch.reward, -2, 2)[batch.terminal > 0])  # between two atoms, its mean is the reward
    np.testing.assert_array_equal(judged.bins, bins[B:])
    close(judged.weight, softmax(mean(logits[B:]) / (0.1 * 4), axis=1))  # eta is a share of the range


def test_pac_v_target_is_the_states_return_and_the_datas_actions_are_weighted(pac, batch):
    agent, args = agent_for(pac, "pac_v", discount=0.9, improvement_temperature=0.1, max_weight=0.3)
    judged = compiled(pac.judge)(agent, batch, jax.random.key(1), args)
    close(judged.y, projected(batch, softmax(value(agent.target_actor_critic, batch.next_obs), axis=-1), 0.9))
    q = mean(returns(agent.target_actor_critic, batch.obs, seen(batch.action[:, None])))[:, 0]
    weight = np.exp((q - mean(value(agent.target_actor_critic, batch.obs))) / 0.4)
    assert (weight > 0.3).any() and (weight < 0.3).any()
    close(judged.weight[:, 0], np.minimum(weight, 0.3))
    np.testing.assert_array_equal(judged.bins, of_data(batch))


def loss_of(params, batch, judged, system):
    """With alpha 0.3 and beta 0.6."""
    logits = policy(params, batch.obs)
    loss = cloning = -chosen(logits, of_data(batch)).mean()
    if system in ("pac", "pac_v"):
        weight = np.float64(judged.weight)
        loss = 0.3 * cloning - 0.7 * (weight * chosen(logits, np.asarray(judged.bins))).sum(1).mean()
    if system != "bc":
        logits = returns(params, batch.obs, seen(batch.action[:, None]))[:, 0]
        loss -= 0.6 * (np.float64(judged.y) * log_softmax(logits, axis=1)).sum(1).mean()
    if system == "pac_v":
        each = (np.float64(judged.y) * log_softmax(value(params, batch.obs), axis=1)).sum(1)
        loss -= 0.6 * (weight[:, 0] * each).mean()
    return loss, cloning


@pytest.mark.parametrize("system", ["pac", "pac_v", "bc_q", "bc"])
def test_pac_loss_is_cloning_and_improvement_and_the_critics(pac, batch, system):
    agent, args = agent_for(pac, system, cloning=0.3, critic_weight=0.6, improvement_temperature=0.2)
    key = jax.random.key(1)
    judged = None if system == "bc" else compiled(pac.judge)(agent, batch, key, args)
    expected, cloning = loss_of(agent.actor_critic, batch, judged, system)
    loss, info = compiled(pac.actor_critic_loss)(agent.actor_critic, agent, batch, key, args)
    close(loss, expected)
    close(info["bc_loss"], cloning)
    assert ("critic_loss" in info) == (system != "bc")
    if judged is not None:
        assert (judged.bins is None) == (system == "bc_q")
        close(info["edge"], (judged.y[:, 0] + judged.y[:, -1]).mean())


@pytest.mark.long
def test_pac_updates_down_the_loss_of_fixed_targets_and_moves_the_target(pac, batch):
    agent, args = agent_for(pac, cloning=0.3, critic_weight=0.6, tau=0.2, learning_rate=1e-4, **UPDATES)
    key = jax.random.key(1)
    judged = compiled(pac.judge)(agent, batch, key, args)
    new, metrics = compiled(pac.update)(agent, batch, key, args)
    before, after = (loss_of(x.actor_critic, batch, judged, "pac")[0] for x in (agent, new))
    close(metrics["loss"], before)
    steps = sum(np.abs(n - o).sum() for n, o in zip(*map(jax.tree.leaves, (new.actor_critic, agent.actor_critic))))
    assert 0 < before - after < steps * metrics["grad_norm"]
    follow = (new.target_actor_critic, new.actor_critic, agent.target_actor_critic)
    jax.tree.map(lambda t, n, o: close(t, 0.2 * n + 0.8 * o), *follow)


def test_pac_discrete_actions_are_the_bins_of_one_dimension(pac, choices):
    agent, args = agent_for(pac, "pac_v", DISCRETE, improvement_temperature=0.5)
    logits = policy(agent.actor_critic, choices.obs, 1)
    np.testing.assert_array_equal(compiled(pac.act)(agent, choices.obs, None, args), logits[:, 0].argmax(-1))
    judged = compiled(pac.judge)(agent, choices, None, args)
    q = mean(returns(agent.target_actor_critic, choices.obs, np.eye(4)[choices.action][:, None]))[:, 0]
    weight = np.exp((q - mean(value(agent.target_actor_critic, choices.obs))) / 2.0)
    close(judged.weight[:, 0], np.minimum(weight, 20))
    np.testing.assert_array_equal(judged.bins[:, 0, 0], choices.action)


def test_pac_acts_by_the_likeliest_bins(pac, batch):
    agent, args = agent_for(pac)
    expected = policy(agent.actor_critic, batch.obs).argmax(-1) / 4 * 2 - 1
    close(compiled(pac.act)(agent, batch.obs, None, args), expected)


@pytest.mark.long
def test_pac_takes_the_better_of_two_actions_of_which_the_data_prefers_the_other(pac, batch):
    """Three of five actions are -0.5, worth -1, the others 0.5, worth 1: cloned is the first, improved the second."""
    good = np.arange(B) > 2
    action = np.tile(np.where(good, 0.5, -0.5)[:, None], (1, 2)).astype(np.float32)
    reward = np.where(good, 1.0, -1.0).astype(np.float32)
    same = Batch(obs=0 * batch.obs, action=action, reward=reward, terminal=np.ones(B, np.float32), next_obs=batch.obs)
    agent, args = agent_for(pac, learning_rate=1e-2, tau=0.1, **UPDATES)
    taken = {}
    for cloning in (1.0, 0.1):
        last, one = agent, dataclasses.replace(args, cloning=cloning)
        for key in jax.random.split(jax.random.key(1), UPDATES["updates"]):
            last, _ = compiled(pac.update)(last, same._replace(next_action=batch.next_action), key, one)
        taken[cloning] = float(compiled(pac.act)(last, same.obs, None, one)[0, 0])
    assert taken == {1.0: -0.5, 0.1: 0.5}


# -------------------------------------------------------------------------------------- the command line


class Returns:
    def return_to_go(self, discount, endless):
        return np.array([-1.0, 3.0]) / (1 - discount) if endless else np.array([-1.0, 3.0])


def test_pac_values_range_over_the_datas_returns(pac):
    found = pac.resolved(pac.Args(discount=0.9), Returns())
    close((found.v_min, found.v_max), (-10.0, 30.0))
    assert pac.lane_ranges(found, Returns(), [{"seed": 0}]) is None
    close(pac.resolved(pac.Args(discount=1.0), Returns()).v_max, 3.0)
    given = pac.resolved(pac.Args(v_min=-1.0, v_max=(0.0, 2.0)), Returns())
    assert (given.v_min, given.v_max) == (-1.0, (0.0, 2.0))


@pytest.mark.long
def test_pac_each_lane_has_the_range_of_its_own_discount(pac, pendulum, tmp_path):
    """As it has alone: that of another lane's returns would be other atoms, and another eta."""
    args = pac.resolved(pac.Args(discount=(0.5, 0.9)), Returns())
    close(pac.lane_ranges(args, Returns(), [{"discount": 0.5}, {"discount": 0.9}]), [[-2, 6], [-10, 30]])
    both = train("pac", pendulum, tmp_path / "both", discount=(0.5, 0.9), env="none")
    alone = train("pac", pendulum, tmp_path / "alone", discount=0.5, env="none")
    for path, value in alone.items():
        np.testing.assert_allclose(both[path][0], value[0], rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"v_min": 1.0, "v_max": 0.5}, "--v-min 1.0 must be lower than --v-max 0.5"),
        ({"width": 6, "heads": 4}, "--width 6 must be a multiple of --heads 4"),
        ({"n_atoms": 1}, "at least 2"),
        ({"n_bins": 1}, "at least 2"),
    ],
)
def test_pac_refuses_sizes_and_ranges_that_are_none(pac, pendulum, tmp_path, settings, said):
    with pytest.raises(InputError, match=said):
        pac.main(small("pac", pendulum, tmp_path / "run", **settings))
