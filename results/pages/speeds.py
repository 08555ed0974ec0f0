"""results/speed.md: the measurements of speed.py, {peer,agent,ensemble,corl,online}_speed.py and action_time.py."""

import json
from functools import partial
from pathlib import Path

import numpy as np

from results.pages.text import markdown, rate


def speed_section(root: Path) -> str:
    """The measurements of speed.py, {peer,agent,ensemble,corl,online}_speed.py and action_time.py, where they exist."""
    made = {"speed": speed_table}
    made |= {name: partial(beside, name) for name in ("peer_speed", "agent_speed", "ensemble_speed", "corl_speed")}
    made |= {"online_speed": online_table, "action_time": action_table}
    paths = {root / "results" / f"{name}.json": table for name, table in made.items()}
    parts = [table(json.loads(path.read_text())) for path, table in paths.items() if path.exists()]
    planner = root / "results" / "planner_speed.json"
    parts += [planner_table(json.loads(planner.read_text()))] if planner.exists() else []
    sequence = root / "results" / "sequence_speed.json"
    parts += [sequence_tables(json.loads(sequence.read_text()))] if sequence.exists() else []
    parts_of = root / "results" / "step_profile.json"
    parts += [profile_table(json.loads(parts_of.read_text()))] if parts_of.exists() else []
    accelerator = root / "results" / "speed_gpu.json"
    if accelerator.exists():
        cases = json.loads(accelerator.read_text())["cases"]
        note = (
            f"The same on {cases[0]['device']} (`make speed-gpu`). More than 100 %: with few lanes the products by "
            "themselves ran slower than inside the algorithm's program, so they are no limit there."
        )
        parts.append(f"{note}\n\n{share_table(cases)}")
    return "\n\n".join(parts) or "Not measured yet."


def speed_table(measured: dict) -> str:
    """One row per algorithm and shape, the columns by the number of lanes; the evaluation's below."""
    cases = [c for c in measured["cases"] if "updates_per_s" in c]
    hardware = measured["hardware"]
    cores = f"{hardware['cores']} core{'s' * (hardware['cores'] > 1)}"
    if hardware.get("side_by_side", 1) > 1:
        cores = f"{hardware['side_by_side']} cases side by side, each on {cores} of its own"
    note = (
        "The share of the limit is the arithmetic of an algorithm's matrix products per second, over that of the very "
        "same products made by themselves on all cores of the case, in rounds of which both halves ran back to back: "
        "it says the same on a slow machine and on a fast one. What is missing from 100 % is everything that is no "
        "product (drawing a batch, activations, Adam, copies), and cores that one lane leaves idle. Beside it gradient "
        "updates per second, all lanes together, compile time apart, on 1M synthetic transitions (hopper: obs 11, act "
        f"3; ant: obs 111, act 8), {cores}, medians of the timed calls (`make speed`). On CPU all devices read one "
        "copy of the dataset, and the lanes of one are copied in and out once a call: of few updates (chunk) it shows."
    )
    if left_out := measured.get("left_out"):
        why: dict[str, set[str]] = {}
        for case in left_out:
            why.setdefault(case["why"], set()).add(case["asked"]["algorithm"])
        told = "; ".join(f"{', '.join(sorted(names))}: {reason}" for reason, names in why.items())
        note += f" Left out, with one lane or with several: {told}."
    evaluation = [
        f"{c['env_steps_per_s']:,.0f} environment steps/s with {lanes_in_words(c['lanes'])}"
        for c in measured["cases"]
        if "env_steps_per_s" in c
    ]
    parts = [note, share_table(cases)]
    if evaluation:
        parts.append(f"Evaluation in HalfCheetah-v5, 10 episodes a lane: {'; '.join(evaluation)}.")
    return "\n\n".join(parts)


