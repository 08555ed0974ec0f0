"""RoboFuME: fine-tuning that needs hardly any reset, by a learned judge of success and a policy that also goes back.

Yang, Sobol Mark, Vu, Sharma, Bohg and Finn, "Robot Fine-Tuning Made Easy: Pre-Training Rewards and Policies for
Autonomous Real-World Reinforcement Learning", ICRA 2024, arXiv 2310.15145. Demonstrations of a task, and of the way
back to where it begins, are all that a person labels. A classifier of states is fitted to their ends: is the task done?
It rewards everything else, which has no labels. One policy and one critic for both tasks are pre-trained by Cal-QL with
a cloning term on the demonstrations, and go on learning online in one stream: the task is tried until the classifier
says twice in a row that it is done, or the attempt has lasted long enough, then the way back, and so on. The world is
reset every --reset-every steps alone. An environment that ends at the goal is reset there by itself: what was tried is
over then, no way back is needed, and the task is tried anew.

What the classifier says is never taken for the result: evaluations count the environment's own successes, and the log
tells apart `success` (true) and `predicted` (the classifier's), of the task that is tried.

Choose it when a reset or a reward costs a person's time and demonstrations of both ways are cheap.

Deviations from the paper:
- no code is public: equations are as the text has them, sizes and rates Cal-QL's;
- states are vectors and the classifier a small network that knows these data alone; in the paper it is a
  vision-language model, whose robustness comes from elsewhere; it is frozen online, as there;
- the task's ends are those of the dataset's episodes that end in success, the way back's are the first states of the
  dataset and the ends of --back-dataset; each task's ends are no ends of the other one;
- all states of --prior-dataset count as no ends in fitting the classifier, for both tasks, though it has no labels and
  may hold some: what lies beside the demonstrations is else for the classifier to guess, and is exploited;
- every sampled transition without a task of its own (--prior-dataset, the replay buffer) is one of a random task;
- a step costs 1 until success, which is terminal. Cal-QL's bound is the return-to-go of demonstrations; of others it is
  what failing for ever is worth;
- the attempt's length, and two positives in a row, are ours;
- --new-networks draws policy and critics anew, and their Adam states; classifier and entropy temperature stay.

    python algorithms/offline_to_online/robofume.py --back-dataset point-wayback-demos \\
        --prior-dataset point-noend-explore --practice-env PointNoEnd-v0 --seeds 8 --learned-reward 0 1
    python algorithms/offline_to_online/robofume.py --practice-env PointNoEnd-v0 --offline-updates 2000
"""

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from shared.arguments import Count, FinetuneArgs, Float, Fraction, Size, StaticFraction, hyperparameters
from shared.data import Dataset
from shared.errors import InputError
from shared.online import Interaction
from shared.parts import load_all
from shared.replay import Replay
from shared.run import Run, launch
from shared.task import Spec, Task
from shared.transitions import Batch


