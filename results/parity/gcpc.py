"""GCPC's two stages beside its authors' code."""

import sys
import types
from importlib import import_module
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from results import references as ref
from shared.sequences import Window
from shared.task import Spec

FILE = "gcpc/model/trajnet.py"
CONTEXT, FUTURE, SLOTS, WIDTH, HIDDEN = 5, 3, 2, 16, 24
SPEC = Spec((ref.OBS,), ref.ACTION, False, (-1.0,) * ref.ACTION, (1.0,) * ref.ACTION, goal_shape=(ref.OBS,))
DEVIATIONS = {"sinusoid": "a step's code has its sines first, then its cosines; the reference's alternate"}


def compare(checkout, undo):
    torch, module = ref.torch_double(), ref.in_double(ref.ours("gcpc"))
    ref.constants_in_double(module)
    sys.modules["pytorch_lightning"] = lightning(torch)
    ref.theirs(checkout, FILE, (*ref.ABSENT, "omegaconf", "tqdm"))
    peer, policy = (import_module(f"gcpc.model.{name}") for name in ("trajnet", "policynet"))
    rng = np.random.default_rng(0)
    args = module.Args(
        batch_size=ref.ROWS, context=CONTEXT, future_steps=FUTURE, slots=SLOTS, width=WIDTH, layers=2, heads=2,
        token_dropout=0.0, hidden_dims=(HIDDEN,), autoencoder_lr=1e-3, actor_lr=1e-3, max_grad_norm=0.0,
    )  # fmt: skip
    if "sinusoid" in undo:
        sines = module.sinusoid
        module.sinusoid = lambda n, width: sines(n, width).reshape(n, 2, -1).swapaxes(1, 2).reshape(n, width)
    agent = ref.agent_of(module, args, rng, SPEC)
    fit, clone = (jax.jit(lambda a, b, f=f: f(a, b, jax.random.key(0), args)) for f in (module.fit, module.update))
    whole = {"mask_ratios": [0.0], "mask_ratio_weights": [1.0], "pdrop": 0.0, "n_head": 2, "n_slots": SLOTS}
    sizes = {"n_enc_layers": 2, "n_dec_layers": 1, "use_goal": True, "mask_type": "mae_rc"}
    drawn = {"ar_mask_ratios": [0.0], "rnd_mask_ratios": list(module.RATIOS), "ar_mask_ratio_weights": [1.0]}
    common = {"env_name": "", "obs_dim": ref.OBS, "action_dim": ref.ACTION, "goal_dim": ref.OBS, "lr": 1e-3, "seed": 0}
    common |= {"epochs": 1, "ctx_size": CONTEXT, "future_horizon": FUTURE, "stage": "", "goal_type": "state"}
    config = types.SimpleNamespace(embed_dim=WIDTH, **whole, **sizes, **drawn)
    fitted, frozen = (peer.TrajNet(**common, model_config=config) for _ in range(2))
    with mock.patch.object(policy.TrajNet, "load_from_checkpoint", lambda **_: frozen, create=True):
        config = types.SimpleNamespace(embed_dim=HIDDEN, tjn_ckpt_path="", **whole)
        others = {"use_scheduler": False, "num_eval_rollouts": 1, "eval_last_k": 1}
        actor = policy.PolicyNet(**common, **others, model_config=config)
    optimizers = [x.configure_optimizers()["optimizer"] for x in (fitted, actor)]
    real, masks = fitted.rnd_mask, []
    fitted.rnd_mask = lambda *given: masks.append(real(*given)) or masks[-1]

    def networks():
        own = actor.model
        layers = own.obs_goal_embed, own.bn_embed, own.policy[0], own.policy[3]
        unused = tuple(fitted.model.get_submodule(x) for x in ("obs_decode_emb", "encoder_layer", "decoder_layer"))
        return {
            "autoencoder": ref.tie_by_name(agent.autoencoder, partners(fitted.model), fitted.model, unused),
            "actor": ref.tie_by_name(agent.actor, {f"Dense_{i}": x for i, x in enumerate(layers)}, own),
        }

    def step(trainer, optimizer, given):
        loss = trainer.training_step(given, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    def update():
        nonlocal agent
        states = rng.standard_normal((ref.ROWS, CONTEXT + FUTURE, ref.OBS))
        actions = np.tanh(rng.standard_normal((ref.ROWS, CONTEXT + FUTURE, ref.ACTION)))
        goal = rng.standard_normal((ref.ROWS, 1, ref.OBS))
        there = (np.arange(CONTEXT + FUTURE) < CONTEXT + rng.integers(0, FUTURE + 1, ref.ROWS)[:, None]).astype(float)
        given = [torch.tensor(x) for x in (states, actions, goal, there, 1 - there)]
        drawing = step(fitted, optimizers[0], given)
        frozen.model.load_state_dict(fitted.model.state_dict())
        cloning = step(actor, optimizers[1], given)

        past = Window(
            mask=jnp.asarray(1.0 - masks[-1].numpy()),
            obs=jnp.asarray(states[:, :CONTEXT]),
            action=jnp.asarray(actions[:, :CONTEXT]),
        )
        batch = module.PlanBatch(past, *map(jnp.asarray, (goal[:, 0], states, there)))
        agent, drew = fit(agent, batch)
        seen = past._replace(mask=jnp.ones_like(past.mask))
        agent, cloned = clone(agent, batch._replace(past=seen))
        return {
            "autoencoder": (ref.scalar(drew["reconstruction_loss"]), ref.scalar(drawing)),
            "actor": (ref.scalar(cloned["actor_loss"]), ref.scalar(cloning)),
        }

    return ref.side_by_side(networks, update)


def lightning(torch):
    """What of pytorch_lightning an update needs."""
    nothing = {name: lambda self, *_, **__: None for name in ("save_hyperparameters", "log_dict")}
    made = types.ModuleType("pytorch_lightning")
    made.LightningModule = type("LightningModule", (torch.nn.Module,), {**nothing, "device": "cpu"})
    made.LightningDataModule = object
    return made


def partners(model):
    """Of our autoencoder's layers."""
    found = {"embed_goal": model.goal_embed, "embed_obs": model.obs_embed, "head": model.obs_decoder}
    found |= ref.encoder_partners(model.encoder, "encoder") | ref.encoder_partners(model.decoder, "decoder")
    found |= {"encoder/LayerNorm_0": model.encoder_norm, "decoder/LayerNorm_0": model.decoder_norm}
    token = model.obs_mask_token
    return found | {"slot": (model.slots.weight, np.asarray), "hidden": (token, lambda x: x.reshape(token.shape))}


CASES = {
    "": ref.Case(
        "brown-palm/GCPC",
        FILE,
        compare,
        DEVIATIONS,
        note="Goals are whole states, and all of the last steps are kept in the window; the reference draws which of "
        "them are hidden. Both stages by turns, so that the frozen autoencoder of the second moves. No dropout.",
    )
}
