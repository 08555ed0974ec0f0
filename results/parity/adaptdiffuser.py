"""AdaptDiffuser's round 0 beside Diffuser's code: training with its average, and plans with and without a guide."""

import importlib
import tempfile
import types
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from results import references as ref

FILE = "diffuser/models/diffusion.py"
DEVIATIONS = {
    "bias": "the upsampling convolution has a bias for each of its two phases",
    "average": "the average is the model itself before ema_start and then follows after updates 10, 20, ...; in the "
    "reference after updates 1, 11, 21, ... all along",
}
UPDATES, STEPS, PLANS, T = 12, 8, 3, 6
"""Updates that count as one here, steps of a window and a plan, plans, and steps of the diffusion."""
FACTORS, START = (1, 2), 45
"""Of the U-Net's levels; updates before which the average begins."""
UNUSED = ("rendering", "config", "setup", "serialization", "colab", "logger", "cloud")
ABSENT = (*ref.ABSENT, "diffuser.environments", "diffuser.datasets", *(f"diffuser.utils.{name}" for name in UNUSED))


def compare(checkout, undo):
    torch, module = ref.torch_double(), ref.in_double(ref.ours("adaptdiffuser"))
    ref.theirs(checkout, "diffuser/models/helpers.py", ABSENT)
    models = importlib.import_module("diffuser.models")
    diffusion = importlib.import_module("diffuser.models.diffusion")
    training = importlib.import_module("diffuser.utils.training")
    guides = importlib.import_module("diffuser.sampling.functions")
    doubled = partial(diffusion.cosine_beta_schedule, dtype=torch.float64)
    ref.replace(diffusion, "cosine_beta_schedule", doubled)
    ref.replace(diffusion, "sort_by_values", lambda x, values: (x, values))  # the best first, where we make one
    rng = np.random.default_rng(0)
    noise = ref.Noise(rng)
    args = module.Args(
        rounds=0, window_steps=STEPS, plan_steps=STEPS, channels=16, channel_factors=FACTORS, diffusion_steps=T,
        sampling_steps=T, ema_start=START, batch_size=ref.ROWS, hidden_dims=(8,), guide_scale=0.3,
    )  # fmt: skip
    spec = ref.SPEC._replace(goal_shape=ref.SPEC.obs_shape)
    agent = ref.agent_of(module, args, rng, spec)
    agent = agent.replace(denoiser=alike(agent.denoiser), ema_denoiser=alike(agent.ema_denoiser))
    net = models.TemporalUnet(STEPS, agent.nets.layout.dim, 0, 16, FACTORS)
    model = models.GaussianDiffusion(
        net, STEPS, ref.OBS, ref.ACTION, T, loss_type="l2", clip_denoised=True, predict_epsilon=False
    )
    trainer = training.Trainer(
        model, [0], None, train_lr=args.learning_rate, gradient_accumulate_every=1, step_start_ema=START, sample_freq=0,
        results_folder=tempfile.gettempdir(),
    )  # fmt: skip
    trainer.save, training.batch_to_device = (lambda label: None), (lambda batch: batch)
    updates = 0
    fake = types.SimpleNamespace(**vars(optax))
    module.optax = fake
    if "bias" in undo:
        fake.adam = with_one_bias
    if "average" in undo:
        fake.incremental_update = lambda new, old, _: jax.tree.map(lambda a, b: share * a + (1.0 - share) * b, new, old)

    def networks():
        return {"denoiser": tied(agent.denoiser, net), "average": tied(agent.ema_denoiser, trainer.ema_model.model)}

    @jax.jit
    def our_update(agent, x, t, z, weight):
        nonlocal share
        share = weight
        given = mock.patch.multiple(jax.random, randint=lambda *_: t, normal=lambda *_: z)
        with given:
            return module.update(agent, x, None, jax.random.key(0), args)

    share = 0.0

    def update():
        nonlocal agent, updates
        pairs = []
        for _ in range(UPDATES):
            x = np.tanh(rng.standard_normal((ref.ROWS, STEPS, agent.nets.layout.dim)))
            t, z = rng.integers(0, T, ref.ROWS), rng.standard_normal(x.shape)
            theirs_now = (1.0 if updates < START else 1.0 - args.ema_decay) if updates % 10 == 0 else 0.0
            agent, info = our_update(agent, x, t, z, theirs_now)
            losses = []
            trainer.dataloader = iter([(torch.tensor(x), ends(torch, x))])
            with noise.theirs([ref.Draw("integers", t), ref.Draw("normal", z)]), noted(model, losses):
                trainer.train(1)
            pairs.append((float(info["diffusion_loss"]), losses[0]))
            updates += 1
        return {
            "diffusion": tuple([np.array(x)] for x in zip(*pairs)),
            "plans": plan(False),
            "guided plans": plan(True),
        }

    @partial(jax.jit, static_argnums=0)
    def our_plans(guided, agent, given, first, noises):
        """`make_plans`, whose keys are what is drawn with them."""
        keys = iter([(first, noises), noises])
        with mock.patch.multiple(jax.random, split=lambda *_: next(keys), normal=lambda key, shape: key):
            if not guided:
                return module.make_plans(agent, given, None, args)
            own = agent.replace(nets=agent.nets._replace(guide=Bowl))
            return module.make_plans(own, given, None, module.dataclasses.replace(args, guide_steps=2))

    def plan(guided):
        x = np.tanh(rng.standard_normal((PLANS, STEPS, agent.nets.layout.dim)))
        given = module.Ends(*(jnp.asarray(x[:, at, ref.ACTION :]) for at in (0, -1)))
        first, noises = rng.standard_normal(x.shape), rng.standard_normal((T, *x.shape))
        made, how = our_plans(guided, agent, given, first, noises), {}
        if guided:
            how = {"sample_fn": guides.n_step_guided_p_sample, "guide": Bowl, "scale": args.guide_scale}
            how |= {"t_stopgrad": args.guide_stop, "n_guide_steps": 2}
        with noise.theirs([ref.Draw("normal", z) for z in (first, *noises)]):
            theirs = trainer.ema_model.conditional_sample(ends(torch, x), verbose=False, **how).trajectories
        return [np.asarray(made)], [theirs.numpy()]

    return ref.side_by_side(networks, update)


