"""LDCQ beside the authors' code: the critics, the diffusion model with its sampler, and the autoencoder's losses."""

import types
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from results import references as ref

REFERENCE, ABSENT = "ldcq/ldcq", (*ref.ABSENT, "comet_ml", "tqdm", "ipdb")
CRITICS, DIFFUSION, AUTOENCODER = "models/dqn.py", "models/diffusion_models.py", "models/skill_model.py"
OF_CRITICS = {
    "norm": "gradients are scaled to the clipped norm exactly; the reference adds 1e-6 to their norm",
    "weights": "each window's error has its importance weight; in the reference all have the mean one, as its errors "
    "[B, 1] are multiplied by weights [B]",
}
OF_DIFFUSION = {
    "norms": "layers of one width have normalisations of their own; in the reference a block's three are one, and so "
    "are those on the way down and up",
    "schedule": "a cosine, the posterior's noise, steps that count from 0; in the reference a line, the variance of "
    "the way to the noise, steps that count from 1",
}
OF_AUTOENCODER = {
    "floor": "standard deviations are at least 0.01; in the reference above 0",
    "shaping": "the likelihood of a window's end shapes plans, too; the reference stops its gradient there",
    "end": "the end is the state after a window; in the reference its last one",
}
PLANS, WINDOWS = 6, 20
"""Plans that a target chooses from, and windows of the data."""
Z, H, SIZES, T, EXTRA = 4, 5, (32, 16, 8), 4, 2
"""Sizes of a plan, a window and the networks, steps of the diffusion, and times that its last is repeated."""


def load(checkout, file):
    torch = ref.torch_double()
    torch.float32 = torch.float64  # which the schedule asks for
    ref.replace(torch.Tensor, "cuda", lambda x: x)
    return torch, ref.in_double(ref.ours("ldcq")), ref.theirs(checkout, file, ABSENT)


# ------------------------------------------------------------------------------------------- critics


def critics(checkout, undo):
    torch, module, peer = load(checkout, CRITICS)
    rng = np.random.default_rng(0)
    args = module.Args(batch_size=ref.ROWS, backup_candidates=PLANS, updates=1000, latent_dim=Z)
    if "norm" in undo:
        ref.replace(module, "clipped_adam", with_their_norm)
    made = jax.jit(module.init, static_argnums=(1, 2, 3))(jax.random.key(0), args, ref.SPEC, WINDOWS)
    agent = ref.in_general_position(made, rng)
    trainer = peer.DDQN(
        ref.OBS, Z, gamma=args.discount, tau=1.0 - args.tau, lr=args.critic_lr, num_prior_samples=PLANS,
        total_prior_samples=PLANS, horizon=args.window_steps, device="cpu",
    )  # fmt: skip
    nets = [trainer.q_net_0, trainer.q_net_1]
    targets = [peer.MLP_Q(ref.OBS, Z) for _ in nets]
    peer.copy = types.SimpleNamespace(deepcopy=lambda net: targets[nets.index(net)])
    priorities, data = np.full(WINDOWS, 100.0), ref.batches(rng)

    @jax.jit
    def our_update(agent, batch, window, weight, plan, plans):
        given = {
            "draw_windows": lambda *_: (window, weight),
            "encoded": lambda *_: (plan, None),
            "sample_plans": lambda *_: plans.reshape(-1, Z),
        }
        with mock.patch.multiple(module, **given):
            return module.update(agent, types.SimpleNamespace(take=lambda *_: batch), jax.random.key(0), args)

    def networks():
        return {
            "critic": ref.tie(in_their_order(agent.critic), nets),
            "target critic": ref.tie(in_their_order(agent.target_critic), targets),
            "priorities": [ref.Tied(np.asarray(agent.priorities), torch.tensor(priorities))],
        }

    def update():
        nonlocal agent
        rows = next(data)
        window = rng.choice(WINDOWS, ref.ROWS, replace=False)
        plan, weight = rng.standard_normal((ref.ROWS, Z)), rng.random(ref.ROWS)
        plans = rng.standard_normal((PLANS, ref.ROWS, Z))
        own_weight = np.full(ref.ROWS, weight.mean()) if "weights" in undo else weight
        ends = rows["reward"], rows["terminal"], rows["next_obs"]
        batch = module.WindowBatch(None, jnp.asarray(rows["obs"])[:, None], None, *map(jnp.asarray, ends), None)
        agent, info = our_update(agent, batch, window, own_weight, plan, plans)
        peer.tqdm, peer.Experiment = Steps, mock.Mock()
        trainer.learn(
            Buffer(rows, plan, plans, weight, window, priorities), n_epochs=1, per_buffer=1, batch_size=ref.ROWS
        )
        logged = {call.args[0]: call.args[1] for call in peer.Experiment.return_value.log_metric.call_args_list}
        return {"critic": (ref.scalar(info["critic_loss"]), ref.scalar(logged["train_loss_episode"]))}

    return ref.side_by_side(networks, update)


