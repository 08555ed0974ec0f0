from results.checks import Claim, end, noise
from results.grid import small

NEAR = "point-hazard-explore"
SHORT = "--discount 0.9"  # of all: a step is worth a tenth of Q

bc, cql = small("bc", dataset=NEAR), small("cql", SHORT, "short", NEAR)
mild, sac = (
    small("mcq", f"{SHORT} --vae-hidden-dims 64 64 --bellman-weight {weight}", f"weight{weight}", NEAR)
    for weight in (0.7, 1)
)

CLAIM = Claim(
    title="Values of unseen actions at those of the best seen ones leave room that CQL does not",
    paper="MCQ (arXiv 2206.04745) claims more than CQL's results on data that is not an expert's, since the values of "
    "actions outside the data are held down only as far as needed; without that they are too high and SAC fails.",
    runs=[bc, cql, mild, sac],
    checks={
        f"{NEAR}: MCQ ends above CQL, beyond noise": end(mild) > end(cql) + noise(end(mild), end(cql)),
        f"{NEAR}: MCQ ends above cloning, beyond noise": end(mild) > end(bc) + noise(end(mild), end(bc)),
        f"{NEAR}: with the Bellman error alone, weight 1, it ends lower, beyond noise": (
            end(sac) < end(mild) - noise(end(sac), end(mild))
        ),
    },
    finding="MCQ and CQL end alike, far above cloning, and with the Bellman error alone the policy ends as high. This "
    "problem, whose data goes everywhere, does not tell the three apart; narrower data was not tried.",
)