def share_table(cases: list[dict]) -> str:
    """Shares of the limit first; layouts, precisions and lengths of calls where there are several."""
    lanes = sorted({c["lanes"] for c in cases})
    told = [name for name in ("layout", "precision", "chunk") if len({asked(c, name) for c in cases}) > 1]
    rows: dict[tuple, dict[int, dict]] = {}
    for c in sorted(cases, key=lambda c: (c["shape"] != cases[0]["shape"], c["algorithm"])):
        rows.setdefault((c["algorithm"], c["shape"], *(asked(c, name) for name in told)), {})[c["lanes"]] = c
    body = []
    for key, of in rows.items():
        one = next(iter(of.values()))
        nets = f"{len(one['hidden_dims'])} × {one['hidden_dims'][0]}, " if one["hidden_dims"] else ""
        shares = [f"{100 * of[n]['share']['median']:.0f} %" if "share" in of.get(n, {}) else "" for n in lanes]
        rates = [rate(of[n]["updates_per_s"]["median"]) if n in of else "" for n in lanes]
        memory = f"{max(c['memory_mib'] for c in of.values()):,.0f} MiB"
        compile_s = f"{max(c['compile_s'] for c in of.values()):.1f} s"
        work = f"{one['mflop_per_update']:,.0f}" if "mflop_per_update" in one else ""
        batch = f"batch {one['batch_size']}" if one["batch_size"] else ""
        body.append([*map(str, key), f"{nets}{batch}", *shares, *rates, work, compile_s, memory])
    header = ["algorithm", "data", *told, "networks", *(f"share, {lanes_in_words(n)}" for n in lanes)]
    header += [*(f"updates/s, {lanes_in_words(n)}" for n in lanes), "MFLOP per update", "compile", "peak memory"]
    return markdown(header, body)


def asked(case: dict, name: str) -> str:
    return str(case.get("asked", case).get(name))


def lanes_in_words(n: int) -> str:
    return f"{n} lane{'s' * (n > 1)}"


def beside(program: str, measured: dict) -> str:
    """Beside others' code: median of the rounds' rates, and of their ratios; both sides of a round ran back to back."""
    body, memory = [], any("peak_mib" in case for case in measured["cases"])
    for case in measured["cases"]:
        ours = np.array(case["updates_per_s"]["ours"])
        for name, rates in case["updates_per_s"].items():
            ratio = ours / np.array(rates)
            text = f"{np.median(ratio):.2f} ({ratio.min():.2f}–{ratio.max():.2f})"
            row = [case["name"], name, rate(np.median(rates)), "" if name == "ours" else text]
            row.append(f"{case['compile_s'][name]:.1f} s")
            body.append(row + ([f"{case['peak_mib'][name]:,} MiB"] if memory else []))
    header = ["", "code", "updates/s, all lanes", "ours / theirs (lowest–highest round)", "compile"]
    header += ["peak memory"] if memory else []
    return "\n\n".join([measured["note"] + f" (`python results/{program}.py`)", markdown(header, body)])


def online_table(measured: dict) -> str:
    """Of rlpd, beside a plain loop over one environment with one jitted update per call, and its authors' code."""
    body = [
        [
            f"{case['name']}, {case['lanes']} lane{'s' * (case['lanes'] > 1)}",
            str(case["utd"]),
            rate(case["env_steps_per_s"]["median"]),
            rate(case["gradient_steps_per_s"]),
            f"{case['ratio_to_plain_loop']:.2f}",
            f"{case['ratio_to_authors']:.2f}" if "ratio_to_authors" in case else "",
        ]
        for case in measured["cases"]
    ]
    header = ["", "updates per step", "environment steps/s", "gradient steps/s", "ratio to the plain loop"]
    header.append("to the authors' code")
    note = "Interaction with Hopper-v5, sums over the lanes, ratios within rounds, " + made_on(measured)
    tables = [note, markdown(header, body)]
    if profiles := measured.get("profiles"):
        parts = ("environment", "transfer", "arithmetic", "host")
        body = [
            [
                f"rlpd, {one['lanes']} lane{'s' * (one['lanes'] > 1)}", str(one["utd"]), f"{one['ms']:.1f}",
                *(f"{100 * one['shares'][part]:.0f} %" for part in parts),
            ]
            for one in profiles
        ]  # fmt: skip
        tables.append("What a step of all lanes is made of, each part waiting for the one before it:")
        tables.append(markdown(["", "updates per step", "milliseconds", *parts], body))
    if compiled := measured.get("compiled"):
        tables.append(compiled_table(compiled))
    return "\n\n".join(tables)


