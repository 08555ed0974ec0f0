from results.checks import Claim, above, end, logged, noise
from results.grid import Entry

TRIALS = "trial-point-mixed"
LENGTH = "--seeds 8 --updates 1200 --context-updates 1000 --log-every 200 --eval-every 1200 --eval-episodes 50"
SIZES = (
    "--width 32 --layers 1 --batch-size 32 --context 4 --history-steps 3 --prompt-steps 3 --recurrent-dim 32 "
    "--hidden-dims 64 64"
)
RATES = (
    "--learning-rate 2e-3 --context-lr 3e-3 --warmup-updates 100 --unprompted-updates 100 --token-dropout 0 "
    "--max-grad-norm 0 --target-return -2 --return-scale 3"
)

run = Entry("meta_dt", TRIALS, f"{LENGTH} {SIZES} {RATES} --task-weight 0 1 --prompt-share 0 1", "", "claim")
half = Entry("meta_dt", TRIALS, f"{LENGTH} {SIZES} {RATES} --task-weight 0 1 --prompt-share 0.5", "half", "claim")
DT, ALWAYS_PROMPT, ZERO, ALWAYS = (f"task_weight={told} prompt_share={share}" for told in (0, 1) for share in (0, 1))
UNTOLD, FEW = (f"task_weight={told}" for told in (0, 1))
"""Of `half`: every other window has a prompt."""


few, zero, always, prompt, plain = (
    end(run_of, setting)
    for run_of, setting in ((half, FEW), (run, ZERO), (run, ALWAYS), (run, ALWAYS_PROMPT), (run, DT))
)
losses = {setting: logged("actor_loss", run, setting) for setting in (ALWAYS, ZERO)}

CLAIM = Claim(
    title="A world model's encoder and prompts of its own tell a policy of a task that it never saw",
    paper="Meta-DT (arXiv 2410.11448) claims that on tasks which are not in the data it is above Prompt-DT and other "
    "baselines, few-shot with prompts of its own history, zero-shot without; and that it loses without its context, "
    "and without its prompt. Here tasks are hidden goals, each of which is tried four times; few-shot, half of the "
    "windows have a prompt in training.",
    runs=[run, half],
    checks={
        f"{TRIALS}: few-shot it ends above DT, beyond noise": above(few, plain),
        f"{TRIALS}: zero-shot it ends above DT, beyond noise": above(zero, plain),
        f"{TRIALS}: few-shot it ends above the same prompts alone, beyond noise": above(few, end(half, UNTOLD)),
        f"{TRIALS}: few-shot it ends above zero-shot, beyond noise": above(few, zero),
        f"{TRIALS}: with a prompt in every window it ends above DT, beyond noise": above(always, plain),
        f"{TRIALS}: with a prompt in every window it ends above prompts alone, beyond noise": above(always, prompt),
    },
    observed={
        f"{TRIALS}: few-shot it ends within noise of zero-shot": abs(few - zero) < noise(few, zero),
        f"{TRIALS}: with a prompt in every window it ends within noise of zero-shot": abs(always - zero)
        < noise(always, zero),
        f"{TRIALS}: prompts alone, in every window, end above DT, beyond noise": above(prompt, plain),
        f"{TRIALS}: prompts alone, in every other window, end within noise of DT": abs(end(half, UNTOLD) - plain)
        < noise(end(half, UNTOLD), plain),
        f"{TRIALS}: with a prompt in every window its loss is lower than zero-shot's, beyond noise": above(
            losses[ZERO], losses[ALWAYS]
        ),
    },
    finding="The encoder is what counts: told the task by the steps before, a policy goes to goals that it never saw, "
    "where DT does not. Prompts alone help where every window has one. Beside the encoder they lower the "
    "training loss, but add nothing to the returns that noise would not; in every other window they were tried "
    "after they had been seen to lower the returns, within noise, in every window. What we suspect, and have "
    "not tried: in the data every try heads for the goal, so that a prompt is believed; the policy's own first "
    "try, which knows nothing, may head elsewhere, and its prompt is believed as well. Data with tries that "
    "miss would tell.",
)
