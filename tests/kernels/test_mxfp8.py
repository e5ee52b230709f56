"""MXFP8 weights: values written by hand, and products that are exact in the dequantised weights."""

import pytest
import torch

from m3_kernels import ops
from m3_kernels.layout import ExpertRows
from m3_kernels.mxfp8 import Mxfp8, quantise


def test_a_scale_is_a_power_of_two_for_each_32_values_of_a_row() -> None:
    values = torch.zeros(2, 64)
    values[0, :32], values[0, 32:], values[1, 5] = 1.5, -3.0, 448.0
    scales = torch.tensor([[127, 128], [120, 254]], dtype=torch.uint8)
    out = Mxfp8(values.to(torch.float8_e4m3fn), scales).dequantised()
    assert out[0].tolist() == [1.5] * 32 + [-6.0] * 32
    assert out[1, 5].item() == 448.0 * 2.0**-7
    assert out[1, 32:].tolist() == [0.0] * 32


def test_what_the_format_holds_survives_quantising() -> None:
    exact = torch.tensor([[0.0, 1.0, -1.75, 448.0] * 8, [2.0**-20, -(2.0**-21), 0.0, 1.5 * 2.0**-20] * 8])
    assert torch.equal(quantise(exact).dequantised(), exact)


def test_quantising_is_off_by_at_most_an_eighth_of_a_value_or_a_step_of_its_block() -> None:
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-9, 9, 40)[:, None]
    out = quantise(weight).dequantised()
    largest = weight.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True).expand(-1, -1, 32).flatten(-2)
    assert ((out - weight).abs() <= torch.maximum(weight.abs() / 8, largest * 2.0**-16)).all()
    assert (quantise(torch.zeros(1, 32)).dequantised() == 0).all()


def test_a_row_without_whole_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="a row of 48 values has no whole blocks of 32"):
        Mxfp8.empty((4, 48), "cpu")


def test_parts_are_views_that_fill_the_whole() -> None:
    whole = Mxfp8.empty((6, 64), "cpu")
    source = quantise(torch.randn(6, 64, generator=torch.Generator().manual_seed(1)))
    for part, rows in zip(whole.split([1, 2, 3]), source.split([1, 2, 3]), strict=True):
        part.copy_(rows)
    assert torch.equal(whole.dequantised(), source.dequantised())
    assert whole.nbytes == 6 * 64 + 6 * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_those_of_the_dequantised_weight(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3_kernels.mxfp8._TILE_ELEMENTS", 3 * 64)  # tiles of three rows, the last of one
    generator = torch.Generator().manual_seed(2)
    weight = quantise(torch.randn(10, 64, generator=generator))
    x = torch.randn(5, 64, generator=generator).to(dtype)
    expected = torch.nn.functional.linear(x, weight.dequantised(dtype))
    torch.testing.assert_close(
        ops.linear(x, weight), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-4
    )


def test_experts_in_mxfp8_are_those_of_the_dequantised_weights() -> None:
    generator = torch.Generator().manual_seed(3)
    gate_up = quantise(torch.randn(3, 64, 32, generator=generator))
    down = quantise(torch.randn(3, 32, 32, generator=generator))
    x = torch.randn(5, 32, generator=generator)
    rows = ExpertRows(torch.arange(5), torch.tensor([2, 2, 5], dtype=torch.int32))  # the second gets none
    clamp = {"alpha": 1.7, "limit": 7.0}
    torch.testing.assert_close(
        ops.run_experts(x, rows, gate_up, down, **clamp),
        ops.run_experts(x, rows, gate_up.dequantised(), down.dequantised(), **clamp),
        rtol=1e-5,
        atol=1e-4,
    )
