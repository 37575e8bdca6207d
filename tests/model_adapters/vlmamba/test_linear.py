from __future__ import annotations

import pytest
import torch
from torch import nn

from vlmamba_eval.model_adapters.vlmamba import linear
from vlmamba_eval.model_adapters.vlmamba.linear import PackedLinear, linear_of, onednn_works, pack, pack_all

needs_onednn = pytest.mark.skipif(not onednn_works(), reason="no oneDNN in this PyTorch")


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 7), (2, 3, 7)])
def test_a_packed_layer_equals_the_layer(shape: tuple[int, ...], bias: bool) -> None:
    layer = nn.Linear(7, 11, bias=bias)
    packed = pack(layer)
    assert isinstance(packed, PackedLinear)
    x = torch.randn(shape)
    torch.testing.assert_close(packed(x), layer(x), rtol=1e-5, atol=1e-6)


@needs_onednn
def test_a_packed_layer_reads_views() -> None:
    layer = nn.Linear(7, 11)
    x = torch.randn(3, 4, 20)[..., 5:12]
    torch.testing.assert_close(pack(layer)(x), layer(x), rtol=1e-5, atol=1e-6)


def test_other_precisions_and_other_layers_are_left_alone() -> None:
    half, embedding = nn.Linear(7, 11, dtype=torch.bfloat16), nn.Embedding(3, 4)
    assert pack(half) is half
    assert pack(embedding) is embedding


def test_where_onednn_fails_its_check_nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("no such operator")

    class Wrong(PackedLinear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).bfloat16().float()

    layer = nn.Linear(7, 11)
    for name, value in (("PackedLinear", broken), ("PackedLinear", Wrong)):
        with monkeypatch.context() as patch:
            patch.setattr(linear, name, value)
            onednn_works.cache_clear()
            assert not onednn_works()
            assert pack(layer) is layer
    onednn_works.cache_clear()


@needs_onednn
def test_packing_a_module_reaches_every_linear_layer() -> None:
    module = nn.Sequential(nn.Linear(7, 8), nn.Sequential(nn.GELU(), nn.Linear(8, 3)))
    x = torch.randn(4, 7)
    expected = module(x)
    pack_all(module)
    assert not [child for child in module.modules() if isinstance(child, nn.Linear)]
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-6)


def test_a_layer_over_a_matrix_shares_its_memory() -> None:
    matrix = torch.randn(5, 3)
    assert linear_of(matrix).weight.data_ptr() == matrix.data_ptr()
