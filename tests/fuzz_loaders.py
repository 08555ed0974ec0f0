"""Coverage-guided fuzzing of the loaders; tests/test_faults.py runs it where atheris is installed.

  python tests/fuzz_loaders.py SUFFIX FOLDER -runs=N [libFuzzer's other options]

FOLDER/corpus holds files to begin with; FOLDER/<name>SUFFIX is written again and again. Ends with a non-zero exit where
anything but an InputError comes out of a loader, and leaves the bytes that did it in FOLDER.
"""

import resource
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
with atheris.instrument_imports(include=["shared.untrusted", "shared.files", "shared.fields", "shared.data"]):
    from shared.data import load_dataset
    from shared.errors import InputError

suffix, folder = sys.argv[1], Path(sys.argv[2])


def load_one(content: bytes) -> None:
    path = folder / f"pendulum{suffix}"
    path.write_bytes(content)
    try:
        load_dataset(str(path))
    except InputError as error:
        assert str(error) and "\n" not in str(error), error


before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # at least that of the process which started this
options = [*sys.argv[3:], f"-artifact_prefix={folder}/", f"-rss_limit_mb={before + 2048}"]
atheris.Setup([sys.argv[0], *options, str(folder / "corpus")], load_one)
atheris.Fuzz()
