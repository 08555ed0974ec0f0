"""SAQ: state-conditioned action quantisation, for offline learning over the codes of actions.

Luo, Dong, Wu, Kumar, Geng and Levine, "Action-Quantized Offline Reinforcement Learning for Robotic Skill Learning",
CoRL 2023, arXiv 2310.11731. A VQ-VAE that sees the state is trained on the data's actions first and then frozen: an
action becomes one of K codes, and what a code does depends on the state. So a few codes are enough where bins of every
dimension would be too many, and with all codes' values from one pass of a network the terms that other methods have to
sample are exact sums. --learner says which method learns over the codes:

- iql: Q and an expectile V; acts by the policy pi_beta exp(Q / T) (SAQ-IQL);
- cql: double DQN with the whole soft maximum as its penalty; acts greedily (SAQ-CQL);
- brac: the exact divergence from the behaviour in the target and in the policy, which is pi_beta exp(Q / T) again, the
  maximum of E Q - T KL(pi | pi_beta) (SAQ-BRAC);
- bc: the likeliest code (SAQ-BC).

Choose it when actions are continuous, their data is narrow or has several modes, and you want the penalties of discrete
methods. Look at the metrics reconstruction, which no policy over the codes can undo, and codes_used, the share that one
batch has: if it is low, many codes may be dead, and --reseed-updates, which the paper does not have, wakes them.
Nothing teaches iql and brac the values of codes that no data has: where rewards are costs, these may seem the best.

Parity: --learner iql is equal to the authors' code, update for update (results/parity.md).

Deviations from the paper:
- the behaviour over codes is learned beside Q instead of before it (iql acts by it alone; brac's first targets see a
  flat one);
- SAQ-BRAC is not in the authors' code: the exact form of its continuous BRAC, one weight for policy and target, two
  critics (the others have one, as released);
- the presets' scale of rewards is the released IQL's, also with --learner cql;
- of the released cql and bc (jianlanluo/SAQ, 35caacc) the intent: there AdamW takes the decay for its b1 (0.001, with
  a decay of 1e-4), a hard copy is of the network before the step, and time limits end the bootstrapping, too;
- left out is what the released settings leave at 0: the entropy of codes, cloning beside CQL, a penalty of mean Q;
- decoded actions are clipped to [-1, 1] and rescaled to the environment's range outside the networks.

Presets are the authors' scripts for kitchen (CQL) and Adroit (IQL), at the middle of what these sweep; other CQL runs
want their --copy-every 200 --hidden-dims 512 512, too.

    python algorithms/offline/saq.py --dataset hopper-medium --vae-updates 20000 --vae-hidden-dims 128 128 --seeds 4
    python algorithms/offline/saq.py --dataset point-umaze-expert --learner cql --vae-updates 5000 --cql-alpha 0 1 5
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Count, Expectile, Float, Fraction, OfflineArgs, Positive, Size, hyperparameters
from shared.data import load_dataset
from shared.run import Run, launch
from shared.task import Spec
from shared.transitions import Batch, Transitions


@hyperparameters
class Args(OfflineArgs):
    learner: Literal["iql", "cql", "brac", "bc"] = "iql"
    """What learns, by its name in this collection."""
    n_codes: Size = 64
    """K: entries of the codebook; the paper tries 32, 64, 128."""
    state_conditioned: bool = True
    """The VQ-VAE sees the state; without it a code is the same action everywhere."""
    commitment_weight: Float = 1.0
    """Weight of the encoder's distance to its code."""
    codebook_weight: Float = 1.0
    """Weight of the codes' distance to what is encoded as them."""
    reseed_updates: Count = 0
    """First updates of the VAE after which codes that a batch did not use move to embeddings of it; 0: none."""
    expectile: Expectile = 0.8
    """Expectile of Q that V estimates, in (0, 1); 0.5 is the mean: one-step policy improvement."""
    policy_temperature: Positive = 1.0
    """T: iql and brac choose codes by pi_beta exp(Q / T); brac also lowers the values by T KL(pi | pi_beta)."""
    sample_codes: bool = True
    """iql and brac: codes are drawn from the policy; without it the likeliest one is taken."""
    cql_alpha: Float = 1.0
    """Weight of the conservative penalty against the Bellman error."""
    code_threshold: Fraction = 0.0
    """cql: least probability, by the VQ-VAE's prior, of the codes that a target may take, in [0, 1]."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    copy_every: Count = 0
    """Updates between two copies of the network to its target, in place of Polyak steps; 0: none."""
    learning_rate: Float = 3e-4
    """Adam's step size: everything that is learned."""
    weight_decay: Float = 1e-3
    """Weights lose this share of the step size at each update (AdamW)."""
    vae_updates: Size = 500_000
    """Updates of the VAE before the first one of the agent."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""
    vae_hidden_dims: tuple[int, ...] = (512, 512)
    """Hidden layers of the VAE's encoder and decoder."""
    code_dim: Size = 128
    """Size of a code's vector."""
    normalize_obs: bool = False
    """Observations to mean 0 and standard deviation 1."""
    normalize_return: bool = False
    """Rewards times 1000 / (highest - lowest episode return), as in IQL's MuJoCo runs."""
    reward_scale: float = 1.0
    """Rewards are multiplied by this in training."""
    reward_shift: float = 0.0
    """Added to every reward in training, after the scale."""