@hyperparameters
class Args(FinetuneArgs):
    dataset: str = "point-roundtrip-demos"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    back_dataset: str = ""
    """Demonstrations of the way back, of the same observations and actions; empty: there are none."""
    prior_dataset: str = ""
    """Other data of the same observations and actions, whose rewards count with --learned-reward 0 alone; empty: there
    is none."""
    practice_env: str = ""
    """Gymnasium id of what is practised in, which does not end at the goal (an end is a reset that `resets` does not
    count); empty: the dataset's environment."""
    reset_every: Size = 2_000
    """Environment steps after which the environment that is practised in is reset; an end of its own begins anew."""
    attempt_steps: Size = 100
    """Environment steps of an attempt at a task or at the way back, unless it succeeds before."""
    learned_reward: Float = 1.0
    """1: rewards are the classifier's; 0: they are true (the environment's, and by --start-radius)."""
    success_threshold: float = 1.0
    """The environment's reward of a step that succeeds, at least."""
    start_radius: float = 0.5
    """The way back has truly succeeded within this distance of the mean first state of the dataset."""
    rl_weight: Float = 1.0
    """Weight of Q and entropy in the policy's objective; 0: cloning alone."""
    cloning_weight: Float = 1.0
    """Weight of the cloning term -log pi(a|s) of demonstrations in the policy's objective."""
    new_networks: Float = 0.0
    """1: interaction begins with networks that are drawn anew (a reset); 0: with the pre-trained ones."""
    demo_share: StaticFraction = 0.5
    """Share of demonstrations in what a batch has of the datasets, in [0, 1]; the rest is --prior-dataset's."""
    online_share: StaticFraction = 0.5
    """Share of an online batch that comes from the replay buffer, in [0, 1]; the rest is the dataset's."""
    learning_starts: Count = 200
    """Environment steps before the first online update."""
    classifier_updates: Size = 2_000
    """Gradient updates of the classifier, before all others; none with --from, whose run brings its own."""
    classifier_lr: Float = 3e-4
    """Adam's step size: classifier."""
    label_smoothing: Fraction = 0.05
    """The classifier's labels are this far from 0 and 1, in [0, 0.5)."""
    cql_alpha: Float = 5.0
    """Weight of the conservative penalty against the Bellman error."""
    n_actions: Size = 10
    """Actions of each kind (uniform, policy at s, policy at s') in the soft maximum."""
    discount: Fraction = 0.99
    """gamma, in [0, 1]."""
    tau: Fraction = 0.005
    """Polyak step of the target networks, in [0, 1]."""
    actor_lr: Float = 1e-4
    """Adam's step size: actor, and entropy temperature where it has no rate of its own."""
    critic_lr: Float = 3e-4
    """Adam's step size: critics, and value function and Lagrange multiplier where they have no rate of their own."""
    batch_size: Size = 256
    """Transitions per gradient update."""
    actor_hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of the actor."""
    hidden_dims: tuple[int, ...] = (256, 256)
    """Hidden layers of every network that has no argument of its own for them."""


PRESETS: dict[str, dict[str, Any]] = {}

FORWARD, BACK = 0, 1
"""The task, and the way back."""

dense_init = nn.initializers.orthogonal(jnp.sqrt(2.0))
last_init = nn.initializers.orthogonal(1e-2)


class Layers(nn.Module):
    """Dense, layer normalisation, ReLU."""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for size in self.hidden_dims:
            x = nn.relu(nn.LayerNorm()(nn.Dense(size, kernel_init=dense_init)(x)))
        return x


class Actor(nn.Module):
    """Tanh-Gaussian: mean and log standard deviation."""

    hidden_dims: tuple[int, ...]
    action_dim: int

    @nn.compact
    def __call__(self, obs):
        x = nn.Dense(2 * self.action_dim, kernel_init=last_init)(Layers(self.hidden_dims)(obs))
        mean, log_std = jnp.split(x, 2, axis=-1)
        return mean, jnp.clip(log_std, jnp.log(1e-5), jnp.log(10.0))


class Critic(nn.Module):
    """Q(s, a) [B]"""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs, action):
        x = Layers(self.hidden_dims)(jnp.concatenate([obs, action], axis=-1))
        return nn.Dense(1, kernel_init=last_init)(x)[..., 0]


class Classifier(nn.Module):
    """The logit of "is the task done in this state?" [B]"""

    hidden_dims: tuple[int, ...]

    @nn.compact
    def __call__(self, obs):
        return nn.Dense(1)(Layers(self.hidden_dims)(obs))[..., 0]


class Networks(NamedTuple):
    actor: Actor
    critic: Critic
    classifier: Classifier


class Agent(flax.struct.PyTreeNode):
    nets: Networks = flax.struct.field(pytree_node=False)
    critic: Any
    """Two critics, stacked on a leading axis [E=2, ...]."""
    target_critic: Any
    critic_opt: optax.OptState
    actor: Any
    actor_opt: optax.OptState
    log_alpha: Any
    """Of SAC's entropy temperature."""
    alpha_opt: optax.OptState
    classifier: Any
    classifier_opt: optax.OptState
    task: jax.Array
    """[] that is tried now: FORWARD or BACK"""
    attempt: jax.Array
    """[] steps of it so far"""
    streak: jax.Array
    """[] of its last steps, those in a row after which it seemed to be done"""
    since: jax.Array
    """[] environment steps since the environment began anew"""
    resets: jax.Array
    """[] after `reset_every` steps, so far"""


