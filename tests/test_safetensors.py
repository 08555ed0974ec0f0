"""Arrays of .safetensors files: as they were written, and refused where a file is not whole."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from shared.errors import InputError
from shared.safetensors import read_safetensors

NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}


def write(path, arrays: dict[str, np.ndarray], **changes) -> str:
    """A file of `arrays`; `changes` of what its header says of each."""
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, x in arrays.items():
        at = [len(body), len(body) + x.nbytes]
        header[name] = {"dtype": NAMES[x.dtype.name], "shape": list(x.shape), "data_offsets": at, **changes}
        body += x.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return str(path)


def test_arrays_are_as_they_were_written(tmp_path):
    r = np.random.default_rng(0)
    arrays = {"w": r.normal(size=(2, 3)).astype(np.float32), "n": np.arange(4), "scalar": np.float16(1.5).reshape(())}
    arrays["half"] = np.asarray(jnp.arange(3, dtype=jnp.bfloat16))
    found = read_safetensors(write(tmp_path / "a.safetensors", arrays))
    assert found.keys() == arrays.keys()
    for name, x in arrays.items():
        assert found[name].dtype == x.dtype
        np.testing.assert_array_equal(found[name], x)


def test_what_is_not_whole_is_refused(tmp_path):
    path, arrays = tmp_path / "a.safetensors", {"w": np.ones((2, 3), np.float32)}
    with pytest.raises(InputError, match="cannot be read"):
        read_safetensors(path)
    write(path, arrays)
    whole = path.read_bytes()
    for part in (whole[:5], whole[:40], whole[:-1], b"\x80\x04pickle and more", whole[:8] + b"[" + whole[9:]):
        path.write_bytes(part)
        with pytest.raises(InputError, match="no whole .safetensors file"):
            read_safetensors(path)
    for changes in ({"shape": [7]}, {"dtype": "F8"}, {"data_offsets": [4, 28]}, {"data_offsets": [-4, 20]}):
        with pytest.raises(InputError, match="no whole .safetensors file"):
            read_safetensors(write(path, arrays, **changes))
