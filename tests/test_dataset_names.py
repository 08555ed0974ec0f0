"""What a dataset's name picks: environment, pair, presets; for names of D4RL, Minari, OGBench and V-D4RL."""

import numpy as np
import pytest
from conftest import load

from shared.arguments import parse, preset_for
from shared.checks import guessed_env, preset_misfit
from shared.data import load_dataset, preset_objection
from shared.errors import InputError
from shared.names import ogbench_env
from shared.task import reference_score

MUJOCO = "random medium expert medium_expert medium_replay full_replay"

# (observations, actions; environment of the metadata, or "" where a file has none): what is picked, of every name:
# environment, source of the pair, presets of iql, td3_bc and fql ("-": none)
TABLE = {
    # D4RL's files, by their own names
    (11, 3, ""): {
        "Hopper-v5 d4rl/hopper hopper - -": [  # D4RL's pair, though its data is evaluated in v5
            *(f"hopper_{kind}-v2.hdf5" for kind in MUJOCO.split()),
            *(f"hopper_{kind}-v1.hdf5" for kind in MUJOCO.split()),
            "hopper_medium.hdf5", "hopper_mixed.hdf5", "hopper_random.hdf5", "hopper_medium_expert.hdf5",
        ],
    },
    (17, 6, ""): {
        "HalfCheetah-v5 d4rl/halfcheetah halfcheetah - -": [
            *(f"halfcheetah_{kind}-v2.hdf5" for kind in MUJOCO.split()),
            *(f"halfcheetah_{kind}-v1.hdf5" for kind in MUJOCO.split()),
            "halfcheetah_mixed.hdf5", "halfcheetah_expert.hdf5",
        ],
        "Walker2d-v5 d4rl/walker2d walker2d - -": [
            *(f"walker2d_{kind}-v2.hdf5" for kind in MUJOCO.split()),
            *(f"walker2d_{kind}-v1.hdf5" for kind in MUJOCO.split()),
            "walker2d_mixed.hdf5", "walker2d_medium.hdf5",
        ],
    },
    (111, 8, ""): {
        "Ant-v4 d4rl/ant ant- - -": ["ant_random-v2.hdf5", "ant_medium-v2.hdf5", "ant_expert-v2.hdf5",
                                     "ant_medium_expert-v2.hdf5", "ant_medium_replay-v2.hdf5"],
    },
    (29, 8, ""): {
        "- d4rl/antmaze antmaze antmaze antmaze-umaze": [
            "Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5",
            "Ant_maze_u-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5",
            "Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse.hdf5",
            "antmaze-umaze-v2.hdf5", "antmaze-umaze-diverse-v2.hdf5",
        ],
        "- d4rl/antmaze antmaze antmaze antmaze-medium": [
            "Ant_maze_big-maze_noisy_multistart_True_multigoal_False_sparse_fixed.hdf5",
            "Ant_maze_big-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5",
            "antmaze-medium-play-v2.hdf5", "antmaze-medium-diverse-v2.hdf5",
        ],
        "- d4rl/antmaze antmaze antmaze antmaze-large-diverse": [
            "Ant_maze_hardest-maze_noisy_multistart_True_multigoal_True_sparse_fixed.hdf5",
            "antmaze-large-diverse-v2.hdf5",
        ],
        "- d4rl/antmaze antmaze antmaze antmaze-large-play": ["antmaze-large-play-v2.hdf5"],
        # OGBench's files: no pair, no preset and no shift of D4RL's
        "- successes - - antmaze-large-navigate": [
            "antmaze-large-navigate-v0.npz", "antmaze-large-navigate-singletask-v0",
            *(f"antmaze-large-navigate-singletask-task{i}-v0.npz" for i in range(1, 6)),
        ],
        "- successes - - antmaze-giant-navigate": [
            "antmaze-giant-navigate-v0.npz", "antmaze-giant-navigate-singletask-task1-v0.npz",
        ],
        "- successes - - -": [
            *(f"antmaze-{size}-{kind}-v0.npz" for size in ("medium",) for kind in ("navigate", "stitch", "explore")),
            "antmaze-large-stitch-v0.npz", "antmaze-large-explore-v0.npz", "antmaze-giant-stitch-v0.npz",
            "antmaze-teleport-navigate-v0.npz", "antmaze-teleport-stitch-v0.npz", "antmaze-teleport-explore-v0.npz",
            "antmaze-medium-navigate-singletask-task2-v0.npz", "antmaze-medium-navigate-v0-val.npz",
        ],
    },
    (69, 21, ""): {
        "- successes - - humanoidmaze": [
            *(f"humanoidmaze-{size}-navigate-v0.npz" for size in ("medium", "large", "giant")),
            *(f"humanoidmaze-{size}-stitch-v0.npz" for size in ("medium", "large", "giant")),
            "humanoidmaze-medium-navigate-singletask-task1-v0.npz",
        ],
    },
    (42, 8, ""): {
        "- successes - - antsoccer": [
            "antsoccer-arena-navigate-v0.npz", "antsoccer-arena-stitch-v0.npz", "antsoccer-medium-navigate-v0.npz",
            "antsoccer-medium-stitch-v0.npz", "antsoccer-arena-navigate-singletask-task4-v0.npz",
        ],
    },
    (28, 5, ""): {
        "- successes - - cube-single": ["cube-single-play-v0.npz", "cube-single-noisy-v0.npz",
                                        "cube-single-play-singletask-task2-v0.npz", "visual-cube-single-play-v0.npz"],
        "- successes - - cube-double": ["cube-double-play-v0.npz", "cube-double-noisy-v0.npz"],
        "- successes - - -": ["cube-triple-play-v0.npz", "cube-quadruple-play-v0.npz", "cube-triple-noisy-v0.npz",
                              "scene-noisy-v0.npz"],
        "- successes - - scene-play": ["scene-play-v0.npz", "visual-scene-play-v0.npz",
                                       "scene-play-singletask-task1-v0.npz"],
        "- successes - - puzzle": ["puzzle-3x3-play-v0.npz", "puzzle-4x4-play-v0.npz", "puzzle-4x5-play-v0.npz",
                                   "puzzle-4x6-noisy-v0.npz", "puzzle-3x3-play-singletask-task4-v0.npz"],
    },
    (4, 2, ""): {
        "- successes - - -": ["pointmaze-medium-navigate-v0.npz", "pointmaze-large-navigate-v0.npz",
                              "pointmaze-giant-stitch-v0.npz", "pointmaze-teleport-navigate-v0.npz",
                              "powderworld-easy-play-v0.npz"],
        "- d4rl/maze2d-umaze - maze2d -": ["maze2d-umaze-sparse-v1.hdf5", "maze2d-umaze-v1.hdf5"],
        "- d4rl/maze2d-medium - maze2d -": ["maze2d-medium-sparse-v1.hdf5", "maze2d-medium-v1.hdf5"],
        "- d4rl/maze2d-large - maze2d -": ["maze2d-large-sparse-v1.hdf5"],
        "- d4rl/maze2d-umaze-dense - maze2d -": ["maze2d-umaze-dense-v1.hdf5"],
        "- d4rl/maze2d-large-dense - maze2d -": ["maze2d-large-dense-v1.hdf5"],
        "- - - maze2d -": ["maze2d-open-sparse.hdf5"],
        "- - - - -": ["my-pen-insertion.npz", "my-door.npz", "ant.npz", "open-drawer.npz",
                      "hopper_of_mine.npz", "cube-stacking.npz", "my-scene.npz", "kitchen-robot.npz"],
    },
    (45, 24, ""): {
        "AdroitHandPen-v1 d4rl/pen pen- - pen-human": ["pen-v0_demos_clipped.hdf5", "pen-human-v1.hdf5"],
        "AdroitHandPen-v1 d4rl/pen pen- - pen-cloned": ["pen-demos-v0-bc-combined.hdf5", "pen-cloned-v1.hdf5"],
        "AdroitHandPen-v1 d4rl/pen pen- - pen-expert": ["pen-v0_expert_clipped.hdf5", "pen-expert-v1.hdf5"],
    },
    (39, 28, ""): {
        "AdroitHandDoor-v1 d4rl/door door- - door-": ["door-v0_demos_clipped.hdf5", "door-demos-v0-bc-combined.hdf5",
                                                      "door-v0_expert_clipped.hdf5", "door-human-v1.hdf5"],
    },
    (46, 26, ""): {
        "AdroitHandHammer-v1 d4rl/hammer hammer- - hammer-human": ["hammer-v0_demos_clipped.hdf5"],
        "AdroitHandHammer-v1 d4rl/hammer hammer- - hammer-cloned": ["hammer-demos-v0-bc-combined.hdf5"],
        "AdroitHandHammer-v1 d4rl/hammer hammer- - hammer-expert": ["hammer-v0_expert_clipped.hdf5"],
    },
    (39, 30, ""): {
        "AdroitHandRelocate-v1 d4rl/relocate relocate- - relocate-human": ["relocate-v0_demos_clipped.hdf5"],
        "AdroitHandRelocate-v1 d4rl/relocate relocate- - relocate-cloned": ["relocate-demos-v0-bc-combined.hdf5"],
        "AdroitHandRelocate-v1 d4rl/relocate relocate- - relocate-expert": ["relocate-v0_expert_clipped.hdf5"],
    },
    (60, 9, ""): {
        "- d4rl/kitchen kitchen - -": [
            "mini_kitchen_microwave_kettle_light_slider-v0.hdf5", "kitchen_microwave_kettle_light_slider-v0.hdf5",
            "kitchen_microwave_kettle_bottomburner_light-v0.hdf5", "kitchen-complete-v0.hdf5",
        ],
    },
    (100, 3, ""): {
        "- d4rl/minigrid-fourrooms - - -": ["minigrid4rooms.hdf5"],
        # V-D4RL: a walker is no Walker2d, a cheetah no HalfCheetah
        "- - - - -": [
            *(f"vd4rl_{task}_{kind}.hdf5" for task in ("walker_walk", "cheetah_run", "humanoid_walk")
              for kind in ("random", "medium_replay", "medium", "medium_expert", "expert")),
            "carla_lane_follow_flat-v0.hdf5", "flow-ring-v0-random.hdf5",
        ],
    },
    # Minari's ids: the environment is stored with them
    (11, 3, "Hopper-v5"): {
        "Hopper-v5 d4rl/hopper hopper - -": [
            "mujoco/hopper/simple-v0", "mujoco/hopper/medium-v0", "mujoco/hopper/expert-v0"],
        "Hopper-v5 Hopper-v5 hopper - -": ["hopper-medium", "hopper-random"]},
    (17, 6, "HalfCheetah-v5"): {"HalfCheetah-v5 d4rl/halfcheetah halfcheetah - -": [
        "mujoco/halfcheetah/simple-v0", "mujoco/halfcheetah/medium-v0", "mujoco/halfcheetah/expert-v0"]},
    (17, 6, "Walker2d-v5"): {"Walker2d-v5 d4rl/walker2d walker2d - -": [
        "mujoco/walker2d/simple-v0", "mujoco/walker2d/medium-v0", "mujoco/walker2d/expert-v0"]},
    (105, 8, "Ant-v5"): {"Ant-v5 d4rl/ant ant- - -": [
        "mujoco/ant/simple-v0", "mujoco/ant/medium-v0", "mujoco/ant/expert-v0"]},
    (348, 17, "Humanoid-v5"): {"Humanoid-v5 - - - -": ["mujoco/humanoid/expert-v0", "mujoco/humanoid/medium-v0"]},
    (31, 8, "AntMaze_UMaze-v4"): {"AntMaze_UMaze-v4 d4rl/antmaze antmaze antmaze antmaze-umaze": [
        "D4RL/antmaze/umaze-v1", "D4RL/antmaze/umaze-diverse-v1"]},
    (31, 8, "AntMaze_Medium-v4"): {"AntMaze_Medium-v4 d4rl/antmaze antmaze antmaze antmaze-medium": [
        "D4RL/antmaze/medium-play-v1", "D4RL/antmaze/medium-diverse-v1"]},
    (8, 2, "PointMaze_UMaze-v3"): {"PointMaze_UMaze-v3 pointmaze-umaze pointmaze - -": [
        "D4RL/pointmaze/umaze-v2", "pointmaze-umaze"]},
    (8, 2, "PointMaze_Open-v3"): {"PointMaze_Open-v3 - pointmaze - -": ["D4RL/pointmaze/open-v2"]},
    (45, 24, "AdroitHandPen-v1"): {"AdroitHandPen-v1 d4rl/pen pen- - pen-human": ["D4RL/pen/human-v2"],
                                   "AdroitHandPen-v1 d4rl/pen pen- - pen-expert": ["D4RL/pen/expert-v2"]},
    (39, 28, "AdroitHandDoor-v1"): {"AdroitHandDoor-v1 d4rl/door door- - door-": [
        "D4RL/door/human-v2", "D4RL/door/cloned-v2"]},
    (59, 9, "FrankaKitchen-v1"): {"FrankaKitchen-v1 d4rl/kitchen kitchen - -": [
        "D4RL/kitchen/complete-v2", "D4RL/kitchen/mixed-v2", "D4RL/kitchen/partial-v2"]},
    (148, 7, "MiniGrid-FourRooms-v0"): {"MiniGrid-FourRooms-v0 d4rl/minigrid-fourrooms - - -": [
        "D4RL/minigrid/fourrooms-v0"]},
}  # fmt: skip