PRESETS = {
    **dict.fromkeys(("halfcheetah", "hopper", "walker2d"), {"normalize_return": True}),
    "antmaze": {"reward_scale": 100.0, "eval_episodes": 100},
    **dict.fromkeys(("pen-", "door-", "hammer-", "relocate-"), {"expectile": 0.8, "policy_temperature": 1.0}),
    "kitchen": {"learner": "cql", "cql_alpha": 15.0, "copy_every": 200, "hidden_dims": (512, 512)},
}

LEAST_LOG_BEHAVIOUR = -8.0
"""iql: log pi_beta is not taken to be lower than this."""

last_init = nn.initializers.variance_scaling(1e-2, "fan_in", "uniform")
codebook_init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")


class MLP(nn.Module):
    hidden_dims: tuple[int, ...]
    output_dim: int
    orthogonal: bool = False

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        orthogonal = nn.initializers.orthogonal(jnp.sqrt(2.0))
        hidden, last = (orthogonal, orthogonal) if self.orthogonal else (nn.initializers.lecun_normal(), last_init)
        for size in self.hidden_dims:
            x = nn.relu(nn.Dense(size, kernel_init=hidden)(x))
        return nn.Dense(self.output_dim, kernel_init=last)(x)


class Quantised(NamedTuple):
    """Of a batch of actions."""

    embedding: jax.Array
    """[B, D]"""
    code: jax.Array
    """[B]"""
    entry: jax.Array
    """[B, D] of the codebook, of that code"""
    decoded: jax.Array
    """[B, A], of the entry"""
    prior: jax.Array
    """[B, K] logits of codes at the states"""


class VQVAE(nn.Module):
    """Actions as codes, given the state, and back."""

    hidden_dims: tuple[int, ...]
    action_dim: int
    n_codes: int
    code_dim: int
    state_conditioned: bool

    def setup(self):
        self.encoder = MLP(self.hidden_dims, self.code_dim)
        self.decoder = MLP(self.hidden_dims, self.action_dim)
        self.prior_net = MLP(self.hidden_dims, self.n_codes)
        self.codebook = self.param("codebook", codebook_init, (self.n_codes, self.code_dim))

    def seen(self, obs):
        return obs if self.state_conditioned else jnp.zeros_like(obs)

    def __call__(self, obs, action) -> Quantised:
        embedding = self.encoder(self.seen(obs), action)
        code = self.nearest(embedding)
        entry = self.codebook[code]
        passed = embedding + jax.lax.stop_gradient(entry - embedding)  # the entry, with the embedding's gradient
        return Quantised(embedding, code, entry, self.decoder(self.seen(obs), passed), self.prior(obs))

    def nearest(self, embedding):
        """[B] argmin_j |embedding - entry_j|^2, without what is the same for all j."""
        return ((self.codebook**2).sum(-1) - 2.0 * embedding @ self.codebook.T).argmin(-1)

    def encode(self, obs, action):
        """[B] codes of actions."""
        return self.nearest(self.encoder(self.seen(obs), action))

    def decode(self, obs, code):
        """[B, A] in [-1, 1]"""
        return jnp.clip(self.decoder(self.seen(obs), self.codebook[code]), -1.0, 1.0)

    def prior(self, obs):
        """[B, K] logits"""
        return self.prior_net(self.seen(obs))


