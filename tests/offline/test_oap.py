"""The losses, the questions and the answers of oap against the same equations in plain numpy."""

import csv
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import train
from reference import SPEC, B, agent_of, close, differences, heads, mlp, smoothed_next_action

from shared.errors import InputError
from shared.transitions import Batch, Transitions

SMALL = {
    "oracle": "random", "updates": 8, "query_every": 4, "n_queries": 20, "rank_updates": 2, "rank_hidden_dims": (4, 4)
}  # fmt: skip
SIZES = {"hidden_dims": (8, 8), "rank_hidden_dims": (16, 16), "batch_size": B}
N = 60


@pytest.fixture(scope="module")
def oap():
    return load("oap")


@pytest.fixture(scope="module")
def args(oap):
    """Two rounds of ten questions."""
    return oap.Args(**SIZES, updates=30, query_every=10, n_queries=30, rank_updates=800, rank_lr=1e-2, rank_dropout=0.0)


@pytest.fixture(scope="module")
def agent(oap, args):
    return agent_of(oap, args, seed=2)


@pytest.fixture(scope="module")
def transitions():
    r = np.random.default_rng(0)
    rows = np.concatenate([r.normal(size=(N, 3)), r.uniform(-1, 1, (N, 2)), r.normal(size=(N, 1)), np.zeros((N, 1)),
                           r.normal(size=(N, 3))], 1)  # fmt: skip
    return Transitions(jnp.float32(rows), None, None, SPEC, ("obs", "action", "reward", "terminal", "next_obs"))


def value(obs, action):
    return action[:, 0] - 0.2 * obs[:, 0]


def test_oap_critics_are_td3s(oap, agent, args, batch):
    key = jax.random.key(3)
    target_q = heads(agent.target_critic, batch.next_obs, smoothed_next_action(agent, batch, key, args)).min(0)
    y = batch.reward + 0.99 * (1 - batch.terminal) * target_q
    q = heads(agent.critic, batch.obs, batch.action)
    close(oap.critic_loss(agent.critic, agent, batch, key, args)[0], ((q - y) ** 2).mean(1).sum())
    assert not differences(oap, load("td3_bc")) & {"Actor", "Critic", "critic_loss", "q_values"}


def test_oap_actor_clones_the_preferred_action(oap, agent, args, batch):
    preferred = np.random.default_rng(1).uniform(-1, 1, (B, 2)).astype(np.float32)
    pi = np.tanh(mlp(agent.actor, batch.obs))
    q = heads(agent.critic, batch.obs, pi)[0]
    loss, info = oap.actor_loss(agent.actor, agent, batch, preferred, args)
    close(loss, -2.5 / np.abs(q).mean() * q.mean() + ((pi - preferred) ** 2).mean())
    close(info["distance_to_data"], ((pi - batch.action) ** 2).mean())


def test_oap_ranknet_learns_by_cross_entropy_of_the_difference(oap, agent, batch):
    learned = np.random.default_rng(1).uniform(-1, 1, (B, 2)).astype(np.float32)
    kept = np.float32([1, 0, 0, 1, 1])
    margin = (mlp(agent.ranker, batch.obs, batch.action) - mlp(agent.ranker, batch.obs, learned))[:, 0]
    p = 1 / (1 + np.exp(-margin))
    expected = -(kept * np.log(p) + (1 - kept) * np.log(1 - p)).mean()
    close(oap.rank_loss(agent.ranker, agent, batch.obs, batch.action, learned, kept, jax.random.key(0)), expected)
    np.testing.assert_array_equal(oap.keeps(agent, batch.obs, batch.action, learned), margin >= 0)
    assert oap.keeps(agent, batch.obs, learned, learned).all()  # of equals the data's
    dropped = agent.replace(nets=agent.nets._replace(ranker=oap.RankNet((16, 16), 0.5)))
    losses = [
        oap.rank_loss(agent.ranker, dropped, batch.obs, batch.action, learned, kept, jax.random.key(i)) for i in (0, 1)
    ]
    assert abs(losses[0] - losses[1]) > 1e-6


