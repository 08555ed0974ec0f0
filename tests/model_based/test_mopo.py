"""The losses of mopo against the same equations in plain numpy, its uncertainties, its model phase and its rollouts."""

import contextlib
import csv
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import small, train
from reference import SPEC, B, agent_of, close, compiled, heads, mlp, tanh_normal
from scipy.stats import norm

from shared.arguments import preset_for
from shared.errors import InputError
from shared.replay import init_replay
from shared.transitions import Transitions

SMALL = {
    "model_updates": 4, "holdout_every": 2, "holdout_rows": 20, "rollout_every": 2, "rollout_batch": 8,
    "rollout_steps": 2.0, "n_models": 3, "n_elites": 2, "model_hidden_dims": (8,),
}  # fmt: skip
SIZES = {**SMALL, "hidden_dims": (8, 8), "batch_size": B}


def swish(x):
    return x / (1 + np.exp(-x))


def softplus(x):
    return np.logaddexp(0, x)


def drawn(actor, obs, key, *n):
    mean, log_std = np.split(mlp(actor, obs), 2, -1)
    return tanh_normal(mean, np.clip(log_std, -5, 2), np.asarray(jax.random.normal(key, (*n, *mean.shape))))


def gaussians(model, agent, obs, action):
    """Mean and log variance [E, B, D], in plain numpy."""
    params = model["params"]
    x = (np.concatenate([obs, action], -1) - agent.input_mean) / agent.input_std
    out = []
    for i in range(len(params["Dense_0"]["kernel"])):
        member = {"params": {k: {n: v[i] for n, v in p.items()} for k, p in params.items() if "Dense" in k}}
        out.append(mlp(member, x, activation=swish))
    mean, log_var = np.split(np.stack(out), 2, -1)
    high, low = params["max_log_var"], params["min_log_var"]
    log_var = high - softplus(high - log_var)
    return mean, low + softplus(log_var - low)


@pytest.fixture
def mopo():
    return compiled("mopo")


@pytest.fixture
def args(mopo):
    return mopo.Args(**SIZES)


@pytest.fixture
def agent(mopo, args):
    r = np.random.default_rng(3)
    mean, std = r.normal(size=5).astype(np.float32), r.uniform(0.5, 2, 5).astype(np.float32)
    agent = agent_of(mopo, args).replace(input_mean=mean, input_std=std, log_alpha=jnp.float32(-0.3))
    model = agent.model
    model["params"]["min_log_var"] = np.linspace(-3.0, -1.0, 4, dtype=np.float32)
    return agent.replace(model=model, best_model=model)


def members(batch, n=3):
    """The rows of `batch` in another order for each member [E, B, ...], one without a known successor."""
    rows = np.stack([np.roll(np.arange(B), i) for i in range(n)])
    return batch._replace(successor=np.float32([1, 0, 1, 1, 1]), next_action=None)._replace(
        **{f: getattr(batch, f)[rows] for f in ("obs", "action", "reward", "terminal", "next_obs")},
        successor=np.float32([1, 0, 1, 1, 1])[rows],
    )


# ------------------------------------------------------------------------------------ the model


