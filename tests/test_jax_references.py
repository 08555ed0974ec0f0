"""What the comparisons with references in JAX share: parameters in one order, and the same random numbers."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from results.jax_references import (
    lenient_jit,
    moments,
    pairs,
    read,
    same_numbers,
    side_by_side,
    two_heads,
    write,
)
from results.parity import follow
from shared.errors import InputError


def layer(inputs, outputs, value):
    return {"kernel": jnp.full((inputs, outputs), value), "bias": jnp.full(outputs, value + 0.5)}


FLAT = {
    "params": {f"Dense_{i}": layer(2, 2, float(i)) for i in range(11)}
    | {"LayerNorm_0": {"scale": jnp.full(2, 20.0), "bias": jnp.full(2, 21.0)}, "log_std": jnp.full(2, 30.0)}
}
"""Eleven layers: by the letters of their names the last would be the third."""


def test_parameters_are_read_layer_by_layer():
    firsts = [float(x.reshape(-1)[0]) for x in read(FLAT)]
    assert firsts == [x for i in range(11) for x in (i, i + 0.5)] + [20.0, 21.0, 30.0]


def test_deeper_layers_come_before_what_is_put_on_them():
    """As a reference has it: hidden layers in a module of their own, the output's named like the first of them."""
    other = {"Dense_0": layer(2, 2, 1.0), "MLP_0": {"Dense_0": layer(2, 2, 0.0)}}
    assert [float(x.reshape(-1)[0]) for x in read(other)] == [0.0, 0.5, 1.0, 1.5]
    heads = {"LogStd": layer(2, 2, 2.0), "Mean": layer(2, 2, 1.0), "MLP_0": {"Dense_0": layer(2, 2, 0.0)}}
    assert [float(x.reshape(-1)[0]) for x in read(heads, "MLP", "Mean")] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]


def test_what_is_written_is_read():
    arrays = [x + 1 for x in read(FLAT)]
    assert all((a == b).all() for a, b in zip(read(write(FLAT, arrays)), arrays, strict=True))
    assert isinstance(write(flax.core.freeze(FLAT), arrays), flax.core.FrozenDict)
    assert float(FLAT["params"]["Dense_0"]["bias"][0]) == 0.5  # the original stands
    with pytest.raises(InputError, match="2 arrays of ours, 25"):
        write(FLAT, arrays[:2])
    with pytest.raises(InputError, match="Dense_0/kernel"):
        write(FLAT, [jnp.zeros((3, 3)), *arrays[1:]])


def test_one_output_layer_is_two_heads():
    hidden, out = [jnp.ones((2, 3)), jnp.ones(3)], [jnp.arange(12.0).reshape(3, 4), jnp.arange(4.0)]
    mean, mean_bias, log_std, log_std_bias = two_heads([*hidden, *out, jnp.zeros(1)], 1)[2:6]
    assert mean.tolist() == [[0, 1], [4, 5], [8, 9]] and log_std.tolist() == [[2, 3], [6, 7], [10, 11]]
    assert mean_bias.tolist() == [0, 1] and log_std_bias.tolist() == [2, 3]


def test_draws_do_not_depend_on_keys_nor_on_the_order_of_axes():
    a, b = jax.random.key(1), jax.random.key(2)
    with same_numbers():
        rows = jax.random.normal(a, (4, 16, 3))
        assert (jnp.moveaxis(jax.random.normal(b, (16, 4, 3)), 0, 1) == rows).all()
        assert (jax.random.normal(b, (1, 16, 3))[0] == jax.random.normal(a, (16, 3))).all()
        assert jax.random.uniform(a, (16, 3), minval=-1.0, maxval=1.0).min() < -0.5
        assert jax.random.randint(a, (), 0, 2) == 0 and jax.random.uniform(a) == 0.75
        assert jax.random.normal(a, (0, 3)).shape == (0, 3)
        assert jnp.isnan(jax.random.normal(a, (5, 5))).all()  # axes that cannot be told apart: whoever uses it notices
        two = jax.random.randint(a, (2,), 0, 10)
        assert two[0] != two[1] and (jax.random.permutation(b, 10)[:2] == two).all()
        assert (jax.random.choice(a, jnp.arange(10), (2,), replace=False) == two).all()
    assert not jnp.isnan(jax.random.normal(a, (5, 5))).any()


def test_an_unknown_static_argument_is_passed_over():
    double = lenient_jit(lambda x, times: x * times, static_argnames=("times", "gone"))
    assert double(2, times=3) == 6


class Learner:
    """Least squares; Adam does not show a loss that is twice as large, its moments do."""

    def __init__(self, scale):
        self.scale, self.w, self.tx = scale, {"w": jnp.ones(5)}, optax.adam(1e-3)
        self.opt = self.tx.init(self.w)

    def step(self, obs, reward):
        loss, grads = jax.value_and_grad(lambda w: self.scale * ((obs @ w["w"] - reward) ** 2).mean())(self.w)
        updates, self.opt = self.tx.update(grads, self.opt)
        self.w = optax.apply_updates(self.w, updates)
        return loss


@pytest.mark.parametrize(("scale", "planted"), [(1.0, False), (2.0, True)])
def test_the_size_of_a_gradient_is_compared(scale, planted):
    def our_step(learner, batch):
        return learner, {"loss": learner.step(batch.obs, batch.reward) / learner.scale}

    def their_step(learner, rows):
        return learner, {"loss": learner.step(rows["obs"], rows["reward"])}

    def view(ours, theirs):
        return pairs({"w": (read, ours.w, ours.opt)}, {"w": (read, theirs.w, theirs.opt)})

    after, moved = follow(side_by_side(Learner(scale), our_step, Learner(1.0), their_step, view), (1, 3))
    assert after[3]["parameters"]["w"] < 1e-4 and after[3]["losses"]["loss"] < 1e-4 and min(moved.values()) > 0
    assert (after[3]["parameters"]["w, gradient"] > 0.5) == planted == (after[3]["parameters"]["w, its square"] > 0.5)


def test_both_sides_report_the_same_losses():
    step = lambda state, batch: (state, {"a": 0.0})  # noqa: E731
    other = lambda state, rows: (state, {"b": 0.0})  # noqa: E731
    steps = side_by_side(0, step, 0, other, lambda a, b: {"x": ([np.ones(1)], [np.ones(1)])})
    next(steps)
    with pytest.raises(InputError, match=r"Losses \['a'\] of ours"):
        next(steps)


def test_moments_are_found_in_a_chain():
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    mu, nu = moments(tx.init({"w": jnp.ones(2)}))
    assert mu["w"].shape == nu["w"].shape == (2,)