class Networks(NamedTuple):
    vae: VQVAE
    behaviour: MLP
    critic: MLP
    """Q of all codes [B, K]."""
    value: MLP


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    vae: Any
    behaviour: Any
    """Logits of the data's codes; None: cql does without."""
    critic: Any
    """Critics stacked on a leading axis [E, ...], two of brac, else one; None: bc does without."""
    target_critic: Any
    value: Any
    """None but with iql."""
    vae_opt: optax.OptState
    behaviour_opt: optax.OptState
    critic_opt: optax.OptState
    value_opt: optax.OptState
    updates: jax.Array
    """[] updates so far."""


def q_values(net: MLP, critics, obs):
    """[E, B, K]"""
    return jax.vmap(net.apply, (0, None))(critics, obs)


def encode(agent: Agent, batch: Batch) -> Batch:
    """The batch with codes [B] for its actions."""
    code = agent.nets.vae.apply(agent.vae, batch.obs, batch.action, method=VQVAE.encode)
    return batch._replace(action=code)


def decode(agent: Agent, obs, code):
    """Actions [B, A] in [-1, 1] of codes [B]."""
    return agent.nets.vae.apply(agent.vae, obs, code, method=VQVAE.decode)


def log_behaviour(agent: Agent, obs):
    """log pi_beta [B, K]"""
    return nn.log_softmax(agent.nets.behaviour.apply(agent.behaviour, obs))


def policy_logits(agent: Agent, obs, args: Args):
    """[B, K] of the policy over codes: of pi_beta exp(Q / T); of cql Q itself, of bc pi_beta's."""
    if args.learner == "bc":
        return log_behaviour(agent, obs)
    q = q_values(agent.nets.critic, agent.critic, obs).min(0)
    if args.learner == "cql":
        return q
    behaviour = log_behaviour(agent, obs)
    if args.learner == "iql":
        behaviour = jnp.maximum(behaviour, LEAST_LOG_BEHAVIOUR)
    return q / args.policy_temperature + behaviour


def next_value(agent: Agent, obs, args: Args):
    """[B] what the target sees in the next state.

    iql: V. cql: target Q of the online network's best code that is likely enough. brac: the policy's mean of target Q
    less T KL(pi | pi_beta), both sums over all codes.
    """
    if args.learner == "iql":
        return agent.nets.value.apply(agent.value, obs)[..., 0]
    target_q = q_values(agent.nets.critic, agent.target_critic, obs).min(0)
    logits = policy_logits(agent, obs, args)
    if args.learner == "cql":
        prior = nn.softmax(agent.nets.vae.apply(agent.vae, obs, method=VQVAE.prior))
        likely = prior >= jnp.minimum(prior.max(-1, keepdims=True), args.code_threshold)
        best = jnp.where(likely, logits, -jnp.inf).argmax(-1)
        return jnp.take_along_axis(target_q, best[:, None], axis=1)[:, 0]
    log_prob = nn.log_softmax(logits)
    lowered = target_q - args.policy_temperature * (log_prob - log_behaviour(agent, obs))
    return (jnp.exp(log_prob) * lowered).sum(-1)


