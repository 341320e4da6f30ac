"""What this machine can do at most: multiply-adds, functions, reads from each level of memory, several streams, and how
long a line takes from one thread to another."""

import ctypes
import time
from collections.abc import Callable, Sequence

import torch

from elman.compiler import build
from elman.engine import threads

_SOURCE = """
#include "vectors.h"
struct Job { real *data; int64_t bytes, repeats; Parallel parallel; int (*number)(); real result[64]; };
static void multiply_adds(void *argument) {
    Job &job = *(Job *)argument;
    V acc[ACCUMULATORS];
#pragma GCC unroll 32
    for (int i = 0; i < ACCUMULATORS; ++i) acc[i] = splat((real)i);
    const V x = splat((real)0.999), y = splat((real)1e-9);
    for (int64_t r = 0; r < job.repeats; ++r) {
#pragma GCC unroll 32
        for (int i = 0; i < ACCUMULATORS; ++i) { acc[i] = acc[i] * x + y; asm volatile("" : "+v"(acc[i])); }
    }
    V sum = V{};
#pragma GCC unroll 32
    for (int i = 0; i < ACCUMULATORS; ++i) sum += acc[i];
    job.result[job.number()] = sum[0];
}
static void reads(void *argument) {
    Job &job = *(Job *)argument;
    const int64_t n = job.bytes / sizeof(real);
    const real *p = job.data + job.number() * n;
    V acc[8] = {};
    for (int64_t r = 0; r < job.repeats; ++r)
        for (int64_t i = 0; i < n; i += 8 * LANES)
#pragma GCC unroll 8
            for (int j = 0; j < 8; ++j) acc[j] += load(p + i + j * LANES);
    V sum = V{};
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) sum += acc[j];
    job.result[job.number()] = sum[0];
}
static void streams(void *argument) {  // `repeats` packs two numbers: streams that are read, and that are written
    Job &job = *(Job *)argument;
    const int64_t in = job.repeats / 256, out = job.repeats % 256, n = job.bytes / sizeof(real);
    const int64_t first = n / 2 * job.number(), row = 512;
    for (int64_t start = first; start < first + n / 2; start += row)
        for (int64_t i = start; i < start + row; i += LANES) {
            V sum = splat((real)1);
            for (int64_t k = 0; k < in; ++k) sum += load(job.data + k * n + i);
            for (int64_t k = in; k < in + out; ++k) store(job.data + k * n + i, sum);
        }
}
static void handovers(void *argument) {  // two threads count in turns
    Job &job = *(Job *)argument;
    volatile int64_t *count = (int64_t *)job.data;
    const int64_t me = job.number();
    for (int64_t i = me; i < 2 * job.repeats; i += 2) {
        while (__atomic_load_n(count, __ATOMIC_ACQUIRE) != i) {}
        __atomic_store_n(count, i + 1, __ATOMIC_RELEASE);
    }
}
EXPORT int run(Job *job, int kind, int workers) {
    if (kind == 3) {
        *(int64_t *)job->data = 0;
        job->parallel(handovers, job, 2, 0);
        return 0;
    }
    job->parallel(kind == 2 ? streams : kind ? reads : multiply_adds, job, workers, 0);
    return kind ? 0 : ACCUMULATORS * LANES * 2;
}
"""


# `{expressions}` of vectors x[k], a statement for each function, of numbers in the first-level cache.
_FUNCTIONS = """
#include "vectors.h"
#include "functions.h"
struct Job {{ real *data; int64_t bytes, repeats; Parallel parallel; int (*number)(); real result[64]; }};
enum {{ N = 4 }};
#define EACH _Pragma("GCC unroll 8") for (int k = 0; k < N; ++k)
static void functions(void *argument) {{
    Job &job = *(Job *)argument;
    real in[1024], out[1024];
    for (int i = 0; i < 1024; ++i) in[i] = (i - 512) * (real)0.01;
    for (int64_t r = 0; r < job.repeats; ++r) {{
        for (int64_t i = 0; i < 1024; i += N * LANES) {{
            V x[N], y[N]; EACH x[k] = load(in + i + k * LANES); EACH y[k] = x[k];
            {expressions}
            EACH store(out + i + k * LANES, y[k]);
        }}
        asm volatile("" : : "r"(out) : "memory");
    }}
    job.result[job.number()] = out[0];
}}
EXPORT int run(Job *job, int kind, int workers) {{
    job->parallel(functions, job, workers, 0);
    return 1024;
}}
"""


