"""The small transformer of the sequence files in plain numpy, one token at a time; windows in general position."""

import numpy as np

from shared.sequences import Window
from shared.task import Spec

SPEC = Spec((3,), 2, False, (-1.0, -1.0), (1.0, 1.0))
DISCRETE = Spec((3,), 4, True)
B, T = 5, 4


def window(spec: Spec = SPEC, seed: int = 0, batch: int = B, steps: int = T, first: int = 0) -> Window:
    """[B, T]: of row b the first b % T steps are padding, with numbers in it that nothing may read."""
    r = np.random.default_rng(seed)
    pad = np.arange(batch) % steps
    action = r.integers(0, spec.action_dim, (batch, steps)).astype(np.int32)
    if not spec.discrete:
        action = r.uniform(-0.9, 0.9, (batch, steps, spec.action_dim)).astype(np.float32)
    return Window(
        mask=np.float32(np.arange(steps) >= pad[:, None]),
        timestep=np.int32(np.maximum(np.arange(steps) - pad[:, None], 0) + first),
        obs=r.normal(size=(batch, steps, *spec.obs_shape)).astype(np.float32),
        action=action,
        reward=r.normal(size=(batch, steps)).astype(np.float32),
        terminal=np.zeros((batch, steps), np.float32),
        return_to_go=r.normal(size=(batch, steps)).astype(np.float32),
    )


def dense(p, x):
    y = x @ np.float64(p["kernel"])
    return y + np.float64(p["bias"]) if "bias" in p else y


def norm(p, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * np.float64(p["scale"]) + np.float64(p["bias"])


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def relu(x):
    return np.maximum(x, 0.0)


def block(p, x, visible, heads, activation=relu):
    """`x` [N, W] tokens of one sequence; `visible` [N, N] bool."""
    n, width = x.shape
    q, k, v = (y.reshape(n, heads, -1) for y in np.split(dense(p["Dense_0"], norm(p["LayerNorm_0"], x)), 3, -1))
    seen = np.zeros_like(v)
    for i in range(n):
        at = np.flatnonzero(visible[i])
        for h in range(heads):
            if len(at):
                seen[i, h] = softmax(k[at, h] @ q[i, h] / np.sqrt(width / heads)) @ v[at, h]
    x = x + dense(p["Dense_1"], seen.reshape(n, width))
    return x + dense(p["Dense_3"], activation(dense(p["Dense_2"], norm(p["LayerNorm_1"], x))))


def transformer(p, x, mask, heads, causal=True, activation=relu):
    """`x` [N, W], `mask` [N]."""
    n = len(x)
    visible = np.broadcast_to(mask > 0, (n, n))
    visible = np.tril(visible) if causal else visible
    for name in sorted(k for k in p if k.startswith("Block")):
        x = block(p[name], x, visible, heads, activation)
    return norm(p["LayerNorm_0"], x)
