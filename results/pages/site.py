"""results/index.html: every finished run in one page that needs neither a server nor a network.

The page is site.html, beside this file, with the runs put in as JSON; `make report` writes it.
"""

import json
from pathlib import Path

import numpy as np

from results.aggregate import iqm_interval
from results.checks import Raw
from results.pages.views import family_views
from results.raw import Row, baselines, changed_settings, hardware, lane_notes, online, speed

TEMPLATE = Path(__file__).with_name("site.html")


SHARED = ("algorithm", "group", "dataset", "series", "metric", "unit", "x", "baselines", "changed", "hardware")
SHARED += ("versions", "hash")
"""What many rows have in common: the page holds each value once, and a row its number."""


def plain(x: float, decimals: int = 4) -> float | None:
    """As JSON has it, None where it is not finite; four decimals, so that one is rounded as in the tables."""
    return round(float(x), decimals) if np.isfinite(x) else None


def entry(row: Row, root: Path) -> dict:
    """What the page knows of a row; numbers that are not finite are None."""
    record, final = row.record, row.final[np.isfinite(row.final)]
    seeds = {lane["lane"]: lane["seed"] for lane in record["lanes"]}
    changed = "; ".join(f"{name} {value}" for name, (value, _) in changed_settings(row, root).items())
    path = row.run.relative_to(root / "results" / "runs").as_posix()
    curves = [[plain(x, 1 if row.metric == "score" else 2) for x in curve] for curve in row.curve]
    return {
        "id": f"{path}?{row.setting}" if row.setting else path,
        "algorithm": row.algorithm,
        "group": Path(record["file"]).parent.name.replace("_", " "),
        "dataset": row.dataset,
        "run": row.run.name,
        "series": row.run.name.split("-")[0],
        "setting": row.setting,
        "metric": row.metric,
        "mean": plain(final.mean()) if len(final) else None,
        "std": plain(final.std()) if len(final) else None,
        "iqm": [plain(x) for x in iqm_interval(final[:, None])] if len(final) > 1 else None,
        "steps": record["steps_done"],
        "unit": "environment steps" if online(row) else "updates",
        "speed": plain(speed(record)),
        "x": row.steps["env_step" if online(row) else "update"].tolist(),
        "lanes": [{"seed": seeds[lane], "curve": c} for lane, c in zip(row.lanes, curves, strict=True)],
        "baselines": {name: plain(value) for name, of in baselines([row]).items() for value in of.values()},
        "notes": lane_notes(row),
        "command": f"python {record['command']}",
        "changed": changed,
        "hardware": hardware(record),
        "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        "hash": record["task"]["hash"][:12],
    }


def packed(entries: list[dict]) -> dict:
    """Rows as lists: `keys` names what they hold, and of the keys in SHARED they hold a place in `shared`."""
    shared: dict[str, int] = {}
    rows = []
    for one in entries:
        values = {key: compact(value) for key, value in one.items() if key in SHARED}
        places = {key: shared.setdefault(text, len(shared)) for key, text in values.items()}
        rows.append([places.get(key, value) for key, value in one.items()])
    keys = list(entries[0]) if entries else []
    return {"keys": keys, "indirect": list(SHARED), "shared": [json.loads(text) for text in shared], "rows": rows}


def compact(x) -> str:
    return json.dumps(x, separators=(",", ":"), allow_nan=False)


def page(rows: list[Row], root: Path, files: Raw | None = None) -> str:
    """The whole page; `<` is escaped, so that no text of a run can end the script element."""
    data = packed([entry(row, root) for row in rows]) | {"families": family_views(root, files or Raw(root))}
    lines = ",\n".join(compact(row) for row in data.pop("rows"))
    text = f'{compact(data)[:-1]},"rows":[\n{lines}\n]}}'
    return TEMPLATE.read_text().replace("__DATA__", text.replace("<", "\\u003c"))