def compiled_table(measured: dict) -> str:
    """Of an environment in JAX: the whole interaction as one program, and its environment on the host."""
    body = [
        [
            f"{case['sizes']}, {lanes_in_words(case['lanes'])}",
            *(f"{case['ms'][how]:.2f}" for how in ("stepped", "compiled")),
            over(case["stepped_over_compiled"], [1.0]),
        ]
        for case in measured["cases"]
    ]
    note = (
        "A step of all lanes of rlpd at UTD 1 in PointUMaze-v0, an environment in JAX, stepped on the host and as one "
        "program with the agent, with the paper's sizes and with 2 critics of 32×32 and batches of 32; ratios within "
        "rounds (lowest–highest), on "
    )
    header = ["sizes", "milliseconds, stepped", "milliseconds, compiled", "stepped / compiled"]
    return "\n\n".join([note + made_on(measured), markdown(header, body)])


def profile_table(measured: dict) -> str:
    """What an update's time goes to."""
    kinds = ("products", "elementwise", "optimiser", "gather", "random numbers", "copies")
    body = [
        [
            case["algorithm"],
            *(f"{100 * case['shares'][kind]:.0f} %" for kind in kinds),
            f"{case['ms']:.2f}",
            f"{case['operations']:,.0f}",
            f"{100 * case['covered']:.0f} %",
        ]
        for case in measured["cases"]
    ]
    cores = sorted({case["cores"] for case in measured["cases"]})
    note = (
        "Where an update's time goes, one lane, networks and batches as published: shares of the time of the "
        "operations of the compiled program, each counted with the lower quartile of its times under JAX's profiler; "
        "beside them that time, how many operations run, and that time over the processor's of the fastest update "
        "without the profiler. "
        "Optimiser is what optax does; a target's moving average is elementwise. On "
        f"{' and '.join(map(str, cores))} core{'s' * (cores != [1])} (`python results/step_profile.py`)."
    )
    header = ["", *kinds, "milliseconds", "operations", "of an update"]
    return "\n\n".join([note, markdown(header, body)])


def action_table(measured: dict) -> str:
    """Of the generative policies."""
    body = [
        [
            case["algorithm"],
            f"{case['batch']:,}",
            str(case["candidates"]),
            f"{case['ms']['median']:,.2f}",
            f"{case['over_ofql']:.2f}",
        ]
        for case in measured["cases"]
    ]
    header = ["", "observations", "candidates", "milliseconds", "over ofql's"]
    sizes = "×".join(map(str, measured["hidden_dims"]))
    note = f"Time to choose actions with networks of {sizes}, ratios within rounds, " + made_on(measured)
    parts = [note, markdown(header, body)]
    if episodes := measured.get("episodes"):
        body = [
            [c["algorithm"], str(c["lanes"]), rate(c["actions_per_s"]["median"]), f"{c['over_ofql']:.2f}"]
            for c in episodes["cases"]
        ]
        header = ["", "lanes", "actions/s, all lanes", "time over ofql's"]
        note = (
            f"The first {episodes['steps']} actions of an episode of each lane, with what plans and chunks cost: "
            "temporal U-Nets of 16 channels times 1×2 and plans of 32 steps in 20 steps of the diffusion, else the "
            "files' own sizes; untrained, ratios within rounds, " + made_on(episodes)
        )
        parts += [note, markdown(header, body)]
    return "\n\n".join(parts)


def planner_table(measured: dict) -> str:
    """Of Diffuser beside its authors' code."""
    return taking_turns("planner_speed", measured)


