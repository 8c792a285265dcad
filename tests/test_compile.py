"""The compiler and the cache: what is built when, what is refused, and what may go wrong in between."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from snn_fr_plugin.ops import _cache, _compile, _providers, lif

CPU = torch.device("cpu")
COMPILER = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(COMPILER is None or os.name != "posix", reason="no C++ compiler")

KERNEL = '#include "deep/value.h"\nextern "C" int answer() { return VALUE + sizeof(SNN_FR_TYPE); }\n'
TYPES = "#if defined(SNN_FR_FLOAT64)\n#define SNN_FR_TYPE double\n#else\n#define SNN_FR_TYPE float\n#endif\n"


def _forget() -> None:
    _compile._find.cache_clear()
    _compile.load.cache_clear()


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A process that has not compiled anything yet, with an empty cache."""
    monkeypatch.setenv("SNN_FR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(_cache, "_warned", False)
    _forget()
    yield
    _forget()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A kernel that answers 42 + the size of the element type, from a header that includes a header."""
    (tmp_path / "unit" / "deep").mkdir(parents=True)
    (tmp_path / "unit" / "deep" / "value.h").write_text('  #  include "types.h"\n#define VALUE 42\n')
    (tmp_path / "unit" / "deep" / "types.h").write_text(TYPES)
    source = tmp_path / "unit" / "kernel.cpp"
    source.write_text(KERNEL)
    return source


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes $CXX a script that logs its calls, runs some lines of shell, and then the real compiler."""

    def make(lines: str = "") -> Path:
        log, script = tmp_path / "log", tmp_path / "compiler"
        script.write_text(f'#!/bin/sh\necho "$*" >> {log}\n{lines}\nexec {COMPILER} "$@"\n')
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        log.write_text("")
        _forget()
        return log

    return make


def _builds(log: Path) -> int:
    return sum(" -c " in line and "_probe.cpp" not in line for line in log.read_text().splitlines())


def _entries(cache: Path) -> list[Path]:
    return sorted(cache.glob("unit-*.so"))


def _answer(kernel: Path, dtype: torch.dtype = torch.float32, *flags: str) -> int:
    """What the kernel says in a process that has not loaded it."""
    _compile.load.cache_clear()
    return int(_compile.load(kernel, dtype, *flags).answer())


def _forged(kernel: Path, cache: Path, answer: int) -> Path:
    """An entry like the kernel's own, whole and by its right name, that answers something else."""
    assert _answer(kernel) == 46
    (entry,) = _entries(cache)
    other = kernel.with_name("other.cpp")
    other.write_text(f'extern "C" int answer() {{ return {answer}; }}')
    library = kernel.with_name("other.so")
    subprocess.run([str(COMPILER), "-shared", "-fPIC", str(other), "-o", str(library)], check=True)
    name = entry.stem.rpartition("-")[0]
    entry.unlink()
    forged = entry.with_name(f"{name}-{_cache._digest(library)}.so")
    shutil.copy(library, forged)
    forged.chmod(0o600)
    return forged


# ---- the cache


def test_one_build_for_all_processes(kernel: Path, cache: Path, compiler: Callable[[str], Path]) -> None:
    log = compiler("")
    assert _answer(kernel) == 46 and _builds(log) == 1
    assert _answer(kernel) == 46 and _builds(log) == 1
    assert _answer(kernel, torch.float64) == 50 and _builds(log) == 2
    assert [e.name.split("-")[:2] for e in _entries(cache)] == [["unit", "float32"], ["unit", "float64"]]
    assert cache.stat().st_mode & 0o777 == 0o700
    assert all(e.stat().st_mode & 0o077 == 0 for e in _entries(cache))


def test_an_entry_of_the_cache_is_what_is_loaded(kernel: Path, cache: Path) -> None:
    """The tests of refusal below are worth something only if this holds."""
    _forged(kernel, cache, 7)
    assert _answer(kernel) == 7


@pytest.mark.parametrize(
    "change", ["source", "header", "header of a header", "flag", "compiler", "processor"]
)
def test_whatever_the_code_depends_on_is_in_the_key(
    kernel: Path, cache: Path, compiler: Callable[[str], Path], change: str
) -> None:
    compiler("")
    assert _answer(kernel) == 46
    flags: tuple[str, ...] = ()
    if change == "source":
        kernel.write_text(KERNEL + "\n")
    elif change == "header":
        kernel.parent.joinpath("deep", "value.h").write_text('#include "types.h"\n#define VALUE 43\n')
    elif change == "header of a header":
        kernel.parent.joinpath("deep", "types.h").write_text(TYPES + "\n")
    elif change == "flag":
        flags = ("-DUNUSED",)
    elif change == "compiler":
        compiler('case "$*" in *--version*) echo another 1.2.3; exit 0;; esac')
    else:
        compiler('case "$*" in *-dM*) set -- "$@" -D__ANOTHER_INSTRUCTION_SET__;; esac')
    assert _answer(kernel, torch.float32, *flags) == (47 if change == "header" else 46)
    assert len(_entries(cache)) == 2


def test_the_same_options_have_the_same_key(kernel: Path, cache: Path) -> None:
    for _ in range(2):
        _forget()
        assert _answer(kernel) == 46
    assert len(_entries(cache)) == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "changed"])
