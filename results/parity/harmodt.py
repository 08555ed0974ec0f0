"""HarmoDT beside its authors' code, which needs transformers (4.30 has what it looks for in 4.5)."""

import types
from importlib import import_module

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from results import references as ref

FILE = "prompt_dt/prompt_seq_trainer.py"
TASKS, CONTEXT, PROMPT, LIMIT, SCALE = 3, 4, 2, 9, 10.0
DEVIATIONS = {
    "norm": "the prompt's tokens are normalised, as the window's are",
    "clip": "gradients are clipped to a norm after the mask has hidden some of them, not before",
}


def compare(checkout, undo):
    torch, module = ref.torch_double(), ref.in_double(ref.ours("harmodt"))
    torch.Tensor.cuda = lambda x: x
    ref.gpt_of_2021()
    ref.theirs(checkout, "prompt_dt/fl_utils.py", (*ref.ABSENT, "metaworld"))  # the others import relatively
    names = "prompt_decision_transformer", "prompt_seq_trainer", "fl_utils"
    network, trainers, utils = (import_module(f"prompt_dt.{name}") for name in names)
    rng = np.random.default_rng(0)
    args = module.Args(
        n_tasks=1, task_batch=ref.ROWS, context=CONTEXT, prompt_steps=PROMPT, width=16, layers=2, heads=2, sparsity=0.3,
        token_dropout=0.0, warmup_updates=8, learning_rate=2**-10, weight_decay=1e-2, return_scale=SCALE,
        max_timestep=LIMIT,
    )  # fmt: skip
    if "norm" in undo:
        module.nn = types.SimpleNamespace(**{**vars(nn), "LayerNorm": LayerNorm})
    clipping = args.max_grad_norm
    if "clip" in undo:
        module.task_gradients, module.optimizer = clipped(module, clipping), unclipped(module)
    agent = ref.agent_of(module, args, rng)
    info = {"task": {"state_dim": ref.OBS, "act_dim": ref.ACTION}}
    model = network.PromptDecisionTransformer(
        ["task"], info, False, args.width, max_length=CONTEXT, max_ep_len=LIMIT, n_layer=2, n_head=2, n_inner=64,
        activation_function="relu", n_positions=64, n_ctx=64, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=2**-10, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda steps: min((steps + 1) / args.warmup_updates, 1))
    given = {}
    trainer = trainers.PromptSequenceTrainer(
        model, optimizer, ref.ROWS, None, lambda s_hat, a_hat, r_hat, s, a, r: torch.mean((a_hat - a) ** 2), schedule,
        get_prompt=lambda: None, get_prompt_batch=lambda index: given["batch"],
        variant={"eta_min": 0, "eta_max": 0, "sparsity": 0.3},
    )  # fmt: skip
    weights, put = module.weights_of(agent.actor)
    masks = jnp.asarray((rng.random((TASKS, weights.size)) > args.sparsity).astype(float))
    prompts = [ref.windows(rng, 1, PROMPT, LIMIT, SCALE) for _ in range(TASKS)]
    update_one = jax.jit(lambda agent, window: module.update(agent, window, jax.random.key(0), args))
    exchange = jax.jit(lambda masks, grads: module.exchanged(masks, grads, 40, args))
    theirs_masks, task = [torch.tensor(np.asarray(x)) for x in masks], -1

    def layout(mask):
        """A task's mask in the reference's form: ones for what ours has no mask of."""
        whole = jax.tree.map(jnp.ones_like, agent.actor)
        _, put_in = module.weights_of(whole)
        tied = ref.tie_by_name(put_in(jnp.asarray(mask)), partners(model), model, unused(model))
        by_tensor = {id(t.tensor): torch.tensor(t.array) for t in tied}
        return {n: by_tensor.get(id(p), torch.ones_like(p)) for n, p in model.named_parameters()}

    def networks():
        pairs = [ref.Tied(np.asarray(x), y) for x, y in zip(masks, theirs_masks, strict=True)]
        return {"actor": ref.tie_by_name(agent.actor, partners(model), model, unused(model)), "masks": pairs}

    def update():
        nonlocal agent, masks, task
        task = (task + 1) % TASKS
        window, prompt = ref.windows(rng, ref.ROWS, CONTEXT, LIMIT, SCALE), prompts[task]
        given["batch"] = ref.prompted(torch, prompt, SCALE), [*ref.prompted(torch, window, SCALE, True), "task"]
        known = {"masks": masks[task][None], "prompts": prompt}
        agent, info = update_one(agent.replace(**known), jax.tree.map(lambda x: x[None], window))
        log, _ = trainer.pure_train_iteration_mix(1, masks=layout(theirs_masks[task]), env_name="task")

        gradients = jnp.asarray(rng.standard_normal(masks.shape))  # of hidden weights, too
        masks_before, masks = masks, exchange(masks, gradients)
        whole = dict(enumerate(torch.tensor(np.asarray(gradients))))
        before = dict(enumerate(torch.tensor(np.asarray(masks_before))))
        own = {k: before[k] * whole[k] for k in whole}
        harmony = utils.get_harmo_gradient({k: x.clone() for k, x in own.items()})
        taken = utils.mask_dead_harmo(harmony, whole, before, 40)
        given_away = utils.mask_generate_harmo(harmony, own, before, torch.zeros(1), float(args.harmony), 40)
        for k in before:
            theirs_masks[k].copy_(before[k] - given_away[k] + taken[k])
        return {"actor": (ref.scalar(info["actor_loss"]), ref.scalar(log["training/train_loss_mean"]))}

    return ref.side_by_side(networks, update)


class LayerNorm(nn.LayerNorm):
    """Before the trunk, of the window's tokens alone."""

    def __call__(self, x):
        alone = type(self.parent).__name__ == "PromptTransformer"
        return (
            jnp.concatenate([x[:, : 3 * PROMPT], super().__call__(x[:, 3 * PROMPT :])], 1)
            if alone
            else super().__call__(x)
        )


def clipped(module, norm):
    """Each task's gradients, clipped as they are before its mask."""
    real = module.task_gradients

    def gradients(agent, windows, key, args):
        losses, grads = real(agent, windows, key, args)
        size = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))  # of the one task
        return losses, jax.tree.map(lambda g: g * jnp.minimum(1.0, norm / (size + 1e-6)), grads)

    return gradients


def unclipped(module):
    import dataclasses

    real = module.optimizer
    return lambda args: real(dataclasses.replace(args, max_grad_norm=0.0))


def partners(model):
    """Of our network's layers."""
    found = {"LayerNorm_0": model.embed_ln, "head": model.predict_action[0]}
    for ours, theirs in (("embed", "embed"), ("prompt", "prompt_embed")):
        kinds = {"return": "return", "obs": "state", "action": "action", "time": "timestep"}
        found |= {f"{ours}_{a}": getattr(model, f"{theirs}_{b}") for a, b in kinds.items()}
    return (
        found
        | {"Transformer_0/LayerNorm_0": model.transformer.ln_f}
        | ref.gpt_partners(model.transformer, "Transformer_0")
    )


def unused(model):
    return model.predict_state, model.predict_return, model.prompt_predict_action, model.transformer.wte


CASES = {
    "": ref.Case(
        "charleshsc/HarmoDT",
        FILE,
        compare,
        DEVIATIONS,
        note="Three tasks one after the other, as the reference takes them (ours has one at a time here); masks of "
        "the trunk's weights alone, of which 40 are exchanged after each update by the same gradients, those of hidden "
        "weights among them; no dropout.",
    )
}
