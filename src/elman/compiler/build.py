"""Build: generated C++ into a shared library, kept on disk for the next process.

A library is named by a hash of everything it depends on: the source, the headers it includes, the compiler and its
flags, and the processor. It is compiled under a name of its own and then moved into place, so that processes at once,
or a killed compile, never leave half a library under its final name.
"""

import ctypes
import functools
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

_ENGINE = Path(__file__).parent.parent / "engine"
_DAY = 24 * 3600  # seconds
_INCLUDE = re.compile(r'^#include "(.+)"', re.MULTILINE)


class BuildError(RuntimeError):
    """A library cannot be built; the message says why in a line."""


def cache_directory() -> Path:
    """Where libraries are kept: ELMAN_CACHE, else `elman` in the user's cache directory.

    Raises:
        BuildError: there is none.
    """
    chosen = os.environ.get("ELMAN_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        if chosen:
            return Path(chosen).expanduser()
        return (Path(base) if base else Path.home() / ".cache") / "elman"
    except RuntimeError as error:  # no home
        raise BuildError(f"there is no folder for the kernel cache ({error}); set ELMAN_CACHE to one") from error


@functools.cache
def _processor() -> dict[str, str]:
    """What the system says of the first processor; empty where it says nothing."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


@functools.cache
def processor_flags() -> frozenset[str]:
    """The processor's instruction sets, as the system names them; empty where it does not say."""
    return frozenset((_processor().get("flags") or _processor().get("Features") or "").split())


@functools.cache
def divides_quickly() -> bool:
    """Whether dividing vectors of 64 bytes takes the processor less than an estimate that is made precise.

    So it is from family 26 (Zen 5) of AMD's on: 2.5 cycles a division, by a unit of its own.
    """
    family = _processor().get("cpu family", "")
    return _is_amd() and family.isdigit() and int(family) >= 26


def loses_odd_steps() -> bool:
    """Whether the processor's own look-ahead loses a loop that reads an odd number of lines at each step.

    So AMD's do (measured on Zen 5); fetching for them costs an Intel Xeon a tenth of the time of such a loop.
    """
    return _is_amd()


def _is_amd() -> bool:
    return _processor().get("vendor_id") == "AuthenticAMD"


def instruction_set() -> str:
    """What libraries are compiled for: ELMAN_ISA where it says, or the best of "amx", "avx512", "avx2" and "portable".

    Raises:
        BuildError: ELMAN_ISA names none of them, or one that the processor or the system does not offer.
    """
    return _instruction_set(os.environ.get("ELMAN_ISA") or None)


@functools.cache
def _instruction_set(wanted: str | None) -> str:
    flags = processor_flags()
    have = {
        "amx": {"amx_tile", "amx_bf16", "avx512f"} <= flags and _may_use_tiles(),
        "avx512": "avx512f" in flags,
        "avx2": {"avx2", "fma"} <= flags,
        "portable": True,
    }
    if wanted is None:
        return next(name for name, present in have.items() if present)
    if not have.get(wanted):
        problem = "which is not to be had here" if wanted in have else f"which is none of {', '.join(have)}"
        raise BuildError(f"ELMAN_ISA is {wanted!r}, {problem}")
    return wanted


def _may_use_tiles() -> bool:
    """Ask the system for the registers of the processor's matrix tiles, which Linux gives to processes that ask."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    arch_prctl, require, tiles = 158, 0x1023, 18
    return bool(ctypes.CDLL(None).syscall(arch_prctl, require, tiles) == 0)


_TARGETS = {
    "amx": ("-march=native", 64),
    "avx512": ("-march=native", 64),
    "avx2": ("-march=native", 32),
    "portable": ("", 16),
}


@functools.cache
def _header(name: str) -> str:
    return (_ENGINE / name).read_text()


def _included(text: str, found: dict[str, str]) -> dict[str, str]:
    """The engine's headers that a source includes, and those that they include, by name."""
    for name in _INCLUDE.findall(text):
        if name not in found:
            found[name] = _header(name)
            _included(found[name], found)
    return found


@functools.cache
def compiler() -> tuple[str, ...] | None:
    """The command of the system's C++ compiler: CXX where set, else g++, clang++ or c++; None where there is none."""
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError:  # a quotation without an end
        return None
    for command in (named,) if named else (["g++"], ["clang++"], ["c++"]):
        if shutil.which(command[0]):
            return tuple(command)
    return None


@functools.cache
def _compiler_version(command: tuple[str, ...]) -> str:
    """What it says of itself.

    Raises:
        BuildError: it cannot be started.
    """
    try:
        said = subprocess.run([*command, "--version"], capture_output=True, check=False).stdout
    except OSError as error:
        raise BuildError(f"the C++ compiler {shlex.join(command)!r} cannot be started: {error}") from error
    return said.decode(errors="replace")


def _sweep(folder: Path) -> None:
    """Remove what compiles left that were killed."""
    for left in folder.glob("build-*"):
        with suppress(OSError):  # others build and sweep at the same time
            if time.time() - left.stat().st_mtime > _DAY:
                shutil.rmtree(left, ignore_errors=True)


def load(source: str, real: str) -> ctypes.CDLL:
    """The library of a generated source, compiled if it is not in the cache.

    Args:
        source: as `emit` prints it.
        real: the C++ type of all numbers, "float" or "double".

    Raises:
        BuildError: there is no compiler, or it fails, or the cache cannot be written.
    """
    return start(source, real).result()


def start(source: str, real: str) -> "Build":
    """Begin to compile a source, or find it in the cache; several may be under way at once."""
    return Build(source, real)


class Build:
    """A library that is being compiled, or is already there."""

    def __init__(self, source: str, real: str) -> None:
        command = compiler()
        if command is None:
            raise BuildError("no C++ compiler was found (g++, clang++, or the one that CXX names)")
        chosen = instruction_set()
        march, vector_bytes = _TARGETS[chosen]
        # Inner loops here are two or three cache lines of code; one that begins within a line runs up to ten per cent
        # slower. -O3 makes nothing faster, since vectors and unrolling are written out, and takes longer to compile.
        flags = ["-std=c++17", "-O2", "-falign-loops=64", "-fno-math-errno", "-ffp-contract=fast"]
        flags += ["-fPIC", "-shared", "-w"]
        flags += ["-fvisibility=hidden", "-fno-exceptions", "-Wl,--as-needed", *([march] if march else [])]
        tiles = chosen == "amx" and real == "float"
        traits = {"QUICK_DIVISION": divides_quickly(), "ODD_STEPS_LOST": loses_odd_steps(), "MATRIX_TILES": tiles}
        defined = "".join(f"#define {name}\n" for name, has in traits.items() if has)
        text = f"#define VECTOR_BYTES {vector_bytes}\n{defined}typedef {real} real;\n{source}"
        self._headers = _included(text, {})
        parts = (
            text,
            *self._headers.values(),
            *command,
            _compiler_version(command),
            *flags,
            platform.machine(),
        )
        native = sorted(processor_flags()) if march else []
        digest = hashlib.sha256("\0".join((*parts, *native)).encode()).hexdigest()[:32]
        self._path = cache_directory() / f"{digest}.so"
        self._text = text
        self._command = [*command, *flags]
        self._process: subprocess.Popen[str] | None = None
        if not self._is_there():
            self._begin()

    def _is_there(self) -> bool:
        try:
            return self._path.exists()
        except OSError as error:  # a folder on the way may not be looked into
            raise BuildError(f"the kernel cache {self._path.parent} cannot be read: {error}") from error

    def _begin(self) -> None:
        """Start the compiler."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _sweep(self._path.parent)
            self._work = tempfile.TemporaryDirectory(dir=self._path.parent, prefix="build-")
            file = Path(self._work.name) / "cell.cpp"
            file.write_text(self._text)
            # Those that the library's name is of, whatever is installed by now.
            for name, header in self._headers.items():
                file.with_name(name).write_text(header)
        except OSError as error:
            raise BuildError(f"the kernel cache {self._path.parent} cannot be written: {error}") from error
        self._built = file.with_suffix(".so")
        arguments = [*self._command, str(file), "-o", str(self._built), "-lm"]
        self._process = subprocess.Popen(
            arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
        )

    def _finish(self) -> None:
        """Wait for the compiler and put what it made in the cache."""
        if self._process is None:
            return
        _, errors = self._process.communicate()
        code, self._process = self._process.returncode, None
        with self._work:
            if code:
                telling = (line for line in errors.splitlines() if "error" in line or "No space" in line)
                first = next(telling, errors.strip()[:200])
                raise BuildError(f"the C++ compiler {self._command[0]!r} failed with status {code}: {first}")
            if not self._built.exists():
                raise BuildError(f"the C++ compiler {self._command[0]!r} made no file, and said that all was well")
            try:
                os.replace(self._built, self._path)
            except OSError as error:
                raise BuildError(f"the kernel cache {self._path.parent} cannot be written: {error}") from error

    def result(self) -> ctypes.CDLL:
        """The loaded library, once it is compiled; a cached one that cannot be loaded is compiled anew."""
        self._finish()
        try:
            return ctypes.CDLL(str(self._path))
        except OSError:
            self._begin()
            self._finish()
        try:
            return ctypes.CDLL(str(self._path))
        except OSError as error:
            raise BuildError(f"the compiled kernel {self._path} cannot be loaded: {error}") from error