@pytest.fixture(scope="module")
def rounds(oap, agent, args, transitions):
    """[(agent, answers)] before any round, and after one and two of them; the actor moves in between."""
    ask = jax.jit(lambda agent, answers, key: oap.ask(agent, answers, key, args, transitions, value))
    moved = agent.replace(actor=jax.tree.map(lambda x: 1.3 * x + 0.05, agent.actor))
    found = [(agent, oap.first_answers(args, transitions))]
    found.append(ask(agent, found[0][1], jax.random.key(0)))
    found.append(ask(moved.replace(ranker=found[1][0].ranker, ranker_opt=found[1][0].ranker_opt), found[1][1],
                     jax.random.key(1)))  # fmt: skip
    return found


@pytest.mark.long
def test_oap_asks_where_policy_and_data_differ_most_and_no_row_twice(rounds, transitions):
    data = transitions.take(np.arange(N))
    asked = np.zeros(N, bool)
    for i in (1, 2):
        agent, answers = rounds[i]
        learned = np.tanh(mlp(agent.actor, data.obs))
        distance = np.where(asked, -1, ((learned - data.action) ** 2).sum(-1))
        expected = np.sort(np.argsort(-distance)[:10])
        row = np.array(answers.row[10 * (i - 1) : 10 * i])
        np.testing.assert_array_equal(np.sort(row), expected)
        close(answers.learned[10 * (i - 1) : 10 * i], learned[row])
        kept = value(data.obs[row], data.action[row]) >= value(data.obs[row], learned[row])
        np.testing.assert_array_equal(answers.kept[10 * (i - 1) : 10 * i], kept)
        asked[row] = True
        np.testing.assert_array_equal(answers.asked, asked)
        assert answers.count == 10 * i
        close(answers.info["oracle_keeps"], kept.mean())
    assert 0 < rounds[2][1].kept.mean() < 1


def test_oap_clones_what_the_oracle_or_else_ranknet_prefers(rounds, transitions):
    data = transitions.take(np.arange(N))
    for i in (1, 2):
        agent, answers = rounds[i]
        learned = np.tanh(mlp(agent.actor, data.obs))
        keeps = mlp(agent.ranker, data.obs, data.action) >= mlp(agent.ranker, data.obs, learned)
        expected = np.where(keeps, data.action, learned)
        for n in range(10 * i):  # a row that was asked for keeps its answer, and the action of that time
            row = int(answers.row[n])
            expected[row] = data.action[row] if answers.kept[n] else answers.learned[n]
        close(answers.preferred, expected)
        close(answers.info["cloned_own"], (np.abs(expected - data.action) > 1e-6).any(-1).mean())


def test_oap_ranknet_answers_as_the_oracle_would(rounds, transitions):
    """Whoever asks the oracle is 1 in 3; the accuracy on new questions is that before their answers were learned."""
    data = transitions.take(np.arange(N))
    agent, answers = rounds[2]
    learned = np.tanh(mlp(agent.actor, data.obs))
    right = (mlp(agent.ranker, data.obs, data.action) >= mlp(agent.ranker, data.obs, learned))[:, 0]
    truth = value(data.obs, data.action) >= value(data.obs, learned)
    rest = ~np.array(answers.asked)
    assert (right == truth)[rest].mean() > 0.8 and 0.2 < truth[rest].mean() < 0.8
    before, row = rounds[1][0], np.array(answers.row[10:20])
    guessed = mlp(before.ranker, data.obs[row], data.action[row]) >= mlp(before.ranker, data.obs[row], learned[row])
    close(answers.info["rank_accuracy"], (guessed[:, 0] == truth[row]).mean())


