import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import UserError
from infra.references import Reference, check_name, is_id, is_name, is_number, parse_reference, split_address

ID = "0123456789abcdef"


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("production", Reference("", "production", word=True)),
        ("moa", Reference("", "moa", word=True)),
        ("7", Reference("", "7")),
        ("0007", Reference("", "0007")),
        (ID, Reference("", ID)),
        ("moa@production", Reference("moa", "production")),
        ("paper-people@7", Reference("paper-people", "7")),
        (f"moa@{ID}", Reference("moa", ID)),
    ],
)
def test_a_reference_is_read(text: str, means: Reference) -> None:
    assert parse_reference(text) == means


@pytest.mark.parametrize(
    "text",
    ["", "@", "moa@", "@7", "moa@7@8", "Moa", "moa@Production", "../x", "moa/7", "moa 7", "moa@7 ", "moa@../7", "é",
     "log", "a" * 64, "-moa", "7x", "123456789", "moa@log", f"{ID}@7", "7@7", "moa\n", "moa@production\n"],
)  # fmt: skip
def test_what_is_none_is_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match="names no release: write MODEL@") as caught:
        parse_reference(text)
    assert "\n" not in str(caught.value)


@given(st.text() | st.from_regex(r"[a-z0-9@./-]{0,30}", fullmatch=True))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    try:
        reference = parse_reference(text)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
        return
    assert text in (reference.which, f"{reference.model}@{reference.which}")
    for part in filter(None, (reference.model, reference.which)):
        assert not set(part) - set("abcdefghijklmnopqrstuvwxyz0123456789-") and len(part) <= 63
        assert [is_name(part), is_number(part), is_id(part)].count(True) in (1, 2)  # 16 digits are no number


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("s3://bucket/prefix/moa@7", ("s3://bucket/prefix", "moa@7")),
        ("s3://bucket/moa", ("s3://bucket", "moa")),
        ("runs/demo/store/production", ("runs/demo/store", "production")),
        ("/moa@7", ("/", "moa@7")),
        ("./7", (".", "7")),
        ("moa@7", ("", "moa@7")),
    ],
)
def test_an_address_is_a_registry_and_a_reference(text: str, parts: tuple[str, str]) -> None:
    assert split_address(text) == parts


def test_names_are_checked() -> None:
    assert check_name("staging", "release") == "staging"
    for wrong in ("Staging", "", ID, "log", "a/b", "7"):
        with pytest.raises(UserError, match="cannot name a model"):
            check_name(wrong, "model")