def test_a_damaged_entry_is_built_again(kernel: Path, cache: Path, damage: str) -> None:
    assert _answer(kernel) == 46
    (entry,) = _entries(cache)
    content = entry.read_bytes()
    entry.unlink()  # this process has the old file mapped
    entry.write_bytes(
        {"cut": content[: len(content) // 2], "empty": b"", "changed": content[:-1] + b"!"}[damage]
    )
    assert _answer(kernel) == 46
    assert [e.read_bytes() for e in _entries(cache)] == [content]


def test_an_entry_that_cannot_be_loaded_is_built_again(kernel: Path, cache: Path) -> None:
    """As where the file system forbids execution: whole, ours, and of no use."""
    assert _answer(kernel) == 46
    (entry,) = _entries(cache)
    entry.unlink()
    useless = cache / "content"
    useless.write_bytes(b"no library")
    useless.rename(entry.with_name(f"{entry.stem.rpartition('-')[0]}-{_cache._digest(useless)}.so"))
    with pytest.warns(RuntimeWarning, match="compiled kernels cannot be kept in"):
        assert _answer(kernel) == 46


@pytest.mark.parametrize("exposure", ["others may write", "a group may write", "a link", "another's"])
def test_an_exposed_entry_is_refused(
    kernel: Path, cache: Path, exposure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = _forged(kernel, cache, 666)
    if exposure == "a link":
        forged.rename(cache / "elsewhere")
        forged.symlink_to(cache / "elsewhere")
    elif exposure == "another's":
        own = os.geteuid()
        monkeypatch.setattr(_cache, "_refusal", lambda directory: None)
        monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    else:
        forged.chmod(0o602 if exposure == "others may write" else 0o620)
    assert _answer(kernel) == 46


@pytest.mark.parametrize("exposure", ["others may write", "a group may write", "another's", "its parent"])
def test_an_exposed_directory_is_refused(
    kernel: Path, cache: Path, exposure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _forged(kernel, cache, 666)
    if exposure == "another's":
        own = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: own + 1)
        reason = "it belongs to user"
    elif exposure == "its parent":
        cache.parent.chmod(0o777)
        reason = "others can replace it"
    else:
        cache.chmod(0o702 if exposure == "others may write" else 0o720)
        reason = "others can write to it"
    with pytest.warns(RuntimeWarning, match=reason):
        assert _answer(kernel) == 46
    assert len(_entries(cache)) == 1


def test_a_shared_directory_with_the_sticky_bit_is_fine(kernel: Path, cache: Path) -> None:
    """As /tmp is: others may add to it but not replace what is ours."""
    cache.parent.chmod(0o1777)
    assert _answer(kernel) == 46
    assert len(_entries(cache)) == 1


def _unusable(kind: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(code: int) -> Callable[..., None]:
        def call(*args: object, **kwargs: object) -> None:
            raise OSError(code, os.strerror(code))

        return call

    if kind == "read-only":
        monkeypatch.setattr(Path, "mkdir", fail(errno.EROFS))
    elif kind == "a file in the way":
        cache.write_text("")
    elif kind == "full":
        monkeypatch.setattr(_cache.tempfile, "mkstemp", fail(errno.ENOSPC))
    else:
        monkeypatch.setattr(Path, "replace", fail(errno.ENOSPC))


@pytest.mark.parametrize("kind", ["read-only", "a file in the way", "full", "full at the last moment"])
def test_an_unusable_directory_costs_one_warning(
    kernel: Path, cache: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _unusable(kind, cache, patch)
        with pytest.warns(RuntimeWarning, match="cannot be kept in .*set SNN_FR_CACHE") as caught:
            assert _answer(kernel) == 46
            assert _answer(kernel, torch.float64) == 50
        assert len(caught) == 1
    assert not cache.is_dir() or not list(cache.iterdir())


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert _cache.directory() == tmp_path / "cache"
    monkeypatch.delenv("SNN_FR_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert _cache.directory() == tmp_path / "xdg" / "snn_fr_plugin"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert _cache.directory() == tmp_path / ".cache" / "snn_fr_plugin"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert _cache.directory() == tmp_path / "Library" / "Caches" / "snn_fr_plugin"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert _cache.directory().name == f"snn_fr_plugin-{os.geteuid()}"


# ---- several processes, and processes that die

# forked where nothing has been compiled or loaded yet: importing torch takes longer than all the rest
LOAD = r"""
import os, pathlib, sys, torch
from snn_fr_plugin.ops import _compile
for _ in range(int(sys.argv[2])):
    if os.fork() == 0:
        answer = _compile.load(pathlib.Path(sys.argv[1]), torch.float32).answer()
        os.write(1, f"{answer}\n".encode())  # in one piece
        os._exit(0)
while True:
    try:
        if os.wait()[1]:
            sys.exit("a process failed")
    except ChildProcessError:
        break
"""


def _start(kernel: Path, processes: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", LOAD, str(kernel), str(processes)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=Path(_compile.__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # a process with threads must not fork
    )


def test_eight_processes_at_once(kernel: Path, cache: Path) -> None:
    assert _start(kernel, processes=8).communicate(timeout=300) == ("46\n" * 8, "")
    assert _entries(cache) and not list(cache.glob(".*"))
    assert _answer(kernel) == 46


@pytest.mark.parametrize("moment", ["compiling", "linking"])
def test_a_killed_build_leaves_nothing_in_the_way(
    kernel: Path, cache: Path, tmp_path: Path, compiler: Callable[[str], Path], moment: str
) -> None:
    started = tmp_path / "started"
    pattern = "*/kernel.cpp*" if moment == "compiling" else "*-shared*/kernel.o*|*-dynamiclib*/kernel.o*"
    stall = f'for out; do :; done; printf half > "$out"; touch {started}; sleep 600'
    compiler(f'case "$*" in {pattern}) {stall};; esac')
    process = _start(kernel)
    deadline = time.monotonic() + 300
    while not started.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.communicate() == ("", "")
    assert started.exists() and not _entries(cache)
    (cache / ".building-half").write_bytes(b"half a library")
    compiler("")
    assert _answer(kernel) == 46


def test_a_compiler_that_is_killed(kernel: Path, compiler: Callable[[str], Path]) -> None:
    compiler('case "$*" in */kernel.cpp*) kill -9 $$;; esac')
    with pytest.raises(_compile.CompilerError, match=r"kernel.cpp.* ended with signal 9"):
        _answer(kernel)
    compiler("")
    assert _answer(kernel) == 46


def test_a_source_that_does_not_compile(kernel: Path, cache: Path) -> None:
    kernel.write_text("int answer() { return what_is_this; }")
    with pytest.raises(_compile.CompilerError, match=r"ended with status 1:(.|\n)*what_is_this"):
        _answer(kernel)
    assert not _entries(cache)


# ---- compilers


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ "auto" is content with torch and says nothing; a named backend says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not _compile.available()
        assert _providers.choose("auto", CPU) == "torch"
        spikes, _, _ = lif(torch.full((4, 1), 0.6), beta=0.9)
    assert spikes.flatten().tolist() == [0.0, 1.0, 1.0, 1.0]
    with pytest.raises(
        RuntimeError, match=r"apt install g\+\+(.|\n)*none of c\+\+, g\+\+, clang\+\+ is on the PATH"
    ):
        lif(torch.zeros(4, 1), beta=0.9, backend="cpp")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("echo 'license expired' >&2; exit 3", r"--version ended with status 3:\nlicense expired"),
        ("case \"$*\" in *-c*) echo 'no such header' >&2; exit 1;; esac", "no such header"),
        ("case \"$*\" in *-shared*) echo 'no linker' >&2; exit 1;; esac", "no linker"),
        ('set -- "$@" -Dint=short', "builds code that computes wrongly"),
        ('case "$*" in *-shared*) for out; do :; done; echo > "$out"; exit 0;; esac', "cannot be loaded"),
    ],
)
def test_a_compiler_that_does_not_work(compiler: Callable[[str], Path], lines: str, message: str) -> None:
    compiler(lines)
    assert not _compile.available()
    assert _providers.choose("auto", CPU) == "torch"
    with pytest.raises(_compile.CompilerError, match=rf"apt install g\+\+(.|\n)*{message}"):
        _providers.choose("cpp", CPU)


def test_a_compiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler --fast")
    with pytest.raises(_compile.CompilerError, match=r"/no/such/compiler --fast --version: .*No such file"):
        _providers.choose("cpp", CPU)


def test_systems_without_a_supported_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        found = _compile._find()
    assert isinstance(found, _compile.CompilerError) and "Linux and macOS" in str(found)


def test_the_compiler_is_looked_for_once(compiler: Callable[[str], Path]) -> None:
    log = compiler("exit 1")
    assert [_compile.available() for _ in range(5)] == [False] * 5
    calls = log.read_text()
    assert _providers.choose("auto", CPU) == "torch" and log.read_text() == calls


def test_arguments_in_cxx(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.write_text('extern "C" int answer() { return FROM_CXX; }')
    monkeypatch.setenv("CXX", f"{COMPILER} -DFROM_CXX='(1 + 2)'")
    assert _answer(kernel) == 3


@pytest.mark.parametrize(
    "lines",
    [
        'case "$*" in *-fopenmp*) echo "unsupported option \'-fopenmp\'" >&2; exit 1;; esac',
        'case "$*" in *-fopenmp*-c*) set -- "$@" -include {foreign};; esac',
    ],
    ids=["refused", "another runtime"],
)
def test_without_openmp(
    kernel: Path, tmp_path: Path, compiler: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, lines: str
) -> None:
    """A compiler without OpenMP, or whose OpenMP is not that of torch, serves with one thread."""
    foreign = tmp_path / "foreign.h"
    foreign.write_text('extern "C" int __foreign_runtime(); static int started = __foreign_runtime();\n')
    compiler(lines.replace("{foreign}", str(foreign)))
    assert not _compile.toolchain().openmp
    kernel.write_text('#ifdef _OPENMP\n#error\n#endif\nextern "C" int answer() { return 46; }\n')
    assert _answer(kernel) == 46


def test_openmp_is_that_of_torch(kernel: Path) -> None:
    """Threads as many as asked for, from one runtime in the process."""
    if not _compile.toolchain().openmp:
        pytest.skip("the compiler's OpenMP is not that of torch")
    kernel.write_text(
        "#include <omp.h>\n"
        'extern "C" int answer(int threads) {\n'
        "    int team = 0;\n"
        "#pragma omp parallel num_threads(threads)\n"
        "    if (omp_get_thread_num() == 0) team = omp_get_num_threads();\n"
        "    return team;\n"
        "}\n"
    )
    library: ctypes.CDLL = _compile.load(kernel, torch.float32)
    assert [library.answer(n) for n in (1, 2, 3)] == [1, 2, 3]
    if sys.platform == "linux":
        mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
        runtimes = {
            Path(path).name.split(".so")[0].split("-")[0] for path in mapped if "omp" in Path(path).name
        }
        assert len(runtimes & {"libgomp", "libiomp5", "libomp"}) == 1


@pytest.mark.slow
def test_lif_on_one_thread(compiler: Callable[[str], Path]) -> None:
    """The real kernel builds without OpenMP and gives the torch provider's bits."""
    x = torch.randn(40, 300) + 0.4
    expected = lif(x, beta=0.9, refractory_period=1, backend="torch")[0]
    compiler('case "$*" in *-fopenmp*) exit 1;; esac')
    assert not _compile.toolchain().openmp
    assert 0 < expected.mean() < 1
    assert torch.equal(lif(x, beta=0.9, refractory_period=1, backend="cpp")[0], expected)