# The engine's own tiles, of numbers that come from the second-level cache: a matrix of PANELS blocks of DEPTH steps.
_TILES = """
#include "tile_products.h"
struct Job { real *data; int64_t bytes, repeats; Parallel parallel; int (*number)(); real result[64]; };
enum { DEPTH = 512, PANELS = 4, ACROSS = ABREAST, HIGH = ACCUMULATORS / ABREAST };
static void tiles(void *argument) {
    Job &job = *(Job *)argument;
    const real *operand = job.data + job.number() * (job.bytes / sizeof(real)), *matrix = operand + HIGH * DEPTH;
    static const int32_t places[] = {0, 1, 2, 3, 4, 5, 6, 7};
    const Stretch stretch = {operand, DEPTH, 0, DEPTH};
    V sums[HIGH * ACROSS];
    for (int64_t r = 0; r < job.repeats; ++r)
        for (int64_t i = 0; i < PANELS; ++i) {
            const real *panel = matrix + i * DEPTH * ACROSS * LANES;
            tile<ACROSS, HIGH, 1, false>(sums, ACROSS, places, &stretch, 1, panel, DEPTH, 0, false);
        }
    job.result[job.number()] = sums[0][0];
}
EXPORT int run(Job *job, int kind, int workers) {
    job->parallel(tiles, job, workers, 0);
    return 2 * PANELS * DEPTH * HIGH * ACROSS * LANES;
}
"""


# The same by matrix tiles, of random numbers' terms.
_MATRIX_TILES = """
#include "terms.h"
struct Job { real *data; int64_t bytes, repeats; Parallel parallel; int (*number)(); real result[64]; };
enum { BLOCKS = 16, PANELS = 4, PANEL = BLOCKS * 2 * VECTOR_BLOCK };
static void tiles(void *argument) {
    Job &job = *(Job *)argument;
    const real *numbers = job.data + job.number() * (job.bytes / sizeof(real));
    alignas(64) static thread_local char left[BLOCKS * GROUP_ROWS * ROW_BLOCK], right[PANELS * PANEL];
    alignas(64) real sums[GROUP_ROWS][2 * LANES];
    auto fill = [&](char *to, int64_t bytes) {
        for (char *end = to + bytes; to < end; to += ROW_BLOCK, numbers += 2 * LANES)
            store_terms(to, 64, load(numbers), load(numbers + LANES));
    };
    fill(left, sizeof left), fill(right, sizeof right);
    char *const to[] = {(char *)sums[0], (char *)(sums[0] + LANES)};
    shape_tiles(2, TILE_ROWS);
    for (int64_t r = 0; r < job.repeats; ++r)
        for (int64_t i = 0; i < PANELS; ++i) {
            const char *const vectors[] = {right + i * PANEL, right + i * PANEL + PANEL / 2};
            sum_tiles<2, 2>(to, sizeof sums[0], left, TILE_ROWS, vectors, BLOCKS, [](int64_t) {});
        }
    release_tiles();
    job.result[job.number()] = sums[0][0];
}
EXPORT int run(Job *job, int kind, int workers) {
    job->parallel(tiles, job, workers, 0);
    return 2 * PANELS * BLOCKS * BLOCK_STEPS * GROUP_ROWS * 2 * LANES;
}
"""


class _Job(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
        ("repeats", ctypes.c_int64),
        ("parallel", ctypes.c_void_p),
        ("number", ctypes.c_void_p),
        ("result", ctypes.c_float * 64),
    )


