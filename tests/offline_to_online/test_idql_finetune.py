"""What idql_finetune does beside idql's losses, which tests/generative/test_idql.py compares for both."""

import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import SHORT, train
from reference import SPEC, B, agent_of, close, compiled, differences
from released import ANTMAZE, every, wrong_settings

from shared.arguments import preset_for
from shared.errors import InputError
from shared.replay import Replay
from shared.transitions import FIELDS, Transitions

SMALL = {
    "residual_dim": 8, "residual_blocks": 2, "time_dim": 4, "n_candidates": 3, "diffusion_steps": 3,
    "learning_starts": 3, "online_batch_size": 4,
}  # fmt: skip
SIZES = {**SMALL, "hidden_dims": (8, 8), "batch_size": B, "dropout": 0.0}
IFQL = {"model": "flow", "online_actor": True, "union": True, "learning_starts": 0}


def tiny(**changes):
    return load("idql_finetune").Args(**{**SIZES, **changes})


def same(one, two) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_idql_finetune_differs_from_idql_in_the_online_phase_alone():
    others = differences(load("idql_finetune"), load("idql"))
    assert others == {"Args", "actor_optimizer", "update", "train", "main"}


@pytest.mark.long
def test_idql_finetune_trains_the_model_of_the_actions_online_only_if_asked(batch):
    """Each on a batch of its own, the critics' of another size."""
    module, key = load("idql_finetune"), jax.random.key(3)
    first = jax.tree.map(lambda x: x[:4], batch)

    @jax.jit
    def steps(agent):
        frozen = module.update_online(agent, (first, None), key, tiny())
        trained = module.update_online(agent, (first, batch), key, tiny(online_actor=True))
        alone = module.update_critics(agent, first, tiny(batch_size=4)), module.update_actor(agent, batch, key, tiny())
        return frozen, trained, alone

    agent = agent_of(module, tiny())
    (frozen, info), (trained, all_info), ((critics, critic_info), (actor, actor_info)) = jax.device_get(steps(agent))
    models, learned = ("actor", "average_actor", "actor_opt"), ("critic", "target_critic", "value", "critic_opt")
    for name in models:
        same(getattr(frozen, name), getattr(agent, name))
        jax.tree.map(close, getattr(trained, name), getattr(actor, name))
    for name in learned:
        for other in (frozen, trained):
            jax.tree.map(close, getattr(other, name), getattr(critics, name))
    assert info == critic_info and all_info == {**critic_info, **actor_info} and "actor_loss" not in info


DATA = Transitions(jnp.tile(jnp.arange(1000.0)[:, None], (1, 10)), None, None, SPEC, FIELDS)
REPLAY = Replay(jnp.full((16, 10), -1.0), jnp.int32(10), jnp.int32(10), SPEC)
"""Of rewards 0 to 999 in the data and -1 in what was collected."""


@pytest.mark.parametrize("share, collected", [(0.5, (20, 5)), (0.25, (10, 2))])
def test_idql_finetune_batches_are_shares_of_data_and_experience(share, collected):
    """One is the critics'; another, of other rows, that of the model of the actions where it is trained."""
    module, key = compiled("idql_finetune"), jax.random.key(0)
    args = tiny(online_share=share, online_batch_size=40, batch_size=10, online_actor=True)
    critics, model = module.sample(key, DATA, REPLAY, args)
    assert (len(critics.obs), len(model.obs)) == (40, 10)
    assert tuple(int((b.reward < 0).sum()) for b in (critics, model)) == collected
    assert len(set(critics.reward.tolist()) & set(model.reward.tolist())) < 3
    if share == 0.5:
        frozen, none = module.sample(key, DATA, REPLAY, dataclasses.replace(args, online_actor=False))
        assert none is None and (frozen.reward == critics.reward).all()


def test_idql_finetune_ifqls_one_batch_is_uniform_over_data_and_experience():
    """Of 30 rows of data and 10 collected ones a quarter is new."""
    data = Transitions(DATA.rows[:30], None, None, SPEC, FIELDS)
    critics, model = load("idql_finetune").sample(jax.random.key(0), data, REPLAY, tiny(**{**IFQL, "batch_size": 4000}))
    assert critics is model and critics.reward.shape == (4000,)
    assert 0.22 < (critics.reward < 0).mean() < 0.28


@pytest.mark.long
def test_idql_finetune_explores_by_the_online_choice(batch):
    """Of the same candidates; by Q if nothing is said, whatever evaluations go by."""
    module, key, obs = load("idql_finetune"), jax.random.key(1), np.repeat(batch.obs, 8, axis=0)

    @jax.jit
    def actions(agent):
        evaluated = [module.act(agent, obs, key, tiny(choice=c)) for c in ("best", "implicit")]
        tried = [
            module.explore(agent, obs, key, tiny(choice="implicit", online_choice=c)) for c in ("best", "implicit")
        ]
        return evaluated, tried, module.explore(agent, obs, key, tiny())

    evaluated, tried, default = actions(agent_of(module, tiny()))
    close(tried, evaluated)
    close(default, evaluated[0])
    assert np.abs(tried[0] - tried[1]).max() > 0.01


