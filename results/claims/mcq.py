from results.checks import Claim, end, noise
from results.grid import Entry

DETOURS = "point-umaze-medium"
SIZES = "--seeds 8 --batch-size 128 --hidden-dims 64 64 --updates 8000 --eval-every 4000 --eval-episodes 20"

bc, cql = Entry("bc", DETOURS, SIZES, series="claim"), Entry("cql", DETOURS, SIZES, series="claim")
mild, sac = (
    Entry("mcq", DETOURS, f"{SIZES} --vae-hidden-dims 64 64 --bellman-weight {weight}", f"weight{weight}", "claim")
    for weight in (0.7, 1)
)

CLAIM = Claim(
    title="Values of unseen actions at those of the best seen ones leave room that CQL does not",
    paper="MCQ (arXiv 2206.04745) claims more than CQL's results on data that is not an expert's, since the values of "
    "actions outside the data are held down only as far as needed; without that they are too high and SAC fails.",
    runs=[bc, cql, mild, sac],
    checks={
        f"{DETOURS}: MCQ ends above CQL, beyond noise": end(mild) > end(cql) + noise(end(mild), end(cql)),
        f"{DETOURS}: MCQ ends above cloning, beyond noise": end(mild) > end(bc) + noise(end(mild), end(bc)),
        f"{DETOURS}: with the Bellman error alone, weight 1, it ends lower, beyond noise": (
            end(sac) < end(mild) - noise(end(sac), end(mild))
        ),
    },
)
