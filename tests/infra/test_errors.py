from infra.errors import UserError


def test_a_user_error_prints_as_its_sentence() -> None:
    assert (
        str(UserError("There is no preset 'x': choose demo or sd15.")) == "There is no preset 'x': choose demo or sd15."
    )