def vae_loss(vae, agent: Agent, batch: Batch, args: Args):
    """|decoded - a|^2 + commitment (embedding - sg(entry))^2 + (sg(embedding) - entry)^2 - log prior(code | s).

    The first is a sum over dimensions, the others are means; sg: not differentiated.
    """
    out = agent.nets.vae.apply(vae, batch.obs, batch.action)
    chex.assert_equal_shape([out.decoded, batch.action])
    chex.assert_equal_shape([out.embedding, out.entry])
    reconstruction = ((out.decoded - batch.action) ** 2).sum(-1).mean()
    commitment = ((out.embedding - jax.lax.stop_gradient(out.entry)) ** 2).mean()
    codebook = ((jax.lax.stop_gradient(out.embedding) - out.entry) ** 2).mean()
    prior = optax.losses.softmax_cross_entropy_with_integer_labels(out.prior, out.code).mean()
    loss = reconstruction + args.commitment_weight * commitment + args.codebook_weight * codebook + prior
    used = jnp.zeros(args.n_codes).at[out.code].set(1.0).mean()  # by this batch
    return loss, {"reconstruction": reconstruction, "commitment": commitment, "prior_loss": prior, "codes_used": used}


def behaviour_loss(behaviour, agent: Agent, batch: Batch, args: Args):
    """-log pi_beta(code | s)"""
    logits = agent.nets.behaviour.apply(behaviour, batch.obs)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, batch.action).mean(), {}


def value_loss(value, agent: Agent, batch: Batch, args: Args):
    """|expectile - 1(u < 0)| u^2, u = target Q(s, code) - V(s)."""
    all_q = q_values(agent.nets.critic, agent.target_critic, batch.obs).min(0)
    q = jnp.take_along_axis(all_q, batch.action[:, None], axis=1)[:, 0]
    v = agent.nets.value.apply(value, batch.obs)[..., 0]
    chex.assert_shape([q, v], (args.batch_size,))
    u = q - v
    weight = jnp.where(u < 0, 1.0 - args.expectile, args.expectile)
    return (weight * u**2).mean(), {"v": v.mean()}


def critic_loss(critic, agent: Agent, batch: Batch, args: Args):
    """(r + gamma next_value(s') - Q(s, code))^2, of cql with cql_alpha (logsumexp_k Q(s, k) - Q(s, code))."""
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_value(agent, batch.next_obs, args)
    all_q = q_values(agent.nets.critic, critic, batch.obs)
    q = all_q[:, jnp.arange(args.batch_size), batch.action]
    chex.assert_shape([y, q[0]], (args.batch_size,))
    loss = bellman = ((q - y) ** 2).mean(1).sum(0)
    info = {"bellman_loss": bellman, "q": q.mean(), "q_max": all_q.min(0).max(-1).mean()}
    if args.learner == "cql":
        gap = (jax.nn.logsumexp(all_q, axis=-1) - q).mean(1)
        loss, info = loss + args.cql_alpha * gap.sum(), {**info, "gap": gap.mean()}
    return loss, info


def optimizers(args: Args) -> dict[str, optax.GradientTransformation]:
    """Q's weights decay, and with bc its policy's; the others' do not."""
    plain = optax.adam(args.learning_rate)
    decayed = optax.adamw(args.learning_rate, weight_decay=args.weight_decay)
    return {"vae": plain, "behaviour": decayed if args.learner == "bc" else plain, "critic": decayed, "value": plain}


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    iql, learner = args.learner == "iql", args.learner
    vae = VQVAE(args.vae_hidden_dims, spec.action_dim, args.n_codes, args.code_dim, args.state_conditioned)
    critic, value = (MLP(args.hidden_dims, n, orthogonal=iql) for n in (args.n_codes, 1))
    nets = Networks(vae, MLP(args.hidden_dims, args.n_codes), critic, value)
    vae_key, behaviour_key, critic_key, value_key = jax.random.split(key, 4)
    obs, action = jnp.zeros((1, *spec.obs_shape)), jnp.zeros((1, spec.action_dim))
    parts = dict.fromkeys(("behaviour", "critic", "value"))
    if learner != "cql":
        parts["behaviour"] = nets.behaviour.init(behaviour_key, obs)
    if learner != "bc":
        critic_keys = jax.random.split(critic_key, 2 if learner == "brac" else 1)
        parts["critic"] = jax.lax.map(lambda k: nets.critic.init(k, obs), critic_keys)
    if iql:
        parts["value"] = nets.value.init(value_key, obs)
    parts["vae"] = nets.vae.init(vae_key, obs, action)
    opts = {f"{name}_opt": opt.init(parts[name]) for name, opt in optimizers(args).items()}
    return Agent(nets=nets, target_critic=parts["critic"], updates=jnp.int32(0), **parts, **opts)


