"""H2O beside its authors' code."""

import jax
import numpy as np

from results import references as ref

FILE = "SimpleSAC/sim2real_sac.py"
DEVIATIONS = {
    "noise on s'": "the noise on s' is in units of the deviation of a batch of real observations; the authors' is of a "
    "buffer most of whose rows are zeros (here 0.3 of that)",
}
SUM = "obs", "action", "next_obs"
NAMES = {"obs": "observations", "action": "actions", "reward": "rewards", "next_obs": "next_observations"}


class Memory:
    """Their replay buffer's face, over the batches that both sides are given."""

    def __init__(self):
        self.next = []

    def get_mean_std(self):
        return 0.0, 1.0

    def sample(self, size, scope, type=None):
        rows = self.next.pop(0)
        if type == "sas":
            return dict(zip(SUM, ref.tensors(rows, *SUM)))
        tensors = dict(zip([*NAMES.values(), "dones"], ref.tensors(rows, *NAMES, "terminal")))
        assert len(rows["reward"]) == size
        return tensors


def compare(checkout, undo):
    stand_ins = (*ref.ABSENT, "imp", "turtle", "distutils", "certifi", "pandas", "viskit", "utils_h2o")
    torch, module, peer = ref.torch_double(), ref.ours("h2o"), ref.theirs(checkout, FILE, stand_ins)
    peer.prefix_metrics = lambda metrics, prefix: {f"{prefix}/{name}": x for name, x in metrics.items()}
    models, discriminators = ref.theirs(checkout, "SimpleSAC/model.py"), ref.theirs(checkout, "Network/Weight_net.py")
    rng = np.random.default_rng(0)
    noise, data = ref.Noise(rng), ref.batches(rng)
    args = module.Args(batch_size=ref.ROWS, penalty_weight=0.3)
    agent = ref.agent_of(module, args, rng)
    half, memory = ref.ROWS // 2, Memory()
    policy = models.TanhGaussianPolicy(ref.OBS, ref.ACTION).double()
    critics = [models.FullyConnectedQFunction(ref.OBS, ref.ACTION) for _ in range(4)]
    pair = ref.OBS + ref.ACTION
    judges = [discriminators.ConcatDiscriminator(n, 256, 2, "cpu") for n in (pair, pair + ref.OBS)]
    config = {
        "device": "cpu",
        "batch_size": ref.ROWS,
        "target_entropy": float(-ref.ACTION),
        "cql_min_q_weight": 0.3,
        "sim_q_coeff_min": 1e-8,
    }
    trainer = peer.Sim2realSAC(config, policy, *critics, *judges, memory)
    trainer.log_alpha.double()

    def networks():
        others = {"log_std_scale": policy.log_std_multiplier.constant, "log_std_offset": policy.log_std_offset.constant}
        return {
            "actor": ref.tie(agent.actor, policy, others),
            "critic": ref.tie(agent.critic, critics[:2]),
            "target critic": ref.tie(agent.target_critic, critics[2:]),
            "D(s, a)": ref.tie(agent.d_sa, judges[0]),
            "D(s, a, s')": ref.tie(agent.d_sas, judges[1]),
            "log alpha": [ref.Tied(np.asarray(agent.log_alpha), trainer.log_alpha.constant)],
        }

    def update():
        nonlocal agent
        rows, real, sim = (next(data) for _ in range(3))
        std = real["obs"].std(0)
        with noise.ours():
            three = module.Batches(*map(ref.batch, (rows, real, sim)))
            agent, info = module.update(agent, three, jax.random.key(0), args)
        *inputs, gap, actor, critic = noise.drawn
        if gap.array.shape != (args.gap_samples, half, ref.OBS):
            raise ref.InputError("Our draws are not those of noise on 10 next observations.")
        gap = gap._replace(array=gap.array.swapaxes(0, 1))
        critic = [critic._replace(array=part) for part in np.split(critic.array, 2)]
        memory.next = [
            {name: x[:half] for name, x in rows.items()},
            {name: x[half:] for name, x in rows.items()},
            real,
            sim,
        ]
        trainer.std = torch.tensor(std if "noise on s'" in undo else 0.3 * std)
        with noise.theirs([*inputs, actor, *critic, gap]):
            log = trainer.train(half, half)
        q = log["qf1_loss"] + log["qf2_loss"] + log["cql/cql_min_qf1_loss"] + log["cql/cql_min_qf2_loss"]
        return {
            "discriminators": (
                ref.scalar(info["discriminator_loss"]),
                ref.scalar(log["dsa_train_loss"] + log["dsas_train_loss"]),
            ),
            "critic": (ref.scalar(info["critic_loss"]), ref.scalar(q)),
            "actor": (ref.scalar(info["actor_loss"]), ref.scalar(log["policy_loss"])),
            "u": (ref.scalar(info["u"]), ref.scalar(log["cql/u_sa"])),
        }

    return ref.side_by_side(networks, update)


NOTE = "Weight 0.3 of the penalty; u at least 1e-8 on both sides (theirs 1e-45, of which float32 has no logarithm)."
CASES = {"": ref.Case("t6-thu/H2O", FILE, compare, DEVIATIONS, note=NOTE)}
