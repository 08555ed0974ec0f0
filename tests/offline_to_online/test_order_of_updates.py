"""Where an update's losses are of the parameters before it, whichever of them has stepped already."""

import jax
import numpy as np
import pytest
from conftest import load
from reference import B, agent_of, close

RETURNS = np.float32([-1.0, 40.0, 0.3, -40.0, 1.0])


@pytest.mark.parametrize("name", ["cal_ql", "wsrl", "ro2o", "e2o"])
def test_all_losses_are_of_the_old_parameters_and_the_temperature_follows_the_entropy(name, batch):
    """Adam's first step is its rate's size: 0.1 for everything, so that new parameters are far from the old."""
    module = load(name)
    fields = module.Args.__dataclass_fields__
    small = {
        "batch_size": B, "hidden_dims": (8, 8), "actor_hidden_dims": (8, 8), "n_actions": 2, "n_critics": 3,
        "n_samples": 2, "critic_lr": 0.1, "actor_lr": 0.1, "alpha_lr": 0.1,
    }  # fmt: skip
    args = module.Args(**{k: v for k, v in small.items() if k in fields})
    agent, key = agent_of(module, args), jax.random.key(7)
    batch = batch._replace(next_action=None, return_to_go=RETURNS if name in ("cal_ql", "wsrl") else None)
    new, info = module.update(agent, batch, key, args)
    critic_key, actor_key = jax.random.split(key)
    loss = module.conservative_critic_loss if name == "wsrl" else module.critic_loss
    close(info["critic_loss"], loss(agent.critic, agent, batch, critic_key, args)[0])
    loss_of_actor, of_policy = module.actor_loss(agent.actor, agent, batch, actor_key, args)
    close(info["actor_loss"], loss_of_actor)
    if name != "wsrl":  # whose critics share a subset drawn with the key
        other = loss(agent.critic, agent.replace(actor=new.actor), batch, critic_key, args)[0]
        assert abs(other - info["critic_loss"]) > 1e-3
    assert abs(module.actor_loss(agent.actor, new, batch, actor_key, args)[0] - loss_of_actor) > 1e-3
    too_low = of_policy["entropy"] < -batch.action.shape[-1]
    close(new.log_alpha - agent.log_alpha, 0.1 if too_low else -0.1)
