from results.checks import Claim, above, end, logged
from results.grid import Entry

DATA = "point-fourrooms-partial"


def world(variant, more=""):
    length = "--offline-updates 4000 --offline-eval-every 4000 --env-steps 10000 --eval-every 1000 --log-every 1000"
    sizes = "--seeds 8 --batch-size 64 --hidden-dims 64 64 --actor-hidden-dims 64 64 --n-actions 4 --eval-episodes 20"
    same = "--reward-shift -1 --failure-reward 0 --critic-lr 1e-3 --actor-lr 3e-4 --cql-alpha 1 --discount 0.97"
    return Entry("sera", DATA, f"{sizes} {length} {same} {more}".strip(), variant, "claim")


weights = world("q", "--bonus-weight 0 1")
plain = world("plain", "--condition none --bonus-weight 1")
NONE, SOME = "bonus_weight=0", "bonus_weight=1"

CLAIM = Claim(
    title="SERA finds a goal that the data do not show sooner than Cal-QL",
    paper="SERA (arXiv 2310.19805) claims that rewards for states that are rare among those of like value improve "
    "fine-tuning, of Cal-QL among others, and more so than the plain state entropy does.",
    runs=[weights, plain],
    checks={
        "With the bonus it ends above Cal-QL, beyond noise": above(end(weights, SOME), end(weights, NONE)),
        "It ends above the plain state entropy, beyond noise": above(end(weights, SOME), end(plain)),
    },
    observed={
        "The bonus tells states from each other": logged("bonus_std", weights, SOME) > 0.03,
        "It has more than twice the spread of the plain state entropy's": (
            logged("bonus_std", weights, SOME) > 2 * logged("bonus_std", plain)
        ),
        "The plain state entropy's is above 0.45 on average, of a cost of 1 for each step": logged("bonus", plain)
        > 0.45,
        "The bonus is below 0.4 on average": logged("bonus", weights, SOME) < 0.4,
    },
    finding="No lane of Cal-QL ever reaches the room that the data do not show. With rewards for states that are rare "
    "among those of like value some lanes do and keep it, with the plain state entropy fewer: the order is the "
    "paper's, but lanes either find the goal or do not, and eight of them are too few to tell it from noise. "
    "The two differ in more than the condition. The conditional entropy is of either sign, and its bonus tells "
    "states apart by far more; the plain one is never negative, and its bonus takes back about half of each "
    "step's cost, wherever the agent is. Whether the condition or the scale makes the order was not tried.",
)
