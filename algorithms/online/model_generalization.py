"""Model-based generalisation: Q-learning from a model's transitions, or from as many replayed or exact ones.

Young, Ramesh, Kirsch and Schmidhuber, "The Benefits of Model-Based Generalization in Reinforcement Learning", ICML
2023, arXiv 2211.02222, section 4. DQN whose transitions come from the replay buffer (--experience 0: experience
replay, ER), from a simple model that is learned online (1), or from the environment itself (2: a perfect model). All
learn from as many per update, and a model's rollouts begin at observations of the buffer: what differs is whether
experience is generalised before values are learned from it. The model predicts every bit of the next observation by
itself, given observation and action; where the world is made of such parts it is right about states that the
data does not have, and values learned from it need not be extrapolated.

It stands among the online files, not the model-based ones, since there is no dataset: everything is collected here.

The paper's tuned --critic-lr (and --model-lr) and --explore-temperature on ProcMaze, of --experience 0, 1, 2: 2.5e-5,
1.6; 2.5e-5, 0.4; 4e-4, 0.4 with little data (the defaults), and 5e-5, 0.1; 2e-4, 0.8; 1e-4, 0.4 with much (--utd 1
--env-steps 1000000).

Choose it when observations are vectors of 0 and 1 whose bits each depend on little, and data are scarce.

Deviations from the paper:
- the latent models (categorical and Gaussian) and the environments ButtonGrid and PanFlute are not here;
- an imagined bit is drawn with the sigmoid of its logit; the released code passes the logit itself as a probability;
- episodes end at the environment's time limit, at which values bootstrap (the authors' have none in training);
- an episode's first transition begins with its first observation; in the released loops of replay and learned models,
  which reset the state alone, with the last one of the episode before, of another maze;
- weights begin as Flax's do (Haiku's).

    python algorithms/online/model_generalization.py --experience 0 1 2 --env-steps 20000 --seeds 8
    python algorithms/online/model_generalization.py --hidden-dims 64 64 --critic-lr 1e-3 --env-steps 4000 --seeds 8
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import chex
import flax
import flax.linen as nn
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Count, EnvSteps, Float, Fraction, OnlineArgs, Positive, Size, hyperparameters
from shared.env_models import exact_model
from shared.errors import InputError
from shared.online import Interaction
from shared.replay import Replay
from shared.run import Run, launch
from shared.task import Spec, Task, env_task
from shared.transitions import Batch


@hyperparameters
class Args(OnlineArgs):
    env: str = "ProcMaze-v0"
    """Gymnasium id to evaluate (and to interact) in, or module:id of a module that registers it; none: no evaluation;
    empty: the one stored with the dataset."""
    experience: Float = 1.0
    """Whose transitions Q learns from: 0 the replay buffer's, 1 the learned model's, 2 the environment's (as a model
    that is perfect)."""
    imagined_steps: Size = 10
    """Steps of a rollout in a model; the batch is made of as many rollouts as it has room for."""
    explore_temperature: Positive = 0.4
    """Of the softmax over Q that actions are drawn of, in the environment and in rollouts, > 0, in units of Q."""
    utd: Size = 10
    """Gradient updates of the critics per environment step."""
    copy_every: Count = 100
    """Updates between two copies of the network to its target, in place of Polyak steps; 0: none."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    learning_starts: Count = 1_000
    """Environment steps before the first online update."""
    batch_size: Size = 320
    """Transitions per gradient update."""
    hidden_dims: tuple[int, ...] = (200, 200, 200)
    """Hidden layers of every network that has no argument of its own for them."""
    critic_lr: Float = 2.5e-5
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    model_lr: Float = 2.5e-5
    """Adam's step size: model of the dynamics."""
    discount: Fraction = 0.9
    """gamma, in [0, 1]."""
    env_steps: EnvSteps = 100_000
    """Environment steps of each lane (a step means one environment step in --log-every, --eval-every, ...)."""
    buffer_size: Size = 100_000
    """Transitions kept in each lane's replay buffer."""
    eval_every: Size = 5_000
    """Steps between two evaluations; the last checkpoint is always evaluated."""


PRESETS: dict[str, dict[str, Any]] = {}

REPLAYED, LEARNED, PERFECT = range(3)
"""Values of --experience."""


class MLP(nn.Module):
    hidden_dims: tuple[int, ...]
    output_dim: int

    @nn.compact
    def __call__(self, x):
        for size in self.hidden_dims:
            x = nn.elu(nn.Dense(size)(x))
        return nn.Dense(self.output_dim)(x)


class Model(nn.Module):
    """Three networks: the mean reward [B], the logit of going on [B], and those of the next observation's bits [B, O].

    Of these each is computed only where it is used.
    """

    hidden_dims: tuple[int, ...]
    obs_dim: int
    n_actions: int

    @nn.compact
    def __call__(self, obs, action):
        x = jnp.concatenate([obs, jax.nn.one_hot(action, self.n_actions)], axis=-1)
        reward, goes_on = (MLP(self.hidden_dims, 1, name=name)(x)[..., 0] for name in ("reward", "goes_on"))
        return reward, goes_on, MLP(self.hidden_dims, self.obs_dim, name="next_obs")(x)


