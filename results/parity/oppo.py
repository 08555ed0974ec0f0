"""OPPO beside its authors' code, which needs transformers (4.30)."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from results import references as ref

FILE = "oppo/scripted/gym/decision_transformer/training/pdt_trainer.py"
CONTEXT, LIMIT, LATENT, WIDTH = 5, 12, 4, 16
DEVIATIONS = {
    "norm": "the encoder's blocks normalise what they read, and its outputs are normalised; BERT's normalise what they "
    "write, and the first one's inputs are normalised twice",
    "mean": "the encoder's outputs are averaged where there is a step; the reference adds all, padding included",
    "windows": "errors are means over all windows; the reference adds the means of the two sides of its pairs",
    "distance": "what keeps the gradient of a distance finite stands under the root; the reference adds it to each "
    "difference",
}


def compare(checkout, undo):
    torch, module = ref.torch_double(), ref.ours("oppo")
    ref.gpt_of_2021()
    root = checkout / "oppo/scripted/gym"
    trainers, actors, encoders = (
        ref.theirs(root, f"decision_transformer/{name}.py")
        for name in ("training/pdt_trainer", "models/preference_decision_transformer", "models/encoder_transformer")
    )
    rng = np.random.default_rng(0)
    args = module.Args(
        batch_size=ref.ROWS, context=CONTEXT, width=WIDTH, layers=2, heads=2, encoder_heads=2, token_dropout=0.0,
        warmup_updates=8, learning_rate=2**-10, weight_decay=1e-2, latent_dim=LATENT, latent_lr=2**-9,
        max_timestep=LIMIT,
    )  # fmt: skip
    module.Transformer = partial(trunk, module.Transformer, undo)
    if "distance" in undo:
        module.distance = lambda x, y: jnp.linalg.norm(x - y + (0.0 if isinstance(y, float) else 1e-6), axis=-1)
    if "windows" in undo:
        matching, norm = module.matching_loss, module.norm_loss
        module.matching_loss, module.norm_loss = (lambda *x, f=f: 2.0 * f(*x) for f in (matching, norm))
    agent = ref.agent_of(module, args, rng)
    ours = jax.jit(lambda agent, window, pairs: module.update(agent, window, pairs, jax.random.key(0), args))
    sizes = {"max_length": CONTEXT, "max_ep_len": LIMIT}
    actor = actors.PreferenceDecisionTransformer(
        ref.OBS, ref.ACTION, WIDTH, LATENT, **sizes, n_layer=2, n_head=2, n_inner=64, activation_function="relu",
        n_positions=64, n_ctx=64, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    encoder = encoders.EncoderTransformer(
        ref.OBS, ref.ACTION, WIDTH, LATENT, **sizes, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, hidden_act="relu", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    z_star = torch.zeros(LATENT, requires_grad=True)
    adam = partial(torch.optim.AdamW, weight_decay=1e-2)
    optimizers = adam(actor.parameters(), lr=2**-10), adam(encoder.parameters(), lr=2**-10), adam([z_star], lr=2**-9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizers[0], lambda steps: min((steps + 1) / 8, 1))
    sides = []
    trainer = trainers.PDTTrainer(
        encoder, actor, *optimizers[:2], z_star, optimizers[2], ref.ROWS, lambda size: sides.pop(0),
        lambda s_hat, a_hat, r_hat, s, a, r: torch.mean((a_hat - a) ** 2), "cpu", schedule,
    )  # fmt: skip

    def networks():
        unused = actor.predict_state, actor.predict_return, actor.transformer.wte
        words = encoder.transformer.embeddings.word_embeddings, encoder.transformer.pooler
        return {
            "actor": ref.tie_by_name(agent.actor, actor_partners(actor), actor, unused),
            "encoder": ref.tie_by_name(as_theirs(agent.encoder), encoder_partners(encoder), encoder, words),
            "z*": [ref.Tied(np.asarray(agent.z_star), z_star)],
        }

    def update():
        nonlocal agent
        window, score = ref.windows(rng, ref.ROWS, CONTEXT, LIMIT, 1.0), rng.standard_normal(ref.ROWS)
        other = np.roll(np.arange(ref.ROWS), 1)  # the same windows again, so that the two sides' means are one
        first = score > score[other]
        better, worse = np.where(first, np.arange(ref.ROWS), other), np.where(first, other, np.arange(ref.ROWS))
        own = window._replace(return_to_go=None)
        pairs = module.Pairs(*(jax.tree.map(lambda x, i=i: x[i], own) for i in (better, worse)), jnp.ones(ref.ROWS))
        agent, info = ours(agent, own, pairs)
        for rows in (np.arange(ref.ROWS), other):
            states, actions, rewards, dones, _, timesteps, mask = ref.prompted(
                torch, jax.tree.map(lambda x, rows=rows: x[rows], window), 1.0
            )
            to_go = torch.tensor(np.tile(score[rows][:, None, None], (1, CONTEXT, 1)))
            sides.append([states, actions, rewards, dones, to_go, timesteps, mask])
        _, cloned, length = trainer.train_step()
        schedule.step()
        return {
            "actor": (ref.scalar(info["actor_loss"]), ref.scalar(cloned)),
            "norm": (ref.scalar(info["norm_loss"]), ref.scalar(length)),
        }

    return ref.side_by_side(networks, update)


def trunk(real, undo, layers, heads, dropout, causal):
    """A file's Transformer: the actor's as it is, the encoder's with deviations undone."""
    if causal:
        return real(layers, heads, dropout, causal)
    made = real(layers, heads, dropout, causal) if "norm" not in undo else Bert(layers, heads, name="Transformer_0")

    def call(x, mask, training):
        x = made(x, mask, training)
        return jnp.broadcast_to(x.sum(1, keepdims=True), x.shape) if "mean" in undo else x

    return call


