from types import SimpleNamespace

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from moa_model.attention import AttentionMaps, MoAAttentionProcessor, MoAStep
from moa_model.layers import LayerShape
from moa_model.prompt import one_hot_tokens


def _layer(cross: bool) -> tuple[Attention, MoAAttentionProcessor]:
    torch.manual_seed(0)
    host = Attention(query_dim=6, cross_attention_dim=5 if cross else None, heads=2, dim_head=4).double()
    shape = LayerShape(
        name="x",
        block=0,
        cross=cross,
        hidden_dim=6,
        condition_dim=5 if cross else 6,
        inner_dim=8,
        heads=2,
        qkv_bias=False,
        out_bias=True,
    )
    layer = MoAAttentionProcessor(shape, index=1, cross_index=0).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return host, layer


def _split(key_value: torch.nn.Linear) -> list[SimpleNamespace]:
    return [SimpleNamespace(weight=weight) for weight in key_value.weight.chunk(2)]


def _by_hand(hidden, condition, query, key, value, out) -> tuple[torch.Tensor, torch.Tensor]:
    """One picture [N, C], two heads of width 4: the output, and the attention's mean over heads."""
    q, k, v = hidden @ query.weight.T, condition @ key.weight.T, condition @ value.weight.T
    attention = [(q[:, h : h + 4] @ k[:, h : h + 4].T / 2).softmax(dim=-1) for h in (0, 4)]
    merged = torch.cat([a @ v[:, h : h + 4] for a, h in zip(attention, (0, 4), strict=True)], dim=-1)
    return merged @ out.weight.T + out.bias, sum(attention) / 2


def test_cross_attention_is_the_papers_mixture() -> None:
    host, layer = _layer(cross=True)
    hidden, text = torch.randn(1, 3, 6).double(), torch.randn(1, 4, 5).double()
    change = torch.randn(1, 1, 2, 5).double()
    tokens = torch.tensor([[2, -1]])
    maps = AttentionMaps(blocks={0})
    step = MoAStep(change, one_hot_tokens(tokens, 4, like=text), maps=maps)
    with torch.no_grad():
        output = layer(host, hidden, text, moa=step)[0]
        prior, _ = _by_hand(hidden[0], text[0], host.to_q, host.to_k, host.to_v, host.to_out[0])
        condition = text[0].clone()
        condition[2] += change[0, 0, 0]
        e = layer.expert
        personal, attention = _by_hand(hidden[0], condition, e.query, *_split(e.key_value), e.out)
        router = (hidden[0] @ layer.router.weight.T + layer.router.bias).softmax(dim=-1)
    torch.testing.assert_close(output, router[:, :1] * prior + router[:, 1:] * personal, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(maps.router[1][0], router[:, 0])
    torch.testing.assert_close(maps.subject[1][0, 0], attention[:, 2])
    assert not maps.subject[1][0, 1].any()
    torch.testing.assert_close(layer(host, hidden, text, moa=MoAStep(change, step.token_BST))[0], output)


def test_self_attention_gives_both_experts_the_same_input() -> None:
    host, layer = _layer(cross=False)
    hidden = torch.randn(1, 3, 6).double()
    with torch.no_grad():
        output = layer(host, hidden, moa=MoAStep(torch.zeros(1, 1, 1, 5), torch.zeros(1, 1, 4)))[0]
        prior, _ = _by_hand(hidden[0], hidden[0], host.to_q, host.to_k, host.to_v, host.to_out[0])
        e = layer.expert
        personal, _ = _by_hand(hidden[0], hidden[0], e.query, *_split(e.key_value), e.out)
        router = (hidden[0] @ layer.router.weight.T + layer.router.bias).softmax(dim=-1)
    torch.testing.assert_close(output, router[:, :1] * prior + router[:, 1:] * personal, rtol=1e-10, atol=1e-10)


def test_a_router_that_says_prior_gives_the_stock_layer_bit_for_bit() -> None:
    for cross in (False, True):
        host, layer = _layer(cross)
        with torch.no_grad():
            layer.router.weight.zero_()
            layer.router.bias.copy_(torch.tensor([1e4, -1e4]))
            hidden = torch.randn(2, 9, 6).double()
            text = torch.randn(2, 4, 5).double() if cross else None
            step = MoAStep(torch.randn(1, 2, 1, 5).double(), torch.zeros(2, 1, 4).double())
            assert torch.equal(layer(host, hidden, text, moa=step), AttnProcessor2_0()(host, hidden, text))
            assert torch.equal(layer(host, hidden, text), AttnProcessor2_0()(host, hidden, text))


def test_a_mask_hides_tokens_from_both_experts() -> None:
    host, layer = _layer(cross=True)
    hidden, text = torch.randn(1, 3, 6).double(), torch.randn(1, 4, 5).double()
    mask = torch.tensor([[[0.0, 0.0, 0.0, -1e6]]]).double()
    other = text.clone()
    other[:, 3] += 7
    for maps in (None, AttentionMaps(blocks={0})):
        step = MoAStep(torch.zeros(1, 1, 1, 5).double(), torch.zeros(1, 1, 4).double(), maps=maps)
        same = [layer(host, hidden, condition, mask, moa=step) for condition in (text, other)]
        torch.testing.assert_close(*same)
