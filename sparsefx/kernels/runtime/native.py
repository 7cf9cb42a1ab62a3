"""Machine code: from LLVM's intermediate language to functions, compiled once and kept on disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from ctypes import CFUNCTYPE, c_void_p
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sparsefx.errors import MissingPackageError

MISSING = "sparse kernels are compiled with llvmlite, which is not installed; pip install 'sparsefx[kernels]'"
"""What to say where :func:`available` is False."""

_FORMAT = 1  # of the files on disk; counts up when what is in them changes
_DIGEST = hashlib.sha256().digest_size


def available() -> bool:
    """Whether the package that compiles is installed."""
    return find_spec("llvmlite") is not None


def require() -> None:
    """Refuse to go on without the package that compiles.

    Raises:
        MissingPackageError: llvmlite is not installed.
        ArgumentError: the environment asks for a width of vectors that there is not.
    """
    if not available():
        raise MissingPackageError(MISSING)
    from sparsefx.kernels.codegen import vectors  # noqa: F401  # refuses what the environment asks for, too


@cache
def compiled(text: str) -> int:
    """The address of the function ``run`` in this text, for this machine; valid to the process's end."""
    path = _cache_folder() / f"{_key(text)}.o"
    code = _read(path)
    if code is None:
        code = _compile(text)
        _write(path, code)
    return _load(code)


def call(address: int, argument: int) -> None:
    """Call ``void f(void *)``, other Python threads running meanwhile."""
    CFUNCTYPE(None, c_void_p)(address)(argument)


@cache
def _machine() -> Any:
    """The compiler for this processor."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=_features(), opt=3, jit=True
    )


def _features() -> str:
    """What this processor can do; vectors of all widths, even where LLVM thinks narrow ones enough."""
    from llvmlite import binding

    return ",".join([binding.get_host_cpu_features().flatten(), "-prefer-256-bit"])


def _compile(text: str) -> bytes:
    """An object file."""
    from llvmlite import binding

    module = binding.parse_assembly(text)
    module.verify()
    # The kernels are written with the vectors, the unrolling and the order that they shall have.
    options = binding.create_pipeline_tuning_options(speed_level=3)
    options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False
    passes = binding.create_pass_builder(_machine(), options)
    passes.getModulePassManager().run(module, passes)
    return bytes(_machine().emit_object(module))


_engines: list[Any] = []  # they own the machine code


def _load(code: bytes) -> int:
    from llvmlite import binding

    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), _machine())
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address("run"))


def _key(text: str) -> str:
    """Names what the machine code depends on."""
    import llvmlite
    from llvmlite import binding

    parts = (str(_FORMAT), llvmlite.__version__, binding.get_host_cpu_name(), _features(), text)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _cache_folder() -> Path:
    """Where compiled kernels are kept: ``SPARSEFX_CACHE``, or a folder in the user's cache."""
    named = os.environ.get("SPARSEFX_CACHE")
    if named:
        return Path(named)
    with contextlib.suppress(RuntimeError):  # a user without a home
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparsefx"
    return Path(os.devnull)  # nothing is read or written in it; where others could write, no code is kept


def _read(path: Path) -> bytes | None:
    """What was kept, if it is whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:_DIGEST], content[_DIGEST:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(path: Path, code: bytes) -> None:
    """Keep it, whole or not at all; a folder that cannot be written costs the next process some time."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".unfinished-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.replace(name, path)
        except OSError:  # the disk is full
            os.unlink(name)