class Rows(NamedTuple):
    """Transitions of a task."""

    obs: jax.Array
    """[..., O]"""
    action: jax.Array
    """[..., A]"""
    next_obs: jax.Array
    """[..., O]"""
    task: jax.Array
    """[...]"""
    success: jax.Array
    """[...] 1 where next_obs truly is an end of the task"""
    steps_left: jax.Array
    """[...] to the demonstration's success, this step among them; infinite where there is none"""
    demo: jax.Array
    """[...] 1: of a demonstration, whose label is trusted"""


class Sources(NamedTuple):
    """What is there before interaction."""

    demos: Rows
    prior: Rows | None
    """Its `success` [N, 2] is of both tasks."""
    ends: tuple[jax.Array, jax.Array]
    """States [P, O] that are ends of a task, and the task [P] (the classifier's positives)."""
    others: tuple[jax.Array, jax.Array]
    """Demonstrations' states [M, O] that are no end of a task, and the task [M]."""
    home: jax.Array
    """[O] the mean state in which an episode begins"""


def tanh_gaussian_log_prob(mean, log_std, u):
    """log pi(a) [...] of actions a = tanh(u) [..., A], u ~ N(mean, std)."""
    log_prob = jax.scipy.stats.norm.logpdf(u, mean, jnp.exp(log_std))
    log_det = 2.0 * (jnp.log(2.0) - u - nn.softplus(-2.0 * u))  # log(1 - tanh(u)^2), stable
    return (log_prob - log_det).sum(-1)


def sample_tanh_gaussian(mean, log_std, key, *n: int):
    """Actions a = tanh(u) [*n, ..., A], u ~ N(mean, std), and log pi(a) [*n, ...]."""
    u = mean + jnp.exp(log_std) * jax.random.normal(key, (*n, *mean.shape))
    return jnp.tanh(u), tanh_gaussian_log_prob(mean, log_std, u)


def q_values(net: Critic, critics, obs, action):
    """[E, B]; with actions [n, B, A], [E, n, B].

    Flat rows, repeated for each critic, are plain batched products: on CPU a fifth faster than shared rows.
    """
    E = len(jax.tree.leaves(critics)[0])
    shape = (E, *action.shape[:-1])
    rows = [jnp.broadcast_to(x, (*shape, x.shape[-1])).reshape(E, -1, x.shape[-1]) for x in (obs, action)]
    return jax.vmap(net.apply)(critics, *rows).reshape(shape)


def told(obs, task):
    """Observations [..., O] with the task's one-hot code: [..., O + 2]."""
    return jnp.concatenate([obs, jax.nn.one_hot(task, 2)], axis=-1)


def classifier_loss(classifier, net: Classifier, ends, others, args: Args):
    """Binary cross-entropy with smoothed labels, the mean over ends and others (states told the task) [B, O + 2]."""
    logits = jnp.concatenate([net.apply(classifier, ends), net.apply(classifier, others)])
    labels = jnp.concatenate([jnp.ones(len(ends)), jnp.zeros(len(others))])
    smooth = jnp.clip(labels, args.label_smoothing, 1.0 - args.label_smoothing)
    loss = optax.sigmoid_binary_cross_entropy(logits, smooth).mean()
    return loss, {"classifier_accuracy": ((logits > 0) == (labels > 0)).mean()}


def seems_done(agent: Agent, next_obs, task):
    """What the classifier says of states [..., O]: 1 yes, 0 no."""
    return jnp.float32(agent.nets.classifier.apply(agent.classifier, told(next_obs, task)) > 0)


def batch_of(rows: Rows, agent: Agent, args: Args) -> Batch:
    """Rows as a batch of policies that are told the task: a step costs 1 until success, which is terminal.

    Successes are the classifier's with `learned_reward`, but for demonstrations. Returns-to-go are those of a
    demonstration that goes on to its success, else of failing for ever.
    """
    judged = jnp.where(args.learned_reward > 0, seems_done(agent, rows.next_obs, rows.task), rows.success)
    success = jnp.where(rows.demo > 0, rows.success, judged)
    cost = (1.0 - args.discount ** (rows.steps_left - 1.0)) / (1.0 - args.discount)
    return Batch(
        obs=told(rows.obs, rows.task),
        action=rows.action,
        reward=success - 1.0,
        terminal=success,
        next_obs=told(rows.next_obs, rows.task),
        return_to_go=-(1.0 - success) * cost,
    )


