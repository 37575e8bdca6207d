"""The scan's kernels on a real GPU: checked against float64, then timed with several settings.

    python -m tests.gpu.scan_on_gpu [--out FILE.json] [--only check|time] [--seconds N]

`check` is also the test of `test_scan_on_gpu.py`. The timings print the settings beside the default ones, so that
the constants in `scan/triton.py` can be chosen again for another GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.model_adapters.vlmamba.gradients import error
from vlmamba_eval.model_adapters.vlmamba import scan
from vlmamba_eval.model_adapters.vlmamba.scan.mamba_ssm import selective_scan_fn

N = 16


def inputs(b: int, length: int, d: int, dtype: torch.dtype, seed: int = 0, device: str = "cuda") -> dict[str, Any]:
    """As a Mamba layer hands them over: slices of the projections, A about -1 to -16, steps about 0.001 to 0.3."""
    g = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, device=device, dtype=dtype)

    xz, dbc = normal(b, length, 2 * d), normal(b, length, 32 + 2 * N)
    A = -torch.arange(1, N + 1, device=device)[:, None] * (0.9 + 0.2 * torch.rand(N, d, generator=g, device=device))
    return {
        "x": xz[..., :d],
        "z": xz[..., d:],
        "dt": normal(b, length, d),
        "B": dbc[..., 32 : 32 + N],
        "C": dbc[..., 32 + N :],
        "A": A,
        "D": normal(d).float(),
        "dt_bias": normal(d).float() - 4.0,
    }


# =============================================================================
# Right or wrong
# =============================================================================


class Comparisons:
    """(what, error, tolerance) of every comparison; an error is the largest difference over the largest number."""

    def __init__(self) -> None:
        self.all: list[tuple[str, float, float]] = []

    def __call__(self, what: str, have: Tensor, want: Tensor, tolerance: float) -> None:
        self.all.append((what, error(have, want), tolerance))

    def worst(self) -> dict[str, tuple[str, float, float]]:
        """For each kind (the first word and the precision) the comparison that takes most of its tolerance."""
        found: dict[str, tuple[str, float, float]] = {}
        for comparison in self.all:
            what, size, tolerance = comparison
            kind = f"{what.split(' ')[0]} {what.split('torch.')[-1]}"
            if kind not in found or size / tolerance > found[kind][1] / found[kind][2]:
                found[kind] = comparison
        return found

    def raise_for_failures(self) -> None:
        """AssertionError that names every comparison beyond its tolerance."""
        failed = [f"{what}: {size:.2e}, at most {limit:.0e}" for what, size, limit in self.all if not size < limit]
        assert not failed, f"{len(failed)} of {len(self.all)} comparisons are too far off:\n" + "\n".join(failed)


def check() -> Comparisons:
    """All comparisons; raises AssertionError if some are too far off."""
    from vlmamba_eval.model_adapters.vlmamba.scan import triton as kernels

    compare = Comparisons()
    rounding = {torch.float32: 5e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
    shapes = [(1, 768, 5120), (4, 50, 1536), (5, 3, 96), (3, 40, 33), (7, 1, 5120), (2, 130, 384)]
    half = [(shape, torch.bfloat16) for shape in shapes]
    for (b, length, d), dtype in [*half, (shapes[1], torch.float32), (shapes[1], torch.float16)]:
        case = inputs(b, length, d, dtype)
        state = torch.randn(3, N, d, device="cuda")
        rows = torch.tensor([2, -1, 0, 2, 1, -1, 2], device="cuda")[:b]
        lengths = torch.tensor([length, length // 2, 1, length - 1, 0, 2, length], device="cuda").clamp(0, length)[:b]
        more = {"state": state, "layout": scan.Layout(rows, lengths)}
        exact = {n: t.double() for n, t in case.items()}
        y, h = scan.selective_scan(**exact, **{**more, "state": state.double()}, backend="reference")
        name = f"{b}x{length}x{d} {dtype}"
        found_y, found_h = scan.selective_scan(**case, **more, backend="triton")
        compare(f"scan {name}", found_y, y, rounding[dtype])
        compare(f"state {name}", found_h, h, 5e-6)
        if selective_scan_fn() is not None:
            theirs_y, theirs_h = scan.selective_scan(**case, **more, backend="mamba_ssm")
            compare(f"mamba-ssm-scan {name}", theirs_y, y, rounding[dtype])
            compare(f"mamba-ssm-state {name}", theirs_h, h, 5e-6)
        for segments in (1, 4):
            found_y, found_h = kernels.selective_scan(**case, **more, segments=segments)
            compare(f"scan in {segments} segments {name}", found_y, y, rounding[dtype])
            compare(f"state in {segments} segments {name}", found_h, h, 5e-6)
        pad = torch.arange(length, device="cuda") >= lengths[:, None]
        soiled = {n: t.masked_fill(pad[..., None], torch.nan) if t.ndim == 3 else t for n, t in case.items()}
        again_y, again_h = kernels.selective_scan(**soiled, **more, segments=4)
        assert torch.equal(again_y, found_y), name
        assert torch.equal(again_h, found_h), name

        weight, bias = torch.randn(d, 4, device="cuda", dtype=dtype), torch.randn(d, device="cuda", dtype=dtype)
        tail = torch.randn(3, 3, d, device="cuda", dtype=dtype)
        conv = {"layout": scan.Layout(rows, lengths)}
        y, t = scan.causal_conv(
            case["x"].double(), weight.double(), bias.double(), tail=tail.double(), **conv, backend="reference"
        )
        found_y, found_t = scan.causal_conv(case["x"], weight, bias, tail=tail, **conv, backend="triton")
        compare(f"convolution {name}", found_y, y, rounding[dtype])
        assert torch.equal(found_t.double(), t), name

    for shape, dtype in [((4, 50, 96), torch.float32), ((8, 100, 384), torch.float32),
                         ((8, 100, 384), torch.bfloat16), ((3, 33, 40), torch.float32)]:  # fmt: skip
        check_gradients(compare, shape, dtype)
    compare.raise_for_failures()
    _check_graph()
    _check_far_offsets()
    return compare


def check_gradients(
    compare: Comparisons, shape: tuple[int, int, int], dtype: torch.dtype, device: str = "cuda"
) -> None:
    """Of the convolution and the scan after it, by all inputs: the backend for training against float64 autograd."""
    b, length, d = shape
    g = torch.Generator(device).manual_seed(1)
    case = inputs(b, length, d, dtype, device=device)
    case["state"] = torch.randn(b, N, d, generator=g, device=device)
    lengths = torch.tensor([length, 0, length // 2, 1] * 2, device=device)[:b]
    weight, bias = (torch.randn(*size, generator=g, device=device, dtype=dtype) for size in ((d, 4), (d,)))
    names = [*case, "weight", "bias"]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    gradients = []
    for backend in ("autograd", "reference"):
        leaves = [
            (t.double() if backend == "reference" else t).detach().clone().requires_grad_()
            for t in (*case.values(), weight, bias)
        ]
        arguments = dict(zip(names, leaves, strict=True))
        w, v = arguments.pop("weight"), arguments.pop("bias")
        arguments["x"], _ = scan.causal_conv(arguments["x"], w, v, layout=scan.Layout(lengths=lengths), backend=backend)
        y, h = scan.selective_scan(**arguments, layout=scan.Layout(lengths=lengths), backend=backend)
        gradients.append(torch.autograd.grad((y * y).sum() + (h * h).sum(), leaves))
    for name, have, want in zip(names, *gradients, strict=True):
        compare(f"gradient of {name} {b}x{length}x{d} {dtype}", have, want, tolerance)


def _check_graph() -> None:
    """A captured decoding step, replayed over static buffers, equals the scan of all its tokens."""
    b, length, d = 5, 6, 5120
    case = inputs(b, length, d, torch.bfloat16)
    weight, bias = torch.randn(d, 4, device="cuda").bfloat16(), torch.randn(d, device="cuda").bfloat16()
    per_token = ("x", "dt", "z", "B", "C")
    now = {n: t[:, :1].clone() for n, t in case.items() if n in per_token}
    fixed = {n: t for n, t in case.items() if n not in per_token}
    state, tail = torch.zeros(b, N, d, device="cuda"), torch.zeros(b, 3, d, device="cuda").bfloat16()

    def step() -> Tensor:
        u, _ = scan.causal_conv_step(now["x"], weight, bias, tail=tail, out=tail)
        y, _ = scan.selective_step(**{**now, **fixed, "x": u}, state=state, out=state)
        return y

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    state.zero_()
    tail.zero_()
    u, last_tail = scan.causal_conv(case["x"], weight, bias)
    y, last = scan.selective_scan(**{**case, "x": u})
    for t in range(length):
        for name, tensor in now.items():
            tensor.copy_(case[name][:, t : t + 1])
        graph.replay()
        assert error(out, y[:, t : t + 1].double()) < 8e-3
    assert error(state, last.double()) < 5e-6
    assert torch.equal(tail, last_tail)


def _check_far_offsets() -> None:
    """Rows that lie more than 2^31 elements apart give what the first gives."""
    b, length, d = 8, 65536, 5120
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        return
    case = inputs(1, length, d, torch.bfloat16)
    from vlmamba_eval.model_adapters.vlmamba.scan import triton as kernels

    many = {n: t.expand(b, -1, -1) if t.ndim == 3 else t for n, t in case.items()}
    y, h = kernels.selective_scan(**many, segments=1)
    assert torch.equal(y[0], y[b - 1])
    assert torch.equal(h[0], h[b - 1])
    cut, cut_h = kernels.selective_scan(**case)
    assert error(cut, y[:1].double()) < 8e-3
    assert error(cut_h, h[:1].double()) < 1e-5
    weight = torch.randn(d, 4, device="cuda").bfloat16()
    y, _ = scan.causal_conv(many["x"], weight, None)
    assert torch.equal(y[0], y[b - 1])


# =============================================================================
# Time
# =============================================================================


def milliseconds(run: Callable[[], object], repeats: int = 9) -> float:
    """The median of events around single runs, after a warm-up; for short runs, around ten."""
    run()
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    inner = 10 if time.perf_counter() - began < 2e-3 else 1
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(inner):
            run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / inner)
    return statistics.median(times)


def graphed(run: Callable[[], object]) -> Callable[[], object]:
    """The launches as one graph, as decoding uses them: their cost on the host stays out."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