def in_their_order(tree):
    """With the last layer behind the others."""
    layers = dict(tree["params"])
    last = layers.pop("Dense_0")
    return {"params": {**layers, "Output": last}}


class Steps(list):
    """A loop that shows no progress."""

    def __init__(self, steps, **_):
        super().__init__(steps)

    def set_description(self, _):
        pass


class Buffer:
    """Their prioritised buffer, of which one batch is asked."""

    def __init__(self, rows, plan, plans, weight, window, priorities):
        end = rows["next_obs"], rows["terminal"][:, None]
        self.batch = rows["obs"], plan, rows["reward"], *end, window, weight, plans.swapaxes(0, 1)
        self.priorities = priorities

    def __len__(self):
        return ref.ROWS

    def sample(self, size, beta):
        return self.batch

    def update_priorities(self, window, found):
        self.priorities[window] = found


def with_their_norm(rate, args):
    def clip(grads, state, params=None):
        scale = jnp.minimum(1.0, args.max_grad_norm / (optax.global_norm(grads) + 1e-6))
        return jax.tree.map(lambda x: scale * x, grads), state

    return optax.chain(optax.GradientTransformation(lambda params: optax.EmptyState(), clip), optax.adam(rate))


# ------------------------------------------------------------------------------- the diffusion model


