from __future__ import annotations

from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from vlmamba_eval.model_adapters.vlmamba.config import ConnectorConfig
from vlmamba_eval.model_adapters.vlmamba.connector import Connector, VisionSelectiveScan, scan_orders

GRIDS = [(1, 1), (1, 5), (4, 1), (3, 3), (2, 5), (6, 4)]


def orders_by_hand(scan: str, h: int, w: int) -> list[list[int]]:
    """The paper's figure 3, index by index."""
    rows = []
    for i in range(h):
        for j in range(w):
            rows.append(i * w + j)
    columns = []
    for j in range(w):
        for i in range(h):
            columns.append(i * w + j)
    if scan == "bsm":
        return [rows, rows[::-1]]
    return [rows, rows[::-1], columns, columns[::-1]]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("scan", ["bsm", "csm"])
def test_scan_orders_are_the_papers(scan: Literal["bsm", "csm"], grid: tuple[int, int]) -> None:
    assert scan_orders(scan, *grid).tolist() == orders_by_hand(scan, *grid)


def test_the_column_scan_of_a_3_by_3_grid() -> None:
    assert scan_orders("csm", 3, 3)[2].tolist() == [0, 3, 6, 1, 4, 7, 2, 5, 8]


@pytest.mark.parametrize("merge", ["sum", "mean"])
@pytest.mark.parametrize("blocks", ["shared", "per_direction"])
@pytest.mark.parametrize("scan", ["bsm", "csm"])
def test_vss_is_the_merge_of_single_scans(
    scan: Literal["bsm", "csm"], blocks: Literal["shared", "per_direction"], merge: Literal["sum", "mean"]
) -> None:
    torch.manual_seed(0)
    h, w = 3, 5
    vss = VisionSelectiveScan(8, ConnectorConfig("vss_l2", scan=scan, blocks=blocks, merge=merge))
    orders = orders_by_hand(scan, h, w)
    assert len(vss.blocks) == (1 if blocks == "shared" else len(orders))
    x = torch.randn(2, h * w, 8)
    expected = torch.zeros_like(x)
    for direction, order in enumerate(orders):
        block = vss.blocks[0 if blocks == "shared" else direction]
        y = block(torch.stack([x[:, patch] for patch in order], dim=1))[0]
        for place, patch in enumerate(order):
            expected[:, patch] += y[:, place]
    if merge == "mean":
        expected /= len(orders)
    torch.testing.assert_close(vss(x, (h, w)), expected, rtol=1e-5, atol=1e-6)


def test_one_direction_alone_would_not_see_what_comes_later() -> None:
    """The last patch changes the first one's features only because of the reverse scan."""
    torch.manual_seed(0)
    vss = VisionSelectiveScan(8, ConnectorConfig("vss_l2"))
    x = torch.randn(1, 12, 8)
    changed = x.clone()
    changed[:, -1] += 1
    assert not torch.equal(vss(x, (3, 4))[:, 0], vss(changed, (3, 4))[:, 0])
    forward = vss.blocks[0]
    assert torch.equal(forward(x)[0][:, 0], forward(changed)[0][:, 0])


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("blocks", ["shared", "per_direction"])
@pytest.mark.parametrize("scan", ["bsm", "csm"])
@pytest.mark.parametrize("kind", ["mlp", "vss_mlp", "vss_l2"])
def test_every_connector_runs_forward_and_backward(
    kind: Literal["mlp", "vss_mlp", "vss_l2"],
    scan: Literal["bsm", "csm"],
    blocks: Literal["shared", "per_direction"],
    norm: Literal["layernorm", "rmsnorm"],
) -> None:
    torch.manual_seed(0)
    connector = Connector(6, 10, ConnectorConfig(kind, scan=scan, blocks=blocks, norm=norm))
    x = torch.randn(2, 12, 6, requires_grad=True)
    y = connector(x, (3, 4))
    assert y.shape == (2, 12, 10)
    y.square().mean().backward()
    assert x.grad is not None
    for name, parameter in connector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_vss_l2_skips_from_before_the_gelu() -> None:
    torch.manual_seed(0)
    connector = Connector(6, 10, ConnectorConfig("vss_l2"))
    x = torch.randn(1, 12, 6)
    v = connector.linear_in(x)
    expected = connector.linear_out(connector.norm(connector.vss(F.gelu(v), (3, 4)) + v))
    assert torch.equal(connector(x, (3, 4)), expected)


def test_vss_mlp_skips_the_encoders_features() -> None:
    torch.manual_seed(0)
    connector = Connector(6, 10, ConnectorConfig("vss_mlp"))
    x = torch.randn(1, 12, 6)
    first, second = connector.mlp[0], connector.mlp[2]
    expected = second(F.gelu(first(connector.norm(connector.vss(x, (3, 4)) + x))))
    assert torch.equal(connector(x, (3, 4)), expected)


def test_the_linear_connector_is_llavas() -> None:
    torch.manual_seed(0)
    connector = Connector(6, 10, ConnectorConfig("mlp"))
    x = torch.randn(1, 12, 6)
    assert [name for name, _ in connector.named_parameters()] == [
        "mlp.0.weight",
        "mlp.0.bias",
        "mlp.2.weight",
        "mlp.2.bias",
    ]
    assert torch.equal(connector(x, (3, 4)), connector.mlp[2](F.gelu(connector.mlp[0](x))))


def test_a_mean_merge_halves_or_quarters_the_sum() -> None:
    summed = VisionSelectiveScan(8, ConnectorConfig("vss_l2", scan="csm"))
    averaged = VisionSelectiveScan(8, ConnectorConfig("vss_l2", scan="csm", merge="mean"))
    averaged.load_state_dict(summed.state_dict())
    x = torch.randn(1, 12, 8)
    torch.testing.assert_close(averaged(x, (3, 4)) * 4, summed(x, (3, 4)))
