"""One name for one thing: in all algorithm files an argument of one name has one kind and one help text.

Runs of a time when a thing had another name can be read, and their policies loaded.
"""

import ast
import csv
import dataclasses
import functools
import json
import re

import jax
import numpy as np
import pytest
from conftest import ALGORITHMS, ROOT, load
from reference import SPEC

import shared.arguments
from results.raw import changed_settings, read_run
from shared.arguments import (
    NEVER_BELOW_0,
    Count,
    Dropout,
    Expectile,
    Fraction,
    Positive,
    Size,
    StaticFraction,
    float_fields,
    parse,
)
from shared.checkpoint import comparable, load_lanes, pretrained_lanes, refuse_another_run, renamed, save_tree
from shared.errors import InputError
from shared.evaluation import load_run
from shared.lanes import with_settings
from shared.task import Task

# ------------------------------------------------------------------------------------ the table


parsed = functools.cache(ast.parse)
"""Several tests read all files."""


def arguments(source: str, of: str) -> dict[str, tuple[str, str]]:
    """{argument: (its kind, its help)} of the classes in `source` whose names end in `of`.

    Which values a Literal offers is the file's business: its kind is that it offers some.
    """
    table = {}
    for cls in parsed(source).body:
        if isinstance(cls, ast.ClassDef) and cls.name.endswith(of):
            for field, after in zip(cls.body, [*cls.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign):
                    said = after.value.value if isinstance(after, ast.Expr) else ""
                    kind = re.sub(r"Literal\[.*?\]", "Literal", ast.unparse(field.annotation))
                    table[field.target.id] = kind, " ".join(said.split())
    return table


def all_arguments() -> dict[str, dict[str, tuple[str, str]]]:
    """{argument: {file: (kind, help)}}, those of the shared bases among them."""
    sources = {path.stem: arguments(path.read_text(), "Args") for path in ALGORITHMS}
    sources["shared/arguments.py"] = arguments((ROOT / "shared" / "arguments.py").read_text(), "Args")
    table = {}
    for file, own in sources.items():
        for name, said in own.items():
            table.setdefault(name, {})[file] = said
    return table


def differences(table: dict) -> list[str]:
    """A sentence for every argument that files do not mean, or say, alike."""
    lines = []
    for name, files in table.items():
        for what, i in (("is of different kinds", 0), ("has different help texts", 1)):
            groups = {}
            for file, said in files.items():
                groups.setdefault(said[i], []).append(file)
            if len(groups) > 1:
                lines.append(f"--{name} {what}: " + "; ".join(f"{g!r} in {', '.join(f)}" for g, f in groups.items()))
    return lines


def test_an_argument_of_one_name_has_one_kind_and_one_help_text():
    table = all_arguments()
    assert len(table["tau"]) > 25 and len(table["env_steps"]) > 3
    found = differences(table)
    assert not found, "\n".join(["Rename one, or say the same in all files:", *found])


def test_a_difference_is_named_with_its_files():
    one = arguments('class Args:\n    tau: Float = 0.1\n    """Polyak\n    step."""\n', "Args")
    two = arguments('class Args:\n    tau: float = 0.2\n    """Step."""\n', "Args")
    assert one == {"tau": ("Float", "Polyak step.")}
    found = differences({"tau": {"a": one["tau"], "b": two["tau"], "c": two["tau"]}})
    assert found == [
        "--tau is of different kinds: 'Float' in a; 'float' in b, c",
        "--tau has different help texts: 'Polyak step.' in a; 'Step.' in b, c",
    ]


def test_things_of_one_kind_have_one_name():
    """What the files once called by several names; so that a new file takes the one."""
    gone = {
        "policy_lr", "policy_dims", "q_dims", "value_dims", "vae_dims", "model_dims", "n_min", "warmup_steps",
        "updates_per_step", "grad_norm", "max_target_backup", "offline_ratio", "num_candidates", "online_batch",
    }  # fmt: skip
    used = {name: list(files) for name, files in all_arguments().items()}
    assert not gone & used.keys(), {name: used[name] for name in gone & used.keys()}
    functions = {"policy_loss", "sample_policy", "log_prob_of", "log_probs", "optimiser", "actor_optimiser", "Policy"}
    for path in ALGORITHMS:
        tree = parsed(path.read_text())
        defined = {x.name for x in tree.body if isinstance(x, ast.FunctionDef | ast.ClassDef)}
        fields = {
            x.target.id
            for c in tree.body
            if isinstance(c, ast.ClassDef) and c.name in ("Agent", "Networks")
            for x in c.body
            if isinstance(x, ast.AnnAssign)
        }
        assert not functions & defined, (path.stem, functions & defined)
        assert not {"policy", "policy_opt", "target_policy"} & fields, (path.stem, fields)


def test_the_tanh_gaussian_is_written_in_one_way():
    """Files that have it have the same lines."""
    written = {}
    for path in ALGORITHMS:
        source = path.read_text()
        for node in parsed(source).body:
            if isinstance(node, ast.FunctionDef) and node.name in ("sample_tanh_gaussian", "tanh_gaussian_log_prob"):
                written.setdefault(node.name, {}).setdefault(ast.get_source_segment(source, node), []).append(path.stem)
    for name, texts in written.items():
        assert len(texts) == 1, (name, list(texts.values()))
        assert len(*texts.values()) > 10


# ------------------------------------------------------------------------------------- fractions


def fractions(module) -> list[str]:
    return [f.name for f in dataclasses.fields(module.Args) if f.type in (Fraction, StaticFraction, Expectile, Dropout)]


@pytest.mark.parametrize("name", [path.stem for path in ALGORITHMS])
def test_every_fraction_lies_between_0_and_1(name, monkeypatch):
    """What says so in its help, or that it is a share or a probability, is annotated; each is refused outside.

    Their words are not parsed, which takes longer than all else: tests/test_run.py has some that are.
    """
    module = load(name)
    said = arguments(next(p for p in ALGORITHMS if p.stem == name).read_text(), "Args")
    words = re.compile(r"in [\[(]0, 1[\])]|^(\w+: )?(Share|Probability|share|probability)\b")
    named = [n for n, (kind, text) in said.items() if kind in ("Float", "float") and words.search(text)]
    named = [n for n in named if n != "loss_temperature"]  # above 1 with one of the divergences
    assert not named, f"{name}: annotate as Fraction or StaticFraction: {named}"
    for argument in fractions(module):
        flag = f"--{argument.replace('_', '-')}"
        assert 0.0 <= getattr(module.Args(), argument) <= 1.0
        for value in ("-0.1", "1.1"):
            given = dataclasses.replace(module.Args(), **{argument: float(value)})
            monkeypatch.setattr(shared.arguments.tyro, "cli", lambda *_, given=given, **__: given)
            with pytest.raises(InputError, match=rf"^{flag} must lie in [\[(]0, 1[\])], not {value}\.$"):
                parse(module.Args, {}, "", [flag, value])


NOT_DIVIDED_BY = {"eval_temperature", "evaluation_temperature", "plan_temperature", "reweight_temperature"}
"""Temperatures that may be 0: their help says what that means, or they are weights."""
OF_MORE_THAN_POSITIVE = {"gumbel_temperature", "loss_temperature", "score_temperature", "weight_temperature"}
"""Their files say why they are refused, or have further bounds."""


@pytest.mark.parametrize("name", [path.stem for path in ALGORITHMS])
def test_what_turns_or_undoes_a_loss_at_0_is_refused_there(name, monkeypatch):
    """Temperatures, and the clips of weights and of PPO's ratio: of one kind in every file, in every lane of a grid."""
    module = load(name)
    kind_of = {f.name: f.type for f in dataclasses.fields(module.Args)}
    named = {n for n in kind_of if n.endswith(("temperature", "max_weight", "ratio_clip")) and n != "tune_temperature"}
    assert not {n for n in named - NOT_DIVIDED_BY - OF_MORE_THAN_POSITIVE if kind_of[n] != Positive}
    for argument in (n for n, kind in kind_of.items() if kind == Positive):
        flag = f"--{argument.replace('_', '-')}"
        presets = [preset[argument] for preset in module.PRESETS.values() if argument in preset]
        assert np.min([*np.ravel(getattr(module.Args(), argument)), *presets]) > 0.0
        for value in (0.0, -1.0, (0.5, 0.0)):
            given = dataclasses.replace(module.Args(), **{argument: value})
            monkeypatch.setattr(shared.arguments.tyro, "cli", lambda *_, given=given, **__: given)
            with pytest.raises(InputError, match=f"^{flag} must be above 0, not {re.escape(str(value))}\\.$"):
                parse(module.Args, {}, "", [flag])


@pytest.mark.parametrize("name", [path.stem for path in ALGORITHMS])
def test_no_rate_noise_bound_or_deviation_is_below_0(name, monkeypatch):
    module = load(name)
    meant = ("actor_lr", "learning_rate", "weight_decay", "policy_noise", "noise_clip", "max_grad_norm", "label_std")
    assert all(argument.endswith(NEVER_BELOW_0) for argument in meant)
    for argument in (f.name for f in dataclasses.fields(module.Args) if f.name.endswith(NEVER_BELOW_0)):
        presets = [preset[argument] for preset in module.PRESETS.values() if argument in preset]
        assert np.min([*np.ravel(getattr(module.Args(), argument)), *presets]) >= 0
        given, flag = dataclasses.replace(module.Args(), **{argument: (0.5, -1.0)}), f"--{argument.replace('_', '-')}"
        monkeypatch.setattr(shared.arguments.tyro, "cli", lambda *_, given=given, **__: given)
        said = rf"^{flag} must (be at least 0|lie in \[0, 1\]), not \(0.5, -1.0\).$"
        with pytest.raises(InputError, match=said):
            parse(module.Args, {}, "", [flag])


@pytest.mark.parametrize("name", [path.stem for path in ALGORITHMS])
def test_every_size_and_count_is_refused_below_its_least(name, monkeypatch):
    """Without parsing words, as above."""
    module = load(name)
    least_of = {f.name: {Size: 1, Count: 0}.get(f.type) for f in dataclasses.fields(module.Args)}
    least_of = {n: least for n, least in least_of.items() if least is not None}
    assert least_of["seed"] == 0 and least_of["seeds"] == 1
    for argument, least in least_of.items():
        presets = [preset[argument] for preset in module.PRESETS.values() if argument in preset]
        assert min(getattr(module.Args(), argument), *presets, least) == least, argument
        given, flag = dataclasses.replace(module.Args(), **{argument: least - 1}), f"--{argument.replace('_', '-')}"
        monkeypatch.setattr(shared.arguments.tyro, "cli", lambda *_, given=given, **__: given)
        with pytest.raises(InputError, match=f"^{flag} must be at least {least}, not {least - 1}\\.$"):
            parse(module.Args, {}, "", [flag, str(least - 1)])


def test_a_fraction_may_be_swept_unless_it_is_static():
    module = load("cal_ql")
    assert "discount" in float_fields(module.Args) and "online_share" not in float_fields(module.Args)
    args = parse(module.Args, module.PRESETS, "", ["--discount", "0.9", "0.99"])
    assert args.discount == (0.9, 0.99)
    with pytest.raises(InputError, match="--discount must lie in"):
        parse(module.Args, module.PRESETS, "", ["--discount", "0.9", "1.5"])
    kinds = (shared.arguments.Float, Fraction, Expectile, Positive)
    own = [f.name for f in dataclasses.fields(module.Args) if f.type in kinds]
    assert float_fields(module.Args) == own  # lanes are numbered in the fields' order


# ---------------------------------------------------------------------------------- whole numbers

OF_MORE_THAN_A_LEAST = {
    "adversary_updates", "bins", "channels", "context", "denoiser_batch_size", "diffusion_updates", "embed_updates",
    "encoder_heads", "examples", "future", "future_steps", "generated_plans", "heads", "holdout_every",
    "holdout_rows", "horizon", "n_demos", "n_elites", "neighbour", "next_samples", "nstep", "option_steps", "past",
    "plan_steps", "queue_size", "reference_rows", "retrain_every", "reward_updates", "rollout_batch",
    "rollout_every", "rollout_rounds", "round_updates", "rounds", "sampling_batch", "sampling_steps",
    "sinkhorn_iterations", "slots", "subgoal_steps", "synthetic_rows", "width", "window",
}  # fmt: skip
"""Whole numbers of which files ask more than to be no less than 0 or 1: they say it themselves where they are wrong."""


def test_a_whole_number_says_its_least_value():
    """Size or Count: 0 or less would be a mean of nothing, no step at all, or a division by 0 in the middle of a run.

    An optional one (int | None) is not meant.
    """
    plain = {name: list(files) for name, files in all_arguments().items() if "int" in {k for k, _ in files.values()}}
    new = {name: files for name, files in plain.items() if name not in OF_MORE_THAN_A_LEAST}
    assert not new, f"Size, Count, or refused by the file itself and named above: {new}"
    assert plain.keys() == OF_MORE_THAN_A_LEAST  # none that has become one


PHASE = re.compile(r"\bbefore (the first|all others)\b")


def test_a_phase_before_the_first_update_is_not_left_out_in_silence():
    """A part that learns only there is of kind Size; of another one the help says what 0 means.

    Those of kind int are refused by their files, above.
    """
    table = all_arguments()
    phases = {name: next(iter(files.values())) for name, files in table.items() if name.endswith(("updates", "epochs"))}
    phases = {name: said for name, said in phases.items() if PHASE.search(said[1])}
    assert len(phases) > 15 and {kind for kind, _ in phases.values()} <= {"Size", "Count", "int"}
    silent = [name for name, (kind, text) in phases.items() if kind == "Count" and not re.search(r"\b0\b", text)]
    assert not silent, f"Size, or what 0 means: {silent}"


# ---------------------------------------------------------------------------------- former names

BEFORE = {  # {today's name: the former one}, of arguments and of the agent's parts
    "cql": (
        {"actor_lr": "policy_lr", "cql_temperature": "temperature", "max_q_backup": "max_target_backup"},
        {"actor": "policy", "actor_opt": "policy_opt"},
    ),
    "cql_plus": (
        {"actor_lr": "policy_lr", "critic_activation": "activation", "use_target_actor": "use_target_policy"},
        {"actor": "policy", "actor_opt": "policy_opt", "target_actor": "target_policy"},
    ),
    "uni_o4": (
        {"actor_lr": "policy_lr", "critic_hidden_dims": "q_dims", "value_hidden_dims": "value_dims",
         "model_hidden_dims": "model_dims", "n_actors": "n_policies", "steps_per_iteration": "online_batch"},
        {"actors": "policy", "actors_opt": "policy_opt", "old_actors": "old_policy"},
    ),
    "rlpd": ({"online_share": "offline_ratio", "subset_size": "n_min", "critic_layer_norm": "layer_norm"}, {}),
    "hnpg": ({"steps_per_iteration": "batch_size", "actor_hidden_dims": "policy_dims"}, {"actor": "policy"}),
    "bc": ({"head": "policy"}, {}),
}  # fmt: skip
SMALL = {
    "hidden_dims": (8, 8), "actor_hidden_dims": (8, 8), "critic_hidden_dims": (8, 8), "value_hidden_dims": (8, 8),
    "model_hidden_dims": (8, 8), "n_actors": 2, "n_models": 2, "n_critics": 3, "horizon": 2, "online_share": 0.75,
    "actor_lr": (1e-3, 1e-2),
}  # fmt: skip


def random_agents(module, lane_args, seed: int):
    """Agents [L] of random numbers: nothing of them is compiled."""
    keys, r = jax.random.split(jax.random.key(0), len(jax.tree.leaves(lane_args)[0])), np.random.default_rng(seed)
    shapes = jax.eval_shape(jax.vmap(lambda key, args: module.init(key, args, SPEC)), keys, lane_args)
    return jax.tree.map(lambda x: jax.device_put(np.asarray(r.normal(size=x.shape), x.dtype)), shapes)


@pytest.fixture(scope="module", params=BEFORE)
def old_run(request, tmp_path_factory):
    """A run directory with a checkpoint as they were written under the former names, and what it holds."""
    tmp_path = tmp_path_factory.mktemp(request.param)
    module, (argument, part) = load(request.param), BEFORE[request.param]
    fields = {f.name for f in dataclasses.fields(module.Args)}
    args = module.Args(**{k: v for k, v in SMALL.items() if k in fields})
    swept = {n: getattr(args, n) for n in float_fields(module.Args) if isinstance(getattr(args, n), tuple)}
    settings = [{"seed": 0, **{n: v[i] for n, v in swept.items()}} for i in range(2 if swept else 1)]
    task = Task("log", "", SPEC)
    lane_args = with_settings(args, settings)
    agent = random_agents(module, lane_args, 0)

    def before(stored: dict) -> dict:
        stored = {argument.get(name, name): value for name, value in stored.items()}
        return stored | ({"offline_ratio": 1.0 - stored["offline_ratio"]} if "offline_ratio" in stored else {})

    header = {
        "algorithm": request.param, "args": before(comparable(args)), "task": task.describe(),
        "settings": [before(s) for s in settings],
    }  # fmt: skip
    path = tmp_path / "checkpoint" / "state.npz"
    path.parent.mkdir()
    save_tree(path, (agent,), header)
    with np.load(path) as file:
        stored = {k: file[k] for k in file.files}
    start = re.compile(r"^\[0\]\.(\w+)")
    back = {start.sub(lambda m: f"[0].{part.get(m[1], m[1])}", name): value for name, value in stored.items()}
    assert bool(part) == (back.keys() != stored.keys())
    np.savez(path, **back)
    file = next(p for p in ALGORITHMS if p.stem == request.param).relative_to(ROOT).as_posix()
    record = {"file": file, "algorithm": request.param, "task": {"id": "log"}, "args": header["args"]}
    record["lanes"] = [{"lane": i, **setting} for i, setting in enumerate(header["settings"])]
    (tmp_path / "run.json").write_text(json.dumps(record))
    return tmp_path, module, args, agent, lane_args, header, settings


def test_the_policies_of_a_run_with_former_names_load(old_run):
    run_dir, module, args, agent, lane_args, _, settings = old_run
    policies = load_run(run_dir)
    assert policies.settings == settings
    assert comparable(module.Args(**{f.name: getattr(args, f.name) for f in dataclasses.fields(args)})) == comparable(
        dataclasses.replace(policies.args, **{n: getattr(args, n) for n in float_fields(type(args))})
    )
    jax.tree.map(np.testing.assert_array_equal, policies.args, lane_args)
    obs = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    act = jax.jit(jax.vmap(lambda agent, args: module.act(agent, obs, jax.random.key(1), args)))
    jax.tree.map(np.testing.assert_array_equal, policies.agent, agent)
    np.testing.assert_array_equal(act(policies.agent, policies.args), act(agent, lane_args))


def test_a_run_with_former_names_is_fine_tuned_but_not_resumed(old_run):
    run_dir, module, args, agent, lane_args, header, settings = old_run
    fresh = random_agents(module, lane_args, 9)
    taken = load_lanes(run_dir / "checkpoint" / "state.npz", fresh, np.arange(len(settings)))
    jax.tree.map(np.testing.assert_array_equal, taken, agent)
    header = header | {"task": header["task"] | {"hash": ""}}
    with pytest.raises(InputError, match=r"is of a time when --[\w-]+ was --[\w-]+: .* cannot be resumed\.$"):
        refuse_another_run(run_dir, header, header["algorithm"], Task("log", "", SPEC), args, settings)


def test_a_checkpoint_of_before_an_argument_or_a_part_of_the_spec_is_read(tmp_path):
    """What there was not then is at its default; another value is refused."""
    args = load("iql").Args(updates=10)
    header = {"algorithm": "iql", "args": comparable(args), "task": Task("log", "", SPEC).describe(), "done": 10}
    header = json.loads(json.dumps(header | {"settings": [{"seed": 0}]}))
    for name in ("fields", "episode_length", "discrete", "max_episode_steps", "random_shift"):
        del header["args"][name]
    for name in ("action_shape", "action_start"):
        del header["task"]["spec"][name]
    path = tmp_path / "checkpoint" / "state.npz"
    path.parent.mkdir()
    save_tree(path, {"x": np.zeros(1)}, header)
    found, lanes, updates = pretrained_lanes(tmp_path, Task("log", "", SPEC), [{"seed": 0}])
    assert (found, lanes.tolist(), updates) == (path, [0], 10)
    with pytest.raises(InputError, match=r"other data .*\(spec\)"):
        pretrained_lanes(tmp_path, Task("log", "", SPEC._replace(action_shape=(1, 2))), [{"seed": 0}])
    refuse_another_run(tmp_path, header, "iql", Task("log", "", SPEC), args, [{"seed": 0}])
    for change in ({"random_shift": 4}, {"episode_length": 5}):
        with pytest.raises(InputError, match="--resume with --"):
            refuse_another_run(
                tmp_path, header, "iql", Task("log", "", SPEC), dataclasses.replace(args, **change), [{"seed": 0}]
            )


def test_the_raw_files_of_a_run_with_former_names_are_read_under_todays(tmp_path):
    """f_dvl swept its `temperature`; what differs from the defaults is what was changed, not what was renamed."""
    args = comparable(load("f_dvl").Args(loss_temperature=(0.5, 2.0), batch_size=64))
    args["temperature"] = args.pop("loss_temperature")
    record = {"file": "algorithms/offline/f_dvl.py", "algorithm": "f_dvl", "task": {"id": "log"}, "args": args}
    record["lanes"] = [{"lane": i, "seed": 0, "temperature": t} for i, t in enumerate((0.5, 2.0))]
    (tmp_path / "run.json").write_text(json.dumps(record))
    with (tmp_path / "returns.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["lane", "seed", "temperature", "update", "env_step", "episode", "return", "length", "score"])
        writer.writerows([i, 0, t, 10, 0, 0, 1.0, 5, 50.0] for i, t in enumerate((0.5, 2.0)))
    rows = read_run(tmp_path)
    assert [row.setting for row in rows] == ["loss_temperature=0.5", "loss_temperature=2"]
    assert changed_settings(rows[0], ROOT) == {"batch_size": ("64", "1,024")}


def test_an_argument_that_the_dataset_replaced_is_left_out_of_an_old_record():
    old = {"horizon": 10, "lock_seed": 1, "offline_data": "random", "offline_episodes": 5, "policy_dims": (8,)}
    assert renamed(old, {"horizon", "actor_hidden_dims"}) == {"horizon": 10, "actor_hidden_dims": (8,)}
    assert renamed({"unknown": 1}, {"horizon"}) == {"unknown": 1}
