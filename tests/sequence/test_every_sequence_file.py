"""What holds for every file of algorithms/sequence: none sees the future, and none is asked for what cannot be."""

from functools import partial

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ALGORITHMS, load, write_pendulum
from jobs import SHORT, small
from transformer_in_numpy import DISCRETE, SPEC, B, T, window

from shared.errors import InputError
from shared.sequences import require_target
from shared.task import registered_env

FILES = [p.stem for p in ALGORITHMS if p.parent.name == "sequence"]
LOOK_ALL_AROUND = {"gcpc", "mtm"}
"""By their papers' design: what they must not see is masked, which their own tests show."""

TARGETED = [n for n in FILES if hasattr(load(n).Args, "target_return")]
CHOICES = {"metamon", "more_3s"}
"""For discrete actions alone."""


def pdt_outputs(m, agent, w, args):
    return agent.net.apply(agent.actor, w, w.obs[..., :1] * jnp.ones(args.latent_dim))[0]


def oppo_outputs(m, agent, w, args):
    return agent.nets.actor.apply(agent.actor, w, jnp.ones((len(w.obs), args.latent_dim)))


def prompted(m, agent, w, args):
    prompt = m.empty(SPEC, args.prompt_steps)._replace(mask=jnp.ones(args.prompt_steps))
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (len(w.obs), *x.shape)), prompt)


def meta_dt_outputs(m, agent, w, args):
    z = w.obs[..., :1] * jnp.ones(args.latent_dim)
    return agent.nets.actor.apply(agent.actor, w, z, prompted(m, agent, w, args))


OUTPUTS = {
    "decision_transformer": lambda m, agent, w, args: agent.net.apply(agent.actor, w),
    "doc": lambda m, agent, w, args: agent.nets.actor.trunk.apply(
        {"params": agent.actor["params"]["trunk"]}, w
    )[:, :, 1],
    "harmodt": lambda m, agent, w, args: agent.net.apply(agent.actor, w, prompted(m, agent, w, args)),
    "lamo": lambda m, agent, w, args: m.outputs(agent, agent.actor, w, args),
    "meta_dt": meta_dt_outputs,
    "metamon": lambda m, agent, w, args: agent.nets.trunk.apply(agent.trunk, w, args.memory),
    "mo_dt": lambda m, agent, w, args: agent.net.apply(agent.actor, w, m.region_of(w.action, args.regions)).action,
    "more_3s": lambda m, agent, w, args: agent.net.apply(agent.actor, w)[0],
    "oppo": oppo_outputs,
    "pdt": pdt_outputs,
}  # fmt: skip
"""What each file makes of the steps of a window [B, T, ...] before their own actions are known."""


@pytest.mark.parametrize("name", [n for n in FILES if n not in LOOK_ALL_AROUND])
def test_the_future_changes_nothing_in_the_past(name):
    """Observations, rewards and returns after a step, its action and those after it; what comes next does change."""
    m, spec = load(name), DISCRETE if name in CHOICES else SPEC
    args = small(name, "", "", context=T, max_timestep=9, token_dropout=0.0, regions=0, layers=2)
    agent = jax.eval_shape(partial(m.init, args=args, spec=spec), jax.random.key(0))
    r = np.random.default_rng(0)
    agent = jax.tree.map(
        lambda x: np.asarray(0.4 * r.normal(size=x.shape), x.dtype) if np.issubdtype(x.dtype, np.floating) else x, agent
    )
    w, other = window(spec), window(spec, seed=1)
    own = 0 if name == "metamon" else 1  # whose tokens hold the action before their step

    def changed(t):
        def later(x, y, t):
            return np.where((np.arange(T) > t).reshape(1, T, *(1,) * (np.ndim(x) - 2)), y, x)

        told = {n: later(getattr(w, n), getattr(other, n), t) for n in ("obs", "reward", "return_to_go")}
        return w._replace(**told, action=later(w.action, other.action, t - own))

    every = jax.tree.map(lambda *x: np.concatenate(x), w, *map(changed, range(T)))
    out = jax.jit(lambda agent, w: OUTPUTS[name](m, agent, w, args))(agent, every)
    out = np.asarray(out).reshape(T + 1, B, T, -1)
    for t in range(T):
        there = w.mask[:, : t + 1] > 0
        np.testing.assert_allclose(out[1 + t, :, : t + 1][there], out[0, :, : t + 1][there], atol=1e-5)
        if t + 1 < T:
            moved = np.abs(out[1 + t, :, t + 1] - out[0, :, t + 1]).max(-1)
            assert moved[w.mask[:, t + 1] > 0].min() > 1e-4


def short(env: str) -> str:
    """An environment of its kind whose episodes end after eight steps."""
    spec, name = registered_env(env), env.replace("-v", "Short-v")
    if name not in gymnasium.registry:
        gymnasium.register(name, spec.entry_point, max_episode_steps=8, kwargs=spec.kwargs)
    return name


def log_for(name, tmp_path) -> tuple[str, str]:
    """A dataset of the file's kind, of episodes of 30 rows, and an environment whose episodes end after eight."""
    if name != "gcpc" and name not in CHOICES:
        return write_pendulum(tmp_path / "log.npz"), SHORT
    r, n, width = np.random.default_rng(0), 60, 6 if name == "gcpc" else 4
    frames, ends = r.normal(size=(n + 1, width)).astype(np.float32), {"timeouts": np.arange(n) % 30 == 29}
    action = r.uniform(-1, 1, (n, 2)).astype(np.float32) if name == "gcpc" else r.integers(0, 2, n)
    rows = {"observations": frames[:-1], "next_observations": frames[1:], "actions": action}
    np.savez(tmp_path / "log.npz", **rows, **ends, rewards=np.ones(n, np.float32))
    return str(tmp_path / "log.npz"), short("PointMediumGoals-v0" if name == "gcpc" else "CartPole-v1")


WINDOWS = [(n, "context") for n in FILES]
WINDOWS += [("doc", "future"), ("gcpc", "future_steps"), ("harmodt", "prompt_steps"), ("oppo", "foresee")]
WINDOWS += [("pdt", "lookahead")]


@pytest.mark.parametrize("name, option", WINDOWS)
def test_a_window_is_no_longer_than_an_episode(name, option, tmp_path):
    m, (log, env), flag = load(name), log_for(name, tmp_path), f"--{option.replace('_', '-')}"
    with pytest.raises(InputError, match=rf"{flag} 31: the longest episode of .* has \d+ rows"):
        m.main(small(name, log, tmp_path / "run", **{"env": "none", option: 31}))
    with pytest.raises(InputError, match=f"{flag} 9: episodes of {env} end after 8 steps"):
        m.main(small(name, log, tmp_path / "run", **{"env": env, option: 9}))


@pytest.mark.parametrize("name", TARGETED)
def test_a_target_is_of_the_returns_that_the_data_has(name, tmp_path):
    log, _ = log_for(name, tmp_path)
    with np.load(log) as file:
        np.savez(log, **{k: np.ones_like(x) if k == "rewards" else x for k, x in file.items()})
    for target in (-5.0, 1e5):
        with pytest.raises(InputError, match=f"--target-return {target:g} is of another sign or scale"):
            load(name).main(small(name, log, tmp_path / "run", env="none", target_return=target))
    assert load(name).CHECKS["target_return"] is require_target
