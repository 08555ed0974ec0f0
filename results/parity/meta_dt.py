"""Meta-DT's world model and actor beside their authors' code, which needs transformers (4.30)."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from results import references as ref

FILE = "meta_dt/model.py"
CONTEXT, PROMPT, HISTORY, LIMIT, LATENT, HIDDEN, SCALE = 4, 2, 3, 9, 6, 12, 10.0
DEVIATIONS = {
    "norm": "the prompt's tokens are normalised, as the window's are",
    "clip": "the world model's gradients are not clipped",
    "biases": "the gates of the GRU have one bias; PyTorch's have two, of which the sum counts",
}


def compare(checkout, undo):
    torch, module = ref.torch_double(), ref.in_double(ref.ours("meta_dt"))
    ref.gpt_of_2021()
    trainers, peer, context = (
        ref.theirs(checkout, f"{name}.py") for name in ("meta_dt/trainer", "meta_dt/model", "context/model")
    )
    rng = np.random.default_rng(0)
    args = module.Args(
        batch_size=ref.ROWS, context=CONTEXT, prompt_steps=PROMPT, history_steps=HISTORY, width=16, layers=2, heads=2,
        token_dropout=0.0, warmup_updates=8, learning_rate=2**-10, weight_decay=1e-2, return_scale=SCALE,
        try_steps=LIMIT, latent_dim=LATENT, recurrent_dim=HIDDEN, hidden_dims=(HIDDEN, HIDDEN), context_lr=1e-3,
        unprompted_updates=0, varies=("rewards",),
    )  # fmt: skip
    if "norm" in undo:
        module.nn = types.SimpleNamespace(**{**vars(nn), "LayerNorm": LayerNorm})
    agent = ref.agent_of(module, args, rng)
    fit, act = (
        jax.jit(lambda a, b, f=f: f(a, b, jax.random.key(0), args)) for f in (module.update_models, module.update)
    )
    model = peer.MetaDecisionTransformer(
        ref.OBS, ref.ACTION, args.width, LATENT, max_length=CONTEXT, max_ep_len=LIMIT, n_layer=2, n_head=2, n_inner=64,
        activation_function="relu", n_positions=64, n_ctx=64, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2**-10, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda steps: min((steps + 1) / args.warmup_updates, 1))
    trainer = trainers.MetaDT_Trainer(model, optimizer)
    sizes = ref.OBS, ref.ACTION, LATENT, HIDDEN
    world = torch.nn.ModuleList([context.RNNContextEncoder(*sizes), context.RewardDecoder(*sizes)])
    adam = torch.optim.Adam(world.parameters(), lr=1e-3)
    if "biases" in undo:  # the second ones stay zero
        world[0].gru.bias_hh_l0.register_hook(lambda grad: torch.cat([0 * grad[: 2 * HIDDEN], grad[2 * HIDDEN :]]))

    def networks():
        unused = model.predict_state, model.predict_return, model.transformer.wte
        return {
            "actor": ref.tie_by_name(agent.actor, partners(model), model, unused),
            "world model": ref.tie_by_name(as_theirs(agent.models), world_partners(*world), world),
        }

    def update():
        nonlocal agent
        steps = ref.windows(rng, ref.ROWS, HISTORY + 2, LIMIT, SCALE)
        steps = steps._replace(
            mask=jnp.ones_like(steps.mask), reward=jnp.asarray(rng.standard_normal(steps.mask.shape))
        )
        agent, fitted = fit(agent, steps)
        obs, action, reward = (torch.tensor(np.asarray(x)) for x in (steps.obs, steps.action, steps.reward[..., None]))
        z = world[0](*(x[:, :-2].transpose(0, 1) for x in (obs, action, reward)))
        found = world[1](obs[:, -2], action[:, -2], obs[:, -1], z)
        loss = torch.nn.functional.mse_loss(found, reward[:, -2])
        adam.zero_grad()
        loss.backward()
        if "clip" not in undo:
            torch.nn.utils.clip_grad_norm_(world.parameters(), 1.0)
        adam.step()

        window, prompt = (ref.windows(rng, ref.ROWS, n, LIMIT, SCALE) for n in (CONTEXT, PROMPT))
        told = rng.standard_normal((ref.ROWS, CONTEXT, LATENT))
        agent, acted = act(agent, module.Batch(window, jnp.asarray(told), prompt))
        states, *rest = ref.prompted(torch, window, SCALE, one_more=True)
        prompt_form = [x for i, x in enumerate(ref.prompted(torch, prompt, SCALE)) if i != 3]
        cloned = trainer.train_step(states, torch.tensor(told), *rest, prompt_form)
        schedule.step()
        return {
            "world model": (ref.scalar(fitted["model_loss"]), ref.scalar(loss)),
            "actor": (ref.scalar(acted["actor_loss"]), ref.scalar(cloned)),
        }

    return ref.side_by_side(networks, update)


class LayerNorm(nn.LayerNorm):
    """Before the trunk, of the window's tokens alone."""

    def __call__(self, x):
        if type(self.parent).__name__ != "MetaTransformer":
            return super().__call__(x)
        return jnp.concatenate([x[:, : 3 * PROMPT], super().__call__(x[:, 3 * PROMPT :])], 1)


