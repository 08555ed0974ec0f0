"""DT beside its authors' code, which needs transformers (4.30 has what it looks for in 4.5)."""

import jax
import jax.numpy as jnp
import numpy as np

from results import references as ref
from shared.sequences import Window

FILE = "gym/decision_transformer/models/decision_transformer.py"
CONTEXT, LIMIT, SCALE = 5, 12, 10.0


def compare(checkout, undo):
    torch, module = ref.torch_double(), ref.ours("decision_transformer")
    ref.gpt_of_2021()
    trainers = ref.theirs(checkout / "gym", "decision_transformer/training/seq_trainer.py")
    peer = ref.theirs(checkout / "gym", "decision_transformer/models/decision_transformer.py")
    rng = np.random.default_rng(0)
    args = module.Args(
        batch_size=ref.ROWS, context=CONTEXT, width=16, layers=2, heads=2, token_dropout=0.0, warmup_updates=8,
        learning_rate=2**-10, weight_decay=1e-2, return_scale=SCALE, max_timestep=LIMIT,
    )  # fmt: skip
    agent = ref.agent_of(module, args, rng)
    model = peer.DecisionTransformer(
        ref.OBS, ref.ACTION, args.width, max_length=CONTEXT, max_ep_len=LIMIT, n_layer=2, n_head=2, n_inner=64,
        activation_function="relu", n_positions=64, n_ctx=64, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2**-10, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda steps: min((steps + 1) / args.warmup_updates, 1))
    ours, batch = jax.jit(lambda agent, window: module.update(agent, window, jax.random.key(0), args)), {}
    trainer = trainers.SequenceTrainer(
        model,
        optimizer,
        ref.ROWS,
        lambda size: batch["theirs"],
        lambda s_hat, a_hat, r_hat, s, a, r: torch.mean((a_hat - a) ** 2),
        schedule,
    )

    def networks():
        unused = model.predict_state, model.predict_return, model.transformer.wte
        return {"actor": ref.tie_by_name(agent.actor, partners(model), model, unused)}

    def update():
        nonlocal agent
        window, batch["theirs"] = windows(torch, rng)
        agent, info = ours(agent, window)
        log = trainer.train_iteration(1)
        return {"actor": (ref.scalar(info["actor_loss"]), ref.scalar(log["training/train_loss_mean"]))}

    return ref.side_by_side(networks, update)


def partners(model):
    """Of our network's layers."""
    gpt = model.transformer
    found = {
        "embed_return": model.embed_return,
        "embed_obs": model.embed_state,
        "embed_action": model.embed_action,
        "Embed_0": model.embed_timestep,
        "LayerNorm_0": model.embed_ln,
        "head": model.predict_action[0],
        "Transformer_0/LayerNorm_0": gpt.ln_f,
    }
    return found | ref.gpt_partners(gpt, "Transformer_0")


def windows(torch, rng):
    """Windows of which some begin with padding, for both sides; theirs has actions of -10 there, and timestep 0."""
    shape = ref.ROWS, CONTEXT
    mask = (np.arange(CONTEXT) >= rng.integers(0, CONTEXT, ref.ROWS)[:, None]).astype(float)
    first = rng.integers(0, LIMIT - CONTEXT + 1, ref.ROWS)[:, None]
    timestep = np.where(mask > 0, first + np.arange(CONTEXT), 0)
    obs, reward = rng.standard_normal((*shape, ref.OBS)), rng.standard_normal(shape)
    action, to_go = np.tanh(rng.standard_normal((*shape, ref.ACTION))), SCALE * rng.standard_normal(shape)
    seen = {"obs": mask[..., None] * obs, "action": mask[..., None] * action, "return_to_go": mask * to_go}
    ours = Window(mask=jnp.asarray(mask), timestep=jnp.asarray(timestep, jnp.int32), **jax.tree.map(jnp.asarray, seen))
    padded = np.where(mask[..., None] > 0, action, -10.0)
    longer = np.concatenate([seen["return_to_go"], rng.standard_normal((ref.ROWS, 1))], 1)[..., None] / SCALE
    arrays = seen["obs"], padded, reward, np.zeros(shape), longer, timestep, mask
    return ours, [torch.tensor(x) for x in arrays]


CASES = {
    "": ref.Case(
        "kzl/decision-transformer",
        FILE,
        compare,
        note="No dropout; windows with padding on the left; step sizes that float32 has, in which ours makes them.",
    )
}
