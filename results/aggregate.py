"""Statistics over lanes: what the tables and pictures show of several seeds.

IQM, its intervals, performance profiles and the probability of improvement: Agarwal et al., "Deep
Reinforcement Learning at the Edge of the Statistical Precipice", NeurIPS 2021, arXiv 2108.13264.
Scores against the number of online episodes that choose a policy: Kurenkov and Kolesnikov, "Showing Your
Offline Reinforcement Learning Work: Online Evaluation Budget Matters", ICML 2022, arXiv 2110.04156, with the
bandit of Jackson et al., "A Clean Slate for Offline Reinforcement Learning", 2025, arXiv 2504.11453.
"""

import numpy as np

REPS = 2000


def iqm(x: np.ndarray) -> np.ndarray:
    """Interquartile mean over the last axis: the mean without the lowest and highest quarter."""
    n = x.shape[-1]
    return np.sort(x, -1)[..., n // 4 : n - n // 4].mean(-1)


def resamples(n: int, tasks: int, rng: np.random.Generator, reps: int = REPS) -> np.ndarray:
    """Lanes of `reps` stratified bootstrap samples [reps, n, tasks]: drawn anew within each task.

    As in rliable, which the tests compare with; that one ignores its `random_state`, and a report must not
    change by chance.
    """
    return rng.integers(n, size=(reps, n, tasks))


def interval(samples: np.ndarray) -> np.ndarray:
    """95 % percentile interval [2, ...] over the first axis."""
    return np.percentile(samples, [2.5, 97.5], axis=0)


def iqm_interval(scores: np.ndarray, reps: int = REPS) -> tuple[float, float, float]:
    """IQM of scores [lanes, tasks], with its 95 % interval."""
    drawn = np.take_along_axis(scores[None], resamples(*scores.shape, np.random.default_rng(0), reps), axis=1)
    low, high = interval(iqm(drawn.reshape(reps, -1)))
    return float(iqm(scores.ravel())), float(low), float(high)


def performance_profile(scores: np.ndarray, taus: np.ndarray, reps: int = REPS) -> tuple[np.ndarray, np.ndarray]:
    """Share of scores [lanes, tasks] above each of `taus` [T] -> [T], and its 95 % interval [2, T]."""
    drawn = np.take_along_axis(scores[None], resamples(*scores.shape, np.random.default_rng(0), reps), axis=1)
    above = np.stack([(drawn > tau).mean((1, 2)) for tau in taus], axis=-1)
    return (scores[..., None] > taus).mean((0, 1)), interval(above)


def probability_of_improvement(x: np.ndarray, y: np.ndarray, reps: int = REPS) -> tuple[float, float, float]:
    """That a lane of x [lanes, tasks] is above one of y [lanes, tasks], mean over tasks, with its 95 % interval.

    A tie counts half; the numbers of lanes may differ.
    """
    above = (x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None])  # [lanes of x, lanes of y, tasks]
    rng = np.random.default_rng(0)
    i, j = resamples(*x.shape, rng, reps), resamples(*y.shape, rng, reps)
    drawn = above[i[:, :, None], j[:, None], np.arange(x.shape[1])]
    low, high = interval(drawn.mean((1, 2, 3)))
    return float(above.mean()), float(low), float(high)


def budget_curve(settings: list[np.ndarray], pulls: int, reps: int = REPS) -> np.ndarray:
    """Expected score of the policy that is picked after 1, ..., `pulls` online episodes -> [pulls].

    `settings`: of each hyperparameter setting the episodes' scores [lanes, episodes]. In each repetition one
    lane of every setting was trained; UCB1 (Auer et al., 2002, with the range of all scores) chooses which of
    them to try next, which gives one of its recorded episodes; the pick is the policy of the highest mean so
    far, and its worth the mean of all its episodes.
    """
    rng = np.random.default_rng(0)
    reps_index = np.arange(reps)
    lanes = [rng.integers(len(episodes), size=reps) for episodes in settings]
    worth = np.stack([episodes.mean(1)[lane] for episodes, lane in zip(settings, lanes, strict=True)], 1)
    spread = np.ptp(np.concatenate([episodes.ravel() for episodes in settings])) or 1.0
    sums, counts = np.zeros_like(worth), np.zeros_like(worth)
    untried = rng.random(worth.shape)  # every policy once at first, in an order of each repetition's own
    curve = np.zeros(pulls)
    for t in range(pulls):
        tried = np.maximum(counts, 1)
        bound = sums / tried + spread * np.sqrt(2.0 * np.log(t + 1) / tried)
        arm = np.where(counts == 0, np.inf, bound)
        arm = np.where(np.isinf(arm).any(1), np.where(counts == 0, untried, -1.0).argmax(1), arm.argmax(1))
        for k, episodes in enumerate(settings):
            chosen = reps_index[arm == k]
            drawn = rng.integers(episodes.shape[1], size=len(chosen))
            sums[chosen, k] += episodes[lanes[k][chosen], drawn]
        counts[reps_index, arm] += 1
        mean = np.where(counts > 0, sums / np.maximum(counts, 1), -np.inf)
        curve[t] = worth[reps_index, mean.argmax(1)].mean()
    return curve
