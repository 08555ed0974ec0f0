"""algorithms/README.md and the README's table of families, from the files of algorithms/ alone.

An algorithm's docstring gives its row: `Name: long name`, then its paper, and one sentence that begins with "Choose
it when". A family is a folder; the first paragraph of the folder's README.md says what it is for.
"""

import ast
import functools
import re
from pathlib import Path
from typing import NamedTuple

from results.pages.text import markdown


class Algorithm(NamedTuple):
    """What a file of algorithms/ says of itself."""

    name: str
    family: str
    """Its folder."""
    title: str
    long_name: str
    paper: str
    when: str
    """For which data and setting; empty where the docstring does not say."""


def algorithms(root: Path) -> list[Algorithm]:
    """By family and name; files without a docstring are none."""
    found = []
    for file in sorted((root / "algorithms").glob("*/*.py")):
        doc = docstring(file.read_text())
        if not doc:
            continue
        first, _, rest = doc.partition("\n")
        title, _, long_name = first.partition(":")
        when = re.search(r"^Choose it when (.*?)\.?$", " ".join(paragraph_with(doc, "Choose it when").split()))
        long_name = long_name.strip().rstrip(".")
        found.append(
            Algorithm(file.stem, file.parent.name, title.strip(), long_name, citation(rest), when[1] if when else "")
        )
    return found


@functools.cache
def docstring(source: str) -> str | None:
    """Of a file that is read for several tables."""
    return ast.get_docstring(ast.parse(source))


def paragraph_with(text: str, beginning: str) -> str:
    return next((part for part in text.split("\n\n") if part.startswith(beginning)), "")


def citation(text: str) -> str:
    """A docstring's citation: up to its first arXiv id, which becomes a link, else one sentence."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split()).replace("|", "/")
    if found := re.search(r"arXiv[: ] ?(\d{4}\.\d{4,5})", paragraph):
        words = paragraph[: found.start()].rstrip(" ,;(")
        return f"{words}, [arXiv {found[1]}](https://arxiv.org/abs/{found[1]})"
    sentence = re.match(r'[^"]*"[^"]+"[^.]*', paragraph)
    return sentence.group() if sentence else paragraph.split(". ")[0].rstrip(".")


def families(root: Path) -> dict[str, tuple[str, list[Algorithm]]]:
    """{folder: (what it is for, its algorithms)} of the folders that have any."""
    found: dict[str, tuple[str, list[Algorithm]]] = {}
    for one in algorithms(root):
        found.setdefault(one.family, (purpose(root / "algorithms" / one.family), []))[1].append(one)
    return found


def purpose(folder: Path) -> str:
    """The first paragraph of the folder's README.md, without its title."""
    path = folder / "README.md"
    if not path.exists():
        return ""
    paragraphs = [part for part in path.read_text().split("\n\n") if part.strip() and not part.startswith("#")]
    return " ".join(paragraphs[0].split()) if paragraphs else ""


def spoken(family: str) -> str:
    return family.replace("_", " ")


def families_table(root: Path) -> str:
    """One row per folder: what for, and how many."""
    body = [
        [f"[{spoken(name)}](algorithms/README.md#{name.replace('_', '-')})", what, str(len(members))]
        for name, (what, members) in families(root).items()
    ]
    return markdown(["family", "what it is for", "algorithms"], body)


def finder(root: Path) -> str:
    """Data and setting to method: one row per algorithm that says when to choose it."""
    body = [
        [spoken(name), one.when, f"[{one.title}]({name}/{one.name}.py)"]
        for name, (_, members) in families(root).items()
        for one in members
        if one.when
    ]
    return markdown(["family", "choose it when", "algorithm"], body)


def algorithms_tables(root: Path, degrees: dict[str, str]) -> str:
    """Of every family what it is for, and one row per algorithm; `degrees`: how far the claim of each is seen."""

    def claim(one: Algorithm) -> str:
        return f"[{degrees[one.name]}](../results/claims/{one.name}.md)" if one.name in degrees else "–"

    parts = []
    for name, (what, members) in families(root).items():
        body = [[f"[{one.title}]({name}/{one.name}.py)", one.long_name, one.paper, claim(one)] for one in members]
        parts += [f"## {spoken(name).capitalize()}", *([what] if what else [])]
        parts += [markdown(["algorithm", "", "paper", "its claim is"], body)]
    return "\n\n".join(parts)
