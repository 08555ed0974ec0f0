from results.checks import Claim, end, logged, noise
from results.grid import MODEL, Entry, replay

WEAK, REPLAY = "pendulum-weak", "hopper-medium-replay-v0"
SIZES = (
    "--seeds 8 --env phys2d/Pendulum-v0 --batch-size 128 --hidden-dims 64 64 --model-hidden-dims 64 64 "
    "--model-updates 5000 --updates 10000 --rollout-batch 1000 --eval-every 5000"
)

short = Entry("mopo", WEAK, f"{SIZES} --rollout-steps 5 --reward-penalty 0 1", "h5", "claim")
long = Entry("mopo", WEAK, f"{SIZES} --rollout-steps 20 --reward-penalty 0 1", "h20", "claim")
rambo = Entry("rambo", WEAK, f"{SIZES} --rollout-steps 5 --adversary-updates 200 --adversary-weight 0 1", "", "claim")
td3_bc, hopper = replay("td3_bc"), replay("mopo", MODEL)
refitted = "adversary_weight=0"  # MOPO without a penalty, whose model goes on learning between rollouts
ALEATORIC, PAIRS, STD, LIKELIHOOD, KL = (f"rank_{i}" for i in (1, 2, 3, 5, 6))

CLAIM = Claim(
    title="A penalty for what the model does not know makes model-based learning an offline method",
    paper="MOPO (arXiv 2005.13239) claims that rewards minus the model's uncertainty beat plain model-based policy "
    "optimisation (MBPO). 'Revisiting Design Choices' (arXiv 2110.04135) claims that the std of the ensemble follows "
    "the model's true error best, and that MOPO's largest aleatoric std does not.",
    runs=[short, long, rambo, td3_bc, hopper],
    checks={
        **{
            f"{WEAK}: with the penalty MOPO ends above without it, beyond noise, with rollouts of {h} steps": (
                end(run, "reward_penalty=1")
                > end(run, "reward_penalty=0") + noise(end(run, "reward_penalty=1"), end(run, "reward_penalty=0"))
            )
            for h, run in ((5, short), (20, long))
        },
        **{
            f"{WEAK}: the std of the ensemble ranks pairs more like the true error than {name} does, beyond noise": (
                logged(STD, short, "reward_penalty=1")
                > logged(other, short, "reward_penalty=1")
                + noise(logged(STD, short, "reward_penalty=1"), logged(other, short, "reward_penalty=1"))
            )
            for name, other in (
                ("the largest aleatoric std", ALEATORIC),
                ("the distance of two means", PAIRS),
                ("the variance of likelihoods", LIKELIHOOD),
                ("the KL divergence", KL),
            )
        },
        f"{REPLAY}: MOPO ends above TD3+BC, beyond noise": end(hopper) > end(td3_bc) + noise(end(hopper), end(td3_bc)),
    },
    observed={
        "without a penalty, a model that goes on learning has less than half the error of one step": (
            logged("error_1", rambo, refitted) < 0.5 * logged("error_1", short, "reward_penalty=0")
        ),
        "and its policies end above, beyond noise": (
            end(rambo, refitted)
            > end(short, "reward_penalty=0") + noise(end(rambo, refitted), end(short, "reward_penalty=0"))
        ),
    },
    finding="Not on Pendulum: data of four controllers cover the states, and a penalty for what nobody did costs more"
    " than it saves. What the model lacks is fitting: the same learner without a penalty whose model goes on "
    "learning between the rollouts (RAMBO's arm without its game), has a much smaller error and ends much "
    "higher. The std of the ensemble does not rank pairs as the true error does here; other measures do so "
    "better. On hopper-medium-replay, with the same networks, batches, step sizes and as many updates, a "
    "small part of the papers', MOPO ends no higher than TD3+BC.",
)
