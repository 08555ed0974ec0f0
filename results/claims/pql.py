from results.checks import Claim, highest, logged, noise, online_mean
from results.grid import Entry


def world(variant, more=""):
    length = "--seeds 8 --env-steps 9600 --learning-starts 960 --eval-every 960 --log-every 960 --eval-episodes 20"
    sizes = "--n-envs 16 --batch-size 64 --hidden-dims 64 64 --actor-lr 1e-3 --critic-lr 1e-3 --tau 0.02"
    arguments = f"{length} {sizes} --discount 0.97 --reward-scale 0.1 {more}"
    return Entry("pql", "phys2d/Pendulum-v0", arguments.strip(), variant, "claim")


mixed, faint = world("mixed"), world("faint", "--noise-min 0.05 --noise-max 0.05")
strong = world("strong", "--noise-min 0.8 --noise-max 0.8")
few, both = world("few-updates", "--critic-per-step 1 --actor-per-step 1"), world("actor-8", "--actor-per-step 8")


def beyond(a, b):
    """What chance does to the difference of two runs' means over all evaluations."""
    return noise(online_mean(a), online_mean(b))


CLAIM = Claim(
    title="Noise of all strengths needs no tuning, and eight critic updates per parallel step pay",
    paper="PQL (arXiv 2307.12983) claims that a noise of its own in each of the parallel environments does as well as "
    "the best common one, and that eight critic updates and four actor updates per parallel step are a good ratio.",
    runs=[mixed, faint, strong, few, both],
    checks={
        "Mixed noise is no worse than the better common one, within noise": online_mean(mixed)
        > highest(online_mean(faint), online_mean(strong)) - beyond(mixed, faint),
        "Eight critic updates per step: more than one, beyond noise": online_mean(mixed)
        > online_mean(few) + beyond(mixed, few),
        "Eight actor updates per step are not worth more than four, beyond noise": online_mean(mixed)
        > online_mean(both) - beyond(mixed, both),
    },
    finding="",
)
