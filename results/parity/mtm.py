"""MTM beside its authors' code."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from results import references as ref

FILE = "research/mtm/models/mtm_model.py"
CONTEXT, KINDS = 4, ("states", "returns", "actions")
DEVIATIONS = {"warm-up": "the step size's warm-up begins at 1 / warmup_updates, not at zero"}


def compare(checkout, undo):
    torch, module = ref.torch_double(), ref.in_double(ref.ours("mtm"))
    absent = (*ref.ABSENT, "matplotlib", "seaborn", "omegaconf", "hydra")
    peer, masks = (ref.theirs(checkout, f"research/mtm/{name}.py", absent) for name in ("models/mtm_model", "masks"))
    ref.constants_in_double(module), ref.constants_in_double(peer)
    rng = np.random.default_rng(0)
    np.random.seed(0)  # noqa: NPY002 (their masks draw from it)
    args = module.Args(
        batch_size=ref.ROWS, context=CONTEXT, width=16, layers=2, heads=2, token_dropout=0.0,
        learning_rate=1e-3, weight_decay=1e-2, warmup_updates=4, updates=20,
    )  # fmt: skip
    if "warm-up" in undo:
        module.optimizer = with_their_warmup
    agent = ref.agent_of(module, args, rng)
    sizes = dict(zip(KINDS, (ref.OBS, 1, ref.ACTION)))
    config = peer.MTMConfig(n_embd=args.width, n_head=2, n_enc_layer=2, n_dec_layer=1, norm="none")
    model = config.create({name: (1, size) for name, size in sizes.items()}, CONTEXT)
    optimizer = peer.MTM.configure_optimizers(model, 1e-3, 1e-2, (0.9, 0.999))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(shape(step, args)))

    @jax.jit
    def ours(agent, batch, kept):
        module.draw_mask = lambda key, batch, args: jnp.broadcast_to(kept, (batch, *kept.shape))
        return module.update(agent, batch, jax.random.key(0), args)

    def networks():
        return {"model": ref.tie_by_name(by_kind(agent.model), partners(model), model)}

    def update():
        nonlocal agent
        arrays = {name: np.tanh(rng.standard_normal((ref.ROWS, CONTEXT, size))) for name, size in sizes.items()}
        shapes = {name: (1, size) for name, size in sizes.items()}
        mask = masks.create_random_autoregressize_mask(shapes, module.RATIOS, CONTEXT, "cpu")
        kept = jnp.asarray(np.stack([mask[name][:, 0].numpy() for name in KINDS]))
        ones = jnp.ones((ref.ROWS, CONTEXT))
        batch = module.Parts(*map(jnp.asarray, arrays.values())), ones, ones
        agent, info = ours(agent, batch, kept)
        given = {name: torch.tensor(x)[:, :, None] for name, x in arrays.items()}
        loss, losses, *_ = peer.MTM.forward_loss(
            given, model(given, mask), mask, dict.fromkeys(KINDS, False), norm=config.norm
        )
        model.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        own = zip(module.Parts._fields, KINDS)
        parts = {name: (ref.scalar(info[f"{name}_loss"]), ref.scalar(losses[kind])) for name, kind in own}
        return {"all": (ref.scalar(info["model_loss"]), ref.scalar(loss)), **parts}

    return ref.side_by_side(networks, update)


def shape(step, args):
    """Of the reference's step size: a line from zero, then half a cosine."""
    step = jnp.asarray(step, float)  # ours counts updates in float32
    fallen = jnp.clip((step - args.warmup_updates) / (args.updates - args.warmup_updates), 0.0, 1.0)
    return jnp.minimum(step / args.warmup_updates, 1.0) * 0.5 * (1.0 + jnp.cos(jnp.pi * fallen))


def with_their_warmup(args):
    kernels = lambda tree: jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", tree)  # noqa: E731
    return optax.adamw(
        lambda step: args.learning_rate * shape(step, args), weight_decay=args.weight_decay, mask=kernels
    )


def by_kind(tree):
    """Our layers and codes of all kinds at once as those of one kind each."""
    own = dict(tree["params"])
    for name in ("encoder_kinds", "decoder_kinds", "hidden", "decode", "norm", "last"):
        stacked = own.pop(name)
        own |= {f"{name}_{i}": jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(len(KINDS))}
    return {"params": own}


def partners(model):
    """Of our network's layers and codes."""
    found = ref.encoder_partners(model.encoder, "encoder") | ref.encoder_partners(model.decoder, "decoder")
    for i, (ours, theirs) in enumerate(zip(("obs", "returns", "action"), KINDS)):
        norm, last, _, head = model.output_head_dict[theirs]
        codes = {"encoder_kinds": model.encoder_per_dim_encoding, "decoder_kinds": model.decoder_per_dim_encoding}
        for name, code in {**codes, "hidden": model.mask_token_dict}.items():
            found[f"{name}_{i}"] = code[theirs], lambda x, shape=code[theirs].shape: x.reshape(shape)
        found |= {f"embed_{ours}": model.encoder_embed_dict[theirs], f"decode_{i}": model.decoder_embed_dict[theirs]}
        found |= {f"norm_{i}": norm, f"last_{i}": last, f"{ours}_head": head}
    return found


CASES = {
    "": ref.Case(
        "facebookresearch/mtm",
        FILE,
        compare,
        DEVIATIONS,
        note="Whole windows, one mask for all of a batch, drawn by the reference; no dropout.",
    )
}
