import pytest
from pydantic import ValidationError

from moa_model import MoAConfig
from moa_model.layers import layer_shapes, shapes_digest
from tests.tiny_models import tiny_unet


def test_carries_the_bases_digest_and_refuses_a_wrong_one() -> None:
    layers = layer_shapes(tiny_unet())
    config = MoAConfig(image_dim=3, text_dim=4, layers=layers)
    assert config.base_digest == shapes_digest(layers)
    assert config.prior_only_above == 800
    assert MoAConfig.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValidationError, match="base_digest"):
        MoAConfig(image_dim=3, text_dim=4, layers=layers[:2], base_digest=config.base_digest)
    with pytest.raises(ValidationError, match="typo"):
        MoAConfig(image_dim=3, text_dim=4, layers=layers, typo=1)
