from results.checks import Claim, above, noise, online_mean
from results.grid import Entry


def world(env, n_envs, length, variant, more="", seeds=8):
    """`length` steps, a tenth of them at random first, evaluated ten times."""
    every = " ".join(f"--{name} {length // 10}" for name in ("learning-starts", "eval-every", "log-every"))
    length = f"--seeds {seeds} --env-steps {length} {every} --eval-episodes 20"
    sizes = f"--n-envs {n_envs} --batch-size 64 --hidden-dims 64 64 --actor-lr 1e-3 --critic-lr 1e-3 --tau 0.02"
    return Entry("pql", env, f"{length} {sizes} --discount 0.97 {more}".strip(), variant, "claim")


def pendulum(variant, more=""):
    return world("phys2d/Pendulum-v0", 16, 9600, variant, f"--reward-scale 0.1 {more}")


def maze(variant, more=""):
    return world("PointUMaze-v0", 64, 102400, variant, more, seeds=16)


FAINT, STRONG = "--noise-min 0.05 --noise-max 0.05", "--noise-min 0.8 --noise-max 0.8"
mixed, faint, strong = pendulum("mixed"), pendulum("faint", FAINT), pendulum("strong", STRONG)
few, both = pendulum("few-updates", "--critic-per-step 1 --actor-per-step 1"), pendulum("actor-8", "--actor-per-step 8")
in_maze, faint_in_maze, strong_in_maze = maze("mixed"), maze("faint", FAINT), maze("strong", STRONG)


def within(a, b):
    """Over all evaluations a is no worse than b, within noise."""
    return online_mean(a) > online_mean(b) - noise(online_mean(a), online_mean(b))


def beyond(a, b):
    """Over all evaluations a is better than b, beyond noise."""
    return above(online_mean(a), online_mean(b))


CLAIM = Claim(
    title="Noise of all strengths does as well as any, and many updates per parallel step pay",
    paper="PQL (arXiv 2307.12983) claims that a noise of its own in each of the parallel environments does as well as "
    "the best common one, and that eight critic updates and four of the actor per parallel step are a good ratio.",
    runs=[mixed, faint, strong, few, both, in_maze, faint_in_maze, strong_in_maze],
    checks={
        "Pendulum: mixed noise is no worse than faint noise, within noise": within(mixed, faint),
        "Pendulum: mixed noise is no worse than strong noise, within noise": within(mixed, strong),
        "Maze: mixed noise is no worse than faint noise, within noise": within(in_maze, faint_in_maze),
        "Maze: mixed noise is no worse than strong noise, within noise": within(in_maze, strong_in_maze),
        "Maze: the noise matters: mixed is better than the worse of the two, beyond noise": beyond(
            in_maze, faint_in_maze
        ),
        "Eight critic and four actor updates per step: better than one of each, beyond noise": beyond(mixed, few),
        "Eight actor updates per step are no better than four, beyond noise": within(mixed, both),
    },
    finding="Eight critic and four actor updates per parallel step solve Pendulum in steps in which one of each has "
    "hardly begun; which of the two matters was not told apart. Eight of the actor add nothing beyond noise. On "
    "Pendulum no noise is better than another. In the maze, whose reward is rare, a lane finds the goal in most "
    "episodes or never: the three strengths differ by less than lanes of one strength do, and mixed noise ends no "
    "higher than either. What is no worse there is so within a wide noise.",
)