class Bert(nn.Module):
    """Tokens [B, N, W], each of which sees all that are no padding; sums are normalised, under our layers' names."""

    layers: int
    heads: int

    @nn.compact
    def __call__(self, x, mask, training: bool):
        x = nn.LayerNorm(epsilon=1e-12)(x)
        for i in range(self.layers):
            x = BertBlock(self.heads, name=f"Block_{i}")(x, mask)
        return x


class BertBlock(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x, mask):
        *lead, width = x.shape
        q, k, v = jnp.moveaxis(nn.Dense(3 * width)(x).reshape(*lead, 3, self.heads, width // self.heads), -3, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(width / self.heads)
        weights = nn.softmax(jnp.where(mask[:, None, None] > 0, scores, -1e9))
        seen = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        x = nn.LayerNorm(epsilon=1e-12)(x + nn.Dense(width)(seen))
        hidden = nn.relu(nn.Dense(4 * width)(x))
        return nn.LayerNorm(epsilon=1e-12)(x + nn.Dense(width)(hidden))


def actor_partners(model):
    """Of the actor's layers."""
    kinds = {"embed_context": "embed_phi", "embed_obs": "embed_state", "embed_action": "embed_action"}
    found = {ours: getattr(model, theirs) for ours, theirs in kinds.items()}
    found |= {"Embed_0": model.embed_timestep, "LayerNorm_0": model.embed_ln, "head": model.predict_action[0]}
    gpt = model.transformer
    return found | {"Transformer_0/LayerNorm_0": gpt.ln_f} | ref.gpt_partners(gpt, "Transformer_0")


def as_theirs(tree):
    """Our encoder, each block's first layer as the three that BERT has."""
    trunk = dict(tree["params"]["Transformer_0"])
    for name in [name for name in trunk if name.startswith("Block")]:
        block = dict(trunk[name])
        parts = {k: jnp.split(x, 3, -1) for k, x in block.pop("Dense_0").items()}
        block |= {part: {k: x[i] for k, x in parts.items()} for i, part in enumerate(("query", "key", "value"))}
        trunk[name] = block
    return {"params": {**tree["params"], "Transformer_0": trunk}}


def encoder_partners(model):
    """Of the layers of `as_theirs`."""
    found = {"embed_obs": model.embed_state, "embed_action": model.embed_action, "Embed_0": model.embed_timestep}
    found |= {"LayerNorm_0": model.embed_ln, "head": model.to_phi}
    found["Transformer_0/LayerNorm_0"] = model.transformer.embeddings.LayerNorm
    names = {name: f"attention.self.{name}" for name in ("query", "key", "value")}
    names |= {"Dense_1": "attention.output.dense", "LayerNorm_0": "attention.output.LayerNorm"}
    names |= {"Dense_2": "intermediate.dense", "Dense_3": "output.dense", "LayerNorm_1": "output.LayerNorm"}
    for i, layer in enumerate(model.transformer.encoder.layer):
        found |= {f"Transformer_0/Block_{i}/{ours}": layer.get_submodule(theirs) for ours, theirs in names.items()}
    return found


CASES = {
    "": ref.Case(
        "bkkgbkjb/OPPO",
        FILE,
        compare,
        DEVIATIONS,
        note="The second windows of the reference's pairs are the first ones in another order, so that both sides "
        "clone the same windows; zeros where there is padding. No dropout, no equal pairs.",
    )
}