ROWS = [
    pytest.param(name, *sizes, row, id=f"{name}-{sizes[0]}")
    for sizes, rows in TABLE.items()
    for row, names in rows.items()
    for name in names
]


def test_the_table_is_long_enough():
    assert len({p.values[0] for p in ROWS}) >= 150


def picked(name: str, obs: int, actions: int, env_id: str, reward: float = 1.0) -> str:
    """The row of the table that the code gives."""
    arrays = {"obs": np.ones((2, obs)), "action": np.full((2, actions), 0.5), "reward": np.array([0.0, reward])}
    guess = None if env_id else guessed_env(name, arrays, [])
    env_id = env_id or (guess.id if guess else "")
    facts = {"obs_shape": (obs,), "actions": actions, "reward": sorted([0.0, reward])}
    pair = reference_score(name, env_id or None, facts)
    if pair and pair["source"].startswith("OGBench"):
        source = "successes"
    else:
        table = {k: reference_score(k, k) for k in KEYS}
        source = next((k for k in KEYS if pair is not None and table[k] == pair), "-")
    presets = []
    for algorithm in ("iql", "td3_bc", "fql"):
        known = load(algorithm).PRESETS
        key = preset_for(name, known)
        presets.append("-" if key is None or preset_misfit(key, known[key], facts) else key)
    return " ".join([env_id or "-", source, *presets])


