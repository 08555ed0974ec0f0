from results.checks import Claim, above, end
from results.grid import Entry

MIXED = "pendulum-mixed"
LENGTH = "--seeds 8 --updates 10000 --eval-every 5000 --eval-episodes 20 --env phys2d/Pendulum-v0 --preset none"
SIZES = "--batch-size 64 --width 32 --layers 1 --heads 2 --n-latents 4 --policy-samples 4 --n-bins 21 --n-atoms 51"
STEPS = "--learning-rate 1e-3 --warmup-updates 100 --improvement-temperature 0.03 --tau 0.02"


def pac(variant: str, more: str) -> Entry:
    return Entry("pac", MIXED, f"{LENGTH} {SIZES} {STEPS} {more}", variant, "claim")


cloned, improved = pac("bc", "--system bc"), pac("pac", "--system pac --cloning 0.25")
weighted = pac("v", "--system pac_v --cloning 0.25")

CLAIM = Claim(
    title="Offline actor-critic in a Perceiver improves on cloning where data is mixed",
    paper="PAC (arXiv 2402.05546) claims that an offline actor-critic with the same network beats cloning on data of "
    "mixed quality.",
    runs=[cloned, improved, weighted],
    checks={
        f"{MIXED}: PAC ends above cloning, beyond noise": (above(end(improved), end(cloned))),
        f"{MIXED}: PAC+V ends above cloning, beyond noise": (above(end(weighted), end(cloned))),
    },
    finding="Both systems end above cloning, whose network is the same: PAC, which weighs actions by its critic's Q, "
    "by more than PAC+V. In the second half of the updates cloning improves no more, and both still do.",
)
