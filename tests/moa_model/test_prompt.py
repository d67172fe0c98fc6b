import torch
from torch.nn import functional

from moa_model.prompt import MultimodalPrompt, one_hot_tokens, place, sines


def _random_prompt() -> MultimodalPrompt:
    torch.manual_seed(0)
    prompt = MultimodalPrompt(image_dim=3, text_dim=5, layers=32, timesteps=1000).double()
    with torch.no_grad():
        for parameter in prompt.parameters():
            parameter.normal_()
    return prompt


def test_changes_nothing_before_training() -> None:
    prompt = MultimodalPrompt(3, 5, 32, 1000)
    change = prompt(torch.randn(2, 1, 3), torch.randn(2, 1, 5), torch.tensor([1.0, 800.0]), torch.tensor([1, 3]))
    assert change.shape == (2, 2, 1, 5)
    assert not change.any()


def test_is_equation_8() -> None:
    prompt = _random_prompt()
    f, t = torch.randn(1, 1, 3).double(), torch.randn(1, 1, 5).double()
    change = prompt(f, t, torch.tensor([321.0]), torch.tensor([7]))[0, 0, 0]

    def norm(x: torch.Tensor, layer: torch.nn.LayerNorm) -> torch.Tensor:
        return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * layer.weight + layer.bias

    first, _, second = prompt.encoding.encode
    position = torch.cat([sines(torch.tensor([0.321]))[0], sines(torch.tensor([7 / 32]))[0]]).double()
    encoding = second.weight @ functional.silu(first.weight @ position + first.bias) + second.bias
    m = norm(torch.cat([f[0, 0], t[0, 0]]), prompt.norm_subject) + norm(encoding, prompt.norm_encoding)
    first, _, second = prompt.mlp
    expected = second.weight @ functional.gelu(first.weight @ m + first.bias) + second.bias
    torch.testing.assert_close(change, expected, rtol=1e-10, atol=1e-10)


def test_depends_on_timestep_and_layer() -> None:
    prompt = _random_prompt()
    f, t = torch.randn(1, 1, 3).double().expand(2, -1, -1), torch.randn(1, 1, 5).double().expand(2, -1, -1)
    change = prompt(f, t, torch.tensor([10.0, 700.0]), torch.tensor([1, 31]))
    assert (change[0, 0] - change[0, 1]).abs().max() > 1e-3
    assert (change[0, 0] - change[1, 0]).abs().max() > 1e-3


def test_place_changes_the_subjects_words_alone() -> None:
    text, change = torch.randn(2, 6, 5).double(), torch.randn(2, 2, 5).double()
    tokens = torch.tensor([[4, 1], [3, -1]])
    expected = text.clone()
    expected[0, 4] += change[0, 0]
    expected[0, 1] += change[0, 1]
    expected[1, 3] += change[1, 0]
    assert torch.equal(place(text, change, one_hot_tokens(tokens, 6, like=text)), expected)
