"""Reading .npz and .hdf5 files that nobody vouches for.

A header may claim any shape. Here it is compared with what a file of this length can hold before memory is taken;
nothing is unpickled, no link leads to another file, and only numbers are read. Every refusal is a ValueError of one
sentence; the libraries that read the files raise kinds of their own.
"""

import io
import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import h5py
import numpy as np

MAX_HEADER = 10_000  # of a .npy, as NumPy's own limit, which it looks at when it has read it
RATIO = 1032  # deflate makes nothing smaller than this (zlib's technical notes)
SMALL = 1 << 20  # what may be claimed in any case: HDF5 stores nothing of an array of its fill value


def read_npz(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, np.ndarray]:
    """{name: array} of a NumPy archive, where `wanted(name)`."""
    with zipfile.ZipFile(path) as archive:
        names = _names(archive)
        members, claimed = [m for m, name in names.items() if wanted(name)], 0
        for member in members:
            held = min(member.compress_size, path.stat().st_size) * RATIO
            with archive.open(member) as file:
                shape, dtype = _npy_header(file)
                size = _bytes(shape, dtype)
                _check(member.filename, dtype, size, min(member.file_size, held))
            claimed += size
        _check_memory(claimed)
        arrays = {}
        for member in members:
            with archive.open(member) as file:
                arrays[names[member]] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays


def npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a NumPy archive, of which nothing but the headers is read."""
    shapes = {}
    with zipfile.ZipFile(path) as archive:
        for member, name in _names(archive).items():
            with archive.open(member) as file:
                shapes[name], _ = _npy_header(file)
    return shapes


def _names(archive: zipfile.ZipFile) -> dict[zipfile.ZipInfo, str]:
    """{member: name} of the arrays of an archive, each of which has a name of its own."""
    names = {m: m.filename.removesuffix(".npy") for m in archive.infolist() if m.filename.endswith(".npy")}
    if twice := [name for name in names.values() if list(names.values()).count(name) > 1]:
        raise ValueError(f"it holds two arrays of the name {twice[0]}")
    return names


def hdf5_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the arrays of a file and of its groups (group/name), links among them; none of them is read."""
    shapes, seen = {}, set()
    with h5py.File(path, "r") as file:
        groups = [(file, "")]
        while groups:
            group, prefix = groups.pop()
            address = h5py.h5o.get_info(group.id).addr
            if address in seen:  # a group may hold itself
                continue
            seen.add(address)
            for name in group:
                own = isinstance(group.get(name, getlink=True), h5py.HardLink)
                node = group[name] if own else None
                if isinstance(node, h5py.Group):
                    groups.append((node, f"{prefix}{name}/"))
                elif node is None or isinstance(node, h5py.Dataset):
                    shapes[f"{prefix}{name}"] = getattr(node, "shape", None) or ()
    return shapes


def read_hdf5(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """{name: array} of the datasets of those names (group/name), all of which a file has."""
    with h5py.File(path, "r") as file:
        found = {}
        for name in names:
            node = file
            for part in name.split("/"):
                node = _own(node, part)
            found[name] = node
        _check_memory(sum(_check_dataset(path, name, node) for name, node in found.items()))
        return {name: node[()] for name, node in found.items()}


def check_hdf5(path: Path) -> None:
    """That every array of a whole file, which another library will read, is one that it can hold."""

    seen = set()

    def check(group: h5py.Group) -> int:
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:  # a group may hold itself
            return 0
        seen.add(address)
        nodes = ((name, _own(group, name)) for name in group)
        return sum(
            check(node) if isinstance(node, h5py.Group) else _check_dataset(path, name, node, texts=True)
            for name, node in nodes
        )

    with h5py.File(path, "r") as file:
        _check_memory(check(file))


def _npy_header(file) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the array that begins here."""
    first = np.lib.format.read_magic(file) == (1, 0)
    prefix = file.read(2 if first else 4)
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER:
        raise ValueError(f"an array's header claims {length:,} bytes")
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(io.BytesIO(prefix + file.read(length)))
    return shape, dtype


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    size = dtype.itemsize
    for length in shape:  # Python's integers, which do not overflow
        if length < 0:
            raise ValueError(f"a shape of {shape}")
        size *= int(length)
    return size


def _own(group: h5py.Group, name: str):
    """The node of that name, unless it lies elsewhere."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is a link to another place")
    return group[name]


def _check_dataset(path: Path, name: str, node, texts: bool = False) -> int:
    """Bytes of a dataset; `texts`: it may be one of strings, which lie elsewhere in the file."""
    if not isinstance(node, h5py.Dataset):
        raise ValueError(f"{name} is not an array")
    if node.is_virtual or node.external:
        raise ValueError(f"{name} lies in other files")
    size = _bytes(node.shape or (), node.dtype)
    held = RATIO * min(node.id.get_storage_size(), path.stat().st_size)
    _check(name, node.dtype, size, max(held, SMALL), texts)
    return size


def _check(name: str, dtype: np.dtype, size: int, held: int, texts: bool = False) -> None:
    if dtype.hasobject and not (texts and h5py.check_string_dtype(dtype)):
        raise ValueError(f"{name} holds Python objects, which are never read")
    if size > held:
        raise ValueError(f"{name} claims {size:,} bytes, more than the file can hold")


def _check_memory(size: int) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise ValueError(f"it holds {size / 2**30:,.1f} GiB, this machine has {memory / 2**30:,.1f} GiB")
