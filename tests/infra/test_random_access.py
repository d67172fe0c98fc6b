"""Any reads and jumps give what an ordinary file gives."""

import io

from hypothesis import given
from hypothesis import strategies as st

from infra.random_access import RandomAccess

DATA = bytes(range(100))


class _Pieces(RandomAccess):
    """Gives seven bytes at most."""

    def read_at(self, place: int, size: int) -> bytes:
        assert 0 <= place < place + size <= len(DATA)
        return DATA[place : place + min(size, 7)]


@given(st.lists(st.tuples(st.integers(-120, 120), st.sampled_from([0, 1, 2]), st.integers(0, 130)), max_size=12))
def test_it_reads_as_a_file_does(jumps: list[tuple[int, int, int]]) -> None:
    ours, file = io.BufferedReader(_Pieces(len(DATA)), 16), io.BytesIO(DATA)
    for offset, whence, size in jumps:
        start = (0, file.tell(), len(DATA))[whence]
        place = max(start + offset, 0)  # a file refuses places before its beginning
        assert ours.seek(place) == file.seek(place)
        assert ours.read(size) == file.read(size)


def test_places_are_counted_from_where_it_is_said() -> None:
    stream = _Pieces(len(DATA))
    assert stream.seek(-10, io.SEEK_END) == 90 and stream.seek(4, io.SEEK_CUR) == stream.tell() == 94
    assert stream.read(100) == DATA[94:] and stream.read(1) == b"" and stream.seek(-1) == 0