class Networks(NamedTuple):
    critic: MLP
    model: Model


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    critic: Any
    target_critic: Any
    model: Any
    """Learned from if --experience is 1."""
    critic_opt: optax.OptState
    model_opt: optax.OptState
    updates: jax.Array
    """[] updates so far."""


def model_loss(model, net: Model, batch: Batch):
    """-log p(r) - log p(goes on) - log p(s'): a Gaussian of variance 1, and single bits; no s' at terminal rows.

    `foreseen`: the share of next observations all of whose bits are the likelier ones.
    """
    reward, goes_on, next_obs = net.apply(model, batch.obs, batch.action)
    chex.assert_equal_shape([reward, goes_on, batch.reward])
    chex.assert_equal_shape([next_obs, batch.next_obs])
    reward_nll = 0.5 * (batch.reward - reward) ** 2
    end_nll = optax.sigmoid_binary_cross_entropy(goes_on, 1.0 - batch.terminal)
    obs_nll = optax.sigmoid_binary_cross_entropy(next_obs, batch.next_obs).sum(-1)
    loss = reward_nll + end_nll + (1.0 - batch.terminal) * obs_nll
    right = ((next_obs > 0) == (batch.next_obs > 0.5)).all(-1) * (1.0 - batch.terminal)
    return loss.mean(), {"foreseen": right.sum() / jnp.maximum((1.0 - batch.terminal).sum(), 1.0)}


def critic_loss(critic, agent: Agent, batch: Batch, weight, args: Args):
    """w (r + gamma (1 - d) max_a' target Q(s', a') - Q(s, a))^2; a model's d is a probability."""
    target_q = agent.nets.critic.apply(agent.target_critic, batch.next_obs).max(-1)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * target_q
    q = agent.nets.critic.apply(critic, batch.obs)
    q = jnp.take_along_axis(q, batch.action[:, None], axis=-1)[:, 0]
    chex.assert_equal_shape([q, y, weight])
    return (weight * (q - y) ** 2).mean(), {"q": q.mean(), "weight": weight.mean()}


def optimizer(learning_rate) -> optax.GradientTransformation:
    """Adam; weights also lose 1e-6 of themselves at each update, whatever the step size is."""
    adam = optax.scale_by_adam(b1=0.9, b2=0.99, eps=1e-5)
    return optax.chain(adam, optax.scale_by_learning_rate(learning_rate), optax.add_decayed_weights(-1e-6))


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    obs_dim, n_actions = spec.obs_shape[0], spec.action_dim
    nets = Networks(MLP(args.hidden_dims, n_actions), Model(args.hidden_dims, obs_dim, n_actions))
    critic_key, model_key = jax.random.split(key)
    obs, action = jnp.zeros((1, obs_dim)), jnp.zeros(1, jnp.int32)
    critic, model = nets.critic.init(critic_key, obs), nets.model.init(model_key, obs, action)
    return Agent(
        nets=nets,
        critic=critic,
        target_critic=jax.tree.map(jnp.copy, critic),
        model=model,
        critic_opt=optimizer(args.critic_lr).init(critic),
        model_opt=optimizer(args.model_lr).init(model),
        updates=jnp.int32(0),
    )


def update_model(agent: Agent, batch: Batch, args: Args) -> tuple[Agent, dict]:
    """One gradient step of the model."""
    grad = jax.value_and_grad(model_loss, has_aux=True)
    (loss, info), grads = grad(agent.model, agent.nets.model, batch)
    updates, model_opt = optimizer(args.model_lr).update(grads, agent.model_opt, agent.model)
    agent = agent.replace(model=optax.apply_updates(agent.model, updates), model_opt=model_opt)
    return agent, {"model_loss": loss, **info}


def update_critic(agent: Agent, batch: Batch, weight, args: Args) -> tuple[Agent, dict]:
    """One gradient step of Q, and a step of its target."""
    grad = jax.value_and_grad(critic_loss, has_aux=True)
    (loss, info), grads = grad(agent.critic, agent, batch, weight, args)
    updates, critic_opt = optimizer(args.critic_lr).update(grads, agent.critic_opt, agent.critic)
    critic = optax.apply_updates(agent.critic, updates)
    step = args.tau
    if args.copy_every:
        step = jnp.float32((agent.updates + 1) % args.copy_every == 0)
    agent = agent.replace(
        critic=critic,
        target_critic=optax.incremental_update(critic, agent.target_critic, step),
        critic_opt=critic_opt,
        updates=agent.updates + 1,
    )
    return agent, {"critic_loss": loss, **info}