def bellman_error(critic, agent: Agent, batch: Batch, key, args: Args):
    """(r + gamma min_i target Q_i(s', a') - Q_j(s, a))^2, mean over the critics j; a' ~ pi."""
    action, _ = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.next_obs), key)
    next_q = q_values(agent.nets.critic, agent.target_critic, batch.next_obs, action).min(0)
    y = batch.reward + args.discount * (1.0 - batch.terminal) * next_q
    q = q_values(agent.nets.critic, critic, batch.obs, batch.action)
    chex.assert_shape([y, q[0]], (args.batch_size,))
    loss = ((q - jax.lax.stop_gradient(y)) ** 2).mean()
    return loss, {"bellman_loss": loss, "q": q.mean()}


def conservative_gap(critic, agent: Agent, batch: Batch, key, args: Args):
    """Soft maximum of Q over actions minus Q of the data's, mean over batch and critics [].

    log sum_a exp Q(s, a), importance-weighted: uniform actions have density 0.5^dim(A), policy actions pi(a|s). Policy
    actions at s' are evaluated at s. None of the actions carries a gradient. A policy action counts with
    max(Q(s, a), batch.return_to_go): where that bound is higher, there is no gradient.
    """
    uniform_key, actor_key, next_key = jax.random.split(key, 3)
    (B, A), n = batch.action.shape, args.n_actions
    uniform = jax.random.uniform(uniform_key, (n, B, A), minval=-1.0, maxval=1.0)
    now, now_log_prob = sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.obs), actor_key, n)
    following, following_log_prob = sample_tanh_gaussian(
        *agent.nets.actor.apply(agent.actor, batch.next_obs), next_key, n
    )
    actions = jax.lax.stop_gradient(jnp.concatenate([uniform, following, now]))
    log_density = jnp.concatenate([jnp.full((n, B), A * jnp.log(0.5)), following_log_prob, now_log_prob])
    all_q = q_values(agent.nets.critic, critic, batch.obs, actions)
    chex.assert_shape([all_q[0], log_density], (3 * n, B))
    is_uniform = jnp.arange(3 * n)[:, None] < n
    all_q = jnp.maximum(all_q, jnp.where(is_uniform, -jnp.inf, batch.return_to_go))
    soft_max = jax.nn.logsumexp(all_q - jax.lax.stop_gradient(log_density), axis=1)
    return (soft_max - q_values(agent.nets.critic, critic, batch.obs, batch.action)).mean()


def critic_loss(critic, agent: Agent, batch: Batch, key, args: Args):
    """Cal-QL: Bellman error plus the conservative penalty (arXiv 2303.05479, eq. 5.1)."""
    bellman_key, gap_key = jax.random.split(key)
    loss, info = bellman_error(critic, agent, batch, bellman_key, args)
    gap = conservative_gap(critic, agent, batch, gap_key, args)
    return loss + args.cql_alpha * gap, {**info, "gap": gap}


def actor_loss(actor, agent: Agent, batch: Batch, demo, key, args: Args):
    """`rl_weight` (alpha log pi(a|s) - min_i Q_i(s, a)), a ~ pi, minus `cloning_weight` log pi(a_D|s) where `demo`.

    `demo` [B] 1: of a demonstration; cloned actions are kept off the rim, where the density has no bound.
    """
    mean, log_std = agent.nets.actor.apply(actor, batch.obs)
    action, log_prob = sample_tanh_gaussian(mean, log_std, key)
    q = q_values(agent.nets.critic, agent.critic, batch.obs, action).min(0)
    alpha = jnp.exp(jnp.where(args.rl_weight == 0.0, 0.0, agent.log_alpha))  # finite: 0 times infinity is none
    of_data = tanh_gaussian_log_prob(mean, log_std, jnp.arctanh(jnp.clip(batch.action, -1.0 + 1e-3, 1.0 - 1e-3)))
    chex.assert_equal_shape([q, log_prob, of_data, demo])
    cloning = -(demo * of_data).sum() / jnp.maximum(demo.sum(), 1.0)
    loss = args.rl_weight * (alpha * log_prob - q).mean() + args.cloning_weight * cloning
    return loss, {"entropy": -log_prob.mean(), "q_pi": q.mean(), "cloning_loss": cloning}


