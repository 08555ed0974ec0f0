"""Pictures of the results: learning curves over lanes, performance profiles, policy selection.

Each is a PNG of few colours, some 10 kB for a panel or two. It holds the digest of what it shows (the data and the
code that draws), so that a picture that would show the same is not drawn again, and its bytes do not change with
the version of a library.
"""

import hashlib
import io
import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np

from results import aggregate
from results.aggregate import iqm_interval, performance_profile
from results.raw import Row, baselines, identity, labels, online, short

# Okabe and Ito's colours, told apart by colour-blind readers too; yellow is too pale on white.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A"]
STYLES = ["-", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1))]
GREY, FAINT, PALE = "#555555", "#999999", "#e6e6e6"
DIGEST = "shows"
"""Name of the PNG's text that holds the digest."""


# --------------------------------------------------------------------------------- the pictures


def curves_picture(rows: list[Row], looks: dict[tuple, int], path: Path) -> bytes:
    """Learning curves, one panel per dataset; `looks` of `appearances` or `order_of_arms`."""
    datasets = sorted({row.dataset for row in rows})
    colours = [looks[row.dataset, identity(row)] for row in rows]
    shown = [[identity(row), row.dataset, row.metric, online(row), row.curve, row.steps] for row in rows]

    def draw(figure) -> None:
        panels = grid_of_panels(figure, len(datasets))
        for axes, dataset in zip(panels, datasets, strict=True):
            draw_curves(axes, [row for row in rows if row.dataset == dataset], looks, columns_of(len(datasets)))

    return picture(["curves", shown, colours, baselines(rows)], draw, path, len(datasets))


def profiles_picture(title: str, scores: dict[str, np.ndarray], path: Path) -> bytes:
    """Performance profiles of {label: scores [lanes, tasks]}."""
    taus = np.linspace(0, max(x.max() for x in scores.values()), 101)

    def draw(figure) -> None:
        axes = figure.subplots()
        for n, (label, x) in enumerate(scores.items()):
            share, (low, high) = performance_profile(x, taus)
            axes.plot(taus, share, label=label, lw=1.5, **look(n))
            axes.fill_between(taus, low, high, color=look(n)["color"], alpha=0.15, lw=0)
        plain_axes(axes, title, "share of lanes and datasets above a score, 95 % bootstrap interval")
        axes.set_xlabel("normalised score")
        axes.set_xlim(left=0)
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))

    return picture(["profiles", title, scores], draw, path)


def selection_picture(title: str, curves: dict[str, np.ndarray], path: Path) -> bytes:
    """Expected score of the picked policy [pulls], of each label."""

    def draw(figure) -> None:
        axes = figure.subplots()
        for n, (label, curve) in enumerate(curves.items()):
            axes.plot(np.arange(1, len(curve) + 1), curve, label=label, lw=1.5, **look(n))
        plain_axes(axes, title, "expected score of the policy that UCB1 picks")
        axes.set_xlabel("online episodes that choose among the settings")
        axes.set_ylabel("normalised score")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda x, _: short(round(x)))
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))

    return picture(["selection", title, curves], draw, path)


def appearances(rows: list[Row]) -> dict[tuple, int]:
    """A number for every line but bc's, the same in all pictures of a report."""
    names = sorted({identity(row) for row in rows}, key=lambda name: (name[0] == "bc", name))
    return {(row.dataset, identity(row)): names.index(identity(row)) for row in rows}


def order_of_arms(rows: list[Row]) -> dict[tuple, int]:
    """A number for every line but bc's: its place among the rows of its dataset, so that a method keeps its colour."""
    found: dict[tuple, int] = {}
    count: Counter[str] = Counter()
    for row in rows:
        if row.algorithm == "bc" or (row.dataset, identity(row)) not in found:
            found[row.dataset, identity(row)] = count[row.dataset]
            count[row.dataset] += row.algorithm != "bc"
    return found


def slug(dataset: str) -> str:
    """Part of a file's name; of many datasets together its beginning and a number, since a name has 255 bytes."""
    name = dataset.replace("/", "-").strip("-")
    return name if len(name) <= 100 else f"{name[:90]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def claim_picture(name: str) -> str:
    """File name of the curves of a claim's runs."""
    return f"claim-{name}.png"


# ------------------------------------------------------------------------------------- the file