class Bowl:
    """A guide of either side: the mean of -(x - 0.5)^2."""

    @staticmethod
    def apply(params, x, t):
        return -((x - 0.5) ** 2).mean((1, 2))

    @staticmethod
    def gradients(x, cond, t):
        return x.new_zeros(len(x)), -2.0 * (x - 0.5) / x[0].numel()


def ends(torch, x):
    """The first state and the last of windows [B, T, D]."""
    return {0: torch.tensor(x[:, 0, ref.ACTION :]), STEPS - 1: torch.tensor(x[:, -1, ref.ACTION :])}


def noted(model, losses):
    """Their losses, as they are made."""
    real = model.loss

    def loss(*batch):
        found = real(*batch)
        losses.append(float(found[0].detach()))
        return found

    return mock.patch.object(model, "loss", loss, create=True)


def upsampling():
    """Pairs of our layers that are one of theirs, and the number of the one after them."""
    first = 2 + len(FACTORS) - 1
    return [(f"Dense_{first + 2 * i}", f"Dense_{first + 2 * i + 1}") for i in range(len(FACTORS) - 1)]


def alike(tree):
    """With one bias for both phases."""
    p = dict(tree["params"])
    for even, odd in upsampling():
        p[odd] = {**p[odd], "bias": p[even]["bias"]}
    return {"params": p}


def summed(grads):
    """The slopes of both phases' biases, as if they were one."""
    p = dict(grads["params"]) if isinstance(grads, dict) and "ConvBlock_0" in grads["params"] else None
    if p is None:
        return grads
    for even, odd in upsampling():
        both = p[even]["bias"] + p[odd]["bias"]
        p |= {name: {**p[name], "bias": both} for name in (even, odd)}
    return {"params": p}


def with_one_bias(rate):
    adam = optax.adam(rate)
    return optax.GradientTransformation(adam.init, lambda grads, *others: adam.update(summed(grads), *others))


def tied(tree, net):
    """Convolutions are products with the neighbours in ours: kernels [K, in, out] in another order."""
    partners, none = {"Dense_0": net.time_mlp[1], "Dense_1": net.time_mlp[3]}, np.asarray

    def conv(path, layer):
        size = layer.weight.shape[2]
        partners[f"{path}/kernel"] = layer.weight, lambda x: x.reshape(size, -1, x.shape[-1]).transpose(2, 1, 0)
        partners[f"{path}/bias"] = layer.bias, none

    def block(path, layer):
        conv(f"{path}/Dense_0", layer.block[0])
        partners[f"{path}/GroupNorm_0"] = layer.block[2]

    residual = [b for down in net.downs for b in down[:2]] + [net.mid_block1, net.mid_block2]
    for i, one in enumerate(residual + [b for up in net.ups for b in up[:2]]):
        for j, layer in enumerate(one.blocks):
            block(f"ResidualBlock_{i}/ConvBlock_{j}", layer)
        partners[f"ResidualBlock_{i}/Dense_0"] = one.time_mlp[1]
        if hasattr(one.residual_conv, "weight"):
            conv(f"ResidualBlock_{i}/Dense_1", one.residual_conv)
    for i, down in enumerate(net.downs[:-1]):
        conv(f"Dense_{2 + i}", down[3].conv)
    for (even, odd), up in zip(upsampling(), net.ups, strict=True):
        halves = lambda x: np.stack(np.split(x, 2)[::-1], axis=-1)  # noqa: E731
        partners[f"{even}/kernel"] = up[3].conv.weight[..., 1::2], halves
        partners[f"{odd}/kernel"] = up[3].conv.weight[..., 0::2], halves
        partners |= {f"{name}/bias": (up[3].conv.bias, none) for name in (even, odd)}
    block("ConvBlock_0", net.final_conv[0])
    conv(f"Dense_{2 + 3 * (len(FACTORS) - 1)}", net.final_conv[1])
    return ref.tie_by_name(tree, partners, net, unused=tuple(up[3] for up in net.ups))


NOTE = (
    "12 updates count as one, so that the average passes its start; then three plans between given ends, without a "
    "guide and with two steps along a given function's slope for each of the diffusion. The reference is Diffuser's "
    "main branch with what its mazes set: predicted windows, actions as heavy as states, and one batch for each "
    "update. The inverse model, the learned guide and the rounds are not compared."
)
CASES = {"Diffuser": ref.Case("jannerm/diffuser", FILE, compare, DEVIATIONS, note=NOTE)}
