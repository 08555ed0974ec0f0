from results.checks import Claim, end, noise
from results.grid import Entry

MIXED = "point-umaze-mixed"
SIZES = (
    "--seeds 8 --batch-size 64 --hidden-dims 64 64 --updates 2000 --eval-every 1000 --log-every 200 --eval-episodes 20 "
    "--value-classes 51 --n-candidates 8 --flow-steps 5"
)

deas = Entry("deas", MIXED, f"{SIZES} --chunk-length 8", "h8", "claim")
single = Entry("deas", MIXED, f"{SIZES} --chunk-length 1 --discount 0.99 0.999", "h1", "claim")
coupled = Entry("deas", MIXED, f"{SIZES} --chunk-length 8 --next-value policy", "coupled", "claim")
regressed = Entry("deas", MIXED, f"{SIZES} --chunk-length 8 --no-classification", "regressed", "claim")

CLAIM = Claim(
    title="Values of chunks see far in few updates, without any policy in their targets",
    paper="DEAS (arXiv 2510.07730) claims that values of action sequences shorten the horizon where those of single "
    "actions barely learn (chunks of one action: 21 of 100, of eight: 88), and that both a target without the policy "
    "and classification are needed (each alone: 63 and 75).",
    runs=[deas, single, coupled, regressed],
    checks={
        **{
            f"{MIXED}: chunks of eight actions end above single actions with discount {discount}, beyond noise": (
                end(deas) > end(single, f"discount={discount}") + noise(end(deas), end(single, f"discount={discount}"))
            )
            for discount in ("0.99", "0.999")
        },
        f"{MIXED}: V in the target ends above the policy's own Q there, beyond noise": (
            end(deas) > end(coupled) + noise(end(deas), end(coupled))
        ),
        f"{MIXED}: classification ends above regression, beyond noise": (
            end(deas) > end(regressed) + noise(end(deas), end(regressed))
        ),
    },
)
