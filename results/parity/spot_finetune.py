"""SPOT fine-tuning beside CORL's: its update offline, and the one in the environment."""

from functools import partial

from results.references import ROOT, Case, module

spot = module(ROOT / "results/parity/spot.py", "parity_spot")

ONLINE = (
    "Without dropout; one update is two steps in the environment, of which one moves the actor; 3 latent samples, 30 "
    "steps, of which the constraint falls for 18; an environment step is counted from 0 here and from 1 in CORL."
)
compare = partial(spot.compare, density="elbo", algorithm="spot_finetune")
CASES = {
    "offline": Case("corl-team/CORL", spot.FILE, compare, note=spot.NOTE),
    "online": Case("corl-team/CORL", spot.FILE, partial(compare, online=True), still=("VAE",), note=ONLINE),
}
