"""The losses of saq against the same equations in plain numpy, its codes, and what its four learners make of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import small
from reference import SPEC, B, close, mlp
from scipy.special import log_softmax, logsumexp, softmax

from shared.arguments import preset_for
from shared.errors import InputError
from shared.task import Spec
from shared.transitions import Batch

SMALL = {"vae_hidden_dims": (8, 8), "vae_updates": 4, "n_codes": 6, "code_dim": 4}
SIZES = {**SMALL, "hidden_dims": (8, 8), "batch_size": B}
LEARNERS = ("iql", "cql", "brac", "bc")
compiled = functools.cache(jax.jit)
"""Once for all tests of a function, whose floats are traced."""


@pytest.fixture(scope="module")
def saq():
    return load("saq")


def agent_for(saq, learner="iql", sizes=SIZES, spec=SPEC, **settings):
    """An agent in general position, whose initialisation need not be compiled."""
    args, r = saq.Args(**{**sizes, "learner": learner, **settings}), np.random.default_rng(2)
    agent = jax.eval_shape(lambda key: saq.init(key, args, spec), jax.random.key(0))

    def fill(path, x):
        own = "_opt" in jax.tree_util.keystr(path[:1]) or x.dtype == jnp.int32
        return np.zeros(x.shape, x.dtype) if own else r.normal(scale=0.5, size=x.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, agent), args


def part(vae, name):
    return {"params": vae["params"][name]}


def embedded(vae, batch, state=1.0):
    return mlp(part(vae, "encoder"), state * batch.obs, batch.action)


def nearest(vae, embedding):
    codebook = np.float64(vae["params"]["codebook"])
    return np.array([np.argmin([np.sum((x - e) ** 2) for e in codebook]) for x in embedding])


def decoded(vae, obs, code):
    return mlp(part(vae, "decoder"), obs, np.float64(vae["params"]["codebook"])[code])


def q_of(critics, obs):
    """[E, B, K]"""
    ensemble = len(jax.tree.leaves(critics)[0])
    return np.stack([mlp(jax.tree.map(lambda x, i=i: x[i], critics), obs) for i in range(ensemble)])


def at(q, code):
    return q[..., np.arange(B), code]


@pytest.fixture
def coded(saq, batch):
    return batch._replace(action=np.int32([0, 5, 1, 2, 3]))


# ------------------------------------------------------------------------------------------ codes


def test_saq_the_code_is_the_nearest_entry_of_the_codebook(saq, batch):
    agent, _ = agent_for(saq)
    r = np.random.default_rng(0)
    obs, action = r.normal(size=(64, 3)).astype(np.float32), r.uniform(-1, 1, (64, 2)).astype(np.float32)
    many = batch._replace(obs=obs, action=action)
    code = nearest(agent.vae, embedded(agent.vae, many))
    assert len(set(code)) > 2
    np.testing.assert_array_equal(compiled(saq.encode)(agent, many).action, code)
    close(compiled(saq.decode)(agent, obs, code), np.clip(decoded(agent.vae, obs, code), -1, 1))
    assert (np.abs(decoded(agent.vae, obs, code)) > 1).any()


def test_saq_without_the_state_an_action_has_one_code_everywhere(saq, batch):
    agent, _ = agent_for(saq, state_conditioned=False)
    code = nearest(agent.vae, embedded(agent.vae, batch, 0.0))
    np.testing.assert_array_equal(compiled(saq.encode)(agent, batch).action, code)
    close(compiled(saq.decode)(agent, batch.obs, code), np.clip(decoded(agent.vae, 0 * batch.obs, code), -1, 1))
    assert (nearest(agent.vae, embedded(agent.vae, batch)) != code).any()


def vae_terms(vae, batch, fixed):
    """Of the loss where what is not differentiated is that of the parameters `fixed`."""
    x, fixed_x = embedded(vae, batch), embedded(fixed, batch)
    code = nearest(fixed, fixed_x)
    entry, fixed_entry = (np.float64(v["params"]["codebook"])[code] for v in (vae, fixed))
    passed = x + (fixed_entry - fixed_x)
    error = ((mlp(part(vae, "decoder"), batch.obs, passed) - batch.action) ** 2).sum(1).mean()
    commitment, codebook = ((x - fixed_entry) ** 2).mean(), ((fixed_x - entry) ** 2).mean()
    prior = -log_softmax(mlp(part(vae, "prior_net"), batch.obs), axis=1)[np.arange(B), code].mean()
    return error, commitment, codebook, prior


def test_saq_vae_loss_is_reconstruction_commitment_codebook_and_prior(saq, batch):
    agent, args = agent_for(saq, commitment_weight=0.7, codebook_weight=0.4)
    error, commitment, codebook, prior = vae_terms(agent.vae, batch, agent.vae)
    loss, info = compiled(saq.vae_loss)(agent.vae, agent, batch, args)
    close(loss, error + 0.7 * commitment + 0.4 * codebook + prior)
    used = len(set(nearest(agent.vae, embedded(agent.vae, batch)))) / 6
    for name, value in {"reconstruction": error, "commitment": commitment, "codes_used": used}.items():
        close(info[name], value)


def test_saq_gradients_pass_straight_through_the_code(saq, batch):
    """The encoder has the decoder's gradient as if its embedding had been decoded, and the commitment's; the codebook
    has that of its distance alone: along the gradient the terms change as they do with the rest held fixed."""
    agent, args = agent_for(saq, commitment_weight=0.7, codebook_weight=0.4)
    grads, _ = jax.jit(jax.grad(saq.vae_loss, has_aux=True))(agent.vae, agent, batch, args)
    for moved in ("encoder", "decoder", "prior_net", "codebook"):
        norm = np.sqrt(sum((np.float64(g) ** 2).sum() for g in jax.tree.leaves(grads["params"][moved])))
        assert norm > 1e-3

        def along(step, moved=moved, norm=norm):
            here = jax.tree.map(lambda p, slope, by=step / norm: p + by * np.float64(slope), agent.vae, grads)
            params = agent.vae["params"] | {moved: here["params"][moved]}
            error, commitment, codebook, prior = vae_terms({"params": params}, batch, agent.vae)
            return error + 0.7 * commitment + 0.4 * codebook + prior

        np.testing.assert_allclose((along(1e-4) - along(-1e-4)) / 2e-4, norm, rtol=1e-3)


@pytest.mark.long
def test_saq_codes_that_a_batch_does_not_use_move_to_its_embeddings_at_first(saq, batch):
    agent, args = agent_for(saq, reseed_updates=1)
    step = compiled(saq.update_vae)
    plain, _ = step(agent, batch, dataclasses.replace(args, reseed_updates=0))
    moved, _ = step(agent, batch, args)
    embedding = embedded(plain.vae, batch)
    used = sorted(set(nearest(plain.vae, embedding)))
    unused = [k for k in range(6) if k not in used]
    assert len(used) > 1 and len(unused) > 1
    before, after = (np.asarray(x.vae["params"]["codebook"]) for x in (plain, moved))
    np.testing.assert_array_equal(after[used], before[used])
    close(after[unused], embedding[np.array(unused) % B])
    later, _ = step(moved, batch, args)
    change = np.abs(np.asarray(later.vae["params"]["codebook"]) - after).max(1)
    assert (change < 1e-3).all()  # Adam's steps alone


def test_saq_two_codes_suffice_for_two_modes_that_move_with_the_state(saq):
    """Actions s - 0.3 and s + 0.3: two codes that see the state hold both everywhere, two that do not hold none."""
    r = np.random.default_rng(0)
    obs = r.uniform(-0.6, 0.6, (256, 1)).astype(np.float32)
    side = np.where(np.arange(256) % 2, 0.3, -0.3).astype(np.float32)[:, None]
    zeros = np.zeros(256, np.float32)
    batch = Batch(obs=obs, action=obs + side, reward=zeros, terminal=zeros, next_obs=obs)
    sizes = SIZES | {"vae_hidden_dims": (16,), "n_codes": 2, "batch_size": 256}
    agent, args = agent_for(saq, "bc", sizes, spec=Spec((1,), 1, False), learning_rate=1e-2, reseed_updates=100)

    @jax.jit
    def error(batch):
        fitted = jax.lax.scan(lambda a, _: saq.update_vae(a, batch, args), agent, None, 600)[0]
        return jnp.abs(saq.decode(fitted, batch.obs, saq.encode(fitted, batch).action) - batch.action).mean()

    assert error(batch) < 0.03 and error(batch._replace(obs=0 * obs)) > 0.1


# ---------------------------------------------------------------------------------------- learners


def test_saq_behaviour_is_the_cross_entropy_of_codes(saq, coded):
    agent, args = agent_for(saq, "bc")
    expected = -log_softmax(mlp(agent.behaviour, coded.obs), axis=1)[np.arange(B), coded.action].mean()
    close(compiled(saq.behaviour_loss)(agent.behaviour, agent, coded, args)[0], expected)
    assert agent.critic is agent.value is None


def test_saq_iql_learns_an_expectile_of_q_of_the_datas_codes(saq, coded):
    agent, args = agent_for(saq, "iql", expectile=0.8, discount=0.9)
    u = at(q_of(agent.target_critic, coded.obs), coded.action)[0] - mlp(agent.value, coded.obs)[:, 0]
    assert (u > 0).any() and (u < 0).any()
    close(compiled(saq.value_loss)(agent.value, agent, coded, args)[0], (np.where(u < 0, 0.2, 0.8) * u**2).mean())
    y = coded.reward + 0.9 * (1 - coded.terminal) * mlp(agent.value, coded.next_obs)[:, 0]
    q = at(q_of(agent.critic, coded.obs), coded.action)
    assert len(q) == 1
    close(compiled(saq.critic_loss)(agent.critic, agent, coded, args)[0], ((q - y) ** 2).mean())


@pytest.mark.parametrize("threshold", [0.0, 0.2, 1.0])
def test_saq_cql_is_double_q_over_likely_codes_with_the_whole_soft_maximum(saq, coded, threshold):
    agent, args = agent_for(saq, "cql", cql_alpha=0.7, discount=0.9, code_threshold=threshold)
    prior = softmax(mlp(part(agent.vae, "prior_net"), coded.next_obs), axis=1)
    likely = prior >= np.minimum(prior.max(1, keepdims=True), threshold)
    assert {0.0: likely.all(), 1.0: likely.sum() == B}.get(threshold, B < likely.sum() < 6 * B)
    best = np.where(likely, q_of(agent.critic, coded.next_obs)[0], -np.inf).argmax(1)
    y = coded.reward + 0.9 * (1 - coded.terminal) * at(q_of(agent.target_critic, coded.next_obs), best)[0]
    all_q = q_of(agent.critic, coded.obs)[0]
    q = at(all_q, coded.action)
    loss, info = compiled(saq.critic_loss)(agent.critic, agent, coded, args)
    gap = (logsumexp(all_q, axis=1) - q).mean()
    close(info["gap"], gap)
    close(loss, ((q - y) ** 2).mean() + 0.7 * gap)


def test_saq_brac_lowers_the_policys_values_by_its_divergence_from_the_behaviour(saq, coded):
    agent, args = agent_for(saq, "brac", policy_temperature=0.5, discount=0.9)
    beta = log_softmax(mlp(agent.behaviour, coded.next_obs), axis=1)
    q = q_of(agent.critic, coded.next_obs).min(0)
    log_pi = log_softmax(q / 0.5 + beta, axis=1)
    pi = np.exp(log_pi)
    value = (pi * q_of(agent.target_critic, coded.next_obs).min(0)).sum(1) - 0.5 * (pi * (log_pi - beta)).sum(1)
    y = coded.reward + 0.9 * (1 - coded.terminal) * value
    of_data = at(q_of(agent.critic, coded.obs), coded.action)
    assert len(of_data) == 2
    close(compiled(saq.critic_loss)(agent.critic, agent, coded, args)[0], ((of_data - y) ** 2).mean(1).sum())
    best = (pi * q).sum(1) - 0.5 * (pi * (log_pi - beta)).sum(1)
    close(best, 0.5 * logsumexp(q / 0.5 + beta, axis=1))  # the most that any policy has
    other = softmax(q / 0.5 + beta + np.random.default_rng(0).normal(size=q.shape), axis=1)
    assert ((other * q).sum(1) - 0.5 * (other * (np.log(other) - beta)).sum(1) < best).all()


@pytest.mark.parametrize("learner", ["iql", "cql", "brac"])
def test_saq_targets_and_the_codebook_are_not_differentiated(saq, coded, learner):
    """Q at the data's code moves against the target with everything else held fixed."""
    agent, args = agent_for(saq, learner, cql_alpha=0.0, discount=0.9)
    grads, _ = compiled(jax.grad(saq.critic_loss, has_aux=True))(agent.critic, agent, coded, args)
    y = coded.reward + 0.9 * (1 - coded.terminal) * np.asarray(compiled(saq.next_value)(agent, coded.next_obs, args))
    norm = np.sqrt(sum((np.float64(g) ** 2).sum() for g in jax.tree.leaves(grads)))

    def along(step):
        moved = jax.tree.map(lambda p, g: np.float64(p) + step * np.float64(g) / norm, agent.critic, grads)
        return ((at(q_of(moved, coded.obs), coded.action) - y) ** 2).mean(1).sum()

    np.testing.assert_allclose((along(1e-4) - along(-1e-4)) / 2e-4, norm, rtol=1e-3)