def learn(agent: Agent, part: str, loss, batch: Batch, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the agent's `part` by `loss`."""
    params = getattr(agent, part)
    (value, info), grads = jax.value_and_grad(loss, has_aux=True)(params, agent, batch, args)
    updates, opt = optimizers(args)[part].update(grads, getattr(agent, f"{part}_opt"), params)
    agent = agent.replace(**{part: optax.apply_updates(params, updates), f"{part}_opt": opt})
    return agent, {f"{part}_loss": value, **info}


def update_vae(agent: Agent, batch: Batch, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the VQ-VAE; in the first ones codes that the batch does not use move to its embeddings."""
    agent, metrics = learn(agent, "vae", vae_loss, batch, args)
    if args.reseed_updates:
        out = agent.nets.vae.apply(agent.vae, batch.obs, batch.action)
        unused = jnp.ones(args.n_codes, bool).at[out.code].set(False)
        moves = unused & (agent.vae_opt[0].count <= args.reseed_updates)
        rows = out.embedding[jnp.arange(args.n_codes) % len(out.embedding)]  # which are drawn at random
        codebook = jnp.where(moves[:, None], rows, agent.vae["params"]["codebook"])
        agent = agent.replace(vae={"params": agent.vae["params"] | {"codebook": codebook}})
    return agent, metrics


def update(agent: Agent, batch: Batch, args: Args) -> tuple[Agent, dict]:
    """With the VQ-VAE as it is: one gradient step of the behaviour, then V, then Q with both, and of the target."""
    coded = encode(agent, batch)
    error = ((decode(agent, batch.obs, coded.action) - batch.action) ** 2).sum(-1).mean()
    metrics = {"reconstruction": error}
    for part, loss in (("behaviour", behaviour_loss), ("value", value_loss), ("critic", critic_loss)):
        if getattr(agent, part) is not None:
            agent, info = learn(agent, part, loss, coded, args)
            metrics |= info
    metrics["agreement"] = (policy_logits(agent, batch.obs, args).argmax(-1) == coded.action).mean()
    step = args.tau
    if args.copy_every:
        step = jnp.float32((agent.updates + 1) % args.copy_every == 0)
    if agent.critic is not None:
        agent = agent.replace(target_critic=optax.incremental_update(agent.critic, agent.target_critic, step))
    return agent.replace(updates=agent.updates + 1), metrics


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1]: of a code that is drawn (iql, brac), or of the likeliest or best one."""
    logits = policy_logits(agent, obs, args)
    drawn = args.sample_codes and args.learner in ("iql", "brac")
    return decode(agent, obs, jax.random.categorical(key, logits) if drawn else logits.argmax(-1))


def fit_vae(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane, before the first update: one update of the VQ-VAE per key; mean metrics."""

    def step(agent, key):
        return update_vae(agent, transitions.sample(key, args.batch_size), args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def train(agent: Agent, keys, args: Args, transitions: Transitions) -> tuple[Agent, dict]:
    """One lane: one update per key; mean metrics."""

    def step(agent, key):
        return update(agent, transitions.sample(key, args.batch_size), args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def main(args: Args) -> None:
    data = load_dataset(args).require(discrete=False)
    scale = 1000.0 / data.return_range() if args.normalize_return else 1.0
    data = data.scale_rewards(scale * args.reward_scale, args.reward_shift)
    data = data.normalize_obs() if args.normalize_obs else data
    with Run(__file__, args, data.task, act, before=args.vae_updates) as run:
        transitions = run.replicate(data.transitions())
        agent = run.init(partial(init, spec=data.spec))
        agent = run.restore(agent)
        fit_lanes = run.over_lanes(fit_vae, in_axes=(0, 0, 0, None), donate=True)
        train_lanes = run.over_lanes(train, in_axes=(0, 0, 0, None), donate=True)
        for keys in run.chunks():
            step = fit_lanes if run.done < 0 else train_lanes
            agent, metrics = step(agent, keys, run.lane_args, transitions)
            run.log(agent, metrics)


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
