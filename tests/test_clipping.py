"""Gradients clipped by their global norm, in every file that writes the clip itself."""

import inspect
import re

import jax
import numpy as np
import pytest
from conftest import ALGORITHMS, load

OWN_CLIP = [p.stem for p in ALGORITHMS if re.search(r"norm / \(optax.global_norm\(grads\) . 1e-6", p.read_text())]


@pytest.mark.parametrize("name", OWN_CLIP)
def test_a_gradient_smaller_than_what_keeps_the_clip_from_dividing_by_zero_keeps_its_sign(name):
    module = load(name)
    more = {"warmup_updates": 100} if "warmup_updates" in inspect.signature(module.optimizer).parameters else {}
    tx = module.optimizer(module.Args(), **more)
    params = {"params": {"kernel": np.zeros((1, 2), np.float32)}}
    if name == "lamo":  # a tree of parts
        params = module.Learned(params, params, params, params)
    grads = jax.tree.map(lambda x: x + np.float32([3e-7, -4e-7]), params)
    updates, _ = jax.jit(tx.update)(grads, jax.jit(tx.init)(params), params)
    for step in jax.tree.leaves(updates):
        assert (np.sign(step) == [[-1.0, 1.0]]).all()


def test_there_are_such_files():
    assert {"decision_transformer", "oppo", "pac"} <= set(OWN_CLIP)