@pytest.mark.parametrize("learner", LEARNERS)
def test_saq_acts_by_the_learners_policy(saq, batch, learner):
    agent, args = agent_for(saq, learner, policy_temperature=0.5)
    if agent.behaviour is not None:  # codes that the data has next to never
        agent.behaviour["params"]["Dense_2"]["bias"] -= 40.0 * np.float32([0, 0, 0, 0, 1, 1])
        log_beta = log_softmax(mlp(agent.behaviour, batch.obs), axis=1)
    if learner == "bc":
        logits = log_beta
    else:
        q = q_of(agent.critic, batch.obs).min(0)
        logits = {"cql": lambda: q, "brac": lambda: q / 0.5 + log_beta}.get(
            learner, lambda: q / 0.5 + np.maximum(log_beta, -8)
        )()
    close(compiled(saq.policy_logits)(agent, batch.obs, args), logits)  # of all codes at once
    likeliest = dataclasses.replace(args, sample_codes=False)
    best = np.clip(decoded(agent.vae, batch.obs, logits.argmax(1)), -1, 1)
    close(compiled(saq.act)(agent, batch.obs, jax.random.key(3), likeliest), best)
    many = np.tile(batch.obs[:1], (4000, 1))
    drawn = np.asarray(compiled(saq.act)(agent, many, jax.random.key(3), args))
    kinds = np.clip(decoded(agent.vae, np.tile(batch.obs[:1], (6, 1)), np.arange(6)), -1, 1)
    share = np.bincount(np.abs(drawn[:, None] - kinds).sum(-1).argmin(1), minlength=6) / 4000
    expected = softmax(logits[0]) if learner in ("iql", "brac") else np.eye(6)[logits[0].argmax()]
    np.testing.assert_allclose(share, expected, atol=0.03)


