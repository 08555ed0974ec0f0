from results.checks import Amounts, Claim, below, end, logged
from results.grid import Entry

LOCK = "tabular-combination-lock-h8-trajectory"


def lock(variant, more, steps=12_000):
    length = f"--seeds 8 --env-steps {steps} --log-every {steps // 15} --eval-every {steps // 2}"
    return Entry("ftpedel", LOCK, f"{length} {more}", variant, "claim")


SHARES = ("0", "0.25", "0.5", "0.75", "1")
hybrid = lock("coverage", f"--covered-steps {' '.join(SHARES)}")
offline = lock("offline", "--mode offline --covered-steps 0.5 1", 1_200)


def episodes(share):
    """Online episodes after which the learner stops: it takes its policy for 0.1-optimal."""
    return logged("episodes", hybrid, f"covered_steps={share}")


def searched(share):
    """Online episodes after which what it would give out is 0.1-optimal, whether it stops or not."""
    return logged("searched", hybrid, f"covered_steps={share}")


def fewer(count, more, less):
    return below(count(more), count(less))


CLAIM = Claim(
    title="Data that covers a half of the steps saves online episodes; alone it is not enough",
    paper="Wagenmaker and Pacchiano (arXiv 2211.04974) claim that offline data and interaction together need fewer "
    "online episodes to an eps-optimal policy than interaction alone, also where the dataset alone is not enough; and "
    "that finding a good policy is less than knowing that it is good.",
    runs=[hybrid, offline],
    checks={
        "With the first half covered, fewer episodes than without data until a 0.1-optimal policy is given out, beyond "
        "noise": fewer(searched, "0.5", "0"),
        "So it is until the learner stops, beyond noise": fewer(episodes, "0.5", "0"),
        "All covered, fewer still until it stops, beyond noise": fewer(episodes, "1", "0.5"),
        "The first half of the data alone gives out a policy below 20": end(offline, "covered_steps=0.5") < 20,
        "With it and interaction, one above 90": end(hybrid, "covered_steps=0.5") > 90,
        "All data alone gives out a policy above 90": end(offline, "covered_steps=1") > 90,
        "But until the learner stops more than 100 episodes are played": episodes("1") > 100,
    },
    observed={
        **{
            f"A share {more} of the steps covered: fewer episodes to a 0.1-optimal policy than with {less}": (
                searched(more) < searched(less)
            )
            for less, more in zip(SHARES, SHARES[1:], strict=False)
        },
        **{
            f"A share {more} covered: fewer until it stops than with {less}": episodes(more) < episodes(less)
            for less, more in zip(SHARES, SHARES[1:], strict=False)
        },
    },
    amounts=Amounts(
        "Episodes to a 0.1-optimal policy against the data",
        "share of the steps that the data covers",
        "online episodes",
        {
            "until one is given out": {share: searched(share) for share in SHARES},
            "until the learner stops": {share: episodes(share) for share in SHARES},
        },
    ),
    finding="Each further quarter of the steps that the dataset covers saves episodes, both until a 0.1-optimal "
    "policy is given out and until the learner stops: a wrong action ends what an episode can tell of the "
    "lock, so that a pair that the data does not hold must be tried by an episode of its own. The first half "
    "of the data alone gives out a policy that is hardly worth anything, since nothing is known of the steps "
    "behind. All of the data alone gives out a good one, and more than 100 episodes are played until the "
    "learner takes it for one.",
)
