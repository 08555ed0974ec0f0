from results.checks import Claim, end, noise
from results.grid import interaction, offline

PENDULUM, REPLAY = "pendulum-mixed", "hopper-medium-replay-v0"
GRAVITY = {PENDULUM: "0.3", REPLAY: "2"}
ARMS = {
    "": "",
    "plain-mix": "--no-weights --no-adaptive --penalty-weight 0",
    "simulator-only": "--sim-share 1 --backup-entropy",
}

h2o = {
    (d, name): interaction("h2o", d, "12000", f"--sim-gravity {gravity} {more}".strip(), name)
    for d, gravity in GRAVITY.items()
    for name, more in ARMS.items()
}
cql = {d: offline("cql", d, "--n-actions 4", updates=12_000) for d in GRAVITY}
others = {
    **{(d, "mixed batches without weights and penalty"): h2o[d, "plain-mix"] for d in GRAVITY},
    **{(d, "the simulator alone"): h2o[d, "simulator-only"] for d in GRAVITY},
    **{(d, "offline CQL on the data alone"): cql[d] for d in GRAVITY},
}

CLAIM = Claim(
    title="H2O beats the wrong simulator alone and the data alone",
    paper="H2O (arXiv 2206.13464) claims that a simulator with other dynamics and data of the real ones together, with "
    "weights and a penalty by the dynamics gap, give a better policy than either.",
    runs=[*h2o.values(), *cql.values()],
    checks={
        f"{d}: H2O ends above {name}, beyond noise": (end(h2o[d, ""]) > end(other) + noise(end(h2o[d, ""]), end(other)))
        for (d, name), other in others.items()
    },
    observed={
        f"{PENDULUM}: H2O ends above 95": end(h2o[PENDULUM, ""]) > 95,
        f"{PENDULUM}: mixed batches without weights and penalty end below 50": end(h2o[PENDULUM, "plain-mix"]) < 50,
        f"{PENDULUM}: the simulator alone ends below 50": end(h2o[PENDULUM, "simulator-only"]) < 50,
        f"{PENDULUM}: offline CQL ends above 95": end(cql[PENDULUM]) > 95,
        **{
            f"{REPLAY}: H2O ends within 2 of {name}": abs(end(h2o[d, ""]) - end(other)) < 2
            for (d, name), other in others.items()
            if d == REPLAY
        },
    },
    finding="On Pendulum, in a simulator with a third of the gravity, H2O learns the real task, where the "
    "simulator alone and mixed batches without weights and penalty do not. It is not above the data alone: "
    "these transitions show the whole task, and offline CQL solves it too. On hopper-medium-replay with a "
    "simulator of twice the gravity 12,000 steps are too few for any of the four: all end within two points of "
    "each other.",
)