def rollouts(agent: Agent, obs, key, args: Args, step: Callable) -> tuple[Batch, jax.Array]:
    """`imagined_steps` steps of the policy from `obs` [R, O]: transitions [B] and their weights [B].

    `step(obs, action, key)` -> (next_obs, reward, probability of the end). A weight is the probability that the
    rollout has come to its transition; the first has 1.
    """

    def one(obs, key):
        act_key, step_key = jax.random.split(key)
        action = explore(agent, obs, act_key, args)
        next_obs, reward, terminal = step(obs, action, step_key)
        return next_obs, Batch(obs=obs, action=action, reward=reward, terminal=terminal, next_obs=next_obs)

    rows = jax.lax.scan(one, obs, jax.random.split(key, args.imagined_steps))[1]
    comes_to = jnp.cumprod(1.0 - rows.terminal[:-1], axis=0)
    weight = jnp.concatenate([jnp.ones((1, len(obs))), comes_to])
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (rows, weight))


def model_step(agent: Agent, obs, action, key):
    """The learned model's next observations [R, O], drawn bit by bit, mean rewards and probabilities of the end [R]."""
    reward, goes_on, next_obs = agent.nets.model.apply(agent.model, obs, action)
    return jnp.float32(jax.random.bernoulli(key, nn.sigmoid(next_obs))), reward, nn.sigmoid(-goes_on)


def experience(agent: Agent, batch: Batch, key, args: Args, exact: Callable | None):
    """What Q learns from, of a replayed `batch` [B]: the agent, transitions, weights [B], metrics of the model (or 0).

    The learned model takes a step first, on the transitions whose observations its rollouts begin at. `exact`: the
    environment as a model, None where it is none.
    """
    first = jax.tree.map(lambda x: x[: args.batch_size // args.imagined_steps], batch)
    learn = partial(update_model, agent, first, args)
    none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(learn)[1])

    def replayed():
        return agent, batch, jnp.ones(args.batch_size), none

    def learned():
        better, info = learn()
        return better, *rollouts(better, first.obs, key, args, partial(model_step, better)), info

    def perfect():
        def step(obs, action, key):
            next_obs, reward, terminal = exact(obs, action, key)
            return next_obs, reward, jnp.float32(terminal)

        return agent, *rollouts(agent, first.obs, key, args, step), none

    kinds = [replayed, learned, perfect] if exact else [replayed, learned]
    return jax.lax.switch(jnp.int32(args.experience), kinds)


def sample(key, data, replay: Replay, args: Args) -> Batch:
    """[U, B] uniform over the replay buffer."""
    return replay.sample(key, (args.utd, args.batch_size))


def update(agent: Agent, batch: Batch, key, args: Args, t, exact: Callable | None = None) -> tuple[Agent, dict]:
    """`utd` updates on replayed transitions [U, B]."""

    def one(agent, x):
        agent, rows, weight, model_info = experience(agent, *x, args, exact)
        agent, info = update_critic(agent, rows, weight, args)
        return agent, {**info, **model_info}

    agent, metrics = jax.lax.scan(one, agent, (batch, jax.random.split(key, args.utd)))
    return agent, jax.tree.map(jnp.mean, metrics)


def act(agent: Agent, obs, key, args: Args):
    """Greedy actions [B]."""
    return agent.nets.critic.apply(agent.critic, obs).argmax(-1)


def explore(agent: Agent, obs, key, args: Args):
    """Actions [B] of the softmax over Q."""
    return jax.random.categorical(key, agent.nets.critic.apply(agent.critic, obs) / args.explore_temperature)


def possible(task: Task, args: Args) -> Callable | None:
    """The environment as a model, None where it is none; InputError where the arguments and it do not go together."""
    space = task.obs_space
    if not (isinstance(space, gym.spaces.Box) and (space.low == 0).all() and (space.high == 1).all()):
        raise InputError(f"The model predicts observations of 0 and 1; those of {task.env_spec.id} are in {space}.")
    if args.batch_size % args.imagined_steps:
        raise InputError(f"--batch-size {args.batch_size} is no multiple of --imagined-steps {args.imagined_steps}.")
    exact, kinds = exact_model(task), np.atleast_1d(args.experience)
    if not np.isin(kinds, (REPLAYED, LEARNED, PERFECT)).all():
        raise InputError(f"--experience is {REPLAYED}, {LEARNED} or {PERFECT}, not {args.experience}.")
    if exact is None and (kinds == PERFECT).any():
        raise InputError(
            f"--experience {PERFECT}: the state of {task.env_spec.id} cannot be read off its observations."
        )
    return exact


def main(args: Args) -> None:
    task = env_task(args.env).require(discrete=True)
    exact = possible(task, args)
    with Run(__file__, args, task, act) as run:
        agent = run.init(partial(init, spec=task.spec))
        online = Interaction(
            run, None, explore, sample, partial(update, exact=exact),
            warmup=args.learning_starts, updates_per_step=args.utd, capacity=args.buffer_size,
        )  # fmt: skip
        agent = online.restore(agent)
        for keys in run.chunks():
            agent, metrics = online.steps(agent, keys)
            run.log(agent, metrics, updates=online.updates, state=online.state())


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
