import pytest

from preprocessing.licences import collection_terms, is_non_commercial, shard_licences
from preprocessing.shards import encode_json, write_tar


def test_a_shards_photos_are_counted_by_source_and_licence() -> None:
    about = [
        {"source": "ffhq", "license": "CC BY 2.0"},
        {"source": "ffhq", "license": "CC BY 2.0"},
        {"source": "folder-1", "license": "ours", "consent": "forms"},
        {"source": "folder-1", "license": ""},
        {"source": "folder-1"},
        {},
    ]
    tar = write_tar((f"{i}", {"json": encode_json(one), "jpg": b"picture"}) for i, one in enumerate(about))
    assert shard_licences(tar) == {
        ("ffhq", "CC BY 2.0", ""): 2,
        ("folder-1", "ours", "forms"): 1,
        ("folder-1", "", ""): 2,
        ("", "", ""): 1,
    }


@pytest.mark.parametrize(
    ("source", "licence", "expected"),
    [
        ("folder-1", "CC BY 2.0", False),
        ("folder-1", "", False),
        ("folder-1", "Attribution-NonCommercial License", True),
        ("folder-1", "cc by-nc-sa 4.0", True),
        ("folder-1", "for non-commercial research", True),
        ("folder-1", "Encyclopedia licence", False),
        ("celeba", "", True),
        ("ffhq", "Public Domain Mark", True),  # the collection's own terms
        ("fastcomposer", "", True),
        ("paperfolk", "CC0", False),
    ],
)
def test_non_commercial_terms_are_known_by_their_words(source: str, licence: str, expected: bool) -> None:
    assert is_non_commercial(source, licence) is expected


def test_terms_are_those_of_known_collections() -> None:
    assert "NC" in collection_terms("ffhq") and collection_terms("folder-1") == ""
