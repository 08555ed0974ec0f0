import jax
import numpy as np

from results.checks import Claim, above, end
from results.grid import Entry

MIXED = "point-umaze-mixed"
SIZES = (
    "--preset none --seeds 8 --updates 1500 --eval-every 750 --eval-episodes 20 --log-every 250 --batch-size 64 "
    "--hidden-dims 64 --latent-dim 4 --plan-updates 1500 --plan-lr 2e-3 --diffusion-updates 1500 --denoiser-lr 2e-3 "
    "--denoiser-dims 32 --embedding-dim 32 --diffusion-steps 10 --sampling-steps 3 --extra-steps 1 "
    "--plan-candidates 16 --backup-candidates 8 --tau 0.01 --critic-lr 1e-3"
)


def ldcq(window: int, variant: str, more: str = "") -> Entry:
    sizes = f"{SIZES} --window-steps {window} --replan-every {window} {more}".strip()
    return Entry("ldcq", MIXED, sizes, variant, "claim")


windows, actions, prior = ldcq(8, "plans"), ldcq(1, "actions"), ldcq(8, "prior", "--proposal prior")


def plans(module, policies, run):
    """From one state where 24 plans would lead to, by the VAE's decoder of ends; first the one that Q prefers."""
    agent, args = jax.tree.map(lambda x: x[0], (policies.agent, policies.args))
    mean, std = (np.float32(x) for x in (policies.task.obs_mean, policies.task.obs_std))
    env = policies.task.make_env()
    obs = (np.float32(env.reset(seed=0)[0])[None] - mean) / std

    @jax.jit
    def proposed(key):
        plan, q = module.candidates(agent, obs, 24, key, args)
        z = plan[:, 0] * agent.plan_std + agent.plan_mean
        ends, _ = agent.nets.end_decoder.apply(agent.plans[3], obs.repeat(24, 0), z)
        return ends, q.min(0)[:, 0]

    ends, q = proposed(jax.random.key(0))
    paths = np.stack([obs.repeat(24, 0), ends], axis=1)[np.argsort(-np.asarray(q))] * std + mean
    return {run.name: paths[..., :2]}


CLAIM = Claim(
    title="Values of latent plans reach farther than values of actions, and a diffusion model proposes the plans",
    paper="LDCQ (arXiv 2309.06599) claims that Q-learning over latents of windows puts ways together that single "
    "actions do not, the more so the longer the window; and that a diffusion model proposes better latents than the "
    "VAE's Gaussian prior.",
    runs=[windows, actions, prior],
    checks={
        f"{MIXED}: plans of 8 steps end above plans of one action, beyond noise": (above(end(windows), end(actions))),
        f"{MIXED}: plans of the diffusion model end above plans of the prior, beyond noise": (
            above(end(windows), end(prior))
        ),
    },
    finding="Q-learning over latents of eight steps has every lane at the goal; over latents of one step about half of "
    "the episodes fail. Latents of the prior do as well as those of the diffusion model: in this maze there is no room "
    "above them, so which proposes better plans is not told.",
)