def alpha_loss(log_alpha, entropy, action_dim: int):
    """SAC's temperature: log alpha grows while the entropy is under its target -dim(A)."""
    return log_alpha * (entropy + action_dim)


def init(key, args: Args, spec: Spec) -> Agent:
    """The agent of one lane."""
    nets = Networks(
        Actor(args.actor_hidden_dims, spec.action_dim), Critic(args.hidden_dims), Classifier(args.hidden_dims)
    )
    critic_key, actor_key, classifier_key = jax.random.split(key, 3)
    obs, action = told(jnp.zeros((1, *spec.obs_shape)), jnp.zeros(1)), jnp.zeros((1, spec.action_dim))
    critic = jax.lax.map(lambda k: nets.critic.init(k, obs, action), jax.random.split(critic_key, 2))
    actor, classifier = nets.actor.init(actor_key, obs), nets.classifier.init(classifier_key, obs)
    log_alpha, zero = jnp.zeros(()), jnp.int32(0)
    return Agent(
        nets=nets,
        critic=critic,
        target_critic=critic,
        critic_opt=optax.adam(args.critic_lr).init(critic),
        actor=actor,
        actor_opt=optax.adam(args.actor_lr).init(actor),
        log_alpha=log_alpha,
        alpha_opt=optax.adam(args.actor_lr).init(log_alpha),
        classifier=classifier,
        classifier_opt=optax.adam(args.classifier_lr).init(classifier),
        task=zero,
        attempt=zero,
        streak=zero,
        since=zero,
        resets=zero,
    )


def begin(agent: Agent, key, args: Args, spec: Spec) -> Agent:
    """The agent that interaction begins with: another policy and critic with `new_networks`, all else as it was."""
    kept = ("log_alpha", "alpha_opt", "classifier", "classifier_opt", "task", "attempt", "streak", "since", "resets")
    new = init(key, args, spec).replace(**{name: getattr(agent, name) for name in kept})
    return jax.tree.map(partial(jnp.where, args.new_networks > 0), new, agent)


def draw(key, data: Sources, n: int, args: Args) -> Rows:
    """`n` rows of the datasets: demonstrations, and prior data of a random task each."""
    demo_key, prior_key, task_key = jax.random.split(key, 3)
    n_demos = n if data.prior is None else round(args.demo_share * n)
    at = jax.random.randint(demo_key, (n_demos,), 0, len(data.demos.task))
    demos = jax.tree.map(lambda x: x[at], data.demos)
    if n_demos == n:
        return demos
    at = jax.random.randint(prior_key, (n - n_demos,), 0, len(data.prior.task))
    prior = of_random_tasks(jax.tree.map(lambda x: x[at], data.prior), task_key)
    return jax.tree.map(lambda *x: jnp.concatenate(x), demos, prior)


def no_ends(key, data: Sources, n: int, args: Args):
    """States [n, O] that count as no end of a task, and that task [n]: of demonstrations, and all prior data's."""
    demo_key, prior_key, task_key = jax.random.split(key, 3)
    n_demos = n if data.prior is None else round(args.demo_share * n)
    at = jax.random.randint(demo_key, (n_demos,), 0, len(data.others[0]))
    states, task = (x[at] for x in data.others)
    if n_demos == n:
        return states, task
    prior = data.prior.next_obs[jax.random.randint(prior_key, (n - n_demos,), 0, len(data.prior.task))]
    tasks = jax.random.randint(task_key, (n - n_demos,), 0, 2)
    return jnp.concatenate([states, prior]), jnp.concatenate([task, tasks])


def of_random_tasks(rows: Rows, key) -> Rows:
    """Rows [n] whose `success` [n, 2] is of both tasks, each as a row of one of them."""
    task = jax.random.randint(key, rows.task.shape, 0, 2)
    return rows._replace(task=task, success=jnp.take_along_axis(rows.success, task[..., None], -1)[..., 0])


