"""Behavior Retrieval's autoencoder and similarities beside its authors' code, a fork of robomimic."""

import importlib
import sys
import types
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np

from results import references as ref

FILE = "robomimic/robomimic/algo/classifier.py"
HIDDEN, SHOWN, LATENT, KL = (24, 24), 6, 4, 0.1
ABSENT = (*ref.ABSENT, "torchvision", "robosuite", "tensorboardX", "egl_probe", "imageio", "tqdm", "termcolor")
DEVIATIONS = {
    "scale": "states and actions are standardised",
    "error": "the reconstruction's error is the mean over all numbers, not of the states' mean and the actions'",
    "noise": "in the draw of a latent its log standard deviation may lie below -4",
}


def compare(checkout, undo):
    torch, module = ref.torch_double(), ref.in_double(ref.ours("behavior_retrieval"))
    sys.path.insert(0, str(checkout / "robomimic"))
    peer = ref.theirs(checkout, FILE, ABSENT)
    rng = np.random.default_rng(0)
    noise, data = ref.Noise(rng), ref.batches(rng)
    args = module.Args(
        batch_size=ref.ROWS, embed_batch=ref.ROWS, embed_hidden_dims=HIDDEN, latent_dim=LATENT, kl_weight=KL
    )
    if undo & {"error", "noise"}:
        module.embed_loss = loss_of(undo)
    agent = ref.agent_of(module, args, rng)
    last = agent.encoder["params"][f"Dense_{len(HIDDEN)}"]
    last["bias"] = last["bias"].at[-1].set(-10.0)  # log variance
    scale = (np.zeros(ref.OBS + ref.ACTION), np.ones(ref.OBS + ref.ACTION))
    if "scale" not in undo:
        scale = tuple(rng.uniform(0.5, 2.0, x.shape) for x in scale)

    obs_utils = importlib.import_module("robomimic.utils.obs_utils")
    obs_utils.initialize_obs_utils_with_obs_specs([{"obs": {"low_dim": ["obs", "actions", "latent"]}}])
    nothing = {"core_class": None, "core_kwargs": {}, "obs_randomizer_class": None, "obs_randomizer_kwargs": {}}
    obs_utils.DEFAULT_ENCODER_KWARGS = {"low_dim": nothing}
    vae = importlib.import_module("robomimic.models.vae_nets").VAE(
        shapes := OrderedDict(obs=[ref.OBS], actions=[ref.ACTION]), shapes, HIDDEN, HIDDEN, LATENT, "cpu",
        decoder_is_conditioned=False,
    ).double()  # fmt: skip
    embedder = peer.VAE_KNN.__new__(peer.VAE_KNN)
    embedder.nets = torch.nn.ModuleDict({"VAE": vae})
    embedder.device, embedder.algo_config = torch.device("cpu"), types.SimpleNamespace(vae=Weighted())
    embedder.optimizers = {"VAE": torch.optim.Adam(vae.parameters(), lr=args.embed_lr)}
    datasets = importlib.import_module("robomimic.utils.dataset")
    demos = next(ref.batches(rng, SHOWN))

    class Rows(types.SimpleNamespace):
        """Transitions on the device, whatever is drawn."""

        def sample(self, key, n):
            return self.batch

        def take(self, rows):
            return self.batch

    def prior_of(rows):
        parts = (Rows(batch=ref.batch(x), rows=jnp.zeros(len(x["obs"]))) for x in (rows, demos))
        return module.Prior(*parts, *map(jnp.asarray, scale), None)

    def given(rows):
        return {"obs": torch.tensor(rows["obs"]), "actions": torch.tensor(rows["action"])}

    def networks():
        found = {}
        for name in ("encoder", "decoder"):
            tree, net = getattr(agent, name), vae.nets[name]
            found[name] = tie(tree, net, ("mean", "logvar") if name == "encoder" else ("obs", "actions"))
        return found

    def tie(tree, net, heads):
        """Our last layer is their heads side by side."""
        layers = dict(tree["params"])
        whole, sizes = layers.pop(f"Dense_{len(HIDDEN)}"), [net.nets["decoder"].nets[h].weight.shape[0] for h in heads]
        for i, (start, size) in enumerate(zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True)):
            layers[f"Dense_{len(HIDDEN) + i}"] = {k: x[..., start : start + size] for k, x in whole.items()}
        hidden = [m for m in net.nets["mlp"].modules() if isinstance(m, torch.nn.Linear)]
        lines = [*hidden, *(net.nets["decoder"].nets[h] for h in heads)]
        return ref.tie_by_name({"params": layers}, {f"Dense_{i}": m for i, m in enumerate(lines)}, net)

    def update():
        nonlocal agent
        rows = next(data)
        prior = prior_of(rows)
        keys = jax.random.split(jax.random.key(0), 1)
        with noise.ours():
            agent, info = module.fit(agent, keys, args, prior)
        embedder.nets.train()
        with noise.theirs():
            found = embedder.train_on_batch(given(rows), 0)
        embedder.nets.eval()
        seen = (embedder.compute_embeddings(given(x)) for x in (rows, demos))
        own, shown = (types.SimpleNamespace(offline_embeddings=x) for x in seen)
        datasets.SequenceDataset.reweight_data_from_dataset(own, shown, soft=True)
        similarity = module.retrieve(agent, prior).similarity
        losses = {"embed_error": "reconstruction_loss", "kl": "kl_loss", "embed_loss": "loss"}
        return {a: (ref.scalar(info[a]), ref.scalar(found[b])) for a, b in losses.items()} | {
            "similarity": ([np.asarray(similarity)], [own._weight_list])
        }

    return ref.side_by_side(networks, update)


class Weighted(types.SimpleNamespace):
    """Of the reference's settings."""

    kl_weight = KL


def loss_of(undo):
    """Our loss with the deviations of `undo` undone."""

    def loss(params, nets, x, key, args):
        mean, log_var = jnp.split(nets.encoder.apply(params[0], x), 2, axis=-1)
        log_std = 0.5 * log_var
        log_std = jnp.clip(log_std, -4.0, 15.0) if "noise" in undo else log_std
        z = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        square = (nets.decoder.apply(params[1], z) - x) ** 2
        parts = square[:, : ref.OBS].mean() + square[:, ref.OBS :].mean()
        error = 0.5 * parts if "error" in undo else square.mean()
        kl = 0.5 * (mean**2 + jnp.exp(log_var) - 1.0 - log_var).sum(-1).mean()
        return error + args.kl_weight * kl, {"embed_error": error, "kl": kl}

    return loss


CASES = {
    "": ref.Case(
        "MaxDu17/BehaviorRetrieval",
        FILE,
        compare,
        DEVIATIONS,
        note=f"The autoencoder of {LATENT} latents, and the similarity of every batch to {SHOWN} demonstrated rows; "
        "the policy is another.",
    )
}