def diffusion(checkout, undo):
    torch, module, peer = load(checkout, DIFFUSION)
    rng = np.random.default_rng(0)
    noise = ref.Noise(rng)
    args = module.Args(
        batch_size=ref.ROWS, latent_dim=Z, denoiser_dims=(*SIZES, 8), embedding_dim=256, hidden_dims=(8,),
        diffusion_steps=T, sampling_steps=T, extra_steps=EXTRA, diffusion_updates=10**12, window_steps=H,
    )  # fmt: skip
    net = peer.Model_mlp(ref.OBS, None, Z, None, net_type="unet")
    net.nn = peer.Model_mlp_diff_embed(ref.OBS, None, Z, None, net_type="unet", h_dims=[*SIZES, 8])
    model = peer.Model_Cond_Diffusion(
        net, betas=(1e-4, 0.02), n_T=T, device="cpu", x_dim=ref.OBS, y_dim=Z, drop_prob=0.0, guide_w=0.0
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=args.denoiser_lr)
    if "schedule" in undo:
        sinusoidal, abar = module.sinusoidal, model.alphabar_t[1:].numpy()
        ref.replace(module, "sinusoidal", lambda t, size: sinusoidal(t + 1, size))
        ref.replace(module, "alpha_bars", lambda T: abar)
        ref.replace(module, "posteriors", lambda args: their_steps(model))
    if "norms" in undo:
        ref.replace(module, "denoiser_optimizer", with_their_norms)
    agent = ref.agent_of(module, args, rng)
    agent = agent.replace(denoiser=together(agent.denoiser, lambda *same: same[0]))

    @jax.jit
    def our_update(agent, obs, plan, t, z):
        batch = module.WindowBatch(None, obs[:, None], None, None, None, None, None)
        with (
            mock.patch.object(module, "encoded", lambda *_: (plan, None)),
            mock.patch.multiple(jax.random, randint=lambda *_: t, normal=lambda *_: z),
        ):
            return module.update_denoiser(agent, batch, jax.random.key(0), args)

    def update():
        nonlocal agent
        obs, plan, z = (rng.standard_normal((ref.ROWS, size)) for size in (ref.OBS, Z, Z))
        t = rng.integers(0, T, ref.ROWS)
        agent, info = our_update(agent, obs, plan, t, z)
        with noise.theirs([ref.Draw("integers", t + 1), ref.Draw("normal", z)]):
            loss = model.loss_on_batch(torch.tensor(obs), torch.tensor(plan), predict_noise=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with noise.ours():
            samples = module.sample_plans(agent, jnp.asarray(obs[:PLANS]), jax.random.key(0), args)
        with noise.theirs(noise.drawn[:T]), torch.no_grad():  # the last step and what repeats it have none
            theirs = model.sample_extra(torch.tensor(obs[:PLANS]), extra_steps=EXTRA, predict_noise=0)
        return {
            "diffusion": (ref.scalar(info["diffusion_loss"]), ref.scalar(loss)),
            "plans": ([np.asarray(samples)], [theirs.numpy()]),
        }

    return ref.side_by_side(lambda: {"denoiser": tied(agent.denoiser, net.nn.unet)}, update)


def their_steps(model):
    """Of their chain, as `posteriors` has it: x' = of_x_0 x_0 + of_x_t x_t + std n."""
    names = "oneover_sqrta", "mab_over_sqrtmab", "sqrtmab", "sqrtab", "sqrt_beta_t"
    scale, share, noisy, clean, std = (getattr(model, name).numpy()[:0:-1] for name in names)
    table = {"of_x_0": scale * share * clean / noisy, "of_x_t": scale * (1.0 - share / noisy)}
    return {"t": np.arange(T)[::-1], **table, "std": np.append(std[:-1], 0.0)}


def same_norms():
    """Paths of our normalisations that are one of theirs."""
    levels, blocks = len(SIZES) + 1, range(2 * (len(SIZES) + 1))
    shared = [[f"ResidualBlock_{i}/LayerNorm_{j}" for j in range(3)] for i in blocks]
    down, up = range(2, levels), range(2 * levels - 2, levels, -1)  # of those widths that are met on both ways
    return shared + [[f"NormMLP_{i}/LayerNorm_0" for i in pair] for pair in zip(down, up, strict=True)]


def together(tree, join):
    """Of every group of `same_norms`, each of the parameters is what `join` makes of all of its."""
    params = {name: dict(part) for name, part in tree["params"].items()}
    for group in same_norms():
        parts = [path.split("/") for path in group]
        joined = jax.tree.map(join, *(params[block][norm] for block, norm in parts))
        for block, norm in parts:
            params[block][norm] = joined
    return {"params": params}


def with_their_norms(args):
    adam = optax.adam(args.denoiser_lr)

    def update(grads, *others):
        return adam.update(together(grads, lambda *slopes: sum(slopes)), *others)

    return optax.GradientTransformation(adam.init, update)


def tied(tree, net):
    """Our layers and theirs, of which some are several of ours."""
    levels, partners = len(SIZES) + 1, {"Dense_0": net.init_layer, "Dense_1": net.final_mlp[0]}
    for i, embed in enumerate((net.time_mlp[1:], net.state_mlp)):
        names = "Dense_0", "LayerNorm_0", "Dense_1", "LayerNorm_1"
        partners |= {f"NormMLP_{i}/{name}": embed[j] for name, j in zip(names, (0, 1, 3, 4), strict=True)}
    blocks = [getattr(net, f"res_block{i}") for i in range(1, 2 * levels)] + [net.final_res_block]
    for i, block in enumerate(blocks):
        layers = block.time_layer, block.state_layer, block.layer1, block.layer2
        partners |= {f"ResidualBlock_{i}/Dense_{j}": layer for j, layer in enumerate(layers)}
        partners |= {f"ResidualBlock_{i}/LayerNorm_{j}": block.layer_norm for j in range(3)}
    ways = [(getattr(net, f"down{i}"), i + 1) for i in range(1, levels)]
    ways += [(getattr(net, f"up{i}"), levels - i) for i in range(1, levels)]
    for i, (layer, level) in enumerate(ways):
        partners[f"NormMLP_{2 + i}/Dense_0"] = layer
        partners[f"NormMLP_{2 + i}/LayerNorm_0"] = getattr(net, f"layer_norm{level}")
    return ref.tie_by_name(tree, partners, net)


# -------------------------------------------------------------------------------- the autoencoder


def autoencoder(checkout, undo):
    torch, module, peer = load(checkout, AUTOENCODER)
    rng = np.random.default_rng(0)
    noise = ref.Noise(rng)
    sizes = {"latent_dim": Z, "hidden_dims": (16, 16), "denoiser_dims": (8, 8), "embedding_dim": 8}
    args = module.Args(batch_size=ref.ROWS, window_steps=H, **sizes)
    ref.replace(module, "Gaussian", two_heads(module))
    if "floor" in undo:
        ref.replace(module, "STD_MIN", 0.0)
    agent = ref.agent_of(module, args, rng)
    agent = agent.replace(plans=ref.shaken(agent.plans, rng))
    if "shaping" in undo:
        agent = agent.replace(nets=agent.nets._replace(end_decoder=Stopped(agent.nets.end_decoder)))
    model = peer.SkillModel(
        ref.OBS, ref.ACTION, Z, 16, H, beta=args.kl_weight, state_decoder_type="mlp",
        policy_decoder_type="autoregressive",
    )  # fmt: skip
    model.encoder = whole_window(torch, peer, module)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.plan_lr)
    our_update = jax.jit(lambda agent, batch, z: given(module, agent, batch, z, args))

    def networks():
        encoder, prior, decoder, end_decoder = agent.plans
        return {
            "encoder": ref.tie(encoder, model.encoder.net),
            "prior": ref.tie(prior, model.prior),
            "decoder": ref.tie(states_first(decoder), model.decoder.ll_policy),
            "decoder of ends": ref.tie(end_decoder, model.decoder.abstract_dynamics),
        }

    def update():
        nonlocal agent
        obs, action = (rng.standard_normal((ref.ROWS, H, size)) for size in (ref.OBS, ref.ACTION))
        z, ones = rng.standard_normal((ref.ROWS, Z)), np.ones((ref.ROWS, H))
        end = obs[:, -1] if "end" in undo else rng.standard_normal((ref.ROWS, ref.OBS))
        batch = module.WindowBatch(ones, obs, action, None, None, end, ones[:, 0])
        agent, info = our_update(agent, batch, z)
        with noise.theirs([ref.Draw("normal", z)]):
            loss, of_end, of_action, kl, _ = model.get_losses(torch.tensor(obs), torch.tensor(action), True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        named = {"decoder_loss": of_action, "end_loss": of_end, "kl": kl}
        return {name: (ref.scalar(info[name]), ref.scalar(x)) for name, x in named.items()} | {
            "all": (ref.scalar(info["plan_loss"]), ref.scalar(loss))
        }

    return ref.side_by_side(networks, update)


def given(module, agent, batch, z, args):
    """Our update, with the plans' random numbers."""
    with mock.patch.object(jax.random, "normal", lambda *_: z):
        return module.update_plans(agent, batch, jax.random.key(0), args)


def two_heads(module):
    class TwoHeads(nn.Module):
        """As our Gaussian, with a hidden layer more for the mean and one for the deviation."""

        hidden_dims: tuple[int, ...]
        outputs: int

        @nn.compact
        def __call__(self, *inputs):
            x, heads = jnp.concatenate(inputs, axis=-1), []
            for size in self.hidden_dims:
                x = nn.relu(nn.Dense(size)(x))
            for _ in range(2):
                hidden = nn.relu(nn.Dense(self.hidden_dims[-1])(x))
                heads.append(nn.Dense(self.outputs)(hidden))
            return heads[0], nn.softplus(heads[1]) + module.STD_MIN

    return TwoHeads


def whole_window(torch, peer, module):
    """Our encoder in theirs' place: their prior's layers, on a whole window and where it has steps."""

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = peer.Prior(H * (ref.OBS + ref.ACTION + 1), Z, 16)

        def forward(self, states, actions):
            rows = torch.cat([states, actions, torch.ones_like(states[..., :1])], dim=-1)
            mean, std = self.net(rows.reshape(len(rows), 1, -1))
            return mean, std + module.STD_MIN

    return Encoder()


class Stopped:
    """A network of ours, whose last input has no gradient."""

    def __init__(self, net):
        self.net = net

    def init(self, *inputs):
        return self.net.init(*inputs)

    def apply(self, params, *inputs):
        return self.net.apply(params, *inputs[:-1], jax.lax.stop_gradient(inputs[-1]))


def states_first(tree):
    """Of the networks of single actions: their first layer has the actions before the plan, ours behind it."""
    nets = {name: dict(net) for name, net in tree["params"].items()}
    for net in nets.values():
        state, plan, actions = jnp.split(net["Dense_0"]["kernel"], (ref.OBS, ref.OBS + Z))
        net["Dense_0"] = {**net["Dense_0"], "kernel": jnp.concatenate([state, actions, plan])}
    return {"params": nets}


CASES = {
    "critics": ref.Case(
        REFERENCE,
        CRITICS,
        critics,
        OF_CRITICS,
        note="Plans of a window and those to choose from are given, as are the drawn windows and their weights; sums "
        "of rewards and discounts are those of locomotion in the reference.",
    ),
    "diffusion": ref.Case(
        REFERENCE,
        DIFFUSION,
        diffusion,
        OF_DIFFUSION,
        note="4 steps, with a sample after each update; rates are constant on both sides.",
    ),
    "autoencoder": ref.Case(
        REFERENCE,
        AUTOENCODER,
        autoencoder,
        OF_AUTOENCODER,
        note="Both sides have our encoder, and a hidden layer for each of mean and standard deviation, as in the "
        "reference.",
    ),
}
