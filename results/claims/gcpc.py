from results.checks import Claim, end, noise
from results.grid import goals

MEDIUM, LARGE = "point-medium-navigate", "point-large-navigate"
SIZES = "--width 32 --layers 1 --heads 2 --context 5 --future-steps 30"

gcpc = {d: goals("gcpc", d, f"{SIZES} --autoencoder-updates 5000") for d in (MEDIUM, LARGE)}
bare = {d: goals("gcpc", d, f"{SIZES} --autoencoder-updates 0 --slots 0", "no-slots") for d in gcpc}

CLAIM = Claim(
    title="A plan that is learned without actions leads to far goals",
    paper="GCPC (arXiv 2307.03406) claims more success than the same cloned network without its latent plan, most in "
    "large mazes.",
    runs=[*gcpc.values(), *bare.values()],
    checks={
        f"{d}: with the plan GCPC ends above the same network without, beyond noise": end(gcpc[d])
        > end(bare[d]) + noise(end(gcpc[d]), end(bare[d]))
        for d in gcpc
    },
)