@pytest.mark.parametrize("learner", LEARNERS)
def test_saq_updates_behaviour_then_v_then_q_and_leaves_the_vae(saq, batch, learner):
    agent, args = agent_for(saq, learner, tau=0.2)
    new, metrics = compiled(saq.update)(agent, batch, args)
    coded = compiled(saq.encode)(agent, batch)
    jax.tree.map(np.testing.assert_array_equal, new.vae, agent.vae)
    assert {n for n in ("behaviour", "value", "critic") if f"{n}_loss" in metrics} == {
        "iql": {"behaviour", "value", "critic"}, "cql": {"critic"}, "brac": {"behaviour", "critic"}, "bc": {"behaviour"}
    }[learner]  # fmt: skip
    if learner in ("iql", "brac"):
        before = agent.replace(behaviour=new.behaviour, value=new.value)
        close(metrics["critic_loss"], compiled(saq.critic_loss)(agent.critic, before, coded, args)[0])
        assert (
            abs(float(compiled(saq.critic_loss)(agent.critic, agent, coded, args)[0] - metrics["critic_loss"])) > 1e-6
        )
    if learner != "bc":
        jax.tree.map(lambda t, n, o: close(t, 0.2 * n + 0.8 * o), new.target_critic, new.critic, agent.target_critic)
    error = ((np.clip(decoded(agent.vae, batch.obs, coded.action), -1, 1) - batch.action) ** 2).sum(1).mean()
    close(metrics["reconstruction"], error)


