from results.checks import Claim, lost, noise
from results.grid import offline

REPLAY, PENDULUM = "hopper-medium-replay-v0", "pendulum-mixed"
KINDS = {"random": "at random", "min_q": "where they lower Q most"}
WEAK, STRONG = (0.05, 0.1), (0.3, 0.6)
ARGUMENTS = {"sac-n": "--terms --n-critics 5", "rorl": "--n-critics 5 --n-samples 2"}


def attack(kind, scale):
    return f"attack={kind} attack_scale={scale}"


tried = {REPLAY: [(kind, s) for kind in KINDS for s in WEAK], PENDULUM: [(k, s) for k in KINDS for s in WEAK + STRONG]}
runs = {
    (d, name): offline(
        "rorl", d, more, name, updates=30_000 if d == REPLAY else 15_000,
        evaluations=[attack(k, s) for scales in (WEAK, STRONG) for k, s in tried[d] if s in scales],
    )
    for d in tried
    for name, more in ARGUMENTS.items()
}  # fmt: skip

CLAIM = Claim(
    title="RORL loses less than SAC-N under attack on the observations",
    paper="RORL (arXiv 2206.02829) claims to keep more of its score than SAC-N when the observations that the policy "
    "sees are perturbed at random, or where they lower Q most.",
    runs=list(runs.values()),
    checks={
        f"{d}, observations perturbed {KINDS[kind]}, scale {scale}: RORL loses less, beyond noise": (
            (ours := lost(attack(kind, scale), runs[d, "rorl"]))
            < (plain := lost(attack(kind, scale), runs[d, "sac-n"])) - noise(ours, plain)
        )
        for d, attacks in tried.items()
        for kind, scale in attacks
    },
    finding="On Pendulum both withstand weak attacks, and under strong ones RORL keeps a little more than "
    "SAC-N, within about one standard deviation of the lanes. On hopper-medium-replay neither has learned anything "
    "to lose within this budget, a hundredth of the paper's.",
)
