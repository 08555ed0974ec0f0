"""Compiled programs: what is kept for the next run, and what does not fit into memory."""

import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jax.sharding import AxisType

import shared.programs
from shared.errors import InputError
from shared.lanes import over_lanes, replicated
from shared.programs import GIB, check_memory, extra_bytes, fitting, free_bytes, keep_programs


@pytest.fixture
def mesh():
    return jax.make_mesh((2,), ("lane",), (AxisType.Auto,), devices=jax.devices()[:2])


def addresses(x) -> set[int]:
    return {shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards}


def test_all_cpu_devices_read_one_copy_of_the_data(mesh):
    """64 lanes on 64 cores would hold 64 copies of a dataset otherwise."""
    rows = jnp.arange(3000.0).reshape(1000, 3)
    tree = replicated(
        {"rows": rows, "count": np.arange(5), "one": 2.5, "keys": jax.random.split(jax.random.key(0), 3)}, mesh
    )
    assert len(tree["rows"].addressable_shards) == 2
    assert addresses(tree["rows"]) == {rows.unsafe_buffer_pointer()}
    sums = over_lanes(lambda lane, t: lane + t["rows"].sum() + t["count"].sum(), mesh, (0, None))(jnp.arange(2.0), tree)
    np.testing.assert_allclose(sums, np.arange(2) + np.arange(3000).sum() + 10)
    assert jax.random.key_data(tree["keys"]).shape == (3, 2)


@pytest.mark.parametrize("lanes", [6, 10])
def test_lanes_in_groups_are_what_they_are_all_at_once(mesh, lanes):
    """Also where the last group is smaller: 2 devices, 5 lanes each, 2 at a time."""
    groups = []

    def step(x, shared, lane):
        groups.append(x.shape)
        return {"y": jnp.tanh(x @ shared) + lane}

    x = np.random.default_rng(0).normal(size=(lanes, 4, 3)).astype(np.float32)
    given = x, np.eye(3, dtype=np.float32), np.arange(lanes, dtype=np.float32)
    whole = over_lanes(step, mesh, (0, None, 0), layout="vmap")(*given)
    program = over_lanes(step, mesh, (0, None, 0), layout="vmap", at_once=2)
    np.testing.assert_allclose(program(*given)["y"], whole["y"], rtol=1e-6)
    assert set(groups) == {(4, 3)}
    text = program.lower(*given).as_text()
    assert "while" in text and "2x4x3" in text


def test_groups_need_less_memory(mesh):
    def step(x):
        return (jnp.tanh(jnp.outer(x, x)) @ jnp.ones(500)).sum()

    given = np.ones((32, 500), np.float32)
    whole, grouped = (
        extra_bytes(over_lanes(step, mesh, (0,), layout="vmap", at_once=n).lower(given).compile()) for n in (0, 2)
    )
    assert whole >= 16 * 500 * 500 * 4 > 4 * grouped


def test_what_does_not_fit_is_said_before_the_first_call(monkeypatch, mesh):
    called = []
    program = jax.jit(lambda x: jnp.tanh(jnp.outer(x, x)) @ x)
    needed = extra_bytes(program.lower(np.ones(300, np.float32)).compile())
    assert needed >= 300 * 300 * 4

    class Counted:
        lower = staticmethod(program.lower)

        def __call__(self, *args):
            called.append(args)
            return program(*args)

    monkeypatch.setattr(shared.programs, "free_bytes", lambda devices: needed - 1)
    devices = list(mesh.devices.flat)
    with pytest.raises(InputError, match=r"0.00 GiB more on each of 2 devices, .* 0.00 left; give fewer."):
        fitting(Counted(), devices, "give fewer")(np.ones(300, np.float32))
    assert not called
    monkeypatch.setattr(shared.programs, "free_bytes", lambda devices: needed)
    np.testing.assert_allclose(
        fitting(Counted(), devices, "")(np.ones(300, np.float32)), np.full(300, 300 * np.tanh(1)), rtol=1e-5
    )
    assert len(called) == 1


def test_it_is_compiled_once_though_it_is_asked_before(mesh):
    """Of two lanes whose first argument is donated, as an update's is."""
    names = []

    def heard(name, seconds, **_):
        names.append(name)

    step = over_lanes(lambda x, y: (x * y + 7.25).sum() + x, mesh, (0, None), donate=True)
    x, y = replicated(np.ones(3, np.float32), mesh), np.ones((2, 3), np.float32)
    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        ready = fitting(step, list(mesh.devices.flat), "")
        given = jax.device_put(y, jax.NamedSharding(mesh, jax.P("lane")))
        ready(ready(given, x), x)
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    assert sum("backend_compile" in name for name in names) == 1


