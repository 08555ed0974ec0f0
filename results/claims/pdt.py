from results.checks import Claim, above, end, gain, logged, noise, under
from results.grid import Entry

DATA, PRIOR = "point-hidden-expert", "future_candidates=1"
LENGTH = "--seeds 8 --env PointHiddenCorner-v0 --env-steps 2000 --eval-every 500 --log-every 100 --eval-episodes 16"
PHASES = "--learning-starts 500 --learn-every 50 --updates-per-round 20 --return-updates 1000"
BEFORE = "--offline-updates 4000 --offline-eval-every 4000"
SIZES = "--context 1 --lookahead 8 --latent-dim 2 --width 32 --layers 1 --heads 1 --batch-size 128 --token-dropout 0"
RATES = "--learning-rate 3e-3 --warmup-updates 100 --kl-weight 0.02 --future-candidates 32 --reward-scale 0.01"
ONLINE = f"{LENGTH} {PHASES} {SIZES} {RATES}"
ARGUMENTS = f"{ONLINE} {BEFORE}"

pdt = Entry("pdt", DATA, ARGUMENTS, "", "claim", (PRIOR,))
returns = Entry("pdt", DATA, f"{ARGUMENTS} --pretrain return", "returns", "claim")
scratch = Entry("pdt", DATA, f"{ONLINE} --pretrain none", "scratch", "claim")

CLAIM = Claim(
    title="Futures can be pre-trained where returns cannot, and are told apart by a few rewards",
    paper="PDT (arXiv 2305.16683) claims that futures learned without rewards hold different behaviours, of which "
    "a few online steps find the good ones, so that it fine-tunes better than Online DT. Here the data goes to goals "
    "everywhere from one start, and the environment pays for one corner.",
    runs=[pdt, returns, scratch],
    checks={
        "it ends above the same transformer pre-trained with random returns for tokens, beyond noise": (
            above(end(pdt), end(returns))
        ),
        "it ends above a start from scratch, beyond noise": above(end(pdt), end(scratch)),
        "before any fine-tuning its futures lead to different places, those of random returns do not, beyond noise": (
            above(logged("diversity", pdt), logged("diversity", returns))
        ),
        "interaction improves it, beyond noise": gain(pdt) > noise(gain(pdt)),
        "the future that promises most is better than any of the prior's, beyond noise": (
            above(end(pdt), under(PRIOR, pdt))
        ),
    },
    observed={
        "told its future the policy foretells what was played better than told a return": (
            logged("nll", pdt) < logged("nll", returns) - 0.3
        ),
        "it ends below a start from scratch": end(pdt) < end(scratch),
        "it ends below the transformer that was told random returns": end(pdt) < end(returns),
    },
    finding="The futures are learned: they lead to different places, and the policy follows them. What so few "
    "rewards teach of them is not enough here to choose by: the future that promises most is no better than any other. "
    "A Decision Transformer that was told random returns before ends higher, and so does a start from scratch, which "
    "is nowhere at first and ahead after as many steps: the corner is easily found.",
)
