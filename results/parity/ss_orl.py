"""SS-ORL's inverse model beside its authors' code."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from results import references as ref

FILE = "model/mlp.py"
DEVIATIONS = {
    "tanh": "the action is a Gaussian, not the tanh of one",
    "mean": "the loss is the mean over the action's dimensions, not the sum, which Adam only sees in its epsilon",
}


def compare(checkout, undo):
    torch, module = ref.torch_double(), ref.in_double(ref.ours("ss_orl"))
    peer = ref.theirs(checkout, FILE)
    rng = np.random.default_rng(0)
    args = module.Args(
        inverse_batch=ref.ROWS, inverse_hidden_dims=(32, 32), inverse_lr=1e-3, inverse_dropout=0.0, holdout_every=1
    )
    module.inverse_loss = loss_of(module.inverse_loss, undo)
    agent = ref.agent_of(module, args, rng)
    model = peer.DiagGaussianDistribution((args.past + 2) * ref.OBS, ref.ACTION, [32, 32], [False, False], (-1.0, 1.0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    @jax.jit
    def ours(agent, states, action):
        shown = module.Shown(states, action)
        data = module.Watched(None, None, None, known=shown, held_out=shown, compared=None)
        with mock.patch.object(jax.random, "randint", lambda key, shape, *_: jnp.arange(shape[0])):  # every row once
            return module.fit(agent, jax.random.split(jax.random.key(0), 1), args, data)

    def networks():
        return {"inverse model": ref.tie(agent.inverse, model)}

    def update():
        nonlocal agent
        states = rng.standard_normal((ref.ROWS, (args.past + 2) * ref.OBS))
        action = np.tanh(rng.standard_normal((ref.ROWS, ref.ACTION)))
        agent, info = ours(agent, jnp.asarray(states), jnp.asarray(action))
        loss = -model(torch.tensor(states)).log_likelihood(torch.tensor(action)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"inverse model": (ref.scalar(info["inverse_loss"]), ref.scalar(loss))}

    return ref.side_by_side(networks, update)


def loss_of(real, undo):
    """Our loss with the deviations of `undo` undone: of atanh(a), with the Jacobian of tanh; summed."""

    def loss(inverse, nets, shown, key=None):
        found = real(inverse, nets, shown._replace(action=jnp.arctanh(shown.action)) if "tanh" in undo else shown, key)
        found += jnp.log(1.0 - shown.action**2).mean() if "tanh" in undo else 0.0
        return found * (shown.action.shape[-1] if "mean" in undo else 1)

    return loss


CASES = {
    "": ref.Case(
        "facebookresearch/ssorl",
        FILE,
        compare,
        DEVIATIONS,
        note="The inverse model's fit alone, without dropout: the learner is another.",
    )
}
