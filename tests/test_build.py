"""Kernels are built once, whatever happens beside or during the build."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from elman.compiler import build, emit

RUN = """
import torch, elman
torch.manual_seed(0)
layer, x = elman.Recurrent("min_gru", 3, 5), torch.ones(4, 2, 3)
with elman.use_engine({engine!r}):
    print(layer(x)[0].detach().sum().item())
    print(elman.explain(layer))
"""


def _start(cache: Path, engine: str = "cpu", **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", RUN.format(engine=engine)],
        env={**os.environ, "ELMAN_CACHE": str(cache), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_at_once_share_a_cache(tmp_path: Path) -> None:
    runs = [_start(tmp_path) for _ in range(3)]
    results = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert len(set(results)) == 1
    assert len(list(tmp_path.glob("*.so"))) == len(list(tmp_path.iterdir())) > 0


def test_what_is_compiled_follows_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    traits = ("divides_quickly", "loses_odd_steps")
    names = set()
    for present in (None, *traits):
        for trait in traits:
            monkeypatch.setattr(build, trait, lambda has=trait == present: has)
        names.add(build.load('#include "tile_products.h"\n', "float")._name)
    assert len(names) == 3


def test_a_killed_build_leaves_nothing_that_is_used(tmp_path: Path) -> None:
    run = _start(tmp_path)
    while not list(tmp_path.glob("build-*")):
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    again = _start(tmp_path)
    output, errors = again.communicate()
    assert again.returncode == 0, errors
    assert "cpu" in output


def test_a_damaged_library_is_compiled_anew(tmp_path: Path) -> None:
    expected, _ = _start(tmp_path).communicate()
    for path in tmp_path.glob("*.so"):
        path.write_bytes(b"not a library")
    run = _start(tmp_path)
    output, errors = run.communicate()
    assert run.returncode == 0, errors
    assert output == expected


def test_a_compiler_that_fails_leaves_another_engine(tmp_path: Path) -> None:
    run = _start(tmp_path, "auto", CXX="false")
    output, errors = run.communicate()
    assert run.returncode == 0, errors
    assert errors.count("cannot be built: the C++ compiler 'false' failed with status 1") == 1
    assert "layer 0: reference" in output
    assert "not cpu: the C++ compiler 'false' failed" in output


def test_without_a_compiler_there_is_one_warning_and_another_engine(tmp_path: Path) -> None:
    run = _start(tmp_path, "auto", CXX="/nowhere/to/be/found")
    output, errors = run.communicate()
    assert run.returncode == 0, errors
    assert errors.count("kernels cannot be compiled: no C++ compiler was found") == 1
    assert "layer 0: reference" in output
    assert "not cpu: no C++ compiler" in output
    compiled, _ = _start(tmp_path).communicate()
    assert abs(float(output.split()[0]) - float(compiled.split()[0])) < 1e-5


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CXX": "false"}, "the C++ compiler 'false' failed with status 1"),
        ({"CXX": "true"}, "the C++ compiler 'true' made no file"),
        ({"CXX": "g++ 'x"}, "no C++ compiler was found"),
        ({"ELMAN_ISA": "avx1024"}, "ELMAN_ISA is 'avx1024', which is none of amx, avx512, avx2, portable"),
        ({"ELMAN_CACHE": "/proc/nothing"}, "the kernel cache /proc/nothing cannot be written"),
    ],
)
def test_what_stops_a_build_is_said(tmp_path: Path, environment: dict[str, str], message: str) -> None:
    run = _start(tmp_path, **environment)
    _, errors = run.communicate()
    assert run.returncode == 1
    assert message in errors


@pytest.mark.parametrize("text", ["", "#!/nowhere/to/be/found\n"])
def test_a_compiler_that_cannot_be_started_leaves_another_engine(tmp_path: Path, text: str) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(text)
    compiler.chmod(0o755)
    run = _start(tmp_path / "cache", "auto", CXX=str(compiler))
    output, errors = run.communicate()
    assert run.returncode == 0, errors
    assert "layer 0: reference" in output
    assert f"the C++ compiler {str(compiler)!r} cannot be started" in output


def test_a_cache_that_is_nowhere_leaves_another_engine(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path / "file" / "home"), "XDG_CACHE_HOME": "", "ELMAN_CACHE": ""}
    (tmp_path / "file").write_text("")
    run = _start(tmp_path, "auto", **home)
    output, errors = run.communicate()
    assert run.returncode == 0, errors
    assert "layer 0: reference" in output
    assert "not cpu: the kernel cache" in output


def test_headers_are_those_that_the_name_is_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another version is installed while a process runs."""
    monkeypatch.setenv("ELMAN_CACHE", str(tmp_path))
    monkeypatch.setattr(
        build,
        "_header",
        lambda name: 'extern "C" __attribute__((visibility("default"))) int elman_is_here() { return 17; }',
    )
    library = build.load('#include "nowhere.h"\n', "float")
    assert library.elman_is_here() == 17


def test_what_killed_compiles_left_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELMAN_CACHE", str(tmp_path))
    for name, age in ("build-old", 2 * 24 * 3600), ("build-now", 60):
        (tmp_path / name).mkdir()
        then = time.time() - age
        os.utime(tmp_path / name, (then, then))
    (tmp_path / "build-gone").symlink_to("nowhere")  # as one that another process removes meanwhile
    build.load("// nothing\n", "float")
    assert sorted(path.name for path in tmp_path.glob("build-*")) == ["build-gone", "build-now"]


def test_kernels_place_as_many_passes_as_tiles_take() -> None:
    header = (Path(build.__file__).parents[1] / "engine" / "tiles.h").read_text()
    assert f"MOST_TOGETHER = {emit._TOGETHER}," in header


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_every_build_passes_the_engine_tests(isa: str) -> None:
    from elman.compiler import build

    if isa == "avx512" and "avx512f" not in build.processor_flags():
        pytest.skip("this processor has no AVX-512")
    if isa == "avx2" and "avx2" not in build.processor_flags():
        pytest.skip("this processor has no AVX2")
    tests = [str(Path(__file__).with_name(name)) for name in ("test_cpu_engine.py", "test_contract.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-k", "not torch_kernels", "-m", "not slow", *tests]
    run = subprocess.run(command, env={**os.environ, "ELMAN_ISA": isa}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:]
