"""PDT beside its authors' code, which needs transformers (4.30) and tqdm."""

from functools import partial
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from results import references as ref

FILE = "src/trainer.py"
CONTEXT, LIMIT, LATENT, WIDTH, SCALE = 4, 12, 3, 16, 10.0
DEVIATIONS = {
    "futures": "what follows a step is read backwards from there to the window's end and beyond; the reference reads "
    "what follows the window forwards, and its step j is told the first j steps of that",
    "padding": "padding sees itself alone; the reference's sees what it should not, as all that it sees is hidden",
    "entropy": "entropy is averaged over the steps that are there; the reference averages over padding, too",
    "lamb": "what has one axis takes AdamW's step, and LAMB sees a head's mean and deviation as one layer",
}
PRETRAINING = 5
"""Updates before the first online one."""
LOSSES = {"nll": "nll", "entropy": "entropy", "kl": "reg_kl", "prior_kl": "prior_kl", "return_loss": "return_pred_loss"}
HEADS = {"head": "predict_action", "prior_head": "predict_prior", "return_head": "predict_return_prior"}
HEADS |= {"future_head": "future_transformer.predict_z"}
"""Layers of ours that the reference has as two, of the mean and of the deviation."""


def compare(checkout, undo):
    torch, module = ref.torch_double(), ref.ours("pdt")
    ref.gpt_of_2021()
    trainers = ref.theirs(checkout, FILE)
    peer = ref.theirs(checkout, "src/models/decision_transformer.py")
    lamb = ref.theirs(checkout, "src/lamb.py")
    rng = np.random.default_rng(0)
    args = module.Args(
        batch_size=ref.ROWS, context=CONTEXT, lookahead=CONTEXT, latent_dim=LATENT, kl_weight=0.5, width=WIDTH,
        layers=2, heads=2, token_dropout=0.0, warmup_updates=8, learning_rate=2**-10, weight_decay=1e-2,
        reward_scale=1 / SCALE,
    )  # fmt: skip
    module.Transformer = trunk(module, undo)
    if "futures" in undo:
        module.PretrainedTransformer.future = forwards
    if "entropy" in undo:
        module.imitation_loss = imitation(module)
    if "lamb" in undo:
        module.optimizer = for_each(args)
    agent, noise, made = ref.agent_of(module, args, rng), ref.Noise(rng), 0
    model = peer.DecisionTransformer(
        ref.OBS, ref.ACTION, WIDTH, (-1.0, 1.0), z_dim=LATENT, kl_div_weight=args.kl_weight, max_length=CONTEXT,
        max_ep_len=LIMIT, stochastic_policy=True, target_entropy=-ref.ACTION, n_layer=2, n_head=2, n_inner=64,
        activation_function="relu", n_positions=64, n_ctx=64, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    everything = lamb.Lamb(model.parameters(), lr=2**-10, weight_decay=1e-2, eps=1e-8)
    schedule = torch.optim.lr_scheduler.LambdaLR(everything, lambda steps: min((steps + 1) / args.warmup_updates, 1))
    returns_alone = torch.optim.Adam(model.predict_return_prior.parameters())
    temperature = torch.optim.Adam([model.log_temperature], lr=1e-4)
    trainer = trainers.SequenceTrainer(model, everything, temperature, schedule, "cpu")

    def networks():
        layers = torch.nn.ModuleList(model.children())  # without the temperature
        future = model.future_transformer
        unused = model.predict_state, model.predict_return, model.transformer.wte, future.transformer.wte
        tied = ref.tie_by_name(as_theirs(agent.actor), partners(model), layers, (*unused, future.embed_timestep))
        return {"actor": tied, "temperature": [ref.Tied(np.asarray(agent.log_alpha), model.log_temperature)]}

    key = jax.random.key(0)
    ours = {
        "offline": lambda agent, window: module.update(agent, window, key, args),
        "returns": lambda agent, window: (module.update_returns(agent, window, key, args), {}),
        "online": lambda agent, window: module.update(agent, window, key, args, online=True),
    }
    ours = {name: jax.jit(partial(told, step)) for name, step in ours.items()}
    theirs = {
        "offline": lambda given: trainer.train_step_stochastic(trainer.pretrain_loss_fn, given),
        "returns": lambda given: trainer.return_warmup_step_stochastic(
            trainer.return_warmup_loss_fn, given, returns_alone
        ),
        "online": lambda given: trainer.train_step_stochastic(trainer.finetune_loss_fn, given),
    }

    def update():
        """A step of either side with the same windows and random numbers: of pre-training, then of the other kinds."""
        nonlocal agent, made
        losses, made = {}, made + 1
        for kind in ("offline",) if made <= PRETRAINING else ("returns", "online"):
            window, given = pieces(torch, rng)
            drawn = [rng.standard_normal((ref.ROWS, CONTEXT, size)) for size in (LATENT, ref.ACTION)]
            drawn = drawn[: 1 if kind == "returns" else 2]
            agent, info = ours[kind](agent, window, drawn)
            trainer.pretrain = kind == "offline"
            with noise.theirs([ref.Draw("normal", x) for x in drawn]):
                log = theirs[kind](given)
            same = {n: m for n, m in LOSSES.items() if n in info and (n != "return_loss" or kind == "online")}
            losses |= {f"{kind} {n}": (ref.scalar(info[n]), ref.scalar(np.float64(log[m]))) for n, m in same.items()}
        return losses

    return ref.side_by_side(networks, update)


def told(step, agent, window, drawn):
    """A step of ours whose normal random numbers are `drawn`, in their order."""
    left = list(drawn)

    def normal(key, shape):
        assert left[0].shape == shape
        return left.pop(0)

    with mock.patch.object(jax.random, "normal", normal):
        return step(agent, window)


def pieces(torch, rng):
    """Windows and the steps after them, for both sides; both begin with padding, as the reference has them.

    Actions are kept from -1 and 1 by more than either side would keep them.
    """
    past, future = (ref.windows(rng, ref.ROWS, CONTEXT, LIMIT, SCALE) for _ in range(2))
    past, future = (w._replace(action=jnp.clip(w.action, -0.99, 0.99)) for w in (past, future))
    ours = jax.tree.map(lambda *x: jnp.concatenate(x, 1), past, future)._replace(timestep=None)
    given = []
    for window in (past, future):
        to_go = np.asarray(window.return_to_go)[..., None] / SCALE
        to_go, nothing = np.concatenate([to_go, np.ones_like(to_go[:, :1])], 1), np.zeros(window.mask.shape)
        time = np.asarray(window.timestep).astype(int)
        arrays = window.obs, window.action, nothing, nothing, to_go, time, time, window.mask
        given += [torch.tensor(np.asarray(x)) for x in arrays]
    return ours, given


def trunk(module, undo):
    """The file's Transformer, with deviations undone."""

    class Trunk(nn.Module):
        layers: int
        heads: int
        dropout: float
        backwards: bool

        @nn.compact
        def __call__(self, x, mask, training: bool):
            n = x.shape[1]
            back = self.backwards and "futures" not in undo
            ordered = (jnp.triu if back else jnp.tril)(jnp.ones((n, n), bool))
            visible = ordered & (mask[:, None] > 0) | jnp.eye(n, dtype=bool)
            for _ in range(self.layers):
                if "padding" in undo:
                    x = Block(self.heads)(x, ordered, mask)
                else:
                    x = module.Block(self.heads, self.dropout)(x, visible, training)
            return nn.LayerNorm(epsilon=1e-5)(x)

    return Trunk


class Block(nn.Module):
    """The file's, of which what is not to be seen has -1e4 in its score, once or twice."""

    heads: int

    @nn.compact
    def __call__(self, x, ordered, mask):
        *lead, width = x.shape
        qkv = nn.Dense(3 * width)(nn.LayerNorm(epsilon=1e-5)(x))
        q, k, v = jnp.moveaxis(qkv.reshape(*lead, 3, self.heads, width // self.heads), -3, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(width / self.heads)
        weights = nn.softmax(jnp.where(ordered, scores, -1e4) - 1e4 * (1.0 - mask[:, None, None]))
        x = x + nn.Dense(width)(jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape))
        hidden = nn.relu(nn.Dense(4 * width)(nn.LayerNorm(epsilon=1e-5)(x)))
        return x + nn.Dense(width)(hidden)


def forwards(self, window, training: bool = False):
    """What is told by the actions of the steps after a window, each of which sees those before it, once a step."""
    after = jax.tree.map(lambda x: x[:, CONTEXT:], window)
    batch, steps = after.mask.shape
    tokens = self.read_norm(jnp.stack([self.read_obs(after.obs), self.read_action(after.action)], 2))
    mask = jnp.repeat(after.mask, 2, 1)
    x = self.reader(tokens.reshape(batch, 2 * steps, self.width), mask, training)
    mean, log_std = jnp.split(self.future_head(x.reshape(batch, steps, 2, self.width)[:, :, 1]), 2, axis=-1)
    return mean, jnp.clip(log_std, -10.0, 2.0)


def imitation(module):
    """The file's loss, with the entropy of all steps."""

    def loss(actor, agent, window, z, key):
        mean, log_std = agent.net.apply(actor, window, z)
        u = jnp.arctanh(window.action)
        nll = -module.over(window.mask, module.tanh_gaussian_log_prob(mean, log_std, u))
        entropy = -module.sample_tanh_gaussian(mean, log_std, key)[1].mean()
        return nll - jnp.exp(agent.log_alpha) * entropy, (nll, entropy)

    return loss


def for_each(args):
    """LAMB of each of the reference's layers."""

    def optimizer(_):
        real = module_optimizer(args)

        def scaled(updates, params):
            def ratio(update, param):
                sizes = jnp.linalg.norm(param), jnp.linalg.norm(update)
                return update * jnp.where((sizes[0] > 0) & (sizes[1] > 0), sizes[0] / sizes[1], 1.0)

            return joined(jax.tree.map(ratio, as_theirs(updates), as_theirs(params)))

        trust = optax.stateless(scaled)
        return optax.chain(*real[:3], trust, real[3])

    return optimizer


def module_optimizer(args):
    """The file's steps but for the one that trusts; as its `optimizer` has them."""

    def clip(grads, norm=args.max_grad_norm):
        scale = jnp.minimum(1.0, norm / (optax.global_norm(grads) + 1e-6))
        return jax.tree.map(lambda g: g * scale, grads)

    schedule = lambda step: args.learning_rate * jnp.minimum((step + 1) / args.warmup_updates, 1.0)  # noqa: E731
    adam = optax.stateless(lambda grads, _: clip(grads)), optax.scale_by_adam()
    return *adam, optax.add_decayed_weights(args.weight_decay), optax.scale_by_learning_rate(schedule)


def as_theirs(tree):
    """Our network, each head as two layers."""
    layers = dict(tree["params"])
    for name in HEADS:
        halves = {kind: jnp.split(x, 2, axis=-1) for kind, x in layers.pop(name).items()}
        layers |= {f"{name}_{i}": {kind: half[i] for kind, half in halves.items()} for i in range(2)}
    return {"params": layers}


def joined(tree):
    """What `as_theirs` made two of is one again."""
    layers = dict(tree["params"])
    for name in HEADS:
        layers[name] = jax.tree.map(lambda *x: jnp.concatenate(x, -1), *(layers.pop(f"{name}_{i}") for i in range(2)))
    return {"params": layers}


def partners(model):
    """Of the layers of `as_theirs`."""
    future = model.future_transformer
    found = {"embed_obs": model.embed_state, "embed_action": model.embed_action, "embed_future": model.embed_future}
    found |= {"norm": model.embed_ln, "read_obs": future.embed_state, "read_action": future.embed_action}
    found |= {"read_norm": future.embed_ln}
    for ours, theirs in HEADS.items():
        found |= {f"{ours}_{i}": model.get_submodule(f"{theirs}.{n}") for i, n in enumerate(("mu", "log_std"))}
    for path, gpt in (("trunk", model.transformer), ("reader", future.transformer)):
        found |= {f"{path}/LayerNorm_0": gpt.ln_f} | ref.gpt_partners(gpt, path)
    return found


CASES = {
    "": ref.Case(
        "zhxieml/PDT",
        FILE,
        compare,
        DEVIATIONS,
        note="Five updates of pre-training, then each is one of the return predictor alone and one online; "
        "windows and what follows them begin with padding, as the reference has them; actions within 0.99, which "
        "either side leaves as they are; no dropout.",
    )
}
