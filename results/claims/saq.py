from results.checks import Claim, above, end, logged, noise, under
from results.grid import Entry, small

MIXED, NARROW = "pendulum-mixed", "point-umaze-expert"
CODES = "--n-codes 16 --code-dim 32 --vae-hidden-dims 64 64 --vae-updates 3000"

cloning, iql, cql = small("bc"), small("iql"), small("cql")
ABOVE_0 = "--reward-shift 17"
"""Every reward is above 0 then: what is not known seems worse than all that is."""
learner = {"iql": "--expectile 0.7", "cql": "--cql-alpha 5", "iql-above0": f"--expectile 0.7 {ABOVE_0}"}
GREEDY = {"iql-above0": ("sample_codes=False",)}
codes = {
    name: small("saq", f"--learner {name[:3]} {more} {CODES}", name, evaluations=GREEDY.get(name, ()))
    for name, more in learner.items()
}

LONG = "--tau 0.02"
AWAKE = f"--learner iql --expectile 0.7 --policy-temperature 10 --reseed-updates 2000 {CODES}"
longer = small("saq", f"{AWAKE} {LONG}", "awake", updates=40_000)
plainly = small("iql", f"--expectile 0.7 --beta 10 {LONG}", "beside-saq", updates=40_000)

SHORT = "--preset none --seeds 8 --batch-size 128 --hidden-dims 64 64 --updates 1000 --learning-rate 1e-3 --learner bc"
seeing, blind = (
    Entry("saq", NARROW, f"{SHORT} {CODES} {more}".strip(), name, "claim")
    for name, more in {"seeing": "", "blind": "--no-state-conditioned"}.items()
)

CLAIM = Claim(
    title="Codes of actions that see the state improve what learns over them",
    paper="SAQ (arXiv 2310.11731) claims that IQL, CQL and BRAC improve when actions are codes of a VQ-VAE that sees "
    "the state, since their terms are exact then, and that few such codes are enough.",
    runs=[cloning, iql, cql, *codes.values(), longer, plainly, seeing, blind],
    checks={
        f"{NARROW}: 16 codes that see the state lose less of an action than 16 that do not, beyond noise": (
            logged("reconstruction", seeing)
            < logged("reconstruction", blind) - noise(*(logged("reconstruction", x) for x in (seeing, blind)))
        ),
        f"{MIXED}: SAQ-IQL ends above IQL, beyond noise": (above(end(codes["iql"]), end(iql))),
        f"{MIXED}: SAQ-CQL ends above CQL, beyond noise": (above(end(codes["cql"]), end(cql))),
    },
    observed={
        f"{MIXED}: SAQ-IQL ends below IQL": end(codes["iql"]) < end(iql),
        f"{MIXED}: SAQ-IQL values some code above 0": logged("q_max", codes["iql"]) > 0,
        f"{MIXED}: SAQ-IQL's greedy code is hardly ever the data's": logged("agreement", codes["iql"]) < 0.05,
        f"{MIXED}: with rewards above 0 it often is": logged("agreement", codes["iql-above0"]) > 0.3,
        f"{MIXED}: SAQ-IQL with rewards above 0 ends below IQL": end(codes["iql-above0"]) < end(iql),
        f"{MIXED}: and so it does when its likeliest codes are taken": (
            under("sample_codes=False", codes["iql-above0"]) < end(iql)
        ),
        f"{NARROW}: codes that do not see the state lose no more of an action, within noise": (
            logged("reconstruction", blind)
            < logged("reconstruction", seeing) + noise(*(logged("reconstruction", x) for x in (seeing, blind)))
        ),
        f"{MIXED}: SAQ-CQL ends above cloning, beyond noise": (above(end(codes["cql"]), end(cloning))),
        f"{MIXED}: four times as long, with codes kept awake, SAQ-IQL ends above the shorter run, beyond noise": (
            above(end(longer), end(codes["iql"]))
        ),
        f"{MIXED}: but below IQL, which had a quarter of that": end(longer) < end(iql),
    },
    finding="SAQ-IQL ends far below IQL on Pendulum, near cloning. A batch's actions have few of the codes; the "
    "highest value of a code is above 0 where every reward is a cost, so that it is no learned one; a log- "
    "probability that is not taken to be lower than -8 does not hold the policy from it, and its greedy code "
    "is hardly ever the data's. With rewards above 0 it often is, and the policy is no better, drawn or "
    "greedy. Dead codes and the budget are the cause, at least of a good part: when dead codes are moved to what a "
    "batch holds, targets follow faster, the policy is sharper and it learns four times as long, it ends far above "
    "the shorter run, still below IQL. On the point maze's narrow data "
    "codes that see the state lose as much of an action as those that do not, at this size. SAQ-CQL, whose "
    "penalty lowers dead codes too, ends above cloning. SAQ-BRAC was not tried.",
)