def test_saq_copies_the_target_when_it_is_asked_to(saq, batch):
    agent, args = agent_for(saq, "cql", copy_every=2)
    step = compiled(saq.update)
    first, _ = step(agent, batch, args)
    second, _ = step(first, batch, args)
    jax.tree.map(np.testing.assert_array_equal, first.target_critic, agent.target_critic)
    jax.tree.map(np.testing.assert_array_equal, second.target_critic, second.critic)


def test_saq_only_q_and_a_cloned_policy_decay(saq):
    """A gradient of nothing: what AdamW takes away."""
    for learner in ("iql", "bc"):
        args = saq.Args(learner=learner, learning_rate=0.1, weight_decay=0.5)
        for name, opt in saq.optimizers(args).items():
            ones, none = jnp.ones(3), jnp.zeros(3)
            updates, _ = opt.update(none, opt.init(ones), ones)
            decays = name == "critic" or (name == "behaviour" and learner == "bc")
            close(updates, np.full(3, -0.05 if decays else 0.0))


def test_saq_refuses_discrete_actions(saq, cartpole, tmp_path):
    with pytest.raises(InputError, match="needs continuous actions"):
        saq.main(small("saq", cartpole, tmp_path / "run"))


def test_saq_settings_are_those_released(saq):
    """vqn/vqn.py, vqn/vqiql.py, vqn/model.py and scripts/ of jianlanluo/SAQ."""
    args = saq.Args()
    assert (args.n_codes, args.code_dim, args.commitment_weight, args.codebook_weight) == (64, 128, 1.0, 1.0)
    assert (args.vae_hidden_dims, args.hidden_dims, args.batch_size) == ((512, 512), (256, 256), 256)
    assert (args.learning_rate, args.weight_decay, args.tau, args.discount) == (3e-4, 1e-3, 0.005, 0.99)
    assert (args.vae_updates, args.updates, args.code_threshold) == (500_000, 1_000_000, 0.0)
    kitchen = saq.PRESETS[preset_for("D4RL/kitchen/mixed-v2", saq.PRESETS)]
    assert (kitchen["learner"], kitchen["copy_every"], kitchen["hidden_dims"]) == ("cql", 200, (512, 512))


def test_saq_first_weights_are_those_released(saq):
    """FullyConnectedNetwork and VectorQuantizer; of IQL orthogonal layers throughout."""
    key, x = jax.random.key(0), np.ones((1, 2), np.float32)
    last, square = (
        np.float64(jax.jit(saq.MLP((16,), 16, orthogonal).init)(key, x)["params"]["Dense_1"]["kernel"])
        for orthogonal in (False, True)
    )
    bound = np.sqrt(3 * 1e-2 / 16)
    assert 0.9 * bound < np.abs(last).max() <= bound
    close(square @ square.T, 2 * np.eye(16))
    book = np.abs(saq.codebook_init(key, (64, 8)))
    assert 0.9 * np.sqrt(3 / 64) < book.max() <= np.sqrt(3 / 64)  # fan-in: the number of codes
    assert agent_for(saq, "iql")[0].nets.critic.orthogonal and agent_for(saq, "iql")[0].nets.value.orthogonal
    assert not agent_for(saq, "cql")[0].nets.critic.orthogonal
