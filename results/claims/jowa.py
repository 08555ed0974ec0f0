from results.checks import Claim, above, end, logged, under
from results.grid import Entry

SIZES = (
    "--preset small --seeds 8 --context 3 --model-updates 0 --updates 1000 --log-every 250 --eval-every 1000 "
    "--eval-episodes 30 --max-episode-steps 30"
)
PLAIN = "planning=False"
run = Entry("jowa", "maze-small-mixed", f"{SIZES} --no-planning --world-weight 0 1", "weights", "claim")
STAGES = SIZES.replace("--model-updates 0", "--model-updates 1000")
staged = Entry("jowa", "maze-small-mixed", f"{STAGES} --no-planning --world-weight 0 0.1", "staged", "claim")
search = Entry("jowa", "maze-small-mixed", f"{SIZES} --context 5 --world-weight 1", "search", "claim", (PLAIN,))
game = Entry(
    "jowa",
    "minatar-breakout-mixed",
    "--seeds 8 --no-planning --context 2 --model-updates 0 --world-weight 0 1 --updates 4000 --log-every 1000 "
    "--eval-every 4000 --eval-episodes 20",
    "weights",
    "claim",
)
ALONE, TENTH, JOINT = "world_weight=0", "world_weight=0.1", "world_weight=1"


CLAIM = Claim(
    title="A trunk that also foresees what happens next makes a better Q of the same data and updates",
    paper="Cheng et al. (arXiv 2410.00564) claim that world model and Q learned together on one transformer beat Q "
    "alone on the same trunk, and that a search of few branches in the model adds to it.",
    runs=[run, staged, search, game],
    checks={
        "maze-small-mixed: joint training ends above Q alone, beyond noise": (above(end(run, JOINT), end(run, ALONE))),
        "maze-small-mixed: in two stages, with a tenth of the model's loss in the second, it ends above Q alone in the "
        "second, beyond noise": above(end(staged, TENTH), end(staged, ALONE)),
        "maze-small-mixed: a search in the model ends above the same agents without it, beyond noise": (
            above(end(search), under(PLAIN, search))
        ),
        "minatar-breakout-mixed: joint training ends above Q alone, beyond noise": (
            above(end(game, JOINT), end(game, ALONE))
        ),
    },
    observed={
        "minatar-breakout-mixed: joint training ends more than 15 above uniform actions, whose score is 0": (
            end(game, JOINT) > 15.0
        ),
        "minatar-breakout-mixed: joint training has the higher mean": end(game, JOINT) > end(game, ALONE),
        "The joint trunk foresees more than half of the tokens": logged("foreseen", run, JOINT) > 0.5,
        "That of Q alone less than half": logged("foreseen", run, ALONE) < 0.5,
        "Joint training ends below 50": end(run, JOINT) < 50.0,
    },
    finding="In mazes of which hardly two are alike, the same data and as many updates give a better Q where the "
    "trunk also foresees what happens next: where both losses are learned at once, with equal weight, and in two "
    "stages, as the paper has them, with a tenth of the model's loss in the second, which ends highest. The search of "
    "branches in the model gains less than the noise over the same agents without it. On MinAtar's Breakout, where "
    "both losses are learned at once with equal weight, joint training has the higher mean, too, within noise.",
)
