"""OTR's labels beside its authors' rewarder, whose solver of transport is that of today's ott-jax (0.6)."""

import sys
import types
from functools import partial

import jax.numpy as jnp
import numpy as np

from results import references as ref

FILE = "otr/agents/otil/rewarder.py"
EPISODES, LONGEST, DEMOS = 10, 12, 2
DEVIATIONS = {
    "ridge": "lengths are at least 1e-8 in a cosine; there 1e-8 is added to their product",
}


def compare(checkout, undo):
    module = ref.in_double(ref.ours("otr"))
    ref.constants_in_double(module)
    sys.modules["ott.core"] = types.SimpleNamespace(sinkhorn=types.SimpleNamespace(sinkhorn=sinkhorn))
    peer = ref.theirs(checkout, FILE, (*ref.ABSENT, "acme"))
    rng = np.random.default_rng(0)
    args = module.Args(squash_alpha=4.0, squash_beta=3.0)
    if "ridge" in undo:
        module.cosine_cost = with_ridge
    steps = [*rng.integers(LONGEST // 2, LONGEST + 1, EPISODES + DEMOS - 1), LONGEST]
    given = [rng.standard_normal((n, ref.OBS)) + 1.0 for n in steps]  # at no right angle on average
    demos, episodes = given[EPISODES:], given[:EPISODES]
    shown = [[types.SimpleNamespace(observation=obs) for obs in demo] for demo in demos]
    squash = partial(peer.squashing_exponential, alpha=4.0, beta=3.0 * LONGEST / ref.OBS)
    rewarder = peer.OTILRewarder(shown, LONGEST, squashing_fn=squash, threshold=-1.0)
    rewards = [[np.zeros(n) for n in steps[:EPISODES]] for _ in range(2)]  # ours, theirs

    def data_of(some):
        ends = np.cumsum([len(x) for x in some])
        starts = np.r_[0, ends[:-1]]
        starts_and_ends = {"starts": lambda: starts, "ends": lambda: ends - 1}
        return types.SimpleNamespace(obs=np.concatenate(some), spec=ref.SPEC, id="made", **starts_and_ends)

    for i, episode in enumerate([None, *episodes]):
        if episode is not None:
            distance = module.distances(data_of([episode]), data_of(demos), args)
            spec, n = types.SimpleNamespace(spec=ref.SPEC), len(episode)
            priced = module.Priced(spec, jnp.asarray(distance), jnp.zeros(n, int), jnp.zeros(1, int), None, None)
            rewards[0][i - 1] = np.asarray(module.labels(priced, args))
            atoms = [types.SimpleNamespace(observation=obs) for obs in episode]
            rewards[1][i - 1] = np.asarray(rewarder.compute_offline_rewards(atoms))
        sums = [np.asarray([sum(r.sum() for r in side)]) for side in rewards]
        found = {"sum of the labels": ([sums[0]], [sums[1]])} if i else {}
        yield ref.Step(found, {"labels": (list(rewards[0]), list(rewards[1]))})


def sinkhorn(geom, a, b, threshold, max_iterations, jit):
    """The function of ott's that is a class today."""
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn as solvers

    solver = solvers.Sinkhorn(threshold=threshold, max_iterations=max_iterations)
    return solver(linear_problem.LinearProblem(geom, a, b))


def with_ridge(x, y):
    size = jnp.linalg.norm(x, axis=-1)[:, None] * jnp.linalg.norm(y, axis=-1)
    return 1.0 - x @ y.T / (size + 1e-8)


CASES = {
    "": ref.Case(
        "ethanluoyc/optimal_transport_reward",
        FILE,
        compare,
        DEVIATIONS,
        note=f"The labels of {EPISODES} episodes, one per update, by {DEMOS} demonstrations; theirs by 100 iterations. "
        "The learner, acme's IQL, is not compared.",
    )
}