def collected(batch: Batch, home, args: Args) -> Rows:
    """Transitions [...] of the environment as rows of no task, with the true `success` [..., 2] of both."""
    done = jnp.float32(batch.reward >= args.success_threshold)
    back = jnp.float32(jnp.linalg.norm(batch.next_obs - home, axis=-1) <= args.start_radius)
    none = jnp.zeros(done.shape, jnp.int32)
    success = jnp.stack([done, back], axis=-1)
    return Rows(
        batch.obs, batch.action, batch.next_obs, none, success, jnp.full(done.shape, jnp.inf), jnp.zeros(done.shape)
    )


def sample(key, data: Sources, replay: Replay, args: Args) -> tuple[Rows, Rows, jax.Array]:
    """[B]: rows of the datasets, then of the replay buffer with a random task each; the newest transition [], and
    whether it is terminal."""
    data_key, replay_key, task_key = jax.random.split(key, 3)
    online = round(args.online_share * args.batch_size)
    new = collected(replay.sample(replay_key, online), data.home, args)
    newest = replay.take(jnp.int32(0))
    old = draw(data_key, data, args.batch_size - online, args)
    rows = jax.tree.map(lambda *x: jnp.concatenate(x), old, of_random_tasks(new, task_key))
    return rows, collected(newest, data.home, args), newest.terminal


def fit(agent: Agent, keys, args: Args, data: Sources) -> tuple[Agent, dict]:
    """One lane: one update of the classifier per key; mean metrics."""

    def step(agent, key):
        ends_key, others_key = jax.random.split(key)
        at = jax.random.randint(ends_key, (args.batch_size,), 0, len(data.ends[0]))
        ends, others = (x[at] for x in data.ends), no_ends(others_key, data, args.batch_size, args)
        grad = jax.value_and_grad(classifier_loss, has_aux=True)
        (loss, info), grads = grad(agent.classifier, agent.nets.classifier, told(*ends), told(*others), args)
        updates, opt = optax.adam(args.classifier_lr).update(grads, agent.classifier_opt)
        new = agent.replace(classifier=optax.apply_updates(agent.classifier, updates), classifier_opt=opt)
        return new, {"classifier_loss": loss, **info}

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def update(agent: Agent, rows: Rows, key, args: Args) -> tuple[Agent, dict]:
    """One gradient step of critics, policy and temperature; all losses are of the old parameters.

    The temperature stays where `rl_weight` is 0: a cloned policy's entropy does not follow it, and it would drift.
    """
    critic_key, actor_key = jax.random.split(key)
    batch = batch_of(rows, agent, args)
    (loss_q, info_q), grads = jax.value_and_grad(critic_loss, has_aux=True)(
        agent.critic, agent, batch, critic_key, args
    )
    updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
    critic = optax.apply_updates(agent.critic, updates)

    grad = jax.value_and_grad(actor_loss, has_aux=True)
    (loss, info), grads = grad(agent.actor, agent, batch, rows.demo, actor_key, args)
    updates, actor_opt = optax.adam(args.actor_lr).update(grads, agent.actor_opt)
    actor = optax.apply_updates(agent.actor, updates)

    grads = jax.grad(alpha_loss)(agent.log_alpha, info["entropy"], batch.action.shape[-1])
    updates, alpha_opt = optax.adam(args.actor_lr).update(grads, agent.alpha_opt)
    old, new = (agent.log_alpha, agent.alpha_opt), (optax.apply_updates(agent.log_alpha, updates), alpha_opt)
    log_alpha, alpha_opt = jax.tree.map(partial(jnp.where, args.rl_weight == 0.0), old, new)
    agent = agent.replace(
        critic=critic,
        target_critic=optax.incremental_update(critic, agent.target_critic, args.tau),
        critic_opt=critic_opt,
        actor=actor,
        actor_opt=actor_opt,
        log_alpha=log_alpha,
        alpha_opt=alpha_opt,
    )
    return agent, {"critic_loss": loss_q, "actor_loss": loss, **info_q, **info}