def test_mopo_model_loss_is_the_gaussian_nll_with_soft_bounds_and_decay(mopo, agent, batch, args):
    rows = members(batch)
    x = [gaussians(agent.model, agent, rows.obs[i], rows.action[i]) for i in range(3)]
    mean, log_var = (np.stack([x[i][j][i] for i in range(3)]) for j in (0, 1))
    y = np.concatenate([rows.next_obs - rows.obs, rows.reward[..., None]], -1)
    nll = (mean - y) ** 2 / np.exp(log_var) + log_var
    nll[..., :-1] *= rows.successor[..., None]  # the reward before an end is known
    nll = nll.mean(-1)
    params = agent.model["params"]
    kernels = [np.sum(np.square(params[f"Dense_{i}"]["kernel"])) for i in (0, 1)]
    decay = 0.5 * (2.5e-5 * kernels[0] + 1e-4 * kernels[1])
    bounds = 0.01 * (params["max_log_var"].sum() - params["min_log_var"].sum())
    loss, info = mopo.model_loss(agent.model, agent, rows, args)
    close(loss, nll.mean(1).sum() + decay + bounds)
    close(info["model_nll"], nll.mean(1).sum())
    assert (log_var > params["min_log_var"]).all()
    close(mopo.model_decay(agent.model, args), decay)
    layers = {"params": {f"Dense_{i}": {"kernel": np.ones((3, 1, 1))} for i in range(5)}}  # the paper's five
    close(mopo.model_decay(layers, args), 0.5 * 3 * (2.5e-5 + 5e-5 + 7.5e-5 + 7.5e-5 + 1e-4))
    layers = {"params": {f"Dense_{i}": {"kernel": 1e3 * np.ones((3, 1, 1)) * (i == 10)} for i in range(11)}}
    close(mopo.model_decay(layers, args), 0.5 * 3e6 * 1e-4)  # the last of eleven, whose name is not the last in order


