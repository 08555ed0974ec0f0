"""The losses of rl_vlm_f against the equations in plain numpy; who is asked, what is kept of it, what it labels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load, write_pendulum
from iql_in_numpy import check_iql
from jobs import small
from reference import close, mlp
from scipy.stats import spearmanr

from shared.data import load_dataset
from shared.errors import InputError
from shared.evaluation import load_run
from shared.parts import hidden
from shared.task import Spec

SMALL = {
    "n_pairs": 20, "n_models": 2, "reward_epochs": 4, "preference_batch": 8, "reward_hidden_dims": (8,),
}  # fmt: skip
SPEC = Spec((3,), 1, False, (-1.0,), (1.0,))
P, T, D = 7, 2, 3


def leaky_relu(x):
    return np.where(x > 0, x, 0.01 * x)


def rewards_of(params, x):
    """[M, ...] of x [M, ..., D]: each model's own."""
    models = [jax.tree.map(lambda p, i=i: p[i], params) for i in range(len(x))]
    return np.stack([np.tanh(mlp(m, y, activation=leaky_relu))[..., 0] for m, y in zip(models, x, strict=True)])


@pytest.fixture(scope="module")
def made():
    """The module, its arguments, an agent of two reward models, and answers about pieces of two rows."""
    module, r = load("rl_vlm_f"), np.random.default_rng(0)
    sizes = {name: SMALL[name] for name in ("n_models", "reward_hidden_dims")}
    args = module.Args(hidden_dims=(8,), preference_batch=3, stop_accuracy=1.0, reward_lr=1e-2, **sizes)
    agent = jax.jit(module.init, static_argnums=2)(jax.random.key(0), args, SPEC)
    first, second = r.normal(size=(2, P, T, D)).astype(np.float32)
    return module, args, agent, module.Preferences(first, second, np.float32([0, 1, 1, 0, 1, 0, 1]))


@pytest.fixture(scope="module")
def fit(made):
    return jax.jit(made[0].fit)


@pytest.mark.long
def test_the_learner_is_iql(batch):
    check_iql(load("rl_vlm_f"), batch)


@pytest.mark.long
def test_the_preferred_piece_has_more_reward_by_bradley_and_terrys_model(made):
    """Mean over each model's own batch, summed over models; a row that fills up the batch counts for nothing."""
    module, _, agent, answers = made
    index, weight = np.array([[0, 1, 4, 5, 0], [3, 2, 6, 1, 0]]), np.float32([1, 1, 1, 1, 0])
    drawn = jax.tree.map(lambda x: x[index], answers)
    found, right = module.preference_loss(agent.reward, agent.nets.reward, drawn, weight)
    sums = np.stack([rewards_of(agent.reward, x).sum(-1) for x in (drawn.first, drawn.second)])  # [2, M, B]
    p = np.exp(sums) / np.exp(sums).sum(0)
    chosen = np.where(drawn.answer == 1, p[1], p[0])[:, :4]
    close(found, -np.log(chosen).mean(1).sum())
    assert 0 < (chosen > 0.5).sum() < 8
    np.testing.assert_array_equal(right, (chosen > 0.5).sum())


@pytest.mark.long
def test_a_pass_takes_every_answer_once_and_accurate_models_learn_no_more(made, fit):
    """With batches of 3 of 7 answers; models that learn nothing tell by themselves how many they tell."""
    module, args, agent, answers = made
    keys = jax.random.split(jax.random.key(1), 2)
    after, metrics = fit(agent.replace(accurate=jnp.array(True)), keys, args, answers)
    jax.tree.map(np.testing.assert_array_equal, after.reward, agent.reward)
    more = [rewards_of(agent.reward, np.stack([x] * 2)).sum(-1) for x in (answers.first, answers.second)]
    told = ((more[1] > more[0]) == (answers.answer > 0)).mean()
    close(metrics["accuracy"], told)
    loose = dataclasses.replace(args, stop_accuracy=0.0)
    one, _ = fit(agent, keys[:1], loose, answers)
    two, _ = fit(agent, keys, loose, answers)
    assert one.accurate and not fit(agent, keys, args, answers)[0].accurate
    jax.tree.map(np.testing.assert_array_equal, one.reward, two.reward)
    assert all(np.abs(a - b).max() > 0 for a, b in zip(*map(jax.tree.leaves, (one.reward, agent.reward)), strict=True))