def picture(shown: list, draw, path: Path, panels: int = 1) -> bytes:
    """What `draw` draws, as a PNG; the bytes of `path` where that shows the same already."""
    digest = digest_of(shown)
    if path.exists() and (old := path.read_bytes()) and digest_in(old) == digest:
        return old
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image, PngImagePlugin

    columns = columns_of(panels)
    size = (7.2, 3.2) if panels == 1 else (7.6, (2.7 if columns == 2 else 2.2) * -(-panels // columns))
    figure = Figure(figsize=size, dpi=100, layout="constrained", facecolor="white")
    draw(figure)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    image = image.quantize(palette=palette(), dither=Image.Dither.NONE)
    text, file = PngImagePlugin.PngInfo(), io.BytesIO()
    text.add_text(DIGEST, digest)
    image.save(file, "PNG", optimize=True, pnginfo=text)
    return file.getvalue()


def palette():
    """The colours of the lines and of their bands, alone and over each other, and greys."""
    from PIL import Image

    mixed = [(c, share) for c in [*COLOURS, GREY] for share in (1.0, 0.6, 0.3, 0.15)]
    colours = [tuple(round(255 - share * (255 - int(c[i : i + 2], 16))) for i in (1, 3, 5)) for c, share in mixed]
    bands = [colours[n] for n in range(3, 4 * len(COLOURS), 4)]
    colours += [tuple((a * b) // 255 for a, b in zip(*pair)) for pair in itertools.combinations(bands, 2)]
    colours += [(grey, grey, grey) for grey in (0, 64, 119, 153, 187, 217, 230, 255)]
    image = Image.new("P", (1, 1))
    image.putpalette([x for colour in colours for x in colour])
    return image


def digest_of(shown: list) -> str:
    """Of the data of a picture and of the code that draws it."""
    code = [Path(__file__).read_bytes(), Path(aggregate.__file__).read_bytes()]
    return hashlib.sha256(b"".join([*code, canonical(shown).encode()])).hexdigest()[:32]


def canonical(x) -> str:
    """A text that is the same for the same data; arrays to the last bit."""
    if isinstance(x, np.ndarray):
        return f"{x.dtype}{x.shape}{x.tolist()}"
    if isinstance(x, dict):
        return "{" + ",".join(f"{key!r}:{canonical(value)}" for key, value in x.items()) + "}"
    if isinstance(x, list | tuple):
        return "[" + ",".join(map(canonical, x)) + "]"
    return repr(x)


def digest_in(png: bytes) -> str:
    """The digest that a picture holds; empty if it is none of ours."""
    found = re.search(rb"tEXt" + DIGEST.encode() + rb"\0([0-9a-f]{32})", png[:4096])
    return found[1].decode() if found else ""


# -------------------------------------------------------------------------------------- drawing


def grid_of_panels(figure, n: int) -> list:
    columns = columns_of(n)
    axes = figure.subplots(-(-n // columns), columns, squeeze=False).ravel()
    for unused in axes[n:]:
        unused.set_visible(False)
    return list(axes[:n])


def columns_of(panels: int) -> int:
    return 1 if panels == 1 else 2 if panels <= 4 else 3


def look(n: int) -> dict:
    return {"color": COLOURS[n % len(COLOURS)], "ls": STYLES[n // len(COLOURS) % len(STYLES)]}


def draw_curves(axes, rows: list[Row], looks: dict[tuple, int], columns: int) -> None:
    """IQM over lanes and its interval by updates (environment steps if all are online)."""
    x_name = "env_step" if all(online(row) for row in rows) else "update"
    last: dict[str, float] = {}
    names = short_labels(rows)
    for label, group in labels(rows).items():
        row, label = group[0], names[label]
        lanes = row.curve[np.isfinite(row.curve).all(1)]
        lost = len(row.curve) - len(lanes)
        label += f" ({lost} of {len(row.curve)} lanes lost)" if lost else ""
        if not len(lanes):
            continue
        middle, low, high = np.array([iqm_interval(lanes[:, [t]]) for t in range(lanes.shape[1])]).T
        style = look(looks[row.dataset, identity(row)])
        if row.algorithm == "bc":
            style = {"color": GREY, "ls": (0, (4, 2))}
        axes.plot(row.steps[x_name], middle, lw=1.5, label=label, zorder=3, **style)
        axes.fill_between(row.steps[x_name], low, high, color=style["color"], alpha=0.15, lw=0)
        last[label] = middle[-1]
    for n, (name, values) in enumerate(baselines(rows).items()):
        (value,) = values.values()
        axes.axhline(value, color=FAINT, ls=":", lw=1.2, zorder=1)
        x, ha = (0, "left") if n % 2 == 0 else (1, "right")  # apart, should both be the same
        side = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "ha": ha}
        axes.annotate(name, (x, value), xytext=(4 - 8 * x, 2), fontsize=7, color="#777777", **side)
    axes.set_xlabel("environment steps" if x_name == "env_step" else "gradient updates", fontsize=8)
    axes.set_ylabel("normalised score" if rows[0].metric == "score" else "return", fontsize=8)
    plain_axes(axes, rows[0].dataset, "IQM, 95 % interval" if columns == 1 else "", small=columns == 3)
    axes.xaxis.set_major_formatter(lambda x, _: short(round(x)))
    axes.set_xlim(left=0)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    order = sorted(handles, key=lambda label: -last[label])  # as the lines end, from top to bottom
    place = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "fontsize": 8}
    if columns > 1:
        below = (0.5, -0.22 if columns == 2 else -0.28)
        place = {"loc": "upper center", "bbox_to_anchor": below, "fontsize": 7, "ncols": 2, "columnspacing": 1.0}
    axes.legend([handles[label] for label in order], order, frameon=False, handlelength=1.6, **place)


def short_labels(rows: list[Row]) -> dict[str, str]:
    """Of each label of a table row one for a legend: without the run's series and length where that is enough."""
    several = len({row.algorithm for row in rows}) > 1
    found = {}
    for label, group in labels(rows).items():
        row = group[0]
        variant = re.sub(r"-?\d[\dk+]*$", "", re.sub(r"^(benchmark|claim)-?", "", row.run.name))
        own = " ".join(filter(None, [row.algorithm if several or not variant else "", row.setting, variant]))
        found[label] = own or label
    count = Counter(found.values())
    return {label: own if count[own] == 1 else label for label, own in found.items()}


def plain_axes(axes, title: str, caption: str, small: bool = False) -> None:
    """What all pictures have in common."""
    axes.set_title(title, loc="left", fontsize=7 if small else 9, fontweight="bold")
    axes.set_title(caption, loc="right", fontsize=7, color="#777777")
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color=PALE, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
