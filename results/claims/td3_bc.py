from results.checks import Claim, end, noise
from results.grid import benchmark

MEDIUM, REPLAY, MAZE = "hopper-medium-v0", "hopper-medium-replay-v0", "pointmaze-umaze"
EPISODES = {MEDIUM: "", REPLAY: "", MAZE: "--eval-episodes 20"}

bc = {d: benchmark("bc", d, more) for d, more in EPISODES.items()}
td3_bc = {d: benchmark("td3_bc", d, more) for d, more in EPISODES.items()}

BENCHMARK = list(td3_bc.values())

CLAIM = Claim(
    title="TD3+BC is better than behavioural cloning",
    paper="TD3+BC (arXiv 2106.06860) reports higher scores than behavioural cloning on D4RL's locomotion sets.",
    runs=[*bc.values(), *td3_bc.values()],
    checks={
        f"{d}: TD3+BC ends above cloning, beyond noise": end(td3_bc[d]) > end(bc[d]) + noise(end(td3_bc[d]), end(bc[d]))
        for d in td3_bc
    },
    observed={f"{d}: TD3+BC ends above cloning": end(td3_bc[d]) > end(bc[d]) for d in td3_bc},
    finding="TD3+BC has the higher mean on all three sets, on each by less than the noise of five lanes: after 100,000 "
    "updates, a tenth of the paper's, it has not moved far from cloning.",
)
