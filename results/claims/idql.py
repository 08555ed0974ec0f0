from results.checks import Claim, above, end, logged, under
from results.grid import Entry, small

NEAR = "point-hazard-explore"
SIZES = "--seeds 8 --batch-size 64 --hidden-dims 64 64 --updates 5000 --eval-every 2500 --eval-episodes 20"
SHORT = "--discount 0.9"  # a step is worth a tenth of Q

bc = Entry("bc", NEAR, f"--preset none {SIZES}", series="claim")
flow = Entry("idql", NEAR, f"--preset ifql {SIZES} {SHORT}", "flow", "claim", ("n_candidates=1", "n_candidates=4"))
one, four = (under(f"n_candidates={n}", flow) for n in (1, 4))

MODES, RINGS = "toy-modes8", "toy-rings"
TOY = (
    "--seeds 8 --batch-size 128 --hidden-dims 128 128 --updates 3000 --eval-every 3000 --log-every 600 "
    "--eval-episodes 20 --actor-lr 1e-3"
)
modes, rings = (
    Entry("idql", where, f"--preset ifql {TOY} --critic-lr 1e-3", "density", "claim", ("n_candidates=1",))
    for where in (MODES, RINGS)
)
cloned = Entry("bc", MODES, f"--preset none {TOY}", "density", "claim")
one_of_modes = under("n_candidates=1", modes)

MAZE = "pointmaze-umaze"
cloned_maze = small("bc", dataset=MAZE)
AS_CLONED = cloned_maze.arguments.replace("--preset none", "--preset ifql")
slow = Entry("idql", MAZE, AS_CLONED, "flow", "claim", ("n_candidates=1",))
maze = Entry("idql", MAZE, f"{AS_CLONED} --tau 0.02 --critic-lr 1e-3", "fast-flow", "claim", ("n_candidates=1",))
one_of_maze = under("n_candidates=1", maze)

CLAIM = Claim(
    title="The best of many cloned actions improves a policy that was never told of rewards",
    paper="IDQL (arXiv 2304.10573) claims that a policy is improved by choosing among candidates of a model of the "
    "data with IQL's Q, and that more candidates improve it more; FQL's paper (arXiv 2502.02538) has its flow form.",
    runs=[bc, flow, cloned, modes, rings, cloned_maze, maze, slow],
    checks={
        f"{NEAR}: the best of 32 candidates ends above one of them, beyond noise": (above(end(flow), one)),
        f"{NEAR}: the best of 32 ends above the best of 4, beyond noise": above(end(flow), four),
        f"{NEAR}: it ends above cloning, beyond noise": above(end(flow), end(bc)),
        f"{MODES}: drawn actions are of all eight modes": logged("modes_covered", modes) > 7.9,
        f"{MODES}: the best of 32 ends above one of them, beyond noise": (above(end(modes), one_of_modes)),
        f"{MODES}: it ends above cloning by one action, which is between the modes, beyond noise": (
            above(end(modes), end(cloned))
        ),
        f"{MAZE}: the best of 32 ends above one of them, beyond noise": (above(end(maze), one_of_maze)),
        f"{MAZE}: it ends above cloning, beyond noise": (above(end(maze), end(cloned_maze))),
    },
    observed={
        f"{MODES}: the energy distance to the density is below 0.03": logged("energy_distance", modes) < 0.03,
        f"{MAZE}: with the presets' rates the best of 32 ends below cloning": end(slow) < end(cloned_maze),
        f"{MAZE}: and its values are less than a fifth": logged("q", slow) < 0.2 * logged("q", maze),
    },
    finding="Where the density is known drawn actions are of all eight modes, and the best of 32 is of the best one. "
    "Of one policy that clones the data, the best of 32 actions by Q ends above the best of four, and that "
    "above one action, which is what cloning does. Only what acts differs: the three are evaluations of one "
    "training. On PointMaze values have to come from far, and with the presets' rates they had not after so many "
    "updates: the best of 32 by them is worse than cloning. With targets that follow faster, and larger steps of Q and "
    "V, more of them has arrived, though they still rise at the end, and it is far above.",
)
