"""Parity: our updates beside the released code's, with the same weights, batches and random numbers.

    git clone https://github.com/corl-team/CORL /tmp/CORL
    python results/parity.py --corl /tmp/CORL                     # every comparison with that repository
    python results/parity.py --corl /tmp/CORL td3_bc iql          # these algorithms only
    python results/parity.py --list                               # what can be compared, with which checkout

One file of results/parity/ per algorithm (and per reference: `iql-corl.py`) says with what it is compared and how;
`results/references.py` is what they share. None of a reference's code is here: it is imported from the checkout that
you name. Run it in an environment with requirements.txt and what the reference needs (PyTorch for most; CPU is enough).

Measured after 1 and after 10 updates: the largest relative difference of the losses, and of all parameters and
targets (relative to the largest entry of each array), in float64 where both sides allow it. Where we differ on
purpose, the deviations are undone and the difference is measured again; then each is left in alone, so that what it
changes is seen. Writes results/parity/<comparison>.json, from which `make report` makes results/parity.md.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np

from results.references import Case, Pair, Step, module, restore
from shared.errors import InputError, nearest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "results" / "parity"
UPDATES = (1, 10)
TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
"""Largest relative difference up to which two sides agree."""


def relative(ours: object, theirs: object) -> float:
    """max |ours - theirs| / max |theirs|; infinite for other shapes and for what is not finite."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return np.inf
    difference, size = np.abs(a - b).max(initial=0.0), np.abs(b).max(initial=0.0)
    return float(difference / size if size else difference)


def worst(pairs: dict[str, Pair]) -> dict[str, float]:
    """{name: largest relative difference over its arrays}."""
    for name, (ours, theirs) in pairs.items():
        if len(ours) != len(theirs) or not ours:
            raise InputError(f"{name}: {len(ours)} arrays of ours, {len(theirs)} of the reference.")
    return {name: max(relative(a, b) for a, b in zip(*pair, strict=True)) for name, pair in pairs.items()}


def follow(steps: Iterable[Step], updates: tuple[int, ...] = UPDATES) -> tuple[dict, dict[str, float]]:
    """Both sides side by side.

    Returns:
      {updates: {"losses": {name: worst of all updates up to there}, "parameters": {name: difference there}}} and
      {network: least change, relative, of any of its arrays since the start}.

    Raises:
      InputError: the sides do not start alike.
    """
    after, losses, start = {}, {}, None
    for count, step in enumerate(steps):
        parameters = worst(step.parameters)
        if start is None:
            start = step.parameters
            if apart := [name for name, difference in parameters.items() if difference > 1e-6]:
                raise InputError(f"The two sides do not start with the same {', '.join(apart)}.")
            continue
        for name, difference in worst(step.losses).items():
            losses[name] = max(losses.get(name, 0.0), difference)
        if count in updates:
            after[count] = {"losses": dict(losses), "parameters": parameters}
        if count == max(updates):
            break
    moved = {
        name: min(relative(now, then) for now, then in zip(step.parameters[name][0], pair[0]))
        for name, pair in start.items()
    }
    return after, moved


def measure(case: Case, checkout: Path) -> dict:
    """The raw result of one case."""
    everything = frozenset(case.deviations)

    def run(undone: frozenset[str], updates: tuple[int, ...]) -> tuple[dict, dict[str, float]]:
        restore()
        return follow(case.compare(checkout, undone), updates)

    after, moved = run(everything, UPDATES)
    still = {name for name, change in moved.items() if not change}
    if still != set(case.still):
        raise InputError(f"Parameters that no update moved: {sorted(still)}; expected: {sorted(case.still)}.")
    left_in = {}
    for name, what in case.deviations.items():
        apart, _ = run(everything - {name}, (max(UPDATES),))
        left_in[name] = {"what": what, **{k: max(v.values()) for k, v in apart[max(UPDATES)].items()}}
    dtype = "float64" if case.double else "float32"
    return {
        "reference": case.reference,
        "file": case.file,
        "commit": git(checkout, "rev-parse", "HEAD"),
        "dtype": dtype,
        "agrees": all(max(x.values()) <= TOLERANCE[dtype] for kinds in after.values() for x in kinds.values()),
        "after": after,
        "moved": moved,
        "deviations": left_in,
        "note": case.note,
    }


