from evaluation.instruments import InstrumentRecord
from tests.evaluation.paper_world import instruments


def test_without_faces_or_safety_there_is_nobody_to_ask() -> None:
    tools = instruments()
    assert tools.locate_face is None and tools.safety is None
    record = InstrumentRecord(name="lpips", location="./models", sha256="ab")
    assert InstrumentRecord.model_validate_json(record.model_dump_json()) == record