def test_oap_without_ranknet_clones_the_data_where_nobody_was_asked(oap, agent, args, transitions):
    few = oap.Args(**{**vars(args), "pseudo_queries": False, "rank_updates": 1})
    ask = jax.jit(lambda agent, answers, key: oap.ask(agent, answers, key, few, transitions, None))
    _, answers = ask(agent, oap.first_answers(few, transitions), jax.random.key(0))
    changed = (np.array(answers.preferred) != transitions.take(np.arange(N)).action).any(-1)
    assert 0 < changed.sum() < 10 and not changed[~np.array(answers.asked)].any()  # random answers


def test_oap_asks_in_equal_parts(oap):
    assert oap.rounds_of(oap.Args(), 10**6) == (9, 10_000)
    assert oap.rounds_of(oap.Args(updates=30, query_every=10, n_queries=30), N) == (2, 10)
    assert oap.rounds_of(oap.Args(updates=30, query_every=10, n_queries=10**6), N) == (2, N)
    assert oap.rounds_of(oap.Args(updates=5, query_every=10), N)[0] == 0


@pytest.mark.long
def test_oap_trains_the_actor_on_what_is_preferred_in_its_own_rows(oap, agent, args, transitions):
    """One update: its last batch, drawn anew here, with the preferred actions of its rows."""
    preferred = jnp.float32(np.random.default_rng(2).uniform(-1, 1, (N, 2)))
    keys = jax.random.split(jax.random.key(5), 2)
    _, metrics = jax.jit(oap.train)(agent, keys, args, transitions, preferred)
    draws = [jax.random.split(key) for key in keys]
    rows = [transitions.draw(key, B) for key, _ in draws]
    batches = jax.tree.map(lambda *x: jnp.stack(x), *(transitions.take(row) for row in rows))
    after, _ = jax.jit(oap.update)(
        agent, batches, jnp.stack([preferred[row] for row in rows]), jnp.stack([key for _, key in draws]), args
    )
    last = jax.tree.map(lambda x: x[-1], batches)
    loss, _ = oap.actor_loss(agent.actor, agent.replace(critic=after.critic), last, preferred[rows[-1]], args)
    close(metrics["actor_loss"], loss)
    assert isinstance(last, Batch)


# ---------------------------------------------------------------------------------------- oracles


def judge(task):
    """As --oracle test_oap:judge names it."""
    return lambda obs, action: (obs * jnp.arange(1.0, 4.0)).sum(-1) + action[:, 0]


def task(**changes):
    return SimpleNamespace(**{"spec": SPEC, "obs_mean": None, "obs_std": None, **changes})


def test_oap_an_oracle_sees_the_environments_observations(oap, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "judges", SimpleNamespace(judge=judge))
    r = np.random.default_rng(0)
    obs, action, mean, std = r.normal(size=(4, 3)), r.uniform(-1, 1, (4, 2)), r.normal(size=3), r.uniform(1, 2, 3)
    scaled = oap.oracle_of("judges:judge", task(obs_mean=mean, obs_std=std))
    close(scaled((obs - mean) / std, action), obs @ [1, 2, 3] + action[:, 0])
    close(oap.oracle_of("judges:judge", task())(obs, action), obs @ [1, 2, 3] + action[:, 0])
    assert oap.oracle_of("random", task()) is None


def test_oap_a_runs_critics_judge_by_the_lesser_value_of_its_first_lane(oap, agent, monkeypatch):
    r = np.random.default_rng(0)
    obs, action = (r.normal(size=(4, n)).astype(np.float32) for n in (3, 2))
    lanes = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), agent)
    mean, std = r.normal(size=3), r.uniform(1, 2, 3)
    run = SimpleNamespace(agent=lanes, task=task(obs_mean=mean, obs_std=std))
    monkeypatch.setattr(oap, "load_run", lambda path: run)
    found = oap.oracle_of("some/run", task())(obs, action)
    close(found, heads(agent.critic, (obs - mean) / std, action).min(0))
    run.task = task(spec=SPEC._replace(action_dim=3))
    with pytest.raises(InputError, match="of other sizes"):
        oap.oracle_of("some/run", task())
    run.agent = SimpleNamespace()
    with pytest.raises(InputError, match="no critics"):
        oap.oracle_of("some/run", task())