@pytest.mark.parametrize("online_actor, updates", [(False, 10), (True, 40)])
def test_idql_finetune_the_rate_decays_over_the_phases_in_which_the_model_is_trained(online_actor, updates):
    args = tiny(offline_updates=10, env_steps=30, online_actor=online_actor, actor_lr=0.1, actor_weight_decay=0.5)
    optimizer, one = load("idql_finetune").actor_optimizer(args), jnp.ones(())
    state = optimizer.init(one)
    for count in range(2):
        step, state = optimizer.update(jnp.zeros(()), state, one)
        close(step, -0.5 * 0.1 * (1 + np.cos(np.pi * count / updates)) / 2)


@pytest.mark.parametrize("model", ["diffusion", "flow"])
def test_idql_finetune_has_the_agents_of_idql(model):
    """So that all of a run can be taken over, its optimisers included."""
    sizes = {**SMALL, "model": model, "hidden_dims": (8, 8)}
    of_idql = {n: v for n, v in sizes.items() if n in load("idql").Args.__dataclass_fields__}
    one, two = (
        jax.eval_shape(lambda key, m=m, args=args: m.init(key, args, SPEC), jax.random.key(0))
        for m, args in ((load("idql"), load("idql").Args(**of_idql)), (load("idql_finetune"), tiny(**sizes)))
    )
    shapes = lambda tree: {jax.tree_util.keystr(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(tree)}  # noqa: E731
    assert shapes(one) == shapes(two) and one.__dataclass_fields__.keys() == two.__dataclass_fields__.keys()


@pytest.mark.long
def test_idql_finetune_goes_on_from_a_run_of_idql(pendulum, tmp_path, capfd):
    """4 updates there and one for each of 8 environment steps here, of everything: IFQL has no warm-up."""
    small = {"env": SHORT, "flow_steps": 2, "hidden_dims": (8,)}
    train("idql", pendulum, tmp_path / "offline", model="flow", **small)
    capfd.readouterr()
    out = tmp_path / "online"
    trained = train("idql_finetune", pendulum, out, from_run=str(tmp_path / "offline"), **small, **IFQL)
    assert "starts anew" not in "".join(capfd.readouterr())
    for name in ("actor", "critic", "value"):
        assert trained[f"[0].{name}_opt[0].count"].tolist() == [12]
    assert not (out / "offline.csv").exists()
    assert list(csv.DictReader((out / "metrics.csv").open()))[-1]["update"] == "12"


def test_idql_finetune_settings_are_those_released():
    """launcher/examples/train_ddpm_iql_finetune.py of philippe-eecs/IDQL at 7582571; main.py, agents/ifql.py and README
    of seohongpark/fql at 719d044.
    """
    module = load("idql_finetune")
    theirs = {
        "expectile": 0.9, "reward_shift": -1.0, "offline_updates": 3_000_000, "env_steps": 1_000_000, "batch_size": 512,
        "learning_starts": 5_000, "n_candidates": 128, "online_batch_size": 256, "online_share": 0.5, "union": False,
        "online_actor": False, "online_choice": "best", "choice": "best", "diffusion_steps": 5, "dropout": 0.1,
    }  # fmt: skip
    assert not wrong_settings(module, every(ANTMAZE, **theirs))
    for name, discount, shift in (("", 0.99, 0.0), ("-antmaze", 0.99, -1.0), ("-humanoidmaze", 0.995, 0.0)):
        args = module.Args(**module.PRESETS[preset_for("x", module.PRESETS, f"ifql{name}")])
        assert (args.discount, args.reward_shift, args.offline_updates) == (discount, shift, 1_000_000)
        assert {n: getattr(args, n) for n in IFQL} == IFQL and args.online_choice == "best"
        shared = load("idql").PRESETS["ifql"].keys() - {"updates"}
        assert {n: getattr(args, n) for n in shared} == {n: load("idql").PRESETS["ifql"][n] for n in shared}
    assert module.PRESETS["ifql-antsoccer"] == module.PRESETS["ifql-humanoidmaze"]
    assert preset_for("humanoidmaze-medium-navigate-v0", module.PRESETS) is None


def test_idql_finetune_refuses_an_embedding_of_less_than_a_pair():
    module = load("idql_finetune")
    with pytest.raises(InputError, match="--time-dim must be at least 2"):
        module.main(module.Args(time_dim=1))
