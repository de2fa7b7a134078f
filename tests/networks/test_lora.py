"""Low-rank adapters on DiTs and decoders: which maps, what is trained, and what is written of them."""

from typing import Any

import pytest
import torch

from di4c_lm.mixtures.adaln import AdaLNSettings
from di4c_lm.mixtures.class_chain import ClassChainSettings
from di4c_lm.networks.lora import LoraSettings, adaptable, targeted
from tests.mixtures.helpers import on_dit, sampled
from tests.networks.helpers import BLOCKS, codes, decoder, dit, half, images, maskgit, tokens, unet

peft = pytest.importorskip("peft")


def lora(*targets: str, **more: Any) -> LoraSettings:
    return LoraSettings(**{"rank": 2, "alpha": 6, "targets": targets, **more})


def shaken(module: Any) -> Any:
    """B drawn too, so that the adapters do something."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=rng))
    return module


def test_linear_maps_but_the_output_head() -> None:
    names = adaptable(dit())
    assert "output_layer.linear" not in names and "output_layer.adaLN_modulation" in names
    assert (
        len(targeted(dit(), lora("attn_qkv"))) == BLOCKS
        and len(targeted(dit(), lora("mlp.0", "attn_out"))) == 2 * BLOCKS + 1
    )
    for tied in (False, True):
        assert "lm_head" not in adaptable(decoder(tied=tied))
    assert targeted(decoder(), lora("q_proj")) == [f"layers.{i}.self_attn.q_proj" for i in range(BLOCKS)]


@pytest.mark.parametrize("target", ["o_projection", "lm_head", "proj", "embed_tokens"])
def test_a_target_that_is_no_map_is_an_error_that_lists_them(target: str) -> None:
    with pytest.raises(ValueError, match=r"lora.targets must be .* q_proj, k_proj, v_proj, o_proj, .*got '" + target):
        decoder().adapt(lora("q_proj", target))


@pytest.mark.parametrize("make, target", [(dit, "attn_qkv"), (decoder, "q_proj")])
def test_only_adapters_are_trained_and_a_fresh_one_changes_nothing(make: Any, target: str) -> None:
    network, x_t = make(), tokens(2)
    before, names = network(x_t, half(2)).features, set(network.state_dict())
    network.adapt(lora(target))
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * BLOCKS and all(".lora_" in name for name in trained)
    torch.testing.assert_close(network(x_t, half(2)).features, before)
    assert set(network.tensors()) == names


@pytest.mark.parametrize("make, target", [(dit, "mlp.2"), (decoder, "down_proj")])
def test_what_is_written_is_merged(make: Any, target: str) -> None:
    network, plain, x_t = make(), make(), tokens(2)
    network.adapt(lora(target))
    found = shaken(network)(x_t, half(2)).features
    assert (found - plain(x_t, half(2)).features).abs().max() > 1e-3
    plain.load(network.tensors())
    torch.testing.assert_close(plain(x_t, half(2)).features, found, rtol=1e-6, atol=1e-6)
    state = {
        name: parameter.detach() * (0.5 if ".lora_B" in name else 1.0) for name, parameter in network.named_parameters()
    }
    weight = f"{targeted(plain, lora(target))[0]}.weight"
    base = make().state_dict()[weight]
    torch.testing.assert_close(network.tensors(state)[weight] - base, 0.5 * (network.tensors()[weight] - base))


def test_a_mixture_s_own_parameters_are_trained_beside() -> None:
    mixture = on_dit(AdaLNSettings(inject_at=0))
    names, x_t, lam = set(mixture.tensors()), tokens(2), sampled(on_dit(AdaLNSettings(inject_at=0)), 2, 3)
    mixture.adapt(lora("attn_qkv"))
    trained = {name for name, parameter in mixture.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if mixture.learns_apart(name)} == {
        name for name in trained if ".lora_" not in name
    }
    assert len([name for name in trained if ".lora_" in name]) == 2 * BLOCKS < len(trained)
    assert set(mixture.tensors()) == names
    found, plain = shaken(mixture)(x_t, half(2), lam).features, on_dit(AdaLNSettings(inject_at=0))
    plain.load(mixture.tensors())
    torch.testing.assert_close(plain(x_t, half(2), lam).features, found, rtol=1e-6, atol=1e-6)


def test_a_frozen_backbone_takes_none() -> None:
    mixture = ClassChainSettings(codebook_size=3).over(dit(), torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="lora.rank must be 0 where mixture.freeze_backbone=true, got 2"):
        mixture.adapt(lora("attn_qkv"))


def test_settings() -> None:
    with pytest.raises(ValueError, match="targets must be at least one name of a linear map"):
        LoraSettings(rank=4)
    with pytest.raises(ValueError, match="rank must be at least 0, got -1"):
        LoraSettings(rank=-1)
    assert set(LoraSettings().unused()) == {"alpha", "dropout", "targets", "adapters"} and not lora("x").unused()


@pytest.mark.parametrize("make, x, target", [(unet, images(2), "dense0"), (maskgit, codes(2), "out_proj")])
def test_networks_of_images_take_adapters_too(make: Any, x: torch.Tensor, target: str) -> None:
    network, plain = make(), make()
    network.adapt(lora(target))
    found = shaken(network)(x, half(2)).features
    assert (found - plain(x, half(2)).features).abs().max() > 1e-4
    plain.load(network.tensors())
    torch.testing.assert_close(plain(x, half(2)).features, found, rtol=1e-6, atol=1e-6)