@pytest.mark.parametrize(
    "name, said",
    [("", "name one with --oracle"), ("no_such:thing", "gives no oracle"), ("json:thing", "gives no oracle"),
     ("no/such/run", "no run with a checkpoint")],
)  # fmt: skip
def test_oap_a_missing_oracle_is_told(oap, name, said):
    with pytest.raises(InputError, match=said):
        oap.oracle_of(name, task())


@pytest.mark.parametrize(
    "values, said",
    [(lambda obs, action: action, r"values of shape \(3, 2\) for 3 actions"),
     (lambda obs, action: action[:, :1], r"values of shape \(3, 1\) for 3 actions"),
     (lambda obs, action: obs @ jnp.ones(4), "cannot judge actions in these states")],
)  # fmt: skip
def test_oap_an_oracle_gives_one_value_for_each_action(oap, monkeypatch, values, said):
    """A column of values would be compared with every answer."""
    monkeypatch.setitem(__import__("sys").modules, "judges", SimpleNamespace(judge=lambda task: values))
    with pytest.raises(InputError, match=f"^--oracle judges:judge .*{said}"):
        oap.oracle_of("judges:judge", task())


def test_oap_asks_no_more_than_it_may(oap, pendulum, tmp_path):
    """One question in each of three rounds would be more than two."""
    with pytest.raises(InputError, match="^--n-queries 2: of 16 updates no whole question falls to every 4"):
        train("oap", pendulum, tmp_path / "run", updates=16, query_every=4, n_queries=2, env="none")


@pytest.mark.long
def test_oap_does_not_go_on_with_other_parts_of_its_questions(oap, pendulum, tmp_path):
    train("oap", pendulum, tmp_path / "run", env="none")
    with pytest.raises(InputError, match="^--resume with --updates 12, but the questions were shared out over 8"):
        train("oap", pendulum, tmp_path / "run", updates=12, resume=True, env="none")


@pytest.mark.long
def test_oap_rounds_fall_between_updates_and_are_logged(oap, pendulum, tmp_path):
    with pytest.raises(InputError, match="--query-every must be a multiple of 4"):
        train("oap", pendulum, tmp_path / "odd", updates=8, log_every=4, query_every=2, env="none")
    sizes = {"updates": 12, "log_every": 4, "query_every": 4, "n_queries": 6, "checkpoint_every": 12}
    train("oap", pendulum, tmp_path / "run", env="none", **sizes)
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert rows[0]["oracle_keeps"] == "nan"  # before the first round
    with np.load(tmp_path / "run" / "checkpoint" / "state.npz") as file:
        count = next(file[k] for k in file.files if k.endswith(".count") and k.startswith("[1]"))
    assert count.tolist() == [4]  # two rounds of two


def test_oap_is_refused_where_its_oracle_is_never_asked(oap, pendulum, tmp_path):
    for updates, query_every in ((8, 8), (8, 100_000)):
        with pytest.raises(InputError, match=rf"^--query-every {query_every}: .* --updates 8 leave none to learn"):
            train("oap", pendulum, tmp_path / "run", updates=updates, query_every=query_every, env="none")


def test_oap_settings_are_the_papers(oap):
    """Table 5."""
    args = oap.Args()
    assert (args.n_queries, args.query_every, args.updates, args.alpha) == (100_000, 100_000, 1_000_000, 2.5)
    assert (args.rank_hidden_dims, args.rank_dropout, args.hidden_dims) == ((512, 256), 0.5, (256, 256))
    assert (args.actor_lr, args.critic_lr, args.tau, args.policy_delay, args.normalize_obs) == (
        3e-4,
        3e-4,
        5e-3,
        2,
        True,
    )
    assert oap.PRESETS["pen-"] == {"alpha": 0.1}
