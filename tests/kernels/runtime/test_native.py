"""Compiled kernels are kept on disk, whole or not at all, and anything wrong there is compiled anew."""

import pytest
from processes import start_script

from sparsefx.kernels.codegen.dispatch_loop import DRIVE
from sparsefx.kernels.runtime import native


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEFX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fresh(text=DRIVE):
    return native.compiled.__wrapped__(text)


def test_is_compiled_once(cache, monkeypatch):
    assert fresh()
    (file,) = cache.iterdir()
    before = file.read_bytes()
    monkeypatch.setattr(native, "_compile", None)  # the second time it would fail
    assert fresh()
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "damage", [b"", b"short", lambda code: code[:-1], lambda code: code[:40] + b"x" + code[41:]]
)
def test_a_damaged_file_is_compiled_anew(cache, damage):
    fresh()
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole) if callable(damage) else damage)
    assert fresh()
    assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SPARSEFX_CACHE", str(tmp_path / "file"))
    assert fresh()


def test_the_key_depends_on_the_processor(monkeypatch):
    key = native._key(DRIVE)
    monkeypatch.setattr(native, "_features", lambda: "+other")
    assert native._key(DRIVE) != key


def test_many_processes_at_once(cache, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from sparsefx.kernels.runtime import native\n"
        "from sparsefx.kernels.codegen.dispatch_loop import DRIVE\n"
        "assert native.compiled(DRIVE)"
    )
    processes = [start_script(script, SPARSEFX_CACHE=cache) for _ in range(3)]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(cache.iterdir())) == 1


def test_the_default_folder_is_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("SPARSEFX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native._cache_folder() == tmp_path / "sparsefx"


def test_a_full_disk_keeps_no_half_written_file(cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(native.os, "replace", full)
    assert fresh()
    assert not list(cache.iterdir())


def test_a_user_without_a_home(monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    for name in ("SPARSEFX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(native.Path, "home", nowhere)
    assert fresh()