def test_nothing_is_said_where_nothing_is_known():
    device = SimpleNamespace(platform="tpu", memory_stats=lambda: None)
    assert free_bytes([device]) is None
    check_memory(10 * GIB, [device], "")
    check_memory(None, jax.devices()[:1], "")


def test_what_is_left_is_the_accelerators_or_what_all_cpu_devices_share(monkeypatch):
    told = {"bytes_limit": 70, "bytes_in_use": 50}
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: told)
    assert free_bytes([device, device]) == 20
    monkeypatch.setattr(shared.programs, "_of_machine", lambda: 100)
    monkeypatch.setattr(shared.programs, "_of_group", lambda group: 30)
    cpu = SimpleNamespace(platform="cpu", memory_stats=lambda: None)
    assert free_bytes([cpu] * 3) == 10
    monkeypatch.setattr(shared.programs, "_of_group", lambda group: None)
    assert free_bytes([cpu] * 2) == 50


def test_what_linux_says_of_memory_is_read(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:  9 kB\nMemFree:  1 kB\nMemAvailable:   7 kB\n")
    assert shared.programs._of_machine(tmp_path / "meminfo") == 7 * 1024
    assert shared.programs._of_machine(tmp_path / "nowhere") is None
    for name, text in {
        "memory.max": "500\n",
        "memory.current": "300\n",
        "memory.stat": "anon 1\ninactive_file 40\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert shared.programs._of_group(tmp_path) == 240
    (tmp_path / "memory.max").write_text("max\n")
    assert shared.programs._of_group(tmp_path) is None
    assert shared.programs._of_group(tmp_path / "nowhere") is None


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """JAX's settings as a user has them, and back."""
    names = "jax_compilation_cache_dir", "jax_compilation_cache_max_size"
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("OFFLINE_RL_CACHE", str(tmp_path / "cache"))
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path / "cache" / "programs"
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_in_the_cache_and_no_more_than_a_bound(kept):
    keep_programs()
    folder = Path(jax.config.jax_compilation_cache_dir)
    assert folder.parent == kept and folder.is_dir() and jax.config.jax_compilation_cache_max_size == 2 * GIB


def test_a_folder_of_the_users_own_stays(kept, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    keep_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")


def test_where_nothing_can_be_written_nothing_is_kept(kept):
    kept.parent.write_text("a file where the folder should be")
    keep_programs()
    assert jax.config.jax_compilation_cache_dir is None


def test_programs_of_another_processor_lie_apart(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("processor : 0\nmodel name : A\nflags : fma avx2\nbogomips : 1\n")
    other.write_text("processor : 1\nmodel name : A\nflags : fma avx2 avx512f\nbogomips : 2\n")
    again = tmp_path / "again"
    again.write_text(one.read_text().replace("bogomips : 1", "bogomips : 2"))
    name = shared.programs._processor
    assert name(one) == name(again) != name(other)
    assert re.fullmatch("[0-9a-f]{12}", name(tmp_path / "nowhere"))


def test_groups_are_refused_where_lanes_are_not_vmapped(pendulum):
    module = load("bc")
    args = module.Args(dataset=pendulum, seeds=2, updates=1, lanes_per_call=1, layout="map", preset="none")
    with pytest.raises(InputError, match="--lanes-per-call is for lanes that are vmapped"):
        module.main(args)


def test_a_run_in_groups_is_the_run_of_all_lanes(pendulum, tmp_path, monkeypatch):
    """From its command line's arguments; what a run donates is what it asks the memory for."""
    module, asked = load("bc"), []
    monkeypatch.setattr(shared.programs, "check_memory", lambda needed, devices, advice: asked.append((needed, advice)))
    common = {"dataset": pendulum, "env": "none", "seeds": 5, "updates": 4, "hidden_dims": (8,), "layout": "vmap"}
    for n in (0, 2):
        module.main(module.Args(**common, preset="none", lanes_per_call=n, out=str(tmp_path / str(n))))
    tables = [np.genfromtxt(tmp_path / name / "metrics.csv", delimiter=",", names=True) for name in ("0", "2")]
    np.testing.assert_allclose(tables[0]["actor_loss"], tables[1]["actor_loss"], rtol=1e-5)
    assert len(asked) == 2 and asked[0][0] > 0 and asked[0][1].endswith("or --lanes-per-call")