KEYS = [
    *(f"d4rl/{task}" for task in ("hopper", "halfcheetah", "walker2d", "ant", "antmaze", "pen", "door", "hammer")),
    *("d4rl/relocate", "d4rl/kitchen", "d4rl/minigrid-fourrooms", "pointmaze-umaze", "Hopper-v5"),
    *(f"d4rl/maze2d-{size}{dense}" for size in ("umaze", "medium", "large") for dense in ("", "-dense")),
]


@pytest.mark.parametrize(
    ("algorithm", "name", "by_name", "auto"),
    [
        ("riql", "hopper-action-noise", "hopper-action", None),  # which would corrupt it further
        ("cql_plus", "hopper-cql-replay", "cql", None),
        ("crr_plus", "hopper-crr-replay", "crr", None),
        ("iql", "corl-hopper-medium", "corl-hopper-medium", "hopper"),
        ("edac", "lb-sac-hopper-medium", "lb-sac-hopper-medium", "hopper"),
        ("f_dvl", "xql-hopper-medium", "xql-hopper-medium", "hopper"),
        ("plas", "d3rlpy-hopper-medium", "d3rlpy-hopper-medium", None),
        ("idql", "ifql-samples", "ifql", None),
        ("cfpi", "vae-samples", "vae", None),
        ("jowa", "small-games", "small", None),
        ("rorl", "attack-hopper-medium", "attack-hopper-medium", "hopper-medium"),
    ],
)
def test_a_preset_by_name_is_picked_by_no_dataset(algorithm, name, by_name, auto):
    presets = load(algorithm).PRESETS
    assert preset_for(name, presets) == auto
    assert preset_for(name, presets, by_name) == by_name
    assert preset_for(name, {key: dict(settings) for key, settings in presets.items()}) == by_name  # its words would