def partners(model):
    """Of the actor's layers."""
    found = {"LayerNorm_0": model.embed_ln, "head": model.predict_action[0], "encode_obs": model.state_encoder}
    for ours, theirs in (("embed", "embed"), ("prompt", "prompt_embed")):
        kinds = {"return": "return", "obs": "state", "action": "action", "time": "timestep"}
        found |= {f"{ours}_{a}": getattr(model, f"{theirs}_{b}") for a, b in kinds.items()}
    gpt = model.transformer
    return found | {"Transformer_0/LayerNorm_0": gpt.ln_f} | ref.gpt_partners(gpt, "Transformer_0")


def as_theirs(tree):
    """Our encoder and model of the reward, the GRU as PyTorch has it, inputs in the reference's order."""
    encoder, decoder = dict(tree["params"]["encoder"]), dict(tree["params"]["reward_model"])
    cell = encoder.pop("GRUCell_0")

    def ordered(kernel, *order):
        return jnp.concatenate([jnp.split(kernel, len(order))[i] for i in order])

    encoder["gru"] = {
        "w_ih": jnp.concatenate([ordered(cell[f"i{gate}"]["kernel"], 1, 0, 2) for gate in "rzn"], 1).T,
        "w_hh": jnp.concatenate([cell[f"h{gate}"]["kernel"] for gate in "rzn"], 1).T,
        "b_ih": jnp.concatenate([cell[f"i{gate}"]["bias"] for gate in "rzn"]),
        "b_hh": jnp.concatenate([jnp.zeros(2 * HIDDEN), cell["hn"]["bias"]]),
    }
    first = decoder["Dense_0"]
    decoder["Dense_0"] = {**first, "kernel": ordered(first["kernel"], 2, 1, 3, 0)}
    return {"params": {"encoder": encoder, "reward_model": decoder}}


def world_partners(encoder, decoder):
    """Of the layers of `as_theirs`."""
    coders = [getattr(encoder, f"{name}_encoder")[0] for name in ("state", "action", "reward")]
    found = {f"encoder/Dense_{i}": layer for i, layer in enumerate((*coders, encoder.context_output))}
    kinds = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}
    found |= {f"encoder/gru/{a}": (getattr(encoder.gru, f"{b}_l0"), np.asarray) for a, b in kinds.items()}
    found |= {
        "reward_model/embed_obs": decoder.state_encoder[0],
        "reward_model/embed_action": decoder.action_encoder[0],
    }
    layers = decoder.linear1, decoder.linear2, decoder.linear3
    return found | {f"reward_model/Dense_{i}": layer for i, layer in enumerate(layers)}


CASES = {
    "": ref.Case(
        "NJU-RL/Meta-DT",
        FILE,
        compare,
        DEVIATIONS,
        note="The model of the reward, of whole pieces, and the actor with a prompt of its own for each window; the "
        "world model's step is a script there, and made here of its parts. No dropout.",
    )
}
