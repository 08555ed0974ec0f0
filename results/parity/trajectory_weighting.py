"""Trajectory weighting beside the authors' code: its IQL's update, and the weights."""

import jax
import numpy as np

from results.jax_references import HIDDEN, packages, side_by_side, start
from results.references import ACTION, OBS, ROOT, ROWS, SPEC, Case, Step, module, ours
from shared.data import Dataset
from shared.task import Task

iql = module(ROOT / "results/parity/iql.py", "parity_iql")
REFERENCE, FOLDER = "Improbable-AI/harness-offline-rl", "implicit_q_learning"


def update(checkout, undo):
    code, peer = ours("trajectory_weighting"), packages(checkout, FOLDER, frozen=True)("learner")
    args = code.Args(hidden_dims=HIDDEN, batch_size=ROWS, updates=50)
    agent, zeros = start(code, args), jax.numpy.zeros
    learner = peer.Learner(
        0, zeros((1, OBS)), zeros((1, ACTION)), hidden_dims=HIDDEN, expectile=args.expectile, temperature=args.beta,
        max_steps=50, exp_a_clip=args.max_weight,
    )  # fmt: skip
    iql.give(learner, agent)

    @jax.jit
    def our_step(agent, batch):
        one = jax.tree.map(lambda x: x[None], batch)
        agent, info = code.update(agent, one, jax.random.split(jax.random.key(0), 1), args)
        return agent, {name: info[f"{name}_loss"] for name in ("critic", "value", "actor")}

    yield from side_by_side(agent, our_step, learner, iql.their_step(peer), iql.view)


def episodes(rng):
    """A log of 12 episodes of 2 to 13 steps, as our dataset and as the reference's trajectories."""
    ends = np.cumsum(rng.permutation(np.arange(2, 14)))
    last = np.isin(np.arange(ends[-1]), ends - 1)
    obs, action = rng.standard_normal((ends[-1], OBS)), rng.uniform(-1, 1, (ends[-1], ACTION))
    reward = rng.standard_normal(ends[-1])
    rows = list(zip(obs, action, reward, 1.0 - last, last, obs, strict=True))
    data = Dataset(Task("log", "", SPEC), obs, action, reward, obs, last, last)
    return data, [rows[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def weights(checkout, undo):
    code, peer = ours("trajectory_weighting"), packages(checkout, FOLDER)("dataset_utils")
    rng = np.random.default_rng(0)
    while True:
        data, trajectories = episodes(rng)
        sizes, probabilities = {}, {}
        for name, theirs in {"aw": peer.AW, "rw": peer.RW}.items():
            w, p = (
                code.sampling_weights(data, code.Args(sampler=name, weight_temperature=0.2)),
                theirs(trajectories, 0.2),
            )
            probabilities[name] = ([w / w.sum()], [p])
            sizes[f"{name}: 1 / sum p^2"] = ([code.effective_rows(w)], [1 / (p**2).sum()])
        yield Step(sizes, probabilities)


CASES = {
    "IQL": Case(REFERENCE, f"{FOLDER}/learner.py", update),
    "weights": Case(
        REFERENCE,
        f"{FOLDER}/dataset_utils.py",
        weights,
        double=False,
        note="The rows' probabilities; every update is another log. Our episodes' returns are sums in float32.",
    ),
}
