"""SAQ-IQL beside the authors' code: the VQ-VAE, the behaviour over its codes, V and Q."""

import jax

from results import references as ref
from results.jax_references import packages, pairs, plain, read, side_by_side, start, theirs_of, write

FILE = "vqn/vqiql.py"
HIDDEN, VAE_HIDDEN, CODES, CODE_DIM = (256, 256), (24, 24), 7, 6
OURS, THEIRS = ("encoder", "decoder", "prior_net"), ("encoder", "decoder", "action_prior")


def compare(checkout, undo):
    module, load = ref.in_double(ref.ours("saq")), packages(checkout)
    load("vqn.jax_utils").init_rng(0)
    peer = ref.in_double(load("vqn.vqiql"))
    args = module.Args(
        batch_size=ref.ROWS, hidden_dims=HIDDEN, vae_hidden_dims=VAE_HIDDEN, n_codes=CODES, code_dim=CODE_DIM
    )
    agent = start(module, args)
    zeros = jax.numpy.zeros
    made = peer.VQIQLLearner(
        0, zeros((1, ref.OBS)), zeros((1, ref.ACTION)), embedding_dim=CODE_DIM, codebook_size=CODES,
        vqvae_arch="-".join(map(str, VAE_HIDDEN)), hidden_dims=HIDDEN, discount=args.discount, tau=args.tau,
        expectile=args.expectile, A_scaling=args.policy_temperature, qf_weight_decay=args.weight_decay,
    )  # fmt: skip

    def begun(state, arrays, *first):
        """A state of theirs with our parameters."""
        params = write(plain(state.params), arrays, *first)
        return state.replace(params=params, opt_state=state.tx.init(params))

    vae = begun(made._vqvae_train_state, read(agent.vae["params"], *OURS), *(f"params/{x}" for x in THEIRS))
    made._vqvae_train_state = vae
    made._behavior_policy_train_state = begun(made._behavior_policy_train_state, read(agent.behaviour))
    made._critic, made._value = begun(made._critic, read(agent.critic)), begun(made._value, read(agent.value))
    made._target_critic_params = write(plain(made._target_critic_params), read(agent.target_critic))

    @jax.jit
    def our_step(agent, batch):
        agent, of_vae = module.update_vae(agent, batch, args)
        agent, info = module.update(agent, batch, args)
        losses = {name: info[f"{name}_loss"] for name in ("behaviour", "value", "critic")}
        return agent, losses | {"VQ-VAE": of_vae["vae_loss"]}

    def their_step(made, rows):
        batch = theirs_of(rows)
        of_vae = made.train_vqvae(batch)
        # compiled, it would keep the VQ-VAE that it first saw
        state, of_policy = type(made)._behavior_policy_train_step.__wrapped__(
            made, jax.random.key(0), made._behavior_policy_train_state, batch
        )
        made._behavior_policy_train_state = state
        info = made.update(batch)
        losses = {"behaviour": of_policy["policy_loss"], "value": info["value_loss"], "critic": info["critic_loss"]}
        return made, losses | {"VQ-VAE": of_vae["loss"]}

    def view(agent, made):
        of_ours = {name: (read, getattr(agent, name), getattr(agent, f"{name}_opt")) for name in PARTS}
        states = {"behaviour": made._behavior_policy_train_state, "critic": made._critic, "value": made._value}
        of_theirs = {name: (read, state.params, state.opt_state) for name, state in states.items()}
        of_ours["VQ-VAE"] = (lambda tree: read(tree["params"], *OURS), agent.vae, agent.vae_opt)
        state = made._vqvae_train_state
        of_theirs["VQ-VAE"] = (lambda tree: read(tree["params"], *THEIRS), state.params, state.opt_state)
        of_ours["target critic"] = (read, agent.target_critic, None)
        of_theirs["target critic"] = (read, made._target_critic_params, None)
        return pairs(of_ours, of_theirs)

    yield from side_by_side(agent, our_step, made, their_step, view)


PARTS = ("behaviour", "critic", "value")
NOTE = (
    "Each update is one of the VQ-VAE, then one of the agent; 7 codes. The learners cql, brac and bc are not compared."
)
CASES = {"": ref.Case("jianlanluo/SAQ", FILE, compare, note=NOTE)}