def git(checkout: Path, *command: str) -> str:
    return subprocess.run(["git", "-C", str(checkout), *command], capture_output=True, text=True).stdout.strip()


def comparisons(folder: Path = FOLDER) -> dict[str, dict[str, Case]]:
    """{comparison: {name of the case, often empty: case}}, from the files of results/parity/.

    A comparison is named by its algorithm, and, after a dash, by what tells it from the algorithm's others.
    """
    return {file.stem: module(file, f"parity_{file.stem}").CASES for file in sorted(folder.glob("*.py"))}


def flag(reference: str) -> str:
    """The option that takes a checkout of `owner/name`."""
    return "--" + reference.partition("/")[2].lower()


def run_case(algorithm: str, name: str, case: Case, checkout: Path) -> dict:
    """One case in a process of its own: references bring modules of the same names, and dtype is the process's."""
    command = [sys.executable, __file__, "--one", algorithm, "--case", name, flag(case.reference), str(checkout)]
    alone = {"JAX_ENABLE_X64": str(int(case.double)), "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **alone})
    if done.returncode:
        raise InputError(f"{algorithm} {name}:\n{done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def parser(references: Iterable[str]) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    option = made.add_argument
    option("algorithm", nargs="*", help="those to compare; all whose checkouts are given")
    for reference in sorted(set(references), key=flag):
        option(flag(reference), dest=reference, type=Path, metavar="DIR", help=f"a checkout of {reference}")
    option("--list", action="store_true", help="print what can be compared")
    option("--out", type=Path, default=FOLDER, metavar="DIR", help="where the raw results go (%(default)s)")
    option("--one", help=argparse.SUPPRESS)
    option("--case", help=argparse.SUPPRESS)
    return made


def main(argv: list[str] | None = None, folder: Path = FOLDER) -> int:
    """Command line -> exit status: 1 if something does not agree, 2 for bad input."""
    try:
        known = comparisons(folder)
        args = parser(case.reference for cases in known.values() for case in cases.values()).parse_args(argv)
        if args.list:
            for algorithm, cases in known.items():
                for name, case in cases.items():
                    print(f"{f'{algorithm} {name}'.strip():<32}{flag(case.reference)} DIR   {case.file}")
            return 0
        if args.one:
            case = known[args.one][args.case]
            print(json.dumps(measure(case, getattr(args, case.reference).resolve())))
            return 0
        for algorithm in args.algorithm:
            if algorithm not in known:
                raise InputError(f"There is no comparison of '{algorithm}'; {nearest(algorithm, list(known))}.")
        status, ran = 0, False
        for algorithm in args.algorithm or known:
            results = {}
            for name, case in known[algorithm].items():
                checkout = getattr(args, case.reference)
                if not checkout:
                    if args.algorithm:
                        raise InputError(
                            f"{algorithm} needs a checkout of {case.reference}: {flag(case.reference)} DIR."
                        )
                    continue
                if not checkout.is_dir():
                    raise InputError(f"There is no folder {checkout}.")
                results[name] = result = run_case(algorithm, name, case, checkout.resolve())
                ran, status = True, status or int(not result["agrees"])
                print(sentence(algorithm, name, result), flush=True)
            if results:
                args.out.mkdir(parents=True, exist_ok=True)
                path = args.out / f"{algorithm}.json"
                old = json.loads(path.read_text()) if path.exists() else {}
                kept = {name: old[name] for name in known[algorithm] if name in old}
                path.write_text(json.dumps({**kept, **results}, indent=1) + "\n")
        if not ran:
            raise InputError("Nothing to compare: name a checkout, or --list what there is.")
        return status
    except InputError as error:
        print(f"parity.py: {error}", file=sys.stderr)
        return 2


def sentence(algorithm: str, name: str, result: dict) -> str:
    """One line for the terminal."""
    last = result["after"][str(max(UPDATES))]
    parts = []
    for kind, values in last.items():
        where = max(values, key=values.get)
        parts.append(f"{kind} {values[where]:.1e} ({where})")
    verdict = "agrees" if result["agrees"] else "DIFFERS"
    line = f"{f'{algorithm} {name}'.strip():<24}{verdict} with {result['reference']}: {', '.join(parts)}"
    for deviation, found in result["deviations"].items():
        line += f"\n    left in: {deviation}: losses {found['losses']:.1e}, parameters {found['parameters']:.1e}"
    return line


if __name__ == "__main__":
    sys.exit(main())
