"""results/speed.md: the measurements of speed.py, {peer,ensemble,online}_speed.py and action_time.py."""

import json
from pathlib import Path

import numpy as np

from results.pages.text import markdown, rate


def speed_section(root: Path) -> str:
    """The measurements of speed.py, {peer,ensemble,online}_speed.py and action_time.py, where they exist."""
    made = {"speed": speed_table, "peer_speed": peer_table, "ensemble_speed": ensemble_table}
    made |= {"online_speed": online_table, "action_time": action_table}
    paths = {root / "results" / f"{name}.json": table for name, table in made.items()}
    parts = [table(json.loads(path.read_text())) for path, table in paths.items() if path.exists()]
    planner = root / "results" / "planner_speed.json"
    parts += [planner_table(json.loads(planner.read_text()))] if planner.exists() else []
    accelerator = root / "results" / "speed_gpu.json"
    if accelerator.exists():
        cases = json.loads(accelerator.read_text())["cases"]
        parts.append(f"The same on {cases[0]['device']} (`make speed-gpu`):\n\n{share_table(cases)}")
    return "\n\n".join(parts) or "Not measured yet."


def speed_table(measured: dict) -> str:
    """One row per algorithm and shape, the columns by the number of lanes; the evaluation's below."""
    cases = [c for c in measured["cases"] if "updates_per_s" in c]
    note = (
        "The share of the limit is the arithmetic of an algorithm's matrix products per second, over that of the very "
        "same products made by themselves on all cores, in rounds of which both halves ran back to back: it says the "
        "same on a slow machine and on a fast one. What is missing from 100 % is everything that is no product "
        "(drawing a batch, activations, Adam, copies), and cores that one lane leaves idle. A row without it is of an "
        "earlier measurement on another machine: only its columns compare. Beside it gradient updates "
        "per second, all lanes together, compile time apart, on 1M synthetic transitions (hopper: obs 11, act 3; ant: "
        f"obs 111, act 8), {measured['hardware']['cores']} cores, medians of the timed calls (`make speed`). On CPU "
        "all devices read one copy of the dataset."
    )
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
        body.append([*map(str, key), f"{nets}batch {one['batch_size']}", *shares, *rates, work, compile_s, memory])
    header = ["algorithm", "data", *told, "networks", *(f"share, {lanes_in_words(n)}" for n in lanes)]
    header += [*(f"updates/s, {lanes_in_words(n)}" for n in lanes), "MFLOP per update", "compile", "peak memory"]
    return markdown(header, body)


def asked(case: dict, name: str) -> str:
    return str(case.get("asked", case).get(name))


def lanes_in_words(n: int) -> str:
    return f"{n} lane{'s' * (n > 1)}"


def peer_table(measured: dict) -> str:
    """Beside other collections, in one process."""
    return beside("peer_speed", measured)


def ensemble_table(measured: dict) -> str:
    """Beside other collections' ensembles of critics, each in a process of its own."""
    return beside("ensemble_speed", measured)


def beside(program: str, measured: dict) -> str:
    """Median of the rounds' rates, and of their ratios: both sides of a round ran back to back."""
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
    return "\n\n".join(tables)


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
    return "\n\n".join([note, markdown(header, body)])


def planner_table(measured: dict) -> str:
    """Of Diffuser beside its authors' code; ratios within rounds."""
    body = []
    for case in measured["cases"]:
        for what, rates in case["per_s"].items():
            ours = np.array(rates["ours"])
            for side, found in rates.items():
                ratio = ours / np.array(found)
                text = f"{np.median(ratio):.2f} ({ratio.min():.2f}–{ratio.max():.2f})"
                lanes = case["lanes"] if side == "ours" else 1
                name = f"{what}, {lanes} lane{'s' * (lanes > 1)}"
                compiled = f"{case['compile_s'][side]:.1f} s" if side == "ours" else ""
                body.append([name, side, rate(np.median(found)), "" if side == "ours" else text, compiled])
    header = ["", "code", "per second, all lanes", "ours / theirs (lowest–highest round)", "compile, both programs"]
    return "\n\n".join([measured["note"] + " (`python results/planner_speed.py`)", markdown(header, body)])


def made_on(measured: dict) -> str:
    """How many cores and which command."""
    cores = measured["hardware"]["cores"]
    return f"{cores} core{'s' * (cores > 1)} (`python {measured['command']}`)."