def practise(agent: Agent, newest: Rows, terminal, args: Args) -> tuple[Agent, dict]:
    """After the transition `newest` []: the other task after two states in a row that seem to be its end, or in time.

    A reset, `reset_every` steps after the last one or after an end of the environment's own, begins the task anew. So
    does such an end (`terminal`), after which the attempt is over: the next state is another episode's first one.
    """
    success, predicted = newest.success[agent.task], seems_done(agent, newest.next_obs, agent.task)
    done = jnp.where(args.learned_reward > 0, predicted, success)
    streak, attempt = jnp.where(done > 0, agent.streak + 1, 0), agent.attempt + 1
    ended = terminal > 0
    over = (streak >= 2) | (attempt >= args.attempt_steps) | ended
    since = jnp.where(ended, 0, agent.since + 1)
    reset = since == args.reset_every
    task = jnp.where(reset | ended, FORWARD, jnp.where(over, 1 - agent.task, agent.task))
    streak, attempt = (jnp.where(over | reset, 0, x) for x in (streak, attempt))
    since, resets = jnp.where(reset, 0, since), agent.resets + reset
    info = {"success": success, "predicted": predicted, "false_positive": predicted * (1.0 - success)}
    return agent.replace(task=task, streak=streak, attempt=attempt, since=since, resets=resets), {
        **info,
        "attempts": jnp.float32(over),
        "resets": jnp.float32(resets),
    }


def update_online(agent: Agent, drawn: tuple[Rows, Rows, jax.Array], key, args: Args, t) -> tuple[Agent, dict]:
    """A gradient step of everything but the classifier, after `learning_starts`, and what is tried next."""
    rows, *newest = drawn

    def stay(agent):
        metrics = jax.eval_shape(update, agent, rows, key, args)[1]
        return agent, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics)

    learn = lambda agent: update(agent, rows, key, args)  # noqa: E731
    agent, metrics = jax.lax.cond(t >= args.learning_starts, learn, stay, agent)
    agent, practice = practise(agent, *newest, args)
    return agent, {**metrics, **practice}


def act(agent: Agent, obs, key, args: Args):
    """Actions [B, A] in [-1, 1] of the mean of the policy that is told the task."""
    return jnp.tanh(agent.nets.actor.apply(agent.actor, told(obs, jnp.full(len(obs), FORWARD)))[0])


def explore(agent: Agent, obs, key, args: Args):
    """Sampled actions [B, A] for the task that is tried."""
    task = jnp.broadcast_to(agent.task, (len(obs),))
    return sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, told(obs, task)), key)[0]


def train(agent: Agent, keys, args: Args, data: Sources) -> tuple[Agent, dict]:
    """One lane, offline: one update per key; mean metrics."""

    def step(agent, key):
        draw_key, update_key = jax.random.split(key)
        return update(agent, draw(draw_key, data, args.batch_size, args), update_key, args)

    agent, metrics = jax.lax.scan(step, agent, keys)
    return agent, jax.tree.map(jnp.mean, metrics)


def demonstrations(data: Dataset, task: int, args: Args) -> Rows:
    """The rows of the episodes that succeed, up to where they first do, whose next observation is known.

    Raises:
      InputError: none does, or none of which it is known what it leads to.
    """
    success, n = data.reward >= args.success_threshold, len(data.reward)
    left, steps = np.full(n, np.inf, np.float32), np.inf
    for i in reversed(range(n)):
        steps = 1.0 if success[i] else np.inf if data.last[i] else steps + 1.0
        left[i] = steps
    first = np.r_[True, data.last[:-1]]
    before = np.cumsum(success) - success  # successes before a row
    keep = np.isfinite(left) & (before == np.maximum.accumulate(np.where(first, before, 0)))
    if not keep.any():
        raise InputError(f"'{data.task.id}' has no reward of {args.success_threshold:g} or more (--success-threshold).")
    keep &= data.successor
    if not success[keep].any():
        raise InputError(f"'{data.task.id}' does not say which states its successes lead to (next observations).")
    x = [
        data.obs,
        data.action,
        data.next_obs,
        np.full(n, task, np.int32),
        np.float32(success),
        left,
        np.ones(n, np.float32),
    ]
    return Rows(*(a[keep] for a in x))


