"""Offline DQN: as discrete BCQ beside the authors' code, plain and with CQL's penalty beside d3rlpy's."""

import sys
import types
from functools import partial

import gymnasium
import jax
import numpy as np

from results import references as ref
from results.jax_references import packages

BCQ, D3RLPY = "discrete_BCQ/discrete_BCQ.py", "d3rlpy/algos/qlearning/torch/cql_impl.py"
ACTIONS, HIDDEN, COPIED = 4, (256, 256), 3
SPEC = ref.SPEC._replace(action_dim=ACTIONS, discrete=True)


def start(**settings):
    """torch, our arguments, an agent, its update, and batches with discrete actions."""
    torch, module, rng = ref.torch_double(), ref.in_double(ref.ours("dqn_offline")), np.random.default_rng(0)
    torch.float32 = torch.float64
    args = module.Args(batch_size=ref.ROWS, hidden_dims=HIDDEN, **settings)
    agent = ref.agent_of(module, args, rng, SPEC)
    step = jax.jit(lambda agent, batch: module.update(agent, batch, args))
    data = ({**rows, "action": rng.integers(0, ACTIONS, ref.ROWS)} for rows in ref.batches(rng))
    return torch, args, agent, step, data


def with_bcq(checkout, undo):
    torch, args, agent, step, data = start(method="bcq", bcq_threshold=0.8)
    peer = ref.theirs(checkout, BCQ)
    options = {"lr": args.learning_rate}
    trainer = peer.discrete_BCQ(
        False, ACTIONS, ref.OBS, "cpu", BCQ_threshold=0.8, optimizer_parameters=options, polyak_target_update=True
    )

    def layers(net, kind):
        return torch.nn.ModuleList([getattr(net, f"{kind}{i}") for i in (1, 2, 3)])

    def networks():
        return {
            "critic": ref.tie(agent.critic, layers(trainer.Q, "q")),
            "behaviour": ref.tie(agent.behaviour, layers(trainer.Q, "i")),
            "target critic": ref.tie(agent.target_critic, layers(trainer.Q_target, "q")),
        }

    def update():
        nonlocal agent
        rows, losses = next(data), []
        agent, info = step(agent, ref.batch(rows))
        backward = torch.Tensor.backward
        ref.replace(torch.Tensor, "backward", lambda loss: (losses.append(loss.item()), backward(loss))[1])
        rows["not_done"] = 1.0 - rows["terminal"]
        batch = ref.tensors(rows, "obs", "action", "next_obs", "reward", "not_done")
        trainer.train(types.SimpleNamespace(sample=lambda: batch))
        torch.Tensor.backward = backward
        return {"critic": (ref.scalar(info["critic_loss"]), ref.scalar(losses[0]))}

    return ref.side_by_side(networks, update)


def with_d3rlpy(checkout, undo, quantiles, **settings):
    torch, args, agent, step, data = start(copy_every=COPIED, n_quantiles=quantiles, **settings)
    old = OldGym("gym.version")
    sys.modules |= {"gym": gymnasium, "gym.spaces": gymnasium.spaces, "gym.version": old, "d3rlpy.healthcheck": old}
    sys.meta_path.insert(0, ref._Finder((*ref.ABSENT, "sklearn")))
    load = packages(checkout)
    implemented, dqn = load("d3rlpy.algos.qlearning.torch.cql_impl"), load("d3rlpy.algos.qlearning.torch.dqn_impl")
    models, builders = load("d3rlpy.models"), load("d3rlpy.models.builders")
    optimizers = load("d3rlpy.optimizers")
    kind = models.QRQFunctionFactory(n_quantiles=quantiles) if quantiles else models.MeanQFunctionFactory()
    made = [
        builders.create_discrete_q_function(
            (ref.OBS,), ACTIONS, models.VectorEncoderFactory(list(HIDDEN)), kind, device="cpu", enable_ddp=False
        )
        for _ in range(2)
    ]
    nets = [net.double() for net, _ in made]
    optimizer = optimizers.AdamFactory().create(nets[0].named_modules(), lr=args.learning_rate, compiled=False)
    modules = dqn.DQNModules(q_funcs=nets[0], targ_q_funcs=nets[1], optim=optimizer)
    options = {"q_func_forwarder": made[0][1], "targ_q_func_forwarder": made[1][1], "gamma": args.discount}
    options |= {"target_update_interval": COPIED, "compiled": False, "device": "cpu", "modules": modules}
    if args.method == "cql":
        trainer = implemented.DiscreteCQLImpl((ref.OBS,), ACTIONS, alpha=args.cql_alpha, **options)
    else:
        trainer = dqn.DQNImpl((ref.OBS,), ACTIONS, **options)
    done = 0

    def networks():
        return {"critic": ref.tie(agent.critic, nets[0]), "target critic": ref.tie(agent.target_critic, nets[1])}

    def update():
        nonlocal agent, done
        rows, done = next(data), done + 1
        agent, info = step(agent, ref.batch(rows))
        names = ("observations", "actions", "rewards", "next_observations", "terminals")
        batch = dict(zip(names, ref.tensors(rows, "obs", "action", "reward", "next_obs", "terminal"), strict=True))
        batch["intervals"] = torch.ones(ref.ROWS, 1)
        log = trainer.inner_update(types.SimpleNamespace(**batch), done)
        return {"critic": (ref.scalar(info["critic_loss"]), ref.scalar(log["loss"]))}

    return ref.side_by_side(networks, update)


class OldGym(types.ModuleType):
    """What d3rlpy asks of the package that gymnasium is now."""

    VERSION = "0.26.2"
    run_healthcheck = staticmethod(lambda: None)


DISTRIBUTION = partial(with_d3rlpy, quantiles=5, method="cql", cql_alpha=0.7)
CASES = {
    "BCQ": ref.Case("sfujim/BCQ", BCQ, with_bcq, note="Threshold 0.8, Polyak steps of the target."),
    "DQN": ref.Case(
        "takuseno/d3rlpy",
        "d3rlpy/algos/qlearning/torch/dqn_impl.py",
        partial(with_d3rlpy, quantiles=0, method="none", double=False),
        note="Not double, the target copied after every third update.",
    ),
    "CQL, quantiles": ref.Case(
        "takuseno/d3rlpy",
        D3RLPY,
        DISTRIBUTION,
        note="Double, 5 quantiles, alpha 0.7, the target copied after every third.",
    ),
}