def test_each_lane_inverts_its_own_share_of_the_answers(made):
    module, args, agent, _ = made
    answers = jnp.float32(np.arange(2000) % 2)
    other = agent.replace(mistakes=jnp.uint32([3, 4]))
    wrong = [module.inverted(a, answers, dataclasses.replace(args, flips=0.3)) != answers for a in (agent, other)]
    assert all(0.25 < w.mean() < 0.35 for w in wrong) and (wrong[0] != wrong[1]).any()
    more = module.inverted(agent, answers, dataclasses.replace(args, flips=0.5)) != answers
    assert not (wrong[0] & ~more).any()  # more mistakes are the same ones and further ones
    np.testing.assert_array_equal(module.inverted(agent, answers, args), answers)
    np.testing.assert_array_equal(module.inverted(agent, answers, dataclasses.replace(args, flips=1.0)), 1 - answers)


def test_pieces_lie_in_one_episode_and_the_oracle_sums_their_rewards(pendulum):
    module, data = load("rl_vlm_f"), load_dataset(pendulum)
    args = module.Args(segment_length=29, n_pairs=200)
    pairs = module.draw_pairs(data, args)
    assert {*(pairs % 30).ravel()} == {0, 1} and {*(pairs // 30).ravel()} == {*range(10)}
    assert (pairs != module.draw_pairs(data, dataclasses.replace(args, preference_seed=1))).any()
    with pytest.raises(InputError, match="--segment-length 31: .* has no episode of so many rows"):
        module.draw_pairs(data, dataclasses.replace(args, segment_length=31))
    reward, pairs = np.float32([0, 1, 2, 3, 4, 0]), np.array([[0, 1], [2, 0], [4, 0], [1, 1], [3, 2]])
    two = module.Args(segment_length=2)
    np.testing.assert_array_equal(module.oracle(reward, pairs, two), [1, 0, 0, -1, 0])  # 1:3, 5:1, 4:1, 3:3, 7:5
    np.testing.assert_array_equal(
        module.oracle(reward, pairs, dataclasses.replace(two, skip_margin=2.0)), [-1, 0, 0, -1, -1]
    )


def device(module, path, **changes):
    """What main puts on the device."""
    args = module.Args(**{"dataset": path, "reward_hidden_dims": (8,), "n_models": 2, "hidden_dims": (8,), **changes})
    truth = load_dataset(path)
    return args, truth, *module.on_device(hidden(truth, ("rewards",)), truth, args)


def test_what_is_compared_are_the_rows_that_were_drawn(pendulum):
    module = load("rl_vlm_f")
    args, truth, answers, judged = device(module, pendulum, n_pairs=40, segment_length=3, reward_inputs="sa")
    seen = np.concatenate([truth.obs, truth.action], 1)
    seen = (seen - seen.mean(0)) / seen.std(0)
    close(judged.seen, seen)
    pairs = module.draw_pairs(truth, args)
    for column, piece in ((0, answers.first), (1, answers.second)):
        close(piece, np.stack([seen[row : row + 3] for row in pairs[:, column]]))
    np.testing.assert_array_equal(answers.answer, module.oracle(truth.reward, pairs, args))
    assert np.isnan(judged.transitions.take(np.arange(300)).reward).all()  # the learner sees none of the true ones


@pytest.mark.long
def test_labels_are_the_models_mean_on_their_scale(pendulum, monkeypatch):
    module = load("rl_vlm_f")
    args, truth, _, judged = device(module, pendulum)
    agent = jax.jit(module.init, static_argnums=2)(jax.random.key(3), args, SPEC)
    mean = rewards_of(agent.reward, np.stack([judged.seen] * 2)).mean(0)
    monkeypatch.setattr(module, "LABEL_BLOCK", 128)  # 300 rows: two whole blocks and a part
    found, known = module.labels(agent, args, judged)
    close(found, (mean - mean.mean()) / mean.std())
    close(known["reward_correlation"], spearmanr(mean, truth.reward).statistic)
    summed = [x.reshape(10, 30).sum(1) for x in (found, truth.reward)]
    close(known["label_correlation"], spearmanr(*summed).statistic)
    unknown = judged._replace(truth=judged.truth[:0])
    unit, known = module.labels(agent, dataclasses.replace(args, label_scale="unit"), unknown)
    close(unit, (mean - mean.min()) / np.ptp(mean))
    assert known == {}


def test_a_row_is_trained_on_with_its_own_label(pendulum, monkeypatch):
    """Rows whose next observation is not known are left out: numbers of rows and of labels differ."""
    module = load("rl_vlm_f")
    args, truth, _, _ = device(module, pendulum, batch_size=50, reward_shift=-1.0)
    truth = dataclasses.replace(truth, successor=np.arange(300) % 30 != 29)
    _, judged = module.on_device(truth, truth, args)
    monkeypatch.setattr(module, "update", lambda agent, batch, key, args: (agent, {"r": batch.reward}))
    monkeypatch.setattr(module.Transitions, "draw", lambda self, key, n: jnp.arange(n))
    _, metrics = module.train(None, jax.random.split(jax.random.key(0), 1), args, jnp.arange(300.0), judged)
    np.testing.assert_allclose(metrics["r"], np.flatnonzero(truth.successor)[:50].mean() - 1)


# ------------------------------------------------------------------------------- pictures and judges


@pytest.mark.long
def test_pictures_pass_through_convolutions():
    module, r = load("rl_vlm_f"), np.random.default_rng(0)
    for side, size, stride in ((16, 5, 3), (9, 3, 2)):
        x, kernel = (r.normal(size=s).astype(np.float32) for s in ((2, side, side, 3), (size, size, 3, 4)))
        edge = ((size // 2,) * 2,) * 2
        right = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), edge, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        close(module.windows(x, size, stride) @ kernel.reshape(-1, 4), right)
    net, seen = module.Reward((8,)), jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.uint8)
    params = jax.eval_shape(net.init, jax.random.key(0), seen)
    sizes = [params["params"][f"Dense_{i}"]["kernel"].shape for i in range(5)]
    assert sizes == [(75, 16), (144, 32), (288, 64), (576, 128), (3 * 3 * 128, 1)]  # 64, 22, 11, 6, 3
    assert jax.eval_shape(net.apply, params, seen).shape == (2,)
    seen = r.integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    params = jax.jit(net.init)(jax.random.key(0), seen)
    params["params"]["Dense_4"] = {"kernel": jnp.zeros((128, 1)), "bias": jnp.full(1, 2.0)}
    close(net.apply(params, seen), np.tanh([2.0, 2.0]))


def brighter(first, second, text):
    """A stand-in for a vision-language model: the picture with more light, if it can see one."""
    assert first.dtype == np.uint8 and first.shape == (8, 8, 3) and text == "let there be light"
    brighter.asked += 1
    more = int(second.astype(int).sum()) - int(first.astype(int).sum())
    return -1 if abs(more) < 500 else int(more > 0)


@pytest.fixture
def pictures(pendulum, tmp_path):
    """The rows of `pendulum` as pictures, as bright as the first number of the observation is high."""
    with np.load(pendulum) as file:
        arrays = dict(file)
    light = np.clip(128 + 40 * arrays["observations"][:, 0], 0, 255).astype(np.uint8)
    arrays["observations"] = np.broadcast_to(light[:, None, None, None], (300, 8, 8, 3)).copy()
    del arrays["next_observations"], arrays["rewards"]
    np.savez(tmp_path / "pictures.npz", **arrays)
    brighter.asked = 0
    return str(tmp_path / "pictures.npz")


@pytest.mark.long
def test_a_judge_of_pictures_labels_the_rows_and_is_asked_once(pendulum, pictures, tmp_path, monkeypatch):
    """The whole path; the second run takes the answers that were kept. The policy sees vectors."""
    module = load("rl_vlm_f")
    monkeypatch.setattr(
        module, "function_named", lambda flag, name: {"--judge mine:brighter": brighter}[f"{flag} {name}"]
    )
    known = {"pictures": (pictures,), "preferences": str(tmp_path / "a.npz"), "n_pairs": 60, "reward_lr": 1e-2}
    known |= {
        "env": "none",
        "reward_epochs": 12,
        "updates": 12,
        "log_every": 12,
        "write_dataset": str(tmp_path / "x.npz"),
    }
    words = {"judge": "mine:brighter", "goal_text": "let there be light"}
    module.main(small("rl_vlm_f", pendulum, tmp_path / "run", **known, **words))
    assert len(load_run(tmp_path / "run").settings) == 1  # the reward models' shapes are those of the pictures
    with np.load(tmp_path / "a.npz") as file:
        assert {*file["answers"]} == {-1, 0, 1} and len(file["answers"]) == 60 == brighter.asked
    found, data = load_dataset(str(tmp_path / "x.npz"), env="none"), load_dataset(pendulum, env="none")
    np.testing.assert_allclose(found.obs, data.obs)
    assert spearmanr(found.reward, data.obs[:, 0]).statistic > 0.8
    judged = module.on_device(data, data, small("rl_vlm_f", pendulum, "", **known))[1]  # no judge is named
    assert brighter.asked == 60 and judged.seen.dtype == jnp.uint8 and judged.seen.shape == (300, 8, 8, 3)


def test_answers_before_a_failure_are_kept_and_gone_on_from(tmp_path):
    module, r = load("rl_vlm_f"), np.random.default_rng(0)
    shown, pairs = r.normal(size=(50, 2)), r.integers(0, 50, (40, 2))
    kept, asked, args = [], [], module.Args(judge="mine:f", preferences="a.npz")

    def judge(first, second, text):
        asked.append(first[0])
        if len(asked) == 31:
            raise OSError("no answer from the server")
        return int(second[0] > first[0])

    with pytest.raises(InputError, match=r"says 'no answer from the server' of pair 30, .* kept in a\.npz"):
        module.ask(judge, shown, pairs, [], args, lambda a: kept.append(len(a)))
    assert kept == [25, 30]
    right = shown[pairs[:, 1], 0] > shown[pairs[:, 0], 0]
    found = module.ask(judge, shown, pairs, right[:30], args, lambda a: kept.append(len(a)))
    np.testing.assert_array_equal(found, right)
    assert kept == [25, 30, 40] and asked[31:] == [*shown[pairs[30:, 0], 0]]
    for said in (2, None, "1"):
        with pytest.raises(InputError, match=f"says '{said}' of pair 0"):
            module.ask(lambda *_, said=said: said, shown, pairs, [], args, lambda a: None)


def test_bad_input_is_one_sentence(pendulum, pictures, cartpole, tmp_path, monkeypatch):
    module, data = load("rl_vlm_f"), load_dataset(pendulum)
    pairs, path = module.draw_pairs(data, module.Args(n_pairs=4)), tmp_path / "a.npz"
    shown = np.zeros((300, 8, 8, 3), np.uint8)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stands_in.py").write_text("def first(one, other, text):\n    return 0\n")

    def wrong(message, shown=data.obs, data=data, **changes):
        with pytest.raises(InputError, match=message):
            module.answered(data, shown, module.Args(**{"n_pairs": 20, **changes}))

    equal = dataclasses.replace(data, reward=np.zeros(300, np.float32))
    wrong(r"All 20 preferences are equal \(-1\): they do not tell what is better", data=equal)
    known = {"preferences": str(path), "judge": "stands_in:first"}
    wrong(r"All 20 preferences are equal \(0\)", **known)
    path.unlink()
    wrong("--judge stands_in:second: there is no such function", **known | {"judge": "stands_in:second"})
    wrong("--judge compares single rows", judge="stands_in:first")
    wrong("--judge compares single rows", segment_length=2, **known)
    wrong("ends in .npz", preferences="answers.csv")
    wrong("learns from rewards", data=hidden(data, ("rewards",)))
    rows = module.Args()
    module.write_answers(path, pairs, np.int8([0, 1, -1]), data, rows)
    wrong("3 of 4 pairs have answers; name the --judge", preferences=str(path))
    wrong("pieces of 1 rows were compared, not of 2", preferences=str(path), segment_length=2)
    other = load_dataset(write_pendulum(tmp_path / "other.npz", seed=1))
    wrong("are answers about other data than", data=other, preferences=str(path))
    for changed, args in (
        ({"answers": np.float32([0.5])}, rows),
        ({"answers": np.int8([2])}, rows),
        ({"answers": np.int8([0] * 5)}, rows),
        ({"pairs": pairs + 300}, rows),
        ({"pairs": pairs + 0.5}, rows),
        ({"pairs": 0 * pairs + 29}, module.Args(segment_length=2)),  # the last row of an episode and the next one's
    ):
        known = {"pairs": pairs, "answers": np.int8([0, 1, 1, 0]), "data": data.task.hash}
        np.savez(path, **known | {"segment_length": args.segment_length} | changed)
        wrong("pairs of rows .* are needed", preferences=str(path), segment_length=args.segment_length)
    path.write_text("no zip")
    wrong("no file of answers", preferences=str(path))

    vectors, fewer = write_pendulum(tmp_path / "fewer.npz", n=270), module.Args(pictures=(pictures,))
    for of, args, message in (
        (data, module.Args(pictures=(pendulum,)), "does not show the rows of .* as images"),
        (load_dataset(vectors), fewer, "does not show the rows of"),
        (other, fewer, "does not show the rows of"),
        (data, dataclasses.replace(fewer, reward_inputs="sa"), "--reward-inputs sa: of pictures"),
        (data, dataclasses.replace(fewer, segment_length=2), "--segment-length must be 1"),
    ):
        with pytest.raises(InputError, match=message):
            module.shown_rows(of, args)
    assert module.shown_rows(data, fewer).shape == shown.shape  # although actions lie in another range there
    for dataset, changes, message in (
        (cartpole, {}, "needs continuous actions"),
        (pendulum, {"n_models": 0}, "--n-models 0"),
    ):
        with pytest.raises(InputError, match=message):
            module.main(small("rl_vlm_f", dataset, tmp_path / "run", **changes))


def test_settings_are_those_released():
    """reward_model.py and config/train_PEBBLE.yaml of yufeiwang63/RL-VLM-F; IQL's general ones."""
    args = load("rl_vlm_f").Args()
    assert (args.n_models, args.reward_lr, args.preference_batch, args.stop_accuracy) == (3, 3e-4, 128, 0.97)
    assert (args.reward_hidden_dims, args.segment_length) == ((256, 256, 256), 1)
    assert (args.expectile, args.beta, args.discount, args.tau) == (0.7, 3.0, 0.99, 0.005)
