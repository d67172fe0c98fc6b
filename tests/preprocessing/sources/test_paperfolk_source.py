"""Paperfolk under its own name, so that drawn photos and FFHQ's, which have the same names, do not meet."""

from pathlib import Path

from preprocessing.sources import open_source
from preprocessing.sources.paperfolk import write_ffhq


def test_it_is_ffhqs_format_under_another_name(tmp_path: Path) -> None:
    write_ffhq(tmp_path, 3, 0, 32, flaws=False, processes=1)
    drawn, real = (list(open_source(f"{kind}:{tmp_path}").records()) for kind in ("paperfolk", "ffhq"))
    assert [record.origin for record in drawn] == [record.origin for record in real]
    assert {record.source for record in drawn} == {"paperfolk"} and drawn[0].author == "Paperfolk"
    assert "CC0" in open_source(f"paperfolk:{tmp_path}").terms