@pytest.mark.parametrize(("name", "obs", "actions", "env_id", "row"), ROWS)
def test_what_a_name_picks(name, obs, actions, env_id, row):
    assert picked(name, obs, actions, env_id) == row


def test_ogbench_evaluates_in_the_environment_of_the_task():
    for name, env in {
        "antmaze-large-navigate-singletask-task1-v0.npz": "antmaze-large-singletask-task1-v0",
        "cube-single-play-singletask-v0": "cube-single-singletask-v0",
        "visual-antmaze-medium-stitch-v0.npz": "visual-antmaze-medium-v0",
        "scene-play-oraclerep-v0": "scene-v0",
        "antmaze-medium-play-v2.hdf5": None,  # D4RL's
    }.items():
        assert ogbench_env(name) == env, name


# ------------------------------------------------------------------------------- presets and the data


def antmaze(path, rewards, obs=29) -> str:
    r = np.random.default_rng(0)
    done = np.arange(100) % 25 == 24
    arrays = {
        "observations": r.normal(size=(100, obs)),
        "actions": r.uniform(-1, 1, (100, 8)),
        "rewards": rewards(done),
    }
    np.savez(path, **arrays, terminals=done)
    return str(path)


def parsed(algorithm: str, path: str, *more: str):
    module = load(algorithm)
    return parse(module.Args, module.PRESETS, "doc", ["--dataset", path, *more], objection=preset_objection)


