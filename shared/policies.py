"""Policies: functions of the last observation, or such that carry something from step to step.

A policy is `act(agent, obs [B, O], key, args) -> action [B, A]`. One that remembers (a recurrent network, a
transformer) is a `StatefulPolicy`; its file has `initial_carry` and an `act` with a carry, and gives `Run` the pair.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from shared.task import Task


class StatefulPolicy(NamedTuple):
    """What is carried belongs to one environment and one episode: a new one begins with `initial_carry`."""

    initial_carry: Callable
    """(agent, args) -> carry of one environment before its first observation: a tree of arrays."""
    act: Callable
    """(agent, carry [B, ...], obs [B, O], reward [B], key, args) -> (action [B, A], carry [B, ...])

    `reward`: the environment's own, of the step that led to `obs`; 0 at an episode's first observation.
    """


Policy = Callable | StatefulPolicy


def policy_of(module: Any) -> Policy:
    """The policy of an algorithm's file."""
    return StatefulPolicy(module.initial_carry, module.act) if hasattr(module, "initial_carry") else module.act


def seen_by(policy: Policy, task: Task) -> Policy:
    """`policy` as a function of what `task.observe` returns.

    An algorithm that is given goals has `act(agent, obs [B, O], goal [B, G], key, args)`, and `goal` behind `obs` where
    there is a carry; images have channels there.
    """
    if not task.spec.goal_shape:
        return policy
    states = task.spec.obs_shape[-1]
    if not isinstance(policy, StatefulPolicy):
        return lambda agent, seen, *rest: policy(agent, seen[..., :states], seen[..., states:], *rest)

    def act(agent, carry, seen, *rest):
        return policy.act(agent, carry, seen[..., :states], seen[..., states:], *rest)

    return policy._replace(act=act)


def at_step(policy: Policy) -> Policy:
    """`policy` with the number of the step before its key, which then is another at every step."""

    def keyed(act):
        def act_at(*given):
            *seen, step, key, args = given
            return act(*seen, jax.random.fold_in(key, step), args)

        return act_at

    return policy._replace(act=keyed(policy.act)) if isinstance(policy, StatefulPolicy) else keyed(policy)


class SteppedPolicy(NamedTuple):
    """Any policy, for environments that begin their episodes at different times."""

    begin: Callable
    """(agent, args, n) -> carry [n, ...] of n environments"""
    act: Callable
    """(carry, agent, obs, reward, first [B], step, key, args) -> (action, carry); `first`: an episode begins here."""


def stepped(policy: Policy) -> SteppedPolicy:
    """`policy`, as `at_step` returns it; without a carry of its own it has the empty tuple."""
    if not isinstance(policy, StatefulPolicy):
        return SteppedPolicy(
            lambda agent, args, n: (),
            lambda carry, agent, obs, reward, first, step, key, args: (policy(agent, obs, step, key, args), carry),
        )

    def begin(agent, args, n):
        fresh = policy.initial_carry(agent, args)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *jnp.shape(x))), fresh)

    def act(carry, agent, obs, reward, first, step, key, args):
        def restart(carry):
            fresh = policy.initial_carry(agent, args)
            return jax.tree.map(lambda x, new: jnp.where(first.reshape(-1, *(1,) * (x.ndim - 1)), new, x), carry, fresh)

        carry = jax.lax.cond(first.any(), restart, lambda carry: carry, carry)
        return policy.act(agent, carry, obs, jnp.where(first, 0.0, reward), step, key, args)

    return SteppedPolicy(begin, act)


class PolicyIn:
    """One lane's policy in one environment: `observation of the environment -> action of the environment`."""

    def __init__(self, policy: Policy, agent: Any, args: Any, task: Task):
        """`policy` as `seen_by` returns it; `agent` and `args` of one lane."""
        self.task, self.agent, self.args = task, agent, args
        self.remembers = isinstance(policy, StatefulPolicy)
        whole = stepped(at_step(policy))
        self._begin, self._act, self._calls = whole.begin, jax.jit(whole.act), itertools.count()
        self.reset()

    def reset(self) -> None:
        """An episode begins: whatever was carried is forgotten."""
        self._carry, self._first = self._begin(self.agent, self.args, 1), True

    def __call__(self, obs: Any, reward: float | None = None) -> np.ndarray:
        """The action for `obs`; the random key is another at every call.

        `reward`: of the step that led to `obs`. Only a policy that remembers needs it, and `reset` before an episode.

        Raises:
          ValueError: such a one is given no reward within an episode.
        """
        if self.remembers and reward is None and not self._first:
            raise ValueError("this policy remembers: call reset() at an episode's start, then policy(obs, reward)")
        first, self._first = self._first, False
        seen = self.task.observe(obs)[None], np.float32([reward or 0.0]), np.array([first])
        action, self._carry = self._act(self._carry, self.agent, *seen, next(self._calls), jax.random.key(0), self.args)
        return self.task.to_env(np.asarray(action)[0])
