from results.checks import Claim, above, end, logged, under
from results.grid import Entry

DATA, NOTHING = "minigrid-gotodoor-mixed", "target_return=0.01"
LENGTH = "--seeds 8 --updates 24000 --log-every 4000 --eval-every 12000 --eval-episodes 32"
SIZES = "--context 4 --width 32 --layers 1 --heads 2 --batch-size 32 --learning-rate 3e-3 --warmup-updates 100"
SAME = f"{LENGTH} {SIZES} --token-dropout 0 --max-grad-norm 5 --weight-decay 1e-4"

more = Entry("more_3s", DATA, f"{SAME} --alignment-weight 0 0.1", "", "claim", (NOTHING,))
untold = Entry("more_3s", DATA, f"{SAME} --no-told", "untold", "claim")
dt = Entry("decision_transformer", DATA, SAME, "beside-more-3s", "claim")
ALIGNED, PLAIN = "alignment_weight=0.1", "alignment_weight=0"

CLAIM = Claim(
    title="States and texts in one space tell which of four doors is meant",
    paper="MORE-3S (arXiv 2402.12845) claims more than Decision Transformer by texts for states and actions that share "
    "one space, in which both are aligned. Here a mission says which of four doors pays, half of the data goes to "
    "another one, and seven actions have names.",
    runs=[more, untold, dt],
    checks={
        "with alignment it is better than Decision Transformer, to which letters are numbers, beyond noise": (
            above(end(more, ALIGNED), end(dt))
        ),
        "with alignment it is better than without it, beyond noise": above(end(more, ALIGNED), end(more, PLAIN)),
        "with the mission it is better than without it, beyond noise": above(end(more, ALIGNED), end(untold)),
        "asked for next to nothing it gets less, beyond noise: returns reach it through keys and values": (
            above(end(more, ALIGNED), under(NOTHING, more, ALIGNED))
        ),
        "without alignment, too, it is better than Decision Transformer, beyond noise": (
            above(end(more, PLAIN), end(dt))
        ),
    },
    observed={
        "states lie nearer to the texts of their actions with alignment, beyond noise": (
            above(logged("alignment_loss", more, PLAIN), logged("alignment_loss", more, ALIGNED))
        ),
    },
    finding="The mission is read, and so is the return that is asked for, which enters through keys and values alone."
    " Alignment does what it says to the space, and buys no score here: with it the texts lie nearer to the "
    "states, and the policy is no better. Decision Transformer, of the same width, depth, context and "
    "updates, does no worse with the letters as plain numbers, which it reads normalised: 24,000 updates are "
    "enough to learn which of four doors eleven letters mean. What a text that was learned elsewhere adds "
    "cannot be seen with a reader that is trained here from nothing.",
)
