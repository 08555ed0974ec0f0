from results.checks import Claim, end, logged, noise
from results.grid import Entry

DETOURS = "point-umaze-medium"
SIZES = (
    "--preset none --seeds 8 --batch-size 128 --hidden-dims 64 64 --updates 4000 --eval-every 2000 --eval-episodes 20"
)
RATE, COST = "1e-3", "--reward-shift -1"
CODES = "--n-codes 16 --code-dim 32 --vae-hidden-dims 64 64 --vae-updates 2500 --learning-rate 1e-3"
PENALTY = "--cql-alpha 5"


def saq(variant: str, more: str) -> Entry:
    return Entry("saq", DETOURS, f"{SIZES} {COST} {CODES} {more}", variant, "claim")


bc = Entry("bc", DETOURS, f"{SIZES} --actor-lr {RATE}", "rate", "claim")
rates = f"--actor-lr {RATE} --critic-lr {RATE}"
iql = Entry("iql", DETOURS, f"{SIZES} {COST} --expectile 0.8 {rates} --value-lr {RATE}", "rate", "claim")
cql = Entry("cql", DETOURS, f"{SIZES} {COST} {PENALTY} {rates}", "rate", "claim")
learner = {name: f"--learner {name} --policy-temperature 0.5 {PENALTY}" for name in ("iql", "cql", "brac", "bc")}
codes = {name: saq(name, arguments) for name, arguments in learner.items()}
blind = saq("iql-blind", f"{learner['iql']} --no-state-conditioned")

CLAIM = Claim(
    title="Codes of actions that see the state improve what learns over them",
    paper="SAQ (arXiv 2310.11731) claims that IQL, CQL and BRAC improve when actions are codes of a VQ-VAE that sees "
    "the state, since their terms are exact then, and that few such codes are enough.",
    runs=[bc, iql, cql, *codes.values(), blind],
    checks={
        f"{DETOURS}: 16 codes that see the state lose less of an action than 16 that do not, beyond noise": (
            logged("reconstruction", codes["iql"])
            < logged("reconstruction", blind)
            - noise(logged("reconstruction", codes["iql"]), logged("reconstruction", blind))
        ),
        f"{DETOURS}: SAQ-IQL ends above IQL, beyond noise": (
            end(codes["iql"]) > end(iql) + noise(end(codes["iql"]), end(iql))
        ),
        f"{DETOURS}: SAQ-CQL ends above CQL, beyond noise": (
            end(codes["cql"]) > end(cql) + noise(end(codes["cql"]), end(cql))
        ),
        f"{DETOURS}: SAQ-BRAC ends above SAQ's cloning, beyond noise": (
            end(codes["brac"]) > end(codes["bc"]) + noise(end(codes["brac"]), end(codes["bc"]))
        ),
    },
)
