"""What the tests of diffusion and flow policies share: their networks and samplers in plain numpy."""

import numpy as np
from reference import heads, mlp


def mish(x):
    return x * np.tanh(np.logaddexp(0.0, x))


def sinusoidal(t, size):
    """[..., size]"""
    angle = np.asarray(t, np.float64)[..., None] * np.exp(-np.log(1e4) * np.arange(size // 2) / (size // 2 - 1))
    return np.concatenate([np.sin(angle), np.cos(angle)], -1)


def layers(params, first, last):
    """The Dense layers first..last-1 as a network of their own."""
    return {"params": {f"Dense_{i - first}": params["params"][f"Dense_{i}"] for i in range(first, last)}}


def noise_net(params, obs, noised, t, time_dim):
    """epsilon(a_t, s, t)"""
    time = mlp(layers(params, 0, 2), sinusoidal(t, time_dim), activation=mish)
    time = np.broadcast_to(time, (*noised.shape[:-1], time_dim))
    return mlp(layers(params, 2, len(params["params"])), noised, time, obs, activation=mish)


def velocity_net(params, obs, noised, r, t, time_dim):
    """u(a_t, s, r, t)"""
    times = [
        mlp(layers(params, i, i + 2), sinusoidal(x[..., 0], time_dim), activation=mish) for i, x in ((0, t), (2, r))
    ]
    times = np.broadcast_to(np.concatenate(times, -1), (*noised.shape[:-1], 2 * time_dim))
    return mlp(layers(params, 4, len(params["params"])), noised, times, obs, activation=mish)


def q_values(critics, obs, action):
    """[E, B]"""
    return heads(critics, obs, action, activation=mish)


def posterior_chain(epsilon, first, noise, beta):
    """The reverse chain of DDPM from `first`, with noise [T, ...]; epsilon(a, t) with t = T-1..0."""
    abar = np.cumprod(1 - beta)
    a = np.float64(first)
    for t, z in zip(reversed(range(len(beta))), noise, strict=True):
        before = abar[t - 1] if t else 1.0
        a_0 = np.clip(np.sqrt(1 / abar[t]) * a - np.sqrt(1 / abar[t] - 1) * epsilon(a, t), -1, 1)
        mean = beta[t] * np.sqrt(before) / (1 - abar[t]) * a_0 + (1 - before) * np.sqrt(1 - beta[t]) / (1 - abar[t]) * a
        a = mean + (np.sqrt(beta[t] * (1 - before) / (1 - abar[t])) * z if t else 0.0)
    return np.clip(a, -1, 1)
