"""LaMo beside its authors' code, which needs transformers (4.30) and loralib."""

import types
from itertools import chain, repeat

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from results import references as ref

FILE = "experiment-d4rl/decision_transformer/models/trajectory_gpt2_LoRA.py"
CONTEXT, LIMIT, SCALE, WIDTH, RANK, TOKENS, LENGTH = 5, 12, 10.0, 16, 3, 8, 9
DEVIATIONS = {
    "places": "a text's tokens have places",
    "gelu": "GELU has its tanh form in the embeddings and the head, too",
    "epsilon": "Adam's epsilon is 1e-8; the reference's is 1e-6",
    "rate": "the low-rank changes have a step size of their own, a tenth here; the reference's options ask for one and "
    "its optimiser looks for it in vain",
    "bias": "what decays of an attention's bias is its change; of the reference it is the bias",
}


def compare(checkout, undo):
    torch, module = ref.torch_double(), ref.ours("lamo")
    ref.gpt_of_2021()
    root, stand_ins = checkout / "experiment-d4rl", (*ref.ABSENT, "timm")
    trainers, peer, tools = (
        ref.theirs(root, f"{name}.py", stand_ins)
        for name in ("decision_transformer/training/seq_trainer", "decision_transformer/models/decision_transformer",
                     "utils")
    )  # fmt: skip
    rng = np.random.default_rng(0)
    args = module.Args(
        batch_size=ref.ROWS, context=CONTEXT, width=WIDTH, layers=2, heads=2, token_dropout=0.0, warmup_updates=8,
        learning_rate=2**-10, adapter_lr=2**-10 / (1 if "rate" in undo else 10), weight_decay=1e-2, return_scale=SCALE,
        max_timestep=LIMIT, rank=RANK, lora_alpha=6.0, bracket_kinds=TOKENS // 2, language_length=LENGTH,
        language_weight=0.5,
    )  # fmt: skip
    if "gelu" in undo:  # what is as wide as a token is no block's
        gelu = lambda x: nn.gelu(x, approximate=x.shape[-1] != WIDTH)  # noqa: E731
        module.nn = types.SimpleNamespace(**{**vars(nn), "gelu": gelu})
    if "epsilon" in undo:
        adamw = lambda *x, **y: optax.adamw(*x, **y, eps=1e-6)  # noqa: E731
        module.optax = types.SimpleNamespace(**{**vars(optax), "adamw": adamw})
    agent = ref.agent_of(module, args, rng)
    language = agent.language["params"]
    if "places" in undo:
        language["wpe"]["embedding"] = jnp.zeros_like(language["wpe"]["embedding"])
    if "bias" in undo:
        for i in range(2):
            language[f"h_{i}"]["Dense_0"]["bias"] = jnp.zeros(3 * WIDTH)
    agent = agent.replace(actor=ref.shaken(agent.actor, rng))
    ours = jax.jit(lambda agent, window, text: module.update(agent, window, text, jax.random.key(0), args))
    sizes = {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": TOKENS}
    drops = dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop", "lora_dropout"), 0.0)
    config = peer.GPT2Config_LoRA(**sizes, **drops, lora_attn_dim=RANK, lora_attn_alpha=6)
    ref.replace(peer.GPT2Config_LoRA, "from_pretrained", lambda *_: config)  # that of GPT-2 is far away
    options = {"pretrained_lm": None, "lora": True, "extend_positions": False, "mlp_embedding": True}
    options |= {"share_input_output_proj": False, "co_training": True, "co_lambda": 0.5, "learning_rate": 2**-10}
    model = peer.DecisionTransformer(options, ref.OBS, ref.ACTION, WIDTH, max_length=CONTEXT, max_ep_len=LIMIT)
    learn_as_the_script(model)
    options |= {"pretrained_lm": "gpt2", "lm_learning_rate": 2**-10 / 10, "weight_decay": 1e-2}
    optimizer = tools.get_optimizer(options, model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda steps: min((steps + 1) / args.warmup_updates, 1))
    batch, told = {}, {}
    trainer = trainers.SequenceTrainer(
        options, model, optimizer, ref.ROWS, lambda size: batch["windows"],
        lambda s_hat, a_hat, r_hat, s, a, r: torch.mean((a_hat - a) ** 2), repeat(told), repeat(told), schedule,
    )  # fmt: skip

    def networks():
        gpt = model.transformer
        blocks = [(agent.language["params"][f"h_{i}"], agent.actor.adapters[f"h_{i}"], h) for i, h in enumerate(gpt.h)]
        return {
            "tokens": tied(agent.actor.tokens, token_partners(model)),
            "head": tied(agent.actor.head, {f"Dense_{i}": getattr(model.predict_action, f"fc{i + 1}") for i in (0, 1)}),
            "adapters": list(chain.from_iterable(changes(*block) for block in blocks)),
            "language": tied({"params": frozen(agent.language["params"])}, language_partners(gpt)),
        }

    def update():
        nonlocal agent
        window, text = ref.windows(rng, ref.ROWS, CONTEXT, LIMIT, SCALE), rng.integers(0, TOKENS, (ref.ROWS, LENGTH))
        agent, info = ours(agent, window, jnp.asarray(text))
        batch["windows"] = ref.prompted(torch, window, SCALE, one_more=True)
        told.update(dict.fromkeys(("input_ids", "labels"), torch.tensor(text)))
        loss = trainer.train_step()
        schedule.step()
        return {"joint": (ref.scalar(info["actor_loss"] + 0.5 * info["language_loss"]), ref.scalar(loss))}

    return ref.side_by_side(networks, update)


def learn_as_the_script(model):
    """What the reference's script says is learned: `--adapt_mode --lora --adapt_embed`."""
    import loralib

    loralib.mark_only_lora_as_trainable(model, bias="lora_only")
    for name, parameter in model.named_parameters():
        if "embed" in name or "predict" in name:
            parameter.requires_grad = True


def tied(tree, partners):
    """Every parameter of `tree` with those of the reference's layers."""
    import torch

    layers = [partner for partner in partners.values() if isinstance(partner, torch.nn.Module)]
    return ref.tie_by_name(tree, partners, torch.nn.ModuleList(layers))


def token_partners(model):
    """Of the embeddings' layers."""
    found = {"LayerNorm_0": model.embed_ln, "Embed_0": model.embed_timestep}
    for ours, theirs in (("return", "return"), ("obs", "state"), ("action", "action")):
        block = getattr(model, f"embed_{theirs}")
        found |= {f"embed_{ours}/Dense_0": block.fc1, f"embed_{ours}/Dense_1": block.fc2}
    return found


def changes(ours, change, block):
    """The low-rank change of an attention's weights, and its bias."""
    theirs = block.attn.c_attn
    a, b = (jnp.swapaxes(change[name], 1, 2) for name in "ab")
    return [
        ref.Tied(np.asarray(a).reshape(-1, WIDTH), theirs.lora_A),
        ref.Tied(np.asarray(b).reshape(3 * WIDTH, -1), theirs.lora_B),
        ref.Tied(np.asarray(ours["Dense_0"]["bias"] + change["bias"]), theirs.bias),
    ]


def frozen(language):
    """The language model, without the biases of its attention, which have a change."""
    made = {name: dict(part) for name, part in language.items() if name != "wpe"}
    for name in [name for name in made if name.startswith("h_")]:
        made[name]["Dense_0"] = {"kernel": made[name]["Dense_0"]["kernel"]}
    return made


def language_partners(gpt):
    """Of the layers of `frozen`."""
    found = {"ln_f": gpt.ln_f, "wte": gpt.wte}
    for i, block in enumerate(gpt.h):
        names = {"LayerNorm_0": block.ln_1, "Dense_1": block.attn.c_proj, "LayerNorm_1": block.ln_2}
        names |= {"Dense_2": block.mlp.c_fc, "Dense_3": block.mlp.c_proj}
        found |= {f"h_{i}/{name}": layer for name, layer in names.items()}
        found[f"h_{i}/Dense_0/kernel"] = block.attn.c_attn.weight, np.asarray
    return found


CASES = {
    "": ref.Case(
        "srzer/LaMo-2023",
        FILE,
        compare,
        DEVIATIONS,
        still=("language",),
        note="A language model of two blocks with random weights, low-rank changes of its attention, text beside "
        "windows. No dropout.",
    )
}
