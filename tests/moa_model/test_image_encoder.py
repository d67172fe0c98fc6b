import pytest
import torch
from PIL import Image

from infra.errors import UserError
from moa_model import ImageEncoder
from tests.tiny_models import IMAGE_DIM, tiny_clip


def test_features_are_clips_own_projected_embeddings(tmp_path) -> None:
    model, processor = tiny_clip(folder=tmp_path)
    photo = Image.effect_noise((40, 30), 90).convert("RGB")
    encoder = ImageEncoder.load(str(tmp_path))
    pixels = processor.image_processor(images=[photo], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    assert encoder.width == IMAGE_DIM
    torch.testing.assert_close(encoder.encode([photo]), expected)
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())


def test_grey_and_transparent_photos(tmp_path) -> None:
    tiny_clip(folder=tmp_path)
    encoder = ImageEncoder.load(str(tmp_path))
    assert encoder.encode([Image.effect_noise((9, 9), 90)]).isfinite().all()
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    grey = Image.new("RGB", (32, 32), (127, 127, 127))
    one, two = encoder.encode([clear, grey])
    torch.testing.assert_close(one, two)


def test_a_folder_without_an_encoder_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="No CLIP image encoder"):
        ImageEncoder.load(str(tmp_path))
