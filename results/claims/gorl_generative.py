from results.checks import Claim, end, logged, noise, online_mean
from results.grid import Entry


def world(variant, more=""):
    length = "--seeds 8 --env-steps 98304 --eval-every 8192 --log-every 8192 --eval-episodes 20"
    sizes = "--n-envs 16 --steps-per-iteration 1024 --batch-size 128 --ppo-epochs 4 --hidden-dims 32 32"
    networks = "--value-hidden-dims 64 64 --decoder-hidden-dims 64 64 --reward-scale 0.1 --discount 0.97"
    flow = "--collect-iterations 4 --decoder-updates 1000 --decoder-batch-size 128 --decoder-draws 4 --flow-steps 5"
    arguments = f"{length} {sizes} {networks} {flow} {more}"
    return Entry("gorl_generative", "phys2d/Pendulum-v0", arguments.strip(), variant, "claim")


gorl, ppo = world("three-stages", "--stages 3"), world("ppo", "--stages 1")
anew = world("unfitted", "--stages 3 --decoder-updates 1")

CLAIM = Claim(
    title="PPO goes on where its flow has learned what it did",
    paper="GoRL (arXiv 2512.02581) claims that PPO in the latent space of a flow, which in turns is fitted to what the "
    "policy does, ends higher than PPO with a Gaussian, and that a new encoder begins about where the last one ended.",
    runs=[gorl, ppo, anew],
    checks={
        "It ends above PPO with as many steps, beyond noise": end(gorl) > end(ppo) + noise(end(gorl), end(ppo)),
        "It ends no lower than PPO, within noise": end(gorl) > end(ppo) - noise(end(gorl), end(ppo)),
        "The fit is worth something: over all evaluations more than flows that were not fitted": online_mean(gorl)
        > online_mean(anew) + noise(online_mean(gorl), online_mean(anew)),
    },
    finding="",
)
