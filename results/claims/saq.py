from results.checks import Claim, end, logged, noise
from results.grid import Entry, small

MIXED, NARROW = "pendulum-mixed", "point-umaze-expert"
CODES = "--n-codes 16 --code-dim 32 --vae-hidden-dims 64 64 --vae-updates 3000"

cloning, iql, cql = small("bc"), small("iql"), small("cql")
learner = {"iql": "--expectile 0.7", "cql": "--cql-alpha 5", "brac": ""}
codes = {name: small("saq", f"--learner {name} {more} {CODES}", name) for name, more in learner.items()}

SHORT = "--preset none --seeds 8 --batch-size 128 --hidden-dims 64 64 --updates 1000 --learning-rate 1e-3 --learner bc"
seeing, blind = (
    Entry("saq", NARROW, f"{SHORT} {CODES} {more}".strip(), name, "claim")
    for name, more in {"seeing": "", "blind": "--no-state-conditioned"}.items()
)

CLAIM = Claim(
    title="Codes of actions that see the state improve what learns over them",
    paper="SAQ (arXiv 2310.11731) claims that IQL, CQL and BRAC improve when actions are codes of a VQ-VAE that sees "
    "the state, since their terms are exact then, and that few such codes are enough.",
    runs=[cloning, iql, cql, *codes.values(), seeing, blind],
    checks={
        f"{NARROW}: 16 codes that see the state lose less of an action than 16 that do not, beyond noise": (
            logged("reconstruction", seeing)
            < logged("reconstruction", blind) - noise(*(logged("reconstruction", x) for x in (seeing, blind)))
        ),
        f"{MIXED}: SAQ-IQL ends above IQL, beyond noise": (
            end(codes["iql"]) > end(iql) + noise(end(codes["iql"]), end(iql))
        ),
        f"{MIXED}: SAQ-CQL ends above CQL, beyond noise": (
            end(codes["cql"]) > end(cql) + noise(end(codes["cql"]), end(cql))
        ),
        f"{MIXED}: SAQ-BRAC ends above cloning, beyond noise": (
            end(codes["brac"]) > end(cloning) + noise(end(codes["brac"]), end(cloning))
        ),
    },
)
