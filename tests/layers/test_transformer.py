from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import qat
from qat.layers.attention import OpenAttention
from qat.layers.transformer import OpenEncoderLayer, open_attention
from qat.models.patch_transformer import PatchTransformer

ROUNDING = 2e-6  # float32 sums of some 16 products of order 1, in another order than torch's closed operator


def encoder_layer(**settings: bool) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, **settings)


def encoder(**settings: bool) -> nn.TransformerEncoder:
    return nn.TransformerEncoder(encoder_layer(**settings), 2, norm=nn.LayerNorm(8), enable_nested_tensor=False)


def decoder(**settings: bool) -> nn.TransformerDecoder:
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, **settings), 2)


def transformer(**settings: bool) -> nn.Transformer:
    own = {"custom_encoder": encoder(**settings), "custom_decoder": decoder(**settings)}
    return nn.Transformer(8, 2, batch_first=settings.get("batch_first", False), **own)


def two_sequences(batch_first: bool) -> tuple[Tensor, Tensor]:
    x, y = torch.randn(3, 5, 8), torch.randn(3, 4, 8)
    return (x, y) if batch_first else (x.transpose(0, 1), y.transpose(0, 1))


@pytest.mark.parametrize("build", [encoder_layer, encoder, decoder, transformer])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_equals_torchs_in_both_modes(build: Callable[..., nn.Module], norm_first: bool, batch_first: bool):
    layer = build(norm_first=norm_first, batch_first=batch_first)
    names = [name for name, _ in layer.named_parameters()]
    opened = open_attention(copy.deepcopy(layer))
    assert type(opened) is not type(layer)
    assert [name for name, _ in opened.named_parameters()] == names
    inputs = two_sequences(batch_first)[: 2 if build in (decoder, transformer) else 1]
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    masked = {encoder_layer: "src_mask", encoder: "mask", decoder: "memory_mask", transformer: "src_mask"}[build]
    extras = [{}] if build is decoder else [{}, {masked: mask}]
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 4:] = True  # not read by any position that is compared: the keys alone
    extras += [{"src_key_padding_mask": padding}] if build in (encoder, transformer) else []
    for training in (True, False):
        for extra in extras:
            with torch.no_grad():  # torch's closed operator, in evaluation
                ours, theirs = opened.train(training)(*inputs, **extra), layer.train(training)(*inputs, **extra)
            torch.testing.assert_close(ours, theirs, rtol=ROUNDING, atol=ROUNDING)


def test_layers_that_are_tied_stay_tied_and_others_are_as_they_were():
    layer = encoder_layer(batch_first=True)
    model = nn.ModuleDict(
        {"first": layer, "again": nn.Sequential(layer), "whole": nn.MultiheadAttention(8, 2, add_zero_attn=True)}
    )
    opened = open_attention(model)
    assert opened is model
    assert type(opened["first"]) is OpenEncoderLayer
    assert opened["again"][0] is opened["first"]
    assert type(opened["first"].self_attn) is OpenAttention
    assert opened["first"].linear1 is layer.linear1
    assert type(opened["whole"]) is nn.MultiheadAttention


def test_a_mask_of_each_head_is_taken():
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    x, mask = torch.randn(3, 4, 8), torch.randn(6, 4, 4)  # [N heads, L, S]
    ours, theirs = OpenAttention.from_float(layer)(x, x, x, attn_mask=mask), layer(x, x, x, attn_mask=mask)
    torch.testing.assert_close(ours[0], theirs[0], rtol=ROUNDING, atol=ROUNDING)


def small() -> PatchTransformer:
    return PatchTransformer(width=16, depth=2, heads=2)


def test_the_products_of_an_encoder_run_on_integers():
    model, x = small().eval(), torch.randn(4, 3, 8, 8)
    prepared = qat.prepare(model, x)
    assert prepared.plan.int8_mac_share == 1.0
    kinds = [op.kind.split()[0] for op in prepared.plan.ops if op.integer]
    assert kinds.count("matmul") == 4  # two an attention
    assert kinds.count("linear") == 1 + 2 * 4 + 1  # in_proj, out_proj, linear1, linear2
    assert {"layernorm", "softmax", "gelu"} <= {op.kind.split()[0] for op in prepared.plan.in_float}
    qat.fake_quant(prepared, enabled=False)
    for training in (False, True):
        torch.testing.assert_close(prepared.train(training)(x), model.train(training)(x), rtol=1e-5, atol=1e-5)


class Named(nn.TransformerEncoderLayer):
    """A class of the user's own, which goes on to torch's forward."""

    def forward(self, src: Tensor, *rest: object, **named: object) -> Tensor:
        return super().forward(src, *rest, **named)


@pytest.mark.runtime
@pytest.mark.parametrize("cls", [nn.TransformerEncoderLayer, Named])
@pytest.mark.parametrize("placement", ["graph", "modules"])
def test_an_encoder_converts_and_is_exported(cls, placement, tmp_path):
    layer = cls(16, 2, 32, dropout=0.0, batch_first=True)
    model, x = nn.Sequential(nn.Linear(6, 16), layer, nn.Linear(16, 4)).eval(), torch.randn(4, 5, 6)
    prepared = qat.prepare(model, x, placement=placement)
    qat.calibrate(prepared, [x])
    assert (prepared.plan.int8_mac_share == 1.0) == (placement == "graph")  # in_proj and the products are no layers
    integer = qat.convert(prepared)
    with torch.no_grad():
        step = qat.verify(prepared, qat.export(integer, tmp_path / "int8.onnx"), [x], strict=False)
    assert step.stages[-1].max_steps <= 2.0  # ties of softmax and LayerNorm


def test_a_transformer_with_two_inputs_is_prepared():
    model = transformer(batch_first=True).eval()
    source, target = two_sequences(batch_first=True)
    prepared = qat.prepare(model, (source, target))
    assert prepared.plan.int8_mac_share == 1.0
    qat.fake_quant(prepared, enabled=False)
    torch.testing.assert_close(prepared.eval()(source, target), model(source, target), rtol=1e-5, atol=1e-5)