def taking_turns(program: str, measured: dict) -> str:
    """Sides in processes of their own; ratios within rounds."""
    body = []
    for case in measured["cases"]:
        for what, rates in case["per_s"].items():
            ours = np.array(rates["ours"])
            for side, found in rates.items():
                lanes = case["lanes"] if side == "ours" else 1
                name = f"{what}, {lanes} lane{'s' * (lanes > 1)}"
                compiled = f"{case['compile_s'][side]:.1f} s" if side == "ours" else ""
                body.append([name, side, rate(np.median(found)), "" if side == "ours" else over(ours, found), compiled])
    header = ["", "code", "per second, all lanes", "ours / theirs (lowest–highest round)", "compile, both programs"]
    return "\n\n".join([measured["note"] + f" (`python results/{program}.py`)", markdown(header, body)])


def over(one: list[float] | np.ndarray, other: list[float] | np.ndarray) -> str:
    """Median, lowest and highest ratio of the rounds' rates or times."""
    ratio = np.array(one) / np.array(other)
    return f"{np.median(ratio):.2f} ({ratio.min():.2f}–{ratio.max():.2f})"


def sequence_tables(measured: dict) -> str:
    """Of the sequence models: DT beside other code; every file's updates and actions; what remembering costs."""
    tables = []
    if "beside" in measured:
        tables.append(taking_turns("sequence_speed", measured["beside"]))
    parts = {"updates": updates_of_sequences, "actions": actions_of_sequences, "memory": memory_of_sequences}
    for part, table in parts.items():
        if found := measured.get(part):
            sizes = f"{found['layers']} block{'s' * (found['layers'] > 1)} of width {found['width']}"
            tables += [table(found, sizes)]
    return "\n\n".join(tables)


def updates_of_sequences(found: dict, sizes: str) -> str:
    """One row per file, the columns by the number of lanes."""
    cells = {
        (c["algorithm"], c["lanes"]): f"{rate(c['updates_per_s']['median'])}, {100 * c['share']['median']:.0f} %"
        for c in found["cases"]
    }
    note = (
        f"Updates of batches of {found['batch']}, {sizes}, windows of {found['context']} steps, the rest as published, "
    )
    note += "and their share of the limit that their own matrix products set, made by themselves in turn"
    note += f"{found.get('remark', '')}; on "
    return by_lanes("updates/s, all lanes", note + made_on(found), cells)


def actions_of_sequences(found: dict, sizes: str) -> str:
    """One row per file, the columns by the number of lanes."""
    cells = {
        (
            c["algorithm"],
            c["lanes"],
        ): f"{rate(np.median(c['actions_per_s']))}, {over(c['actions_per_s'], c['dt_per_s'])}"
        for c in found["cases"]
    }
    note = (
        f"Actions of one episode per lane, {sizes}, windows of {found['context']} steps, the rest as published; over "
    )
    note += "decision_transformer's in the same rounds (lowest–highest), on "
    return by_lanes("actions/s, all lanes", note + made_on(found), cells)


def by_lanes(what: str, note: str, cells: dict[tuple[str, int], str]) -> str:
    """A table of {(algorithm, lanes): text}."""
    lanes, names = (sorted({key[i] for key in cells}) for i in (1, 0))
    body = [[name, *(cells.get((name, n), "") for n in lanes)] for name in names]
    return "\n\n".join([note, markdown([what, *(lanes_in_words(n) for n in lanes)], body)])


def memory_of_sequences(found: dict, sizes: str) -> str:
    """Of DT's ring of the last steps, beside all steps and beside a cache; ratios within rounds."""
    body = [
        [
            f"{case['context']}, {lanes_in_words(case['lanes'])}",
            f"{np.median(case['ms']['ring']):,.2f}",
            over(case["ms"]["whole"], case["ms"]["ring"]),
            over(case["ms"]["ring"], case["ms"]["cache"]),
        ]
        for case in found["cases"]
    ]
    header = ["window", "milliseconds", "all steps of an episode / window", "window / cache of keys and values"]
    note = f"One action of decision_transformer in every lane, {sizes}; an episode has {found['history']:,} steps. The "
    note += "cache gives the window's actions only as long as no step has left it. Ratios within rounds, on "
    return "\n\n".join([note + made_on(found), markdown(header, body)])


def made_on(measured: dict) -> str:
    """How many cores and which command."""
    cores = measured["hardware"]["cores"]
    return f"{cores} core{'s' * (cores > 1)} (`python {measured['command']}`)."