def test_the_preset_is_printed_and_recorded(tmp_path, capsys):
    path = antmaze(tmp_path / "antmaze-umaze-v2.npz", lambda done: done * 1.0)
    args = parsed("td3_bc", path)
    assert args.preset == "antmaze" and args.reward_shift == -1.0
    assert "preset antmaze: reward_shift -1" in capsys.readouterr().out
    assert parsed("td3_bc", path, "--preset", "none").preset == "none"


@pytest.mark.parametrize(
    ("rewards", "obs", "why"),
    [
        (lambda done: done - 1.0, 29, "its reward_shift -1 is for rewards of at least 0, here they are -1 to 0"),
        (
            lambda done: -1.0 - np.arange(100.0),
            29,
            "its reward_shift -1 is for rewards of at least 0, here they are -100 to -1",
        ),
        (lambda done: done * 1.0, 17, "antmaze has 29 or 31 or 109 observations and 8 actions, here are 17 and 8"),
    ],
)
def test_a_preset_that_does_not_fit_the_data_is_left_out_and_told(rewards, obs, why, tmp_path, capsys):
    path = antmaze(tmp_path / "my-antmaze.npz", rewards, obs)
    args = parsed("td3_bc", path)
    assert args.preset == "none" and args.reward_shift == 0.0
    assert f"preset antmaze is left out: {why}" in capsys.readouterr().out
    asked = parsed("td3_bc", path, "--preset", "antmaze")  # by name: as the user says
    assert asked.preset == "antmaze" and asked.reward_shift == -1.0


def test_a_pair_of_successes_is_for_rewards_of_0_and_1(tmp_path):
    data = load_dataset(antmaze(tmp_path / "antmaze-umaze-v2.npz", lambda done: done * 1.0))
    assert data.task.reference["of"] == "success" and data.task.baselines["dataset mean"] == 1.0
    data = load_dataset(antmaze(tmp_path / "antmaze-medium-v2.npz", lambda done: done - 1.0))
    assert data.task.reference is None


def test_a_guess_that_does_not_fit_is_told_and_nothing_is_evaluated(tmp_path, capsys):
    data = load_dataset(antmaze(tmp_path / "ant_medium-v2.npz", lambda done: done * 1.0, obs=60))
    assert data.task.env_spec is None and data.task.reference is None
    assert capsys.readouterr().out.count("no environment is guessed") == 1
    with pytest.raises(InputError, match="observations of shape"):
        load_dataset(str(tmp_path / "ant_medium-v2.npz"), "Ant-v5")


def test_contact_forces_that_are_all_zero_are_not_those_of_an_environment_here(tmp_path):
    """D4RL's Ant has 84 zeros; Ant-v4 with contact forces gives others."""
    r = np.random.default_rng(0)
    obs = np.c_[r.normal(size=(50, 27)), np.zeros((50, 84))]
    arrays = {"observations": obs, "actions": r.uniform(-1, 1, (50, 8)), "rewards": np.ones(50)}
    np.savez(tmp_path / "ant_medium-v2.npz", **arrays, timeouts=np.arange(50) % 10 == 9)
    data = load_dataset(str(tmp_path / "ant_medium-v2.npz"))
    assert data.task.env_spec is None and "contact forces" in data.task.data["notes"][0]
