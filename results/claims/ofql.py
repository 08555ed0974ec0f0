from results.checks import Claim, action_ms, end, noise
from results.grid import offline

REPLAY, MAZE = "hopper-medium-replay-v0", "pointmaze-umaze"

diffusion_ql = {d: offline("diffusion_ql", d) for d in (REPLAY, MAZE)}
ofql = {d: offline("ofql", d) for d in (REPLAY, MAZE)}
large_eta = offline("ofql", REPLAY, "--eta 0.3", "eta-0.3")

CLAIM = Claim(
    title="OFQL reaches Diffusion-QL's score with actions of one step",
    paper="OFQL (arXiv 2508.13904) claims the scores of Diffusion-QL (arXiv 2208.06193) and above, with a policy that "
    "acts in one step.",
    runs=[*diffusion_ql.values(), *ofql.values(), large_eta],
    checks={
        **{
            f"{d}: OFQL ends at Diffusion-QL's level or above, within noise": (
                end(ofql[d]) > end(diffusion_ql[d]) - noise(end(ofql[d]), end(diffusion_ql[d]))
            )
            for d in ofql
        },
        "OFQL needs less than half of Diffusion-QL's time for 1000 actions, each of 50 candidates": (
            action_ms("ofql", candidates=50) < action_ms("diffusion_ql", candidates=50) / 2
        ),
    },
    observed={
        "Of 50 candidates it needs more than two fifths of it": (
            action_ms("ofql", candidates=50) > 0.4 * action_ms("diffusion_ql", candidates=50)
        ),
        "Of one candidate it needs less than a quarter": action_ms("ofql") < action_ms("diffusion_ql") / 4,
        **{f"{d}: OFQL ends above Diffusion-QL": end(ofql[d]) > end(diffusion_ql[d]) for d in ofql},
        f"{REPLAY}: with eta 0.3 OFQL ends below 5": end(large_eta) < 5,
    },
    finding="OFQL ends above Diffusion-QL on both datasets. With the 50 candidates of each action with which both are "
    "scored it needs a little less than half of its time, with one candidate a fraction (results/speed.md). It "
    "needs a small eta: with 0.3 its values grow without bound on hopper-medium-replay.",
)