def sources(data: Dataset, back: Dataset | None, prior: Dataset | None, args: Args) -> Sources:
    """What is learned from before interaction; on the host.

    Raises:
      InputError: as `demonstrations`; no next observation of `prior` is known.
    """
    demos = [demonstrations(data, FORWARD, args), *([demonstrations(back, BACK, args)] if back else [])]
    first = data.obs[data.starts()]
    done = [rows.next_obs[rows.success > 0] for rows in demos]
    done[BACK:] = [np.concatenate([first, *done[BACK:]])]
    code = lambda states, task: np.full(len(states), task, np.int32)  # noqa: E731
    ends = np.concatenate(done), np.concatenate([code(states, task) for task, states in enumerate(done)])
    passed = [rows.next_obs[rows.success == 0] for rows in demos]
    others = [(states, task) for task, states in enumerate(passed)] + [(done[FORWARD], BACK), (done[BACK], FORWARD)]
    others = np.concatenate([x for x, _ in others]), np.concatenate([code(x, task) for x, task in others])
    home, more = first.mean(0), None
    if prior:
        if not prior.successor.any():
            raise InputError(f"'{prior.task.id}' does not say which states it leads to (next observations).")
        fields = ("obs", "action", "reward", "terminal", "next_obs")
        batch = Batch(*(getattr(prior, f)[prior.successor] for f in fields))
        more = collected(batch, home, args)
    return Sources(jax.tree.map(lambda *x: np.concatenate(x), *demos), more, ends, others, home)


def load_datasets(args: Args) -> list[Dataset | None]:
    """--dataset, and --back-dataset and --prior-dataset where they are named; --fields tell of those that have them.

    Raises:
      InputError: as `load_dataset`; observations or actions of one are others.
    """
    names = args.dataset, args.back_dataset, args.prior_dataset
    there = [name for name in names if name]
    data = load_all(args, names[:1], there).require(discrete=False)
    found, truly = [data], bool(np.min(args.learned_reward) <= 0.0)
    for name, reward in ((args.back_dataset, True), (args.prior_dataset, truly)):
        other = load_all(args, [name], there) if name else None
        if other and other.require(discrete=False, reward=reward).spec != data.spec:
            raise InputError(f"'{name}' has other observations or actions than '{data.task.id}'.")
        found.append(other)
    return found


def practice_task(task: Task, args: Args) -> Task:
    """The environment that is practised in, reset every `reset_every` steps."""
    task = task.in_env(args.practice_env) if args.practice_env else task
    if task.env_spec is None:
        return task
    return dataclasses.replace(task, env_spec=dataclasses.replace(task.env_spec, max_episode_steps=args.reset_every))


def main(args: Args) -> None:
    if np.max(args.discount) >= 1.0:
        raise InputError(
            f"--discount must be below 1, not {args.discount}: what a step costs for ever has no sum else."
        )
    if np.max(args.label_smoothing) >= 0.5:
        raise InputError(f"--label-smoothing must be below 0.5, not {args.label_smoothing}: all labels are alike then.")
    data, back, prior = load_datasets(args)
    with Run(__file__, args, data.task, act, before=0 if args.from_run else args.classifier_updates) as run:
        known = run.replicate(sources(data, back, prior, args))
        agent = run.init(partial(init, spec=data.spec))
        online = Interaction(
            run, known, explore, sample, update_online, task=practice_task(data.task, args), capacity=args.buffer_size
        )
        agent = online.restore(agent)
        fit_lanes, train_lanes = (run.over_lanes(f, in_axes=(0, 0, 0, None), donate=True) for f in (fit, train))
        begin_lanes = run.over_lanes(partial(begin, spec=data.spec), in_axes=(0, 0, 0))
        for keys in run.chunks():
            if run.offline:
                agent, metrics = train_lanes(agent, keys, run.lane_args, known)
            elif run.done < 0:
                agent, metrics = fit_lanes(agent, keys, run.lane_args, known)
            else:
                if run.done == 0:
                    agent = begin_lanes(agent, run.step_keys(run.total + 2), run.lane_args)
                agent, metrics = online.steps(agent, keys)
            updates = max(0, online.updates - args.learning_starts)  # what is tried changes from the first step on
            run.log(agent, metrics, updates=updates, state=online.state())


if __name__ == "__main__":
    launch(main, Args, PRESETS, __doc__)
