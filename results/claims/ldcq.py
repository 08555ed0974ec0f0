from results.checks import Claim, end, noise
from results.grid import small

MIXED = "point-umaze-mixed"
PLANS = (
    "--latent-dim 4 --plan-lr 1e-3 --denoiser-lr 1e-3 --denoiser-dims 64 32 16 --embedding-dim 32 --diffusion-steps 20 "
    "--sampling-steps 5 --extra-steps 1 --plan-updates 5000 --diffusion-updates 5000 --plan-candidates 32 "
    "--backup-candidates 8"
)


def ldcq(window: int, variant: str, more: str = ""):
    sizes = f"{PLANS} --window-steps {window} --replan-every {window} {more}".strip()
    return small("ldcq", sizes, variant, MIXED)


plans, actions, prior = ldcq(8, "plans"), ldcq(1, "actions"), ldcq(8, "prior", "--proposal prior")

CLAIM = Claim(
    title="Values of latent plans reach farther than values of actions, and a diffusion model proposes the plans",
    paper="LDCQ (arXiv 2309.06599) claims that Q-learning over latents of windows puts ways together that single "
    "actions do not, the more so the longer the window; and that a diffusion model proposes better latents than the "
    "VAE's Gaussian prior.",
    runs=[plans, actions, prior],
    checks={
        f"{MIXED}: plans of 8 steps end above plans of one action, beyond noise": (
            end(plans) > end(actions) + noise(end(plans), end(actions))
        ),
        f"{MIXED}: plans of the diffusion model end above plans of the prior, beyond noise": (
            end(plans) > end(prior) + noise(end(plans), end(prior))
        ),
    },
)
