"""A release's numbers and the instruments behind them."""

import pytest

from evaluation.metrics import Metrics
from evaluation.summary import summarise, summarise_columns
from tests.evaluation.paper_world import World, instruments, scored


def test_metrics_name_their_instruments_and_survive_json() -> None:
    tools = instruments()
    metrics = summarise(scored(World()), {"000001": [0.5, 0.7]}, tools.about)
    assert metrics.identity_real_photos is not None and metrics.identity_real_photos.mean == pytest.approx(0.6)
    assert metrics.instruments["identity"] == tools.records["identity"]
    assert metrics.perceptual_distance == "1 − cosine of CLIP's image embeddings"
    assert Metrics.model_validate_json(metrics.model_dump_json()) == metrics


def test_metrics_of_earlier_versions_are_read() -> None:
    old = Metrics.model_validate({"pictures": 4, "subjects": 2, "identity": {"mean": 0.5, "low": 0.4, "high": 0.6}})
    assert old.pair_identity is None and old.pictures_flagged is None and old.instruments == {}


def test_some_pictures_have_their_own_numbers() -> None:
    scores = scored(World(shift=4))
    whole, part = summarise_columns(scores), summarise_columns(scores.where(lambda cell: cell.subject == "000001"))
    assert whole["prior_fidelity"] is not None and part["prior_fidelity"] is not None
    assert part["prior_fidelity"].mean == pytest.approx(4, rel=0.05) and whole["prior_fidelity"].mean > 8
    assert part["prior_fidelity"].low == part["prior_fidelity"].high, "nobody to resample"
