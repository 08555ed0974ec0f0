"""Offline DQN as discrete BCQ beside the authors' code."""

import types

import jax
import numpy as np

from results import references as ref

BCQ = "discrete_BCQ/discrete_BCQ.py"
ACTIONS, HIDDEN = 4, (256, 256)
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


CASES = {"BCQ": ref.Case("sfujim/BCQ", BCQ, with_bcq, note="Threshold 0.8, Polyak steps of the target.")}
