from evaluation.metrics import Metrics


def test_unmeasured_is_none_and_survives_json() -> None:
    empty = Metrics(pictures=0, subjects=0)
    assert empty.identity is None
    assert empty.identity_by_subject == {}
    assert Metrics.model_validate_json(empty.model_dump_json()) == empty
