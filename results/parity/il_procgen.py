"""IL and PPO in generated levels beside the authors' code: a pass of PPO over given steps, and a step of cloning."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from results import references as ref

FILE = "pytorch_pcg_il/torch_ac/algos/ppo.py"
DEVIATIONS = {
    "deviation": "the advantages' variance divides by the rows; in the reference by one less",
}
ACTIONS, ENVS, STEPS, BATCH = 4, 2, 32, 16
SPEC = ref.SPEC._replace(action_dim=ACTIONS, discrete=True)


def compare(checkout, undo):
    torch, module = ref.torch_double(), ref.ours("il_procgen")
    models = ref.theirs(checkout, "pytorch_pcg_il/model.py")
    peer = ref.theirs(checkout, FILE)
    rng = np.random.default_rng(0)
    rows = ENVS * STEPS
    args = module.Args(steps_per_iteration=rows, n_envs=ENVS, batch_size=BATCH, cloning_batch_size=BATCH, ppo_epochs=1)
    agent = ref.agent_of(module, args, rng, SPEC)
    if "deviation" in undo:
        ref.replace(module, "actor_loss", with_their_deviation(module))
    nets = models.ActorModel_RAPID(ref.OBS, ACTIONS), models.CriticModel_RAPID(ref.OBS, ACTIONS)
    trainer = peer.PPOAlgo.__new__(peer.PPOAlgo)  # its constructor starts environments
    vars(trainer).update(
        acmodel=nets, device="cpu", separated_actor_critic=True, use_value_clipping=True, epochs=1, sl_clipgrad=0,
        nminibatch=rows // BATCH, rollout_length=rows, clip_eps=args.ratio_clip, max_grad_norm=args.max_grad_norm,
        entropy_coef=args.entropy_cost, value_loss_coef=args.value_coefficient, forward_mse=torch.nn.MSELoss(),
        optimizer=[torch.optim.Adam(net.parameters(), args.learning_rate, eps=1e-5) for net in nets],
    )  # fmt: skip
    from torch_ac.utils import DictList

    @jax.jit
    def our_update(agent, steps, order, memory, row):
        with mock.patch.object(jax.random, "permutation", lambda *_: order):
            agent, info = module.update(agent, steps, jax.random.key(0), args)
        with mock.patch.object(jax.random, "randint", lambda *_: row):
            agent, info_of_clone = module.clone(agent, memory, jax.random.split(jax.random.key(0), 1), args)
        return agent, {**info, **info_of_clone}

    @jax.jit
    def estimates(agent, batch, ended):
        """What PPO is told of the steps: log pi, V, advantages."""
        v, next_v = (agent.nets.value.apply(agent.value, obs)[..., 0] for obs in (batch.obs, batch.next_obs))
        adv = [module.advantages(*(x[:, i] for x in (v, next_v)), of(batch, i), ended[:, i], args) for i in range(ENVS)]
        log_prob, _ = module.action_log_prob(agent.nets.actor, agent.actor, batch.obs, batch.action)
        return log_prob, v, jnp.stack(adv, axis=1)

    def networks():
        return {"actor": ref.tie(agent.actor, nets[0]), "value": ref.tie(agent.value, nets[1])}

    def update():
        nonlocal agent
        shape = STEPS, ENVS
        obs, next_obs = (rng.standard_normal((*shape, ref.OBS)) for _ in range(2))
        action, reward = rng.integers(0, ACTIONS, shape), rng.standard_normal(shape)
        terminal = (rng.random(shape) < 0.1).astype(float)
        batch = module.Batch(obs=obs, action=action, reward=reward, terminal=terminal, next_obs=next_obs)
        log_prob, v, adv = estimates(agent, batch, terminal)
        old = np.asarray(log_prob) + 0.3 * rng.standard_normal(shape)  # of another policy: some ratios are clipped
        order, row = rng.permutation(rows), rng.integers(0, rows, BATCH)
        memory = module.Memory(obs.reshape(rows, -1), action.reshape(-1), np.ones(rows), np.ones(rows))
        agent, info = our_update(agent, module.Steps(batch, old, terminal), order, memory, row)
        given = {
            "obs": obs, "action": action, "log_prob": old, "value_ext": v, "advantage_total": adv,
            "returnn_ext": np.asarray(adv) + np.asarray(v),
        }  # fmt: skip
        told = DictList({k: torch.tensor(np.asarray(x).reshape(rows, *np.shape(x)[2:])) for k, x in given.items()})

        def shuffle(idx):
            idx[:] = order

        with mock.patch.object(np.random, "shuffle", shuffle):
            log = trainer.update_parameters_ppo(told)
        cloned, _ = trainer.update_parameters_imitation(None, memory.obs[row], memory.action[row], None, None)
        of_policy = log["policy_loss"] - args.entropy_cost * log["entropy"]
        return {
            "actor": (ref.scalar(info["actor_loss"]), ref.scalar(of_policy)),
            "value": (ref.scalar(info["value_loss"]), ref.scalar(args.value_coefficient * log["value_loss"])),
            "cloning": (ref.scalar(info["cloning_loss"]), ref.scalar(cloned)),
        }

    return ref.side_by_side(networks, update)


def of(batch, i):
    """The steps of one environment."""
    return jax.tree.map(lambda x: x[:, i], batch)


def with_their_deviation(module):
    def actor_loss(actor, net, batch, old_log_prob, adv, args):
        log_prob, every = module.action_log_prob(net, actor, batch.obs, batch.action)
        adv = (adv - adv.mean()) / (adv.std(ddof=1) + 1e-8)
        entropy = -(jnp.exp(every) * every).sum(-1).mean()
        loss = module.surrogate(log_prob, old_log_prob, adv, args.ratio_clip).mean() - args.entropy_cost * entropy
        return loss, {"entropy": entropy}

    return actor_loss


NOTE = (
    "The steps are given, with their log probabilities, values and advantages: 4 minibatches, then one of cloning. The "
    "memory is not compared."
)
CASES = {"": ref.Case("uoe-agents/imitation-learning-pcg", FILE, compare, DEVIATIONS, note=NOTE)}
