"""Mamba-2's kernels on a real GPU: checked against float64, then timed beside the matrix products of their layers.

    python -m tests.gpu.ssd_on_gpu [--out FILE.json] [--only check|time] [--seconds N]

`check` is also the test of `test_ssd_on_gpu.py`. The timings print settings beside the default ones, so that the
constants in `ssd/triton.py` can be chosen again for another GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.gpu.scan_on_gpu import Comparisons, graphed, milliseconds
from tests.model_adapters.vlmamba.gradients import error
from vlmamba_eval.model_adapters.vlmamba import ssd
from vlmamba_eval.model_adapters.vlmamba.mamba2 import Mamba2Mixer
from vlmamba_eval.model_adapters.vlmamba.scan import Layout

# (heads, channels of a head, groups, state size): state-spaces/mamba2-2.7b, mmMamba, and sizes that fit no block.
SHAPES = {"mamba2-2.7b": (80, 64, 1, 128), "mmmamba": (16, 128, 16, 128), "odd": (6, 24, 2, 20)}


def inputs(
    shape: tuple[int, int, int, int], b: int, length: int, dtype: torch.dtype, seed: int = 0, device: str = "cuda"
) -> dict[str, Any]:
    """As a Mamba-2 layer hands them over: slices of one tensor, A -1 to -16, steps about 0.001 to 0.3."""
    h, p, g, n = shape
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device, dtype=dtype)

    x, B, C = normal(b, length, h * p + 2 * g * n).split([h * p, g * n, g * n], dim=-1)
    return {
        "x": x.unflatten(-1, (h, p)),
        "dt": normal(b, length, h),
        "A": -1 - 15 * torch.rand(h, generator=generator, device=device),
        "B": B.unflatten(-1, (g, n)),
        "C": C.unflatten(-1, (g, n)),
        "D": normal(h).float(),
        "dt_bias": normal(h).float() - 4.0,
    }


# =============================================================================
# Right or wrong
# =============================================================================


def check(device: str = "cuda") -> Comparisons:
    """All comparisons; raises AssertionError if some are too far off."""
    compare = Comparisons()
    rounding = {torch.float32: 2e-5, torch.bfloat16: 1.5e-2, torch.float16: 2e-3}
    lengths_of = {"mamba2-2.7b": (768, 40, 1), "mmmamba": (300, 17, 1), "odd": (130, 5, 1)}
    for name, shape in SHAPES.items():
        h, p, _, n = shape
        for length in lengths_of[name]:
            for dtype in rounding:
                b = 4
                case = inputs(shape, b, length, dtype, device=device)
                lengths = torch.tensor([length, length // 2, 0, max(1, length - 1)], device=device)
                more: dict[str, Any] = {
                    "state": torch.randn(3, h, p, n, device=device),
                    "layout": Layout(torch.tensor([2, -1, 0, 2], device=device), lengths),
                }
                exact: dict[str, Any] = {key: t.double() for key, t in case.items()}
                want_y, want_h = ssd.state_space_dual(
                    **exact, **{**more, "state": more["state"].double()}, backend="reference"
                )
                what = f"{name} {b}x{length} {dtype}"
                for backend in ("triton", "chunked"):
                    y, state = ssd.state_space_dual(**case, **more, backend=backend)
                    compare(f"{backend}-scan {what}", y, want_y, rounding[dtype])
                    # A step is float32 throughout; a chunk's products round their factors as the inputs are.
                    limit = 1e-5 if length == 1 or backend == "chunked" else rounding[dtype]
                    compare(f"{backend}-state {what}", state, want_h, limit)
                y, state = ssd.state_space_dual(**case, **more, backend="triton")
                pad = torch.arange(length, device=device) >= lengths[:, None]
                soiled: dict[str, Any] = {
                    key: t.masked_fill(pad.view(b, length, *[1] * (t.ndim - 2)), torch.nan) if t.ndim > 2 else t
                    for key, t in case.items()
                }
                again, again_state = ssd.state_space_dual(**soiled, **more, backend="triton")
                assert torch.equal(again, y), what
                assert torch.equal(again_state, state), what
    compare.raise_for_failures()
    _check_block(device)
    return compare


def _check_block(device: str) -> None:
    """A block that reads, forks and steps in a captured graph, against the same block in float64 on the whole."""
    torch.manual_seed(0)
    block = Mamba2Mixer(256, headdim=64, d_state=64).to(device).requires_grad_(False)
    exact = Mamba2Mixer(256, headdim=64, d_state=64).double().requires_grad_(False)  # on the CPU
    exact.load_state_dict({key: t.double().cpu() for key, t in block.state_dict().items()})
    prefix, more = torch.randn(1, 100, 256, device=device), torch.randn(3, 6, 256, device=device)
    _, tail, state = block(prefix)
    _, tails, states = block(more[:, :3], tail, state, Layout(torch.zeros(3, dtype=torch.long, device=device)))
    token, kept = torch.empty(3, 256, device=device), (tails.clone(), states.clone())
    out = block.step(token.copy_(more[:, 3]), tails, states)
    tails.copy_(kept[0])
    states.copy_(kept[1])
    if device == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = block.step(token, tails, states)
        step: Callable[[], Any] = graph.replay
    else:
        step = lambda: out.copy_(block.step(token, tails, states))  # noqa: E731
    want = exact(torch.cat([prefix.expand(3, -1, -1), more], 1).double().cpu())[0].to(device)
    for t in range(3, 6):
        token.copy_(more[:, t])
        step()
        assert error(out, want[:, 100 + t]) < 1e-4, t


# =============================================================================
# Time
# =============================================================================


def measure(seconds: float) -> list[dict[str, Any]]:
    """Times in ms: the scan alone, a whole block, and the block's two matrix products alone."""
    from vlmamba_eval.model_adapters.vlmamba.ssd import triton as kernels

    began, table = time.monotonic(), []

    def row(what: str, shape: str, setting: str, run: Callable[[], object]) -> float | None:
        if time.monotonic() - began > seconds:
            return None
        ms = milliseconds(run)
        table.append({"what": what, "shape": shape, "setting": setting, "ms": ms})
        print(f"{what:28} {shape:24} {setting:28} {ms:9.3f} ms", flush=True)
        return ms

    square = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    ms = milliseconds(lambda: square @ square)
    rate = 2 * 8192**3 / ms * 1e-9
    print(f"matrix products: {rate:.0f} TFLOP/s in bfloat16", flush=True)
    table.append({"what": "matrix rate", "tflops": rate})

    for name, d_model, expand in (("mamba2-2.7b", 2560, 2), ("mmmamba", 2048, 1)):
        _, p, g, n = SHAPES[name]
        torch.manual_seed(0)
        with torch.device("cuda"):
            block = Mamba2Mixer(d_model, d_state=n, headdim=p, ngroups=g, expand=expand, d_conv=4)
        block = block.bfloat16().requires_grad_(False)
        for parameter in (block.A_log, block.D, block.dt_bias):
            parameter.data = parameter.data.float()
        for b, length in ((1, 768), (8, 768), (32, 768), (64, 40), (256, 40)):
            shape = f"{name} {b}x{length}"
            case = inputs(SHAPES[name], b, length, torch.bfloat16)
            for chunk, warps, stages in ((64, 4, 2), (64, 8, 2), (128, 8, 2), (64, 4, 1), (32, 4, 2)):
                default = (chunk, warps, stages) == (kernels._CHUNK, kernels._WARPS, kernels._STAGES)
                before = kernels._CHUNK, kernels._WARPS, kernels._STAGES
                kernels._CHUNK, kernels._WARPS, kernels._STAGES = chunk, warps, stages
                try:
                    setting = f"{chunk} tokens, {warps} warps, {stages} stages{' *' if default else ''}"
                    row("scan", shape, setting, partial(ssd.state_space_dual, **case, backend="triton"))
                except Exception as error:  # noqa: BLE001 - a setting that does not fit this GPU
                    print(f"scan {shape} {chunk}/{warps}/{stages}: {type(error).__name__}: {str(error)[:80]}")
                finally:
                    kernels._CHUNK, kernels._WARPS, kernels._STAGES = before
            u = torch.randn(b, length, d_model, device="cuda", dtype=torch.bfloat16)
            inner = torch.randn(b, length, block.d_inner, device="cuda", dtype=torch.bfloat16)
            whole = row("block", shape, "", partial(block, u))
            products = row("its matrix products", shape, "", partial(_products, block, u, inner))
            if whole and products:
                sizes = sum(weight.numel() for part in (block.in_proj, block.out_proj) for weight in part.parameters())
                share = 2 * sizes * b * length / whole * 1e-9 / rate
                print(f"{'':28} {shape:24} {share:.0%} of the matrix rate, {products / whole:.0%} of its own products")
                table.append({"what": "share of matrix rate", "shape": shape, "share": share})
        for b in (1, 64, 256):
            tail = torch.zeros(b, *block.tail_shape, device="cuda", dtype=torch.bfloat16)
            state = torch.zeros(b, *block.state_shape, device="cuda")
            token = torch.randn(b, d_model, device="cuda", dtype=torch.bfloat16)
            row("step in a graph", f"{name} {b}", "", graphed(partial(block.step, token, tail, state)))
    return table


def _products(block: Mamba2Mixer, u: Tensor, inner: Tensor) -> None:
    block.in_proj(u)
    block.out_proj(inner)


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
    torch.backends.cuda.matmul.allow_tf32 = False
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