def test_mopo_keeps_each_member_at_its_least_holdout_error(mopo, agent, batch, args):
    """A member counts as better by more than 1 %; what is not known does not count in its error."""
    held_out = batch._replace(successor=np.float32([1, 0, 1, 1, 1]))
    mean, _ = gaussians(agent.model, agent, batch.obs, batch.action)
    y = np.concatenate([batch.next_obs - batch.obs, batch.reward[:, None]], -1)
    error = ((mean - y) ** 2).mean(-1)[:, [0, 2, 3, 4]].mean(1)
    close(mopo.squared_error(agent.model, agent, held_out), error)
    other = jax.tree.map(lambda x: np.asarray(x) + 1.0, agent.model)
    before = np.float32([error[0] * 1.02, error[1] * 1.005, error[2] * 0.5])
    judged = mopo.judge(agent.replace(best_model=other, holdout_error=before, waited=jnp.int32(3)), held_out)
    close(judged.holdout_error, [error[0], before[1], before[2]])
    kernel = judged.best_model["params"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(kernel[0], agent.model["params"]["Dense_0"]["kernel"][0])
    np.testing.assert_array_equal(kernel[1:], other["params"]["Dense_0"]["kernel"][1:])
    assert judged.waited == 0
    assert mopo.judge(judged, held_out).waited == 1


def data_of(mopo, n=60, seed=0):
    """Rows [n, D] of linear dynamics on the device: s' = s + 0.1 a_1, r = a_2."""
    r = np.random.default_rng(seed)
    obs, action = r.normal(size=(n, 3)), r.uniform(-1, 1, (n, 2))
    rows = [obs, action, action[:, 1:], np.zeros((n, 1)), obs + 0.1 * action[:, :1], np.ones((n, 1))]
    return Transitions(jnp.asarray(np.concatenate(rows, 1), jnp.float32), None, None, SPEC, (*mopo.FIELDS, "successor"))


@pytest.mark.long
def test_mopo_fit_ends_when_no_member_improves_any_more(mopo, agent):
    """With a step size of zero the second look is the first without an improvement; with one, errors fall."""
    data, keys = data_of(mopo), jax.random.split(jax.random.key(1), 40)
    fit, ran = jax.jit(lambda agent, args: mopo.fit(agent, keys, args, data, 20)), {}
    for rate in (0.0, 1e-2):
        sizes = mopo.Args(**{**SIZES, "model_lr": rate, "patience": 3})
        ran[rate] = fit(agent.replace(holdout_error=np.full(3, 1e9, np.float32)), sizes)
    assert ran[0.0][0].fitted == 2 * (1 + 3) and ran[0.0][1]["fitted"] == 8.0
    assert ran[1e-2][0].fitted > 8 and ran[1e-2][1]["elites_error"] < 0.7 * ran[0.0][1]["elites_error"]
    again, info = fit(ran[0.0][0], mopo.Args(**{**SIZES, "patience": 3}))  # the next chunk does nothing
    assert again.fitted == 8 and info["model_loss"] == 0.0


def test_mopo_members_have_bootstrap_samples_of_their_own(mopo, agent):
    rows = np.asarray(mopo.bootstrap_rows(agent, jax.random.key(0), (3, 4000), 50))
    seen = [set(x) for x in rows]
    assert rows.min() >= 0 and rows.max() < 50 and seen[0] != seen[1]
    assert all(0.5 < len(x) / 50 < 0.77 for x in seen)  # 1 - 1 / e of them, however long it is trained
    other = np.asarray(mopo.bootstrap_rows(agent, jax.random.key(1), (3, 4000), 50))
    assert set(other[0]) == seen[0] and not np.array_equal(other, rows)


# ---------------------------------------------------------------------------------- uncertainty


def test_mopo_uncertainties_of_a_made_ensemble(mopo):
    r = np.random.default_rng(0)
    mean, std, sample = r.normal(size=(4, B, 3)), r.uniform(0.5, 2, (4, B, 3)), r.normal(size=(B, 3))
    found = np.asarray(mopo.uncertainties(*(jnp.float32(x) for x in (mean, std, sample))))
    close(found[0], np.sqrt((std**2).sum(-1)).max(0))
    pairs = [np.sqrt(((mean[i] - mean[j]) ** 2).sum(-1)) for i in range(4) for j in range(4)]
    close(found[1], np.max(pairs, 0))
    mixture = (std**2).mean(0) + mean.var(0)  # within and between the members
    close(found[2], np.sqrt(mixture.sum(-1)))
    close(found[3], mixture.sum(-1))
    close(found[4], norm.logpdf(sample, mean, std).sum(-1).var(0))
    kl = []
    for i in range(4):
        rest = np.delete(np.arange(4), i)
        var = (std[rest] ** 2).mean(0) + mean[rest].var(0)
        gap = (mean[i] - mean[rest].mean(0)) ** 2
        kl.append(0.5 * (np.log(var / std[i] ** 2) + (std[i] ** 2 + gap) / var - 1).sum(-1))
    close(found[5], np.max(kl, 0))
    far = mopo.uncertainties(*(jnp.float32(x) for x in (mean + 4e3, std, sample + 4e3)))
    np.testing.assert_allclose(far, found, rtol=2e-2)  # squares of large observations do not swallow what is small
    alike = np.ones((4, B, 3), np.float32)
    found = np.asarray(mopo.uncertainties(alike, alike, np.zeros((B, 3), np.float32)))
    close(found[[1, 4, 5]], np.zeros((3, B)))


@pytest.mark.parametrize("number", [1.0, 4.0])
def test_mopo_penalises_the_reward_by_the_chosen_uncertainty(mopo, number):
    u = np.arange(6, dtype=np.float32)[:, None] * np.ones((6, B), np.float32)
    args = mopo.Args(reward_penalty=2.0, penalty_kind=number)
    close(mopo.penalized(np.full(B, 10.0, np.float32), u, args), np.full(B, 10.0 - 2.0 * (number - 1)))


# ------------------------------------------------------------------------------------- rollouts


def test_mopo_a_step_in_the_model_is_a_sample_of_an_elite(mopo, agent, batch):
    args = mopo.Args(**{**SIZES, "n_elites": 1})
    agent = agent.replace(holdout_error=jnp.float32([3.0, 1.0, 2.0]))
    key = jax.random.key(4)
    found = mopo.outcomes(agent, batch.obs, batch.action)
    mean, log_var = gaussians(agent.best_model, agent, batch.obs, batch.action)
    noise = np.asarray(jax.random.normal(jax.random.split(key)[1], (B, 4)))
    mean[..., :3] += batch.obs
    close(found[0], mean)  # of all members, not the elites alone: uncertainties are theirs
    close(found[1], np.exp(log_var / 2))
    close(mopo.draw(agent, *found, key, args), mean[1] + np.exp(log_var[1] / 2) * noise)


@functools.cache
def rolling(mopo):
    """Compiled once: rollouts of at most 3 steps that end beyond `limit`, beside an environment that never moves."""

    def roll(agent, replay, key, args, limit):
        ends, exact = lambda next_obs: next_obs[..., 0] > limit, lambda obs, action, key: (obs,)  # noqa: E731
        return mopo.rollout(agent, replay, key, args, data_of(mopo), 3, ends, exact)

    return jax.jit(roll)


def rolled(mopo, agent, args, limit=np.inf, rounds=1):
    """The ring after rounds of rollouts, and the last metrics."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    replay = jax.tree.map(lambda x: x[0], init_replay(1, 5 * 8 * 3, SPEC, sharding))
    for i in range(rounds):
        replay, info = rolling(mopo)(agent, replay, jax.random.key(i), args, limit)
    return replay, info


def taken(replay, n):
    """The last n rows, the oldest first."""
    return jax.tree.map(np.asarray, replay.take(np.arange(n)[::-1]))


@pytest.mark.long
def test_mopo_every_row_of_the_ring_was_made_and_the_oldest_give_way(mopo, agent, args):
    """Horizon 2 of at most 3 steps: two rows of each rollout, chained, none of them terminal."""
    replay, info = rolled(mopo, agent, args)
    assert replay.size() == 16 == info["model_rows"] and info["rollout_length"] == 2
    rows = taken(replay, 16)
    np.testing.assert_array_equal(rows.next_obs[:8], rows.obs[8:])
    starts = np.asarray(data_of(mopo).rows[:, :3])
    assert all((starts == x).all(1).any() for x in np.asarray(rows.obs[:8]))
    assert not rows.terminal.any()  # the end of a rollout is no end of an episode: it bootstraps
    replay, _ = rolled(mopo, agent, args, rounds=10)
    assert replay.size() == 120 and (np.abs(np.asarray(replay.rows)).sum(1) > 0).all()  # share of made rows: all
    newest = jax.jit(lambda replay: replay.sample(jax.random.key(0), 500, newest=mopo.kept(args)))(replay)
    assert mopo.kept(args) == 5 * 8 * 2 and len(np.unique(np.asarray(newest.reward))) <= 80


@pytest.mark.long
def test_mopo_a_rollout_goes_no_further_than_its_terminal_row(mopo, agent):
    args = mopo.Args(**{**SIZES, "rollout_steps": 3.0})
    replay, info = rolled(mopo, agent, args, limit=0.0)
    rows = taken(replay, int(replay.size()))
    np.testing.assert_array_equal(rows.terminal == 1, rows.next_obs[:, 0] > 0)
    assert 8 < replay.size() < 24 and 0 < info["terminal"] < 1
    goes_on = np.asarray(rows.next_obs)[np.asarray(rows.terminal) == 0]
    follows = np.asarray(rows.obs)[8:]
    assert all((goes_on == x).all(1).any() for x in follows)


def test_mopo_a_rollout_tells_how_far_the_model_is_from_the_environment(mopo, agent, args):
    """An environment that stays where it is: the error of a step is its length, that of a rollout the way made."""
    replay, info = rolled(mopo, agent, args)
    rows = taken(replay, 16)
    close(info["error_1"], np.linalg.norm(rows.next_obs - rows.obs, axis=-1).mean())
    close(info["error_h"], np.linalg.norm(rows.next_obs[8:] - rows.obs[:8], axis=-1).mean())
    close(info["rank_3"], info["rank_4"])


# ------------------------------------------------------------------------------------- the agent


def test_mopo_critics_share_soft_targets_that_stop_at_terminal_rows(mopo, agent, batch, args):
    key = jax.random.key(2)
    action, log_prob = drawn(agent.actor, batch.next_obs, key)
    target_v = heads(agent.target_critic, batch.next_obs, action).min(0) - np.exp(-0.3) * log_prob
    y = batch.reward + 0.99 * (1 - batch.terminal) * target_v
    expected = ((heads(agent.critic, batch.obs, batch.action) - y) ** 2).mean(1).sum()
    close(mopo.critic_loss(agent.critic, agent, batch, key, args)[0], expected)
    hot = agent.replace(log_alpha=np.float32(2.0))
    close(mopo.temperature(hot), 1.0)
    close(mopo.temperature(agent), np.exp(-0.3))


def test_mopo_actor_ascends_the_least_critic_and_its_entropy(mopo, agent, batch, args):
    key = jax.random.key(2)
    action, log_prob = drawn(agent.actor, batch.obs, key)
    q = heads(agent.critic, batch.obs, action).min(0)
    close(mopo.actor_loss(agent.actor, agent, batch, key, args)[0], (np.exp(-0.3) * log_prob - q).mean())
    assert mopo.alpha_loss(1.0, jnp.float32(-3.0), 2) < 0  # entropy under its target: log alpha grows


def test_mopo_updates_critics_then_actor_then_temperature(mopo, agent, batch, args):
    new, metrics = jax.jit(mopo.update)(agent, batch, jax.random.key(3), args)
    critic_key, actor_key = jax.random.split(jax.random.key(3))
    close(metrics["critic_loss"], mopo.critic_loss(agent.critic, agent, batch, critic_key, args)[0])
    with_critic = agent.replace(critic=new.critic)
    loss, info = mopo.actor_loss(agent.actor, with_critic, batch, actor_key, args)
    close(metrics["actor_loss"], loss)
    assert (new.log_alpha > agent.log_alpha) == (info["entropy"] < -2)
    kernel = ("params", "Dense_0", "kernel")
    old, now, target = (
        x[kernel[0]][kernel[1]][kernel[2]] for x in (agent.target_critic, new.critic, new.target_critic)
    )
    close(target, 0.995 * old + 0.005 * now)


def test_mopo_batches_begin_with_the_datas_rows(mopo, agent):
    args = mopo.Args(**{**SIZES, "real_share": 0.4})
    replay, _ = rolled(mopo, agent, args)
    batch = mopo.sample(data_of(mopo), replay, jax.random.key(0), args)
    assert batch.reward.shape == (B,) and batch.successor is None
    starts = np.asarray(data_of(mopo).rows)
    of_data = [(np.abs(starts[:, :5] - np.r_[o, a]).max(1) < 1e-6).any() for o, a in zip(batch.obs, batch.action)]
    assert of_data == [True, True, False, False, False]


# ------------------------------------------------------------------------------------- the script


@pytest.mark.long
def test_mopo_searches_penalties_and_horizons_as_lanes(mopo, pendulum, tmp_path):
    swept = {"rollout_steps": (1.0, 3.0), "penalty_kind": (1.0, 3.0)}
    train("mopo", pendulum, tmp_path / "run", env="none", termination=False, **swept)
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert [float(r["rollout_length"]) for r in rows[:4]] == [1, 3, 1, 3]
    assert [float(r["penalty_kind"]) for r in rows[:4]] == [1, 1, 3, 3] and rows[0]["penalty"] != rows[2]["penalty"]
    before = list(csv.DictReader((tmp_path / "run" / "before.csv").open()))
    assert [float(r["fitted"]) for r in before] == [2.0] * 4 + [4.0] * 4


@pytest.mark.parametrize("name", ["mopo", "combo", "focus", "mobile", "morel", "neubay", "rambo", "ravl"])
@pytest.mark.parametrize("asked", [60, 61])
def test_a_hold_out_of_more_than_a_fifth_is_cut_and_said(name, asked, pendulum, tmp_path, monkeypatch):
    """Of 300 rows; the run's arguments are the number used."""
    module, seen = load(name), []

    class Told(Exception):
        pass

    @contextlib.contextmanager
    def run(file, args, *more, **others):
        def note(sentence):
            seen.append((args.holdout_rows, sentence))
            raise Told

        yield types.SimpleNamespace(note=note)

    monkeypatch.setattr(module, "Run", run)
    with pytest.raises(Told):
        module.main(small(name, pendulum, tmp_path / "run", holdout_rows=asked))
    said = "--holdout-rows 61 is more than a fifth of the data: 60 rows are held out." if asked == 61 else None
    assert seen == [(60, said)]


@pytest.mark.parametrize("name", ["mopo", "combo", "mobile", "rambo", "focus", "morel", "ravl"])
def test_a_model_sees_0_where_an_input_is_constant(name, tmp_path, monkeypatch):
    """Of a thousand rows float32 makes 1.7 a mean that is none of them, and what is next to nothing a deviation."""
    module, r, n = load(name), np.random.default_rng(0), 1000
    obs = np.float32(np.where(np.arange(2) == 1, 1.7, r.normal(size=(n + 1, 2))))
    action, timeouts = r.uniform(-1, 1, (n, 1)).astype(np.float32), np.arange(n) % 50 == 49
    arrays = {"observations": obs[:-1], "next_observations": obs[1:], "actions": action, "timeouts": timeouts}
    np.savez(tmp_path / "log.npz", **arrays, rewards=np.float32(action[:, 0]), terminals=np.zeros(n, bool))
    seen = {}

    class Told(Exception):
        pass

    @contextlib.contextmanager
    def run(*more, **others):
        def init(start):
            seen.update(start.keywords)
            raise Told

        yield types.SimpleNamespace(note=lambda sentence: None, replicate=lambda x: x, init=init)

    monkeypatch.setattr(module, "Run", run)
    with pytest.raises(Told):
        module.main(small(name, str(tmp_path / "log.npz"), tmp_path / "run", env="none", termination=False))
    assert seen["input_std"][1] == 1.0 and seen["input_std"][0] != 1.0
    assert abs(seen["input_mean"][1] - (0.0 if name == "rambo" else np.float32(1.7))) < 1e-6


def test_mopo_refuses_what_it_cannot_learn_from(mopo, pendulum, tmp_path):
    with pytest.raises(InputError, match="terminates is not known .*--no-termination"):
        load("mopo").main(small("mopo", pendulum, tmp_path / "run", env="none", termination=True))
    for change in ({"n_elites": 4}, {"rollout_steps": 0.0}, {"holdout_rows": 0}):
        with pytest.raises(InputError, match="A model needs 5 rows"):
            load("mopo").main(small("mopo", pendulum, tmp_path / "run", **change))
    for name in ("mopo", "combo", "mobile", "morel", "rambo", "ravl"):
        with pytest.raises(InputError, match=r"1 and whole.* rollouts of \(2.0, 2.5\) steps"):
            load(name).main(small(name, pendulum, tmp_path / "run", rollout_steps=(2.0, 2.5)))
    for name in ("mopo", "combo", "mobile", "morel", "rambo", "ravl", "focus", "neubay"):
        for change in ({"patience": 0}, {"model_updates": 0}):  # the rollouts of a model that has learned nothing
            with pytest.raises(InputError, match="at least 1 and whole"):
                load(name).main(small(name, pendulum, tmp_path / "run", **change))
    with pytest.raises(InputError, match="number from 1 to 6"):
        load("mopo").main(small("mopo", pendulum, tmp_path / "run", penalty_kind=7.0))
    with np.load(pendulum) as file:
        arrays = {k: v for k, v in file.items() if k != "rewards"}
    np.savez(pendulum, **arrays)
    with pytest.raises(InputError, match="rewards"):
        load("mopo").main(small("mopo", pendulum, tmp_path / "run"))


def test_mopo_presets_are_the_kits_table(mopo):
    def of(dataset):
        preset = mopo.PRESETS[preset_for(dataset, mopo.PRESETS)]
        return preset["rollout_steps"], preset["reward_penalty"]

    assert of("hopper-medium-replay-v2") == (5, 2.5) and of("hopper-medium-v2") == (5, 5.0)
    assert of("walker2d-medium-expert-v2") == (1, 2.5) and of("halfcheetah-medium-expert-v2") == (5, 2.5)
    assert preset_for("pendulum-mixed", mopo.PRESETS) is None
