"""focus's tests of independence against plain numpy, its graphs, its masked model, and what it shares with mopo."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import small
from reference import SPEC, B, agent_of, close, compiled, differences, mlp
from scipy.stats import gamma

from shared.data import load_dataset
from shared.env_models import exact_model
from shared.errors import InputError
from shared.transitions import Transitions

SMALL = {
    "model_updates": 4, "holdout_every": 2, "holdout_rows": 20, "rollout_every": 2, "rollout_batch": 8,
    "rollout_steps": 2.0, "n_models": 3, "n_elites": 2, "model_hidden_dims": (4,), "test_rows": 40, "test_features": 5,
}  # fmt: skip
SIZES = {**SMALL, "hidden_dims": (8, 8), "batch_size": B}


def swish(x):
    return x / (1 + np.exp(-x))


@pytest.fixture
def focus():
    return compiled("focus")


@pytest.fixture
def args(focus):
    return focus.Args(**SIZES)


@pytest.fixture
def agent(focus, args):
    r = np.random.default_rng(3)
    graph = jnp.float32(r.random((4, 5)) < 0.5)
    mean, std = r.normal(size=5).astype(np.float32), r.uniform(0.5, 2, 5).astype(np.float32)
    agent = agent_of(focus, args).replace(graph=graph, input_mean=mean, input_std=std)
    return agent.replace(best_model=agent.model, holdout_error=jnp.float32([3.0, 1.0, 2.0]))


def test_focus_differs_from_mopo_in_its_model_and_graph_alone(focus):
    """What mopo's tests hold of the model phase, of the losses and of the order of updates holds here."""
    own = {"Args", "Agent", "Model", "predict", "judge", "penalized", "rollout", "init", "main"}
    assert differences(load("focus"), load("mopo")) == own


# ------------------------------------------------------------------------------------------ the graph


def test_focus_frees_a_variable_of_what_ridge_regression_explains(focus):
    r = np.random.default_rng(0)
    z = r.normal(size=(50, 3))
    x = z @ r.normal(size=(3, 2)) + r.normal(size=(50, 2))
    gram = z.T @ z / 50 + 0.5 * np.eye(3)
    close(focus.freed(jnp.float32(x), jnp.float32(z), 0.5), x - z @ np.linalg.solve(gram, z.T @ x / 50))
    close(focus.standardized(jnp.float32([[1, 7], [3, 7]])), [[-1, 0], [1, 0]])  # a constant is no NaN


def test_focus_p_value_is_a_gammas_of_the_nulls_mean_and_variance(focus):
    r = np.random.default_rng(1)
    x, y = r.normal(size=(60, 2)), r.normal(size=(60, 1))
    x, y = ((v - v.mean(0)) / v.std(0) for v in (x, y))
    statistic = 60 * ((x.T @ y / 60) ** 2).sum()
    products = np.stack([np.outer(a, b).ravel() for a, b in zip(x, y)])
    weights = np.linalg.eigvalsh(products.T @ products / 60)  # the null: a sum of squares of normals with these
    mean, variance = weights.sum(), 2 * (weights**2).sum()
    close(focus.p_value(jnp.float32(x), jnp.float32(y)), gamma.sf(statistic, mean**2 / variance, scale=variance / mean))
    assert focus.p_value(jnp.float32(x), jnp.float32(x[:, :1])) < 1e-3


def test_focus_tells_causes_from_what_goes_with_them(focus):
    """x_1 follows x_0; of the outputs one is of x_0, one of the product of x_0 and x_2, one of none."""
    r, args = np.random.default_rng(2), focus.Args(test_features=40)
    x = r.uniform(0, 1, (600, 3))
    x[:, 1] = x[:, 0] + 0.05 * r.normal(size=600)
    y = np.stack([np.sin(2 * x[:, 0]), x[:, 0] * (2 + x[:, 2]), np.full(600, 2.0)], 1)
    assert np.corrcoef(x[:, 1], y[:, 0])[0, 1] > 0.9  # nothing but the condition tells that x_1 is none
    p = jax.jit(focus.p_values)(jnp.float32(x), jnp.float32(y), jax.random.key(0), args)
    np.testing.assert_array_equal(p < 1e-4, [[1, 0, 0], [1, 0, 1], [0, 0, 0]])


def test_focus_the_environments_graph_is_where_its_outputs_have_slopes(focus):
    def exact(obs, action, key):
        next_obs = jnp.stack([obs[:, 0], obs[:, 1] + obs[:, 0] * action[:, 1], obs[:, 2] * 0.5], 1)
        return next_obs, action[:, 0] ** 2, jnp.zeros(len(obs), bool)

    r = np.random.default_rng(0)
    graph = focus.exact_graph(exact, jnp.float32(r.normal(size=(9, 3))), jnp.float32(r.normal(size=(9, 2))))
    truth = np.array([[0, 0, 0, 0, 0], [1, 0, 0, 0, 1], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]])
    np.testing.assert_array_equal(graph, truth)
    close(focus.f1(graph, truth), 1.0)
    close(focus.f1(jnp.ones((4, 5)), truth), 2 / (1 / (4 / 20) + 1 / 1))
    close(focus.f1(jnp.zeros((4, 5)), truth), 0.0)


