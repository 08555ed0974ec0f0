"""MCQ beside the authors' code, in its plain form (that of most of its datasets)."""

import sys
import tempfile
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from results import references as ref

FILE = "offlinerl/algo/modelfree/MCQ.py"
DEVIATIONS = {
    "floor": "pseudo values may be negative; in the authors' code they are held at 0 or above",
    "draw": "the temperature's step has an action of its own; in the authors' code it is the actor's",
    "log det": "log(1 - tanh(u)^2) is computed in its stable form; the authors' code adds 1e-6 inside the logarithm",
}
HIDDEN, WIDE = 32, 48
ABSENT = ("loguru", "tianshou", "sklearn", "ray", "offlinerl.config", "offlinerl.data", "offlinerl.evaluation")
UTILS = ("config", "data", "env", "exp", "io", "log", "logger")


def compare(checkout, undo):
    torch, module = ref.torch_double(), ref.ours("mcq")
    torch.float32 = torch.float64
    peer = load(checkout)
    ref.replace(torch.distributions.Distribution, "mode", None)  # which the authors' distribution sets itself
    rng = np.random.default_rng(0)
    noise, data = ref.Noise(rng), ref.batches(rng)
    args = module.Args(batch_size=ref.ROWS, n_draws=3, hidden_dims=(HIDDEN,) * 3, vae_hidden_dims=(WIDE,) * 2)
    agent = ref.agent_of(module, args, rng)
    if "floor" in undo:
        pseudo_value = module.pseudo_value
        ref.replace(module, "pseudo_value", lambda *given: jnp.maximum(pseudo_value(*given), 0.0))
    if "log det" in undo:
        ref.replace(module, "tanh_gaussian_log_prob", with_their_epsilon)
    settings = {
        "seed": 0, "task": "d4rl-walker2d-medium-replay-v2", "obs_shape": None, "action_shape": None, "device": "cpu",
        "layer_num": 2, "hidden_layer_size": HIDDEN, "vae_features": WIDE, "vae_layers": 2, "actor_lr": args.actor_lr,
        "critic_lr": args.critic_lr, "vae_lr": args.vae_lr, "use_automatic_entropy_tuning": True,
        "target_entropy": None, "lam": args.bellman_weight, "num": args.n_draws, "normalize": False,
        "log_dir": tempfile.gettempdir(), "batch_size": ref.ROWS, "reward_scale": 1.0, "discount": args.discount,
        "soft_target_tau": args.tau,
    }  # fmt: skip
    trainer = peer.AlgoTrainer(peer.algo_init(settings), settings)
    trainer.mean, trainer.std = 0.0, 1.0 - 1e-6  # they add 1e-6

    def networks():
        parts = {
            name: ref.tie({"params": agent.vae["params"][name]}, getattr(trainer.vae, name))
            for name in ("encoder", "decoder")
        }
        return {
            "VAE": parts["encoder"] + parts["decoder"],
            "actor": ref.tie(ref.split_last(agent.actor), trainer.actor),
            "critic": ref.tie(agent.critic, [trainer.critic1, trainer.critic2]),
            "target critic": ref.tie(agent.target_critic, [trainer.critic1_target, trainer.critic2_target]),
            "log alpha": [ref.Tied(np.asarray(agent.log_alpha).reshape(1), trainer.log_alpha)],
        }

    def update():
        nonlocal agent
        rows, losses = next(data), []
        sample = one_draw(module) if "draw" in undo else module.sample_tanh_gaussian
        with noise.ours(), mock.patch.object(module, "sample_tanh_gaussian", sample):
            agent, info = module.update(agent, ref.batch(rows), jax.random.key(0), args)
        backward = torch.Tensor.backward
        ref.replace(torch.Tensor, "backward", lambda x, **kept: (losses.append(x.item()), backward(x, **kept))[1])
        names = {"obs": "obs", "act": "action", "rew": "reward", "done": "terminal", "obs_next": "next_obs"}
        batch = dict(zip(names, ref.tensors(rows, *names.values()), strict=True))
        with noise.theirs(in_their_order(noise.drawn)):
            trainer._train(types.SimpleNamespace(**batch), None)
        torch.Tensor.backward = backward
        vae, _, first, second, actor = losses
        return {
            "VAE": (ref.scalar(info["vae_loss"]), ref.scalar(vae)),
            "critic": (ref.scalar(info["critic_loss"]), ref.scalar(first + second)),
            "actor": (ref.scalar(info["actor_loss"]), ref.scalar(actor)),
        }

    return ref.side_by_side(networks, update)


def load(checkout):
    """The authors' file, without the packages that read data and write logs."""
    absent = (*ref.ABSENT, *ABSENT, *(f"offlinerl.utils.{name}" for name in UTILS))
    spaces = types.ModuleType("offlinerl.utils.env")
    spaces.get_env_shape = lambda task: (ref.OBS, ref.ACTION)
    spaces.get_env_action_range = lambda task: (1.0, None)
    sys.modules["offlinerl.utils.env"] = spaces
    peer = ref.theirs(checkout, FILE, absent)
    peer.to_torch = lambda batch, *_, **__: batch
    sys.modules["offlinerl.utils.net.continuous"].to_torch_as = lambda x, y: x
    return peer


def in_their_order(drawn):
    """Both critics and both kinds of states draw for themselves there, and once what is not used here."""
    vae, first, following, ood, latent, *_ = drawn
    split = [[d._replace(array=x) for x in np.split(d.array, 2, axis=1)] for d in (ood, latent)]
    unused = vae._replace(array=np.zeros_like(vae.array))
    return [vae, first, following, unused, *2 * [*split[0], *split[1]]]


def one_draw(module):
    """The first action's random numbers are those of the last one, too."""
    calls = []

    def sample(mean, log_std, key, *n):
        if len(calls) < 3:
            calls.append(jax.random.normal(key, (*n, *mean.shape)))
            u = mean + jnp.exp(log_std) * calls[-1]
        else:
            u = mean + jnp.exp(log_std) * calls[0]
        return jnp.tanh(u), module.tanh_gaussian_log_prob(mean, log_std, u)

    return sample


def with_their_epsilon(mean, log_std, u):
    log_prob = jax.scipy.stats.norm.logpdf(u, mean, jnp.exp(log_std))
    return (log_prob - jnp.log(1.0 - jnp.tanh(u) ** 2 + 1e-6)).sum(-1)


NOTE = (
    "3 draws, which both critics and the pseudo values share on both sides. What the authors' code does on some "
    "datasets (the gap of 5, the weights, too high values alone) is not in it."
)
CASES = {"": ref.Case("dmksjfl/MCQ", FILE, compare, DEVIATIONS, note=NOTE)}