def _best(
    kind: int, bytes_each: int, repeats: int, workers: int, arrays: int = 0, source: str = _SOURCE
) -> tuple[float, int]:
    """Seconds of the best of nine runs, and what the run returns."""
    library = build.load(source, "float")
    pool = threads.pool()
    assert pool is not None
    data = torch.ones(max(1, bytes_each * (arrays or workers) // 4))
    job = _Job(data.data_ptr(), bytes_each, repeats, pool[0], pool[1])
    best, result = float("inf"), 0
    for _ in range(9):
        start = time.perf_counter()
        result = library.run(ctypes.byref(job), kind, workers)
        best = min(best, time.perf_counter() - start)
    return best, result


def peak_gflops(workers: int) -> float:
    """Single-precision multiply-add peak, in GFLOP/s."""
    repeats = 2_000_000
    seconds, per_repeat = _best(0, 0, repeats, workers)
    return per_repeat * repeats * workers / seconds / 1e9


def multiply_adds(workers: int) -> tuple[Callable[[], object], float]:
    """A run of multiply-adds of one or two milliseconds, and how many GFLOP it is: beside whatever is to be compared.

    What a shared machine gives changes from minute to minute, so a peak taken before is not the peak of then.
    """
    library = build.load(_SOURCE, "float")
    pool = threads.pool()
    assert pool is not None
    data = torch.ones(1)
    job = _Job(data.data_ptr(), data.nbytes, 500_000, pool[0], pool[1])
    work = library.run(ctypes.byref(job), 0, workers) * job.repeats * workers
    return lambda: (library.run(ctypes.byref(job), 0, workers), data), work / 1e9


def tiles_gflops(workers: int) -> float:
    """What the engine's tiles do at most, in GFLOP/s, of random numbers from each core's own cache, for a second.

    Some processors lower their clock where multiply-adds come with loads: then this is less than the peak.
    """
    return _sustained(_TILES, workers)


def matrix_tiles_gflops(workers: int) -> float | None:
    """The same of the processor's matrix tiles, in GFLOP/s of float32 products; None where there are none."""
    return _sustained(_MATRIX_TILES, workers) if build.instruction_set() == "amx" else None


def _sustained(source: str, workers: int) -> float:
    library = build.load(source, "float")
    pool = threads.pool()
    assert pool is not None
    data = torch.randn(workers, 1 << 18)
    job = _Job(data.data_ptr(), data[0].nbytes, 5_000, pool[0], pool[1])
    flops, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < 1:
        flops += library.run(ctypes.byref(job), 0, workers) * job.repeats * workers
    return flops / seconds / 1e9


def read_bandwidth(bytes_each: int, workers: int) -> float:
    """GB/s that `workers` threads read together, each going over its own `bytes_each` bytes again and again."""
    repeats = max(1, 400_000_000 // bytes_each)
    seconds, _ = _best(1, bytes_each, repeats, workers)
    return bytes_each * repeats * workers / seconds / 1e9


def stream_bandwidth(read: int, written: int, bytes_each: int) -> float:
    """GB/s of two threads that go once over several arrays of so many bytes, row by row, with ordinary stores."""
    seconds, _ = _best(2, bytes_each, read * 256 + written, 2, read + written)
    return bytes_each * (read + written) / seconds / 1e9


def handover_ns() -> float:
    """Nanoseconds in which a thread sees what another one has written; several times as many where the system has put
    them on cores without a cache in common, as it may from one second to the next."""
    repeats = 2000
    seconds, _ = _best(3, 64, repeats, 1)
    return seconds / (2 * repeats) * 1e9


def function_rate(names: Sequence[str], workers: int) -> float:
    """Numbers a second for each of which all these functions of `functions.h` are computed, by `workers` threads."""
    # of different numbers, or the compiler would compute equal functions once
    expressions = " ".join(f"EACH y[k] += {name}(x[k] + (real){0.1 * i:.1f});" for i, name in enumerate(names))
    repeats = 200
    seconds, numbers = _best(0, 0, repeats, workers, source=_FUNCTIONS.format(expressions=expressions))
    return numbers * repeats * workers / seconds