@pytest.mark.long
def test_focus_the_graph_is_of_rows_that_are_not_held_out(focus, agent):
    """s_0' = s_0 + a_1, r = s_2; held out rows and those without a successor are noise."""
    r, args = np.random.default_rng(0), focus.Args(**{**SIZES, "test_rows": 260, "test_features": 20})
    obs, action = r.normal(size=(400, 3)), r.uniform(-1, 1, (400, 2))
    next_obs = obs + np.stack([action[:, 1], 0 * obs[:, 0], 0 * obs[:, 0]], 1)
    reward = obs[:, 2].copy()
    reward[:100] = 50 * r.normal(size=100)
    successor = np.ones((500, 1))[100:]
    unknown = 100 + r.permutation(300)[:40]
    successor[unknown], next_obs[unknown] = 0, 50 * r.normal(size=(40, 3))
    rows = [obs, action, reward[:, None], np.zeros((400, 1)), next_obs, successor]
    rows = jnp.float32(np.concatenate(rows, 1))
    data = Transitions(rows, None, None, SPEC, (*focus.FIELDS, "successor"))
    found = jax.jit(lambda agent: focus.find_graph(agent, args, data, 100).graph)(agent)
    truth = np.zeros((4, 5))
    truth[0, 4] = truth[3, 2] = 1
    np.testing.assert_array_equal(found, truth)


# ------------------------------------------------------------------------------------------ the model


def test_focus_each_output_has_a_network_that_sees_its_causes(focus, agent, batch):
    mean, log_var = focus.predict(agent.model, agent, batch.obs, batch.action)
    params = agent.model["params"]
    x = (np.concatenate([batch.obs, batch.action], -1) - agent.input_mean) / agent.input_std
    for e in range(3):
        for d in range(4):
            one = {k: {n: v[4 * e + d] for n, v in p.items()} for k, p in params.items() if "Dense" in k}
            out = mlp({"params": one}, x * np.asarray(agent.graph[d]), activation=swish)
            close(mean[e, :, d], out[:, 0])
            high, low = params["max_log_var"][d], params["min_log_var"][d]
            bounded = high - np.logaddexp(0, high - out[:, 1])
            close(log_var[e, :, d], low + np.logaddexp(0, bounded - low))


def test_focus_keeps_all_networks_of_a_member_that_improved(focus, agent, batch, args):
    error = focus.squared_error(agent.model, agent, batch._replace(successor=np.ones(B, np.float32)))
    other = jax.tree.map(lambda x: x + 1.0, agent.model)
    before = jnp.float32([error[0] * 1.02, error[1] * 1.005, error[2] * 0.5])
    held_out = batch._replace(successor=np.ones(B, np.float32))
    judged = focus.judge(agent.replace(best_model=other, holdout_error=before), held_out)
    kernel = judged.best_model["params"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(kernel[:4], agent.model["params"]["Dense_0"]["kernel"][:4])
    np.testing.assert_array_equal(kernel[4:], other["params"]["Dense_0"]["kernel"][4:])


def test_focus_errors_are_those_of_the_elites_mean(focus, agent, batch, args):
    """In an environment that stays where it is: at the data's rows, and under uniform actions."""

    def exact(obs, action, key):
        return obs, None, None

    key = jax.random.key(5)
    found = jax.jit(lambda agent: focus.errors(agent, batch, key, exact, args))(agent)
    assert focus.ERROR_STEPS == 10

    def error(action):
        mean = np.asarray(focus.outcomes(agent, batch.obs, action)[0])[:, :, :3]
        return np.linalg.norm(mean[[1, 2]].mean(0) - batch.obs, axis=-1).mean()

    close(found["error_data"], error(batch.action))
    keys = jax.random.split(jax.random.split(key)[1], 10)
    actions = [jax.random.uniform(jax.random.split(k)[0], (B, 2), minval=-1.0, maxval=1.0) for k in keys]
    close(found["error_uniform"], np.mean([error(a) for a in actions]))


def test_focus_penalty_is_the_largest_aleatoric_deviation(focus):
    r = np.random.default_rng(0)
    std = r.uniform(0.5, 2, (3, B, 4))
    found = focus.penalized(jnp.full(B, 10.0), jnp.float32(std), focus.Args(reward_penalty=2.0))
    close(found, 10 - 2 * np.sqrt((std**2).sum(-1)).max(0))


# ----------------------------------------------------------------------------------------- the script


def test_focus_the_graph_of_pendulum(focus, pendulum):
    """Of (cos, sin, velocity) and the torque; a velocity changes by the angle and the torque alone."""
    data = load_dataset(small("focus", pendulum, ""))
    truth = jax.jit(lambda obs, action: focus.exact_graph(exact_model(data.task), obs, action))(data.obs, data.action)
    np.testing.assert_array_equal(truth, [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]])


def test_focus_refuses_a_graph_that_nobody_knows(focus, pendulum, tmp_path):
    args = small("focus", pendulum, tmp_path / "run", env="none", termination=False)
    with pytest.raises(InputError, match="--graph exact needs"):
        load("focus").main(dataclasses.replace(args, graph="exact"))
