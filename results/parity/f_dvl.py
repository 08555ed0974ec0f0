"""f-DVL beside the authors' code, and its reverse-KL case beside that of XQL."""

import jax

from results.jax_references import HIDDEN, packages, side_by_side, start
from results.references import ACTION, OBS, ROOT, ROWS, Case, module, ours

FILE = "offline/learner.py"
iql = module(ROOT / "results/parity/iql.py", "parity_iql")


def compare(checkout, undo, divergence, **setting):
    code, load = ours("f_dvl"), packages(checkout, "offline", frozen=True)
    peer = load("learner")
    args = code.Args(
        hidden_dims=HIDDEN, batch_size=ROWS, updates=50, divergence=divergence.replace("-", "_"), beta=0.5, **setting
    )
    agent, zeros = start(code, args), jax.numpy.zeros
    flags = Flags(
        f=divergence,
        sample_random_times=args.n_random_actions,
        grad_pen=False,
        noise=args.action_noise > 0,
        noise_std=args.action_noise,
        max_clip=args.max_clip,
        num_v_updates=args.value_updates,
        log_loss=False,
    )
    learner = peer.Learner(
        0, zeros((1, OBS)), zeros((1, ACTION)), hidden_dims=HIDDEN, temperature=args.beta, layernorm=True,
        max_steps=50, loss_temp=args.loss_temperature, double_q=True, vanilla=False, args=flags,
    )  # fmt: skip
    iql.give(learner, agent)
    yield from side_by_side(agent, iql.our_step(code, args), learner, iql.their_step(peer), iql.view)


class Flags:
    """The reference's settings; hashable, as its compiled update wants them."""

    def __init__(self, **values):
        self.__dict__.update(values)


def case(reference, divergence, **setting):
    return Case(reference, FILE, lambda c, u: compare(c, u, divergence, **setting))


CASES = {
    "chi-square": case("hari-sikchi/DVL", "chi-square", n_random_actions=1),
    "total variation": case("hari-sikchi/DVL", "total-variation", loss_temperature=0.8),
    "reverse KL": case("hari-sikchi/DVL", "reverse-kl", loss_temperature=2.0, action_noise=0.1),
    "reverse KL, 2 value updates": case("hari-sikchi/DVL", "reverse-kl", loss_temperature=0.6, value_updates=2),
    "XQL": case("Div99/XQL", "reverse-kl", loss_temperature=2.0, n_random_actions=1),
}
