"""Arrays of a .safetensors file, the form in which weights of networks are handed on; nothing in it is executed.

Eight bytes say how long the header is, which is JSON: {name: {dtype, shape, data_offsets}}; the numbers follow.
"""

import json
import math
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from shared.errors import InputError, first_line

DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "I64": np.int64,
    "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """{name: array} of a file.

    Raises:
      InputError: there is none, or it is not whole.
    """
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        (length,) = struct.unpack_from("<Q", data)
        header, body = json.loads(data[8 : 8 + length]), memoryview(data)[8 + length :]
        return {name: array(body, said) for name, said in header.items() if name != "__metadata__"}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no whole .safetensors file ({first_line(error)}).") from None


def array(body: memoryview, said: dict) -> np.ndarray:
    """One array, of which the header says `said`."""
    dtype, shape, (begin, end) = np.dtype(DTYPES[said["dtype"]]), said["shape"], said["data_offsets"]
    if not 0 <= begin <= end <= len(body) or end - begin != dtype.itemsize * math.prod(shape):
        raise ValueError("an array is not where the header says")
    return np.frombuffer(body[begin:end], dtype).reshape(shape).copy()