@contextmanager
def settings(**values: Any) -> Iterator[None]:
    from vlmamba_eval.model_adapters.vlmamba.scan import triton as kernels

    before = {name: getattr(kernels, name) for name in values}
    for name, value in values.items():
        setattr(kernels, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(kernels, name, value)


def measure(seconds: float) -> list[dict[str, Any]]:
    """Rows of what, shape, setting, milliseconds; after `seconds` no further one is begun.

    Kernels are timed as replays of a CUDA graph: what the host needs for the launches counts only where it is said.
    """
    from vlmamba_eval.model_adapters.vlmamba.scan import triton as kernels

    began = time.monotonic()
    table: list[dict[str, Any]] = []

    def row(what: str, shape: tuple[int, ...], setting: str, run: Callable[[], object]) -> None:
        if time.monotonic() - began > seconds:
            return
        try:
            ms = milliseconds(run if "launches" in what else graphed(run))
        except Exception as cause:  # noqa: BLE001 - a setting may ask for more registers than there are
            torch.cuda.synchronize()
            print(f"{what:24s} {shape!s:16s} {setting:44s} {type(cause).__name__}", flush=True)
            return
        table.append({"what": what, "shape": shape, "setting": setting, "ms": ms})
        b, length, d = shape
        rate = b * length * d / ms / 1e6  # 1e9 channel-steps a second
        print(f"{what:24s} {shape!s:16s} {setting:44s} {ms:9.4f} ms {rate:8.1f} G/s", flush=True)

    for shape in [(1, 768, 5120), (8, 768, 5120), (32, 64, 5120), (128, 32, 5120), (1, 65536, 5120)]:
        case = inputs(*shape, torch.bfloat16)
        row("scan with its launches", shape, "as chosen", partial(kernels.selective_scan, **case))
        row("scan", shape, "as chosen", partial(kernels.selective_scan, **case))
        for vec, unroll, stages in [(2, 4, 1), (2, 4, 2), (2, 4, 3), (2, 2, 3), (2, 2, 4), (1, 4, 3), (4, 2, 3)]:
            with settings(_CHANNELS_PER_THREAD=vec, _UNROLL=unroll, _STAGES=stages):
                programs = shape[0] * -(-shape[2] // (32 * vec))
                warps = {max(1, min(132 * w // programs, shape[1] // 32)) for w in (0, 8, 16, 24)}
                for segments in sorted(warps):
                    label = f"{vec} channels, {unroll} tokens, {stages} stages, {segments} segments"
                    row("scan", shape, label, partial(kernels.selective_scan, **case, segments=segments))
        weight, bias = normal(shape[2], 4), normal(shape[2])
        row("convolution", shape, "", partial(scan.causal_conv, case["x"], weight, bias))

    for b in (1, 32, 128, 256):
        shape = (b, 1, 5120)
        case = inputs(*shape, torch.bfloat16)
        state, tail = torch.zeros(b, N, 5120, device="cuda"), normal(b, 3, 5120)
        row("step", shape, "", partial(scan.selective_step, **case, state=state, out=state))
        run = partial(scan.causal_conv_step, case["x"], normal(5120, 4), None, tail=tail, out=tail)
        row("convolution step", shape, "", run)

    training = [(64, 300, 384, torch.float32), (64, 300, 384, torch.bfloat16), (8, 1024, 5120, torch.bfloat16)]
    for b, length, d, dtype in training:
        shape, name = (b, length, d), str(dtype).removeprefix("torch.")
        case = inputs(*shape, dtype)
        checkpoints = torch.empty(b, -(-length // 16), N, d, device="cuda")
        forward = partial(kernels.selective_scan, **case, checkpoints=checkpoints)
        row("training forward", shape, name, forward)
        row("backward with launches", shape, name, _training(case, scan.selective_scan))
        dy, h = forward()
        backward = partial(kernels.scan_backward, dy, h, **case, lengths=None, checkpoints=checkpoints)
        for block in ((32, 1), (64, 1), (64, 2)):
            with settings(_BACKWARD=block):
                row("backward", shape, f"{name}, {block[0]} channels, {block[1]} warps", backward)
        weight, bias = normal(d, 4).to(dtype), normal(d).to(dtype)
        row("convolution backward", shape, name,
            partial(kernels.conv_backward, dy, case["x"], weight, bias, None, scan.WHOLE))  # fmt: skip
    return table


def _training(case: dict[str, Any], function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[[], object]:
    leaves = {name: t.detach().clone().requires_grad_() for name, t in case.items()}
    y, _ = function(**leaves, backend="autograd")
    return partial(torch.autograd.grad, y, list(leaves.values()), torch.ones_like(y), retain_graph=True)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", help="also write the numbers as JSON")
    parser.add_argument("--only", choices=["check", "time"])
    parser.add_argument("--seconds", type=float, default=150.0, help="begin no further timing after this long")
    options = parser.parse_args()
    import triton

    began = time.monotonic()
    machine = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}"
    print(machine, flush=True)
    checks = check() if options.only != "time" else Comparisons()
    print(f"{len(checks.all)} comparisons passed in {time.monotonic() - began:.0f} s. The worst of each kind:")
    for what, size, tolerance in checks.worst().values():
        print(f"  {what}: {size:.1e} of its largest number, at most {tolerance:.0e}", flush=True)
    table = measure(options.seconds) if options.only != "check" else []
    if options.out:
        with open(options.out, "w") as file:
            json.dump({"machine": machine, "checks": checks.all, "times": table}, file, indent=1)


if __name__ == "__main__":
    main()
