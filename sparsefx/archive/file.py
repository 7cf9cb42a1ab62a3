"""The file: safetensors whose header holds the plan, and a checksum over every byte.

The plan is JSON under one key of the header's metadata. It begins with the format and with the SHA-256 of
the file, taken with the 64 digits of the checksum itself as zeros.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsefx.passes.serialize.plain_values import DataError

FORMAT = 1
MAX_HEADER = 8 * 2**20  # bytes; a node or a module takes about 400
MAX_PARTS = 2**18  # values, lists and objects of the plan, of which a node or a module has about 20
_KEY = "sparsefx"
_STAMP = re.compile(rb'"sparsefx":"\{\\"format\\":([0-9]{1,9}),\\"sha256\\":\\"([0-9a-f]{64})\\"')
_NO_CHECKSUM = "0" * 64
_DAMAGED = "the file is damaged or incomplete; copy it again, or write it anew with sparsefx.save"
_FOREIGN = "it is no file of sparsefx.save, or its beginning is damaged"


def write(path: Path, plan: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a plan and its tensors, whole or not at all.

    Args:
        path: where to; a file that is there is replaced at the end.
        plan: plain data.
        tensors: contiguous tensors of any shape on the CPU, none sharing memory.

    Raises:
        DataError: the plan is too large.
        FileNotFoundError: the folder does not exist.
    """
    stamp = {"format": FORMAT, "sha256": _NO_CHECKSUM}
    text = json.dumps({**stamp, **plan}, separators=(",", ":"), allow_nan=False)
    if len(text) > MAX_HEADER // 2 or _parts(text) > MAX_PARTS:
        raise DataError(f"its plan has {len(text)} bytes and {_parts(text)} parts, which is too large")
    if not path.parent.is_dir():  # safetensors would name the temporary file
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors makes a file that only its owner may read
        save_file(dict(tensors), temporary, metadata={_KEY: text})
        temporary.chmod(mode)
        _stamp(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path, device_of: Callable[[str], torch.device]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a file that is whole: its plan, unchecked, and its tensors, of the shapes that it gives.

    Args:
        path: the file.
        device_of: the device of a tensor by its name.

    Raises:
        DataError: it is damaged, of another format, or no file of :func:`write`.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        _verify(stream)
    try:
        with safe_open(path, framework="pt") as archive:
            text = archive.metadata()[_KEY]
            names = archive.keys()
            tensors = {name: _own(archive.get_tensor(name), device_of(name)) for name in names}
    except Exception as error:  # whatever the library makes of a header that no writer of ours wrote
        raise DataError(f"its tensors cannot be read ({error}); {_DAMAGED}") from error
    return _parse(text), tensors


def _own(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of our own: the library's is a window on the file, which may change later."""
    return tensor.to(device, copy=True)


def _stamp(path: Path) -> None:
    """Fill in the checksum of a file that was written without."""
    with path.open("r+b") as stream:
        found, header_end = _find_stamp(stream)
        checksum = _checksum(stream, found, header_end)
        stream.seek(8 + found.start(2))
        stream.write(checksum.encode())
        stream.flush()
        os.fsync(stream.fileno())


def _verify(stream: IO[bytes]) -> None:
    found, header_end = _find_stamp(stream)
    version = int(found[1])
    if version != FORMAT:
        raise DataError(
            f"it is of format {version}, this sparsefx reads format {FORMAT}; install a newer one"
        )
    if _checksum(stream, found, header_end) != found[2].decode():
        raise DataError(f"its checksum is wrong; {_DAMAGED}")


def _find_stamp(stream: IO[bytes]) -> tuple[re.Match[bytes], int]:
    """Where format and checksum stand, and where the header ends; nothing larger than the file is read."""
    size = os.fstat(stream.fileno()).st_size
    length = int.from_bytes(stream.read(8), "little")
    if size < 8 or length > size - 8:
        raise DataError(f"it is {size} bytes long, too short for what it should hold; {_FOREIGN}")
    if length > MAX_HEADER:
        raise DataError(f"its header is larger than {MAX_HEADER} bytes; {_FOREIGN}")
    found = _STAMP.search(stream.read(length))
    if found is None:
        raise DataError(f"no plan is in it; {_FOREIGN}")
    return found, 8 + length


def _checksum(stream: IO[bytes], found: re.Match[bytes], header_end: int) -> str:
    stream.seek(0)
    head = bytearray(stream.read(header_end))
    head[8 + found.start(2) : 8 + found.end(2)] = _NO_CHECKSUM.encode()
    digest = hashlib.sha256(head)
    while block := stream.read(2**20):
        digest.update(block)
    return digest.hexdigest()


def _parts(text: str) -> int:
    """At most so many values, lists and objects does JSON hold."""
    return sum(map(text.count, "[{,"))


def _parse(text: str) -> dict[str, Any]:
    if _parts(text) > MAX_PARTS:  # in memory each is many times as large
        raise DataError(f"its plan has more than {MAX_PARTS} parts; {_FOREIGN}")
    try:
        plan = json.loads(text, parse_constant=_refuse, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise DataError(f"its plan cannot be read ({type(error).__name__}); {_FOREIGN}") from error
    if type(plan) is not dict:
        raise DataError(f"its plan is not an object; {_FOREIGN}")
    return plan


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found
