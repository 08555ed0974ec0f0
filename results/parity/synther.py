"""SynthER's diffusion model beside the authors' code: training with its average, and the sampler."""

import contextlib
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from results import references as ref

FILE = "synther/diffusion/elucidated_diffusion.py"
DEVIATIONS = {"norm": "gradients are scaled to the clipped norm exactly; the reference adds 1e-6 to their norm"}
DIM, TOGETHER, STEPS, SAMPLES = 2 * ref.OBS + ref.ACTION + 2, 12, 4, 6
"""Numbers in a row, updates that count as one here, and steps and rows of the sampler."""
ABSENT = (*ref.ABSENT, "gin", "accelerate", "redq", "torchdiffeq", "synther.online")


def compare(checkout, undo):
    torch, module = ref.torch_double(), ref.in_double(ref.ours("synther"))
    torch.float32 = torch.float64
    peer = ref.theirs(checkout, FILE, ABSENT)
    from synther.diffusion.denoiser_network import ResidualMLPDenoiser
    from synther.diffusion.norm import Normalizer

    peer.Accelerator = Alone
    rng = np.random.default_rng(0)
    noise = ref.Noise(rng)
    args = module.Args(
        diffusion_updates=20 * TOGETHER, denoiser_width=32, denoiser_blocks=2, time_dim=16, hidden_dims=(8,),
        sampling_steps=STEPS, batch_size=ref.ROWS,
    )  # fmt: skip
    if "norm" in undo:
        ref.replace(module, "denoiser_optimizer", with_their_norm)
    agent = ref.agent_of(module, args, rng)
    data = rng.standard_normal((40, DIM))
    normalizer = Normalizer(torch.tensor(data), skip_dims=[DIM - ref.OBS - 1])
    mean, std = (jnp.asarray(x.numpy()) for x in (normalizer.mean, normalizer.std))
    agent = agent.replace(row_mean=mean, row_std=std)
    net = ResidualMLPDenoiser(DIM, dim_t=16, mlp_width=32, num_layers=2, layer_norm=False)
    model = peer.ElucidatedDiffusion(net, normalizer, [DIM], num_sample_steps=STEPS)
    trainer = peer.Trainer(
        model, train_lr=args.denoiser_lr, lr_scheduler="cosine", train_num_steps=args.diffusion_updates,
        results_folder=tempfile.gettempdir(), use_gpu=False,
    )  # fmt: skip

    def tied(tree, net):
        parts = torch.nn.ModuleList([net.time_mlp, net.proj, net.residual_mlp])
        return ref.tie(tree, parts, {"frequencies": net.time_mlp[0].weights})

    def networks():
        (fixed, *denoiser), (averaged, *average) = (
            tied(tree, one) for tree, one in ((agent.denoiser, net), (agent.ema_denoiser, trainer.ema.ema_model.net))
        )
        return {"denoiser": denoiser, "average": average, "frequencies": [fixed, averaged]}

    @jax.jit
    def our_update(agent, rows, *draws):
        left = list(draws)
        with mock.patch.object(jax.random, "normal", lambda key, shape: left.pop(0)):
            return module.update_denoiser(agent, rows, jax.random.key(0), args)

    def update():
        nonlocal agent
        losses = []
        for _ in range(TOGETHER):
            rows = data[rng.integers(0, len(data), ref.ROWS)]
            draws = [rng.standard_normal(shape) for shape in (ref.ROWS, rows.shape)]
            agent, info = our_update(agent, rows, *draws)
            with noise.theirs([ref.Draw("normal", x) for x in draws]):
                losses.append((float(info["diffusion_loss"]), trainer.train_on_batch(torch.tensor(rows), False)))
        with noise.ours():
            samples = module.sample_rows(agent, jax.random.key(0), SAMPLES, args)
        with noise.theirs():
            theirs = trainer.ema.ema_model.sample(SAMPLES, clamp=False, disable_tqdm=True)
        return {"diffusion": tuple([np.array(x)] for x in zip(*losses)), "samples": ([samples], [theirs.numpy()])}

    return ref.side_by_side(networks, update)


class Alone:
    """What the reference asks of an accelerator, on the CPU."""

    device, is_main_process, is_local_main_process = "cpu", True, True

    def __init__(self, **_):
        pass

    def prepare(self, *things):
        return things if len(things) > 1 else things[0]

    def autocast(self):
        return contextlib.nullcontext()

    def backward(self, loss):
        loss.backward()

    def clip_grad_norm_(self, parameters, most):
        import torch

        return torch.nn.utils.clip_grad_norm_(parameters, most)

    def wait_for_everyone(self):
        pass


def with_their_norm(args):
    def clip(grads, state, params=None):
        scale = jnp.minimum(1.0, 1.0 / (optax.global_norm(grads) + 1e-6))
        return jax.tree.map(lambda x: scale * x, grads), state

    clipping = optax.GradientTransformation(lambda params: optax.EmptyState(), clip)
    rate = optax.cosine_decay_schedule(args.denoiser_lr, args.diffusion_updates)
    return optax.chain(clipping, optax.adam(rate, b2=0.99))


NOTE = (
    "12 updates of the diffusion model count as one, so that its average is past its first hundred; then samples of 4 "
    "steps. The policy is TD3+BC's."
)
CASES = {"": ref.Case("conglu1997/SynthER", FILE, compare, DEVIATIONS, still=("frequencies",), note=NOTE)}
