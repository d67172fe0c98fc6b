"""Router maps: complete, in range, and on the person."""

import numpy as np
import torch

from evaluation.router_maps import score_map
from moa_model.applications import draw, heat, router_maps


def test_every_layer_and_step_looks_at_the_person(studio, men) -> None:
    with studio.adapter.recording() as steps:
        man = {"man": studio.crop(men[2])}
        drawn = draw(studio.pipe, studio.adapter, "a photo of a man on the beach", man, seed=3, **studio.call)
    maps = router_maps(steps)
    times = [int(time) for time in studio.pipe.scheduler.timesteps]
    experts_part = [time for time in times if time <= studio.adapter.prior_only_above]
    assert [step.timestep for step in steps] == experts_part and 0 < len(experts_part) <= len(times)
    assert maps.shape == (len(experts_part), 32, 16, 16)
    assert maps.min() >= 0 and maps.max() <= 1
    mask = studio.people([drawn])[0][0].mask
    assert mask is not None
    mean = score_map(maps.mean(dim=(0, 1)).numpy(), mask)
    assert mean is not None and mean.contrast > 0.1 and mean.auc > 0.8
    per_layer = [score_map(layer.numpy(), mask) for layer in maps.mean(dim=0)]
    assert np.mean([score is not None and score.contrast > 0 for score in per_layer]) > 0.8


def test_heat_runs_from_dark_to_light() -> None:
    ramp = heat(torch.linspace(0, 1, 12).expand(3, 12))
    assert ramp.size == (12, 3)
    brightness = np.asarray(ramp.convert("L"), int)
    assert (np.diff(brightness[0]) > 0).all() and (brightness == brightness[0]).all()
    assert np.array_equal(heat(torch.tensor([[-1.0, 2.0]])), heat(torch.tensor([[0.0, 1.0]])))
