from typing import Any

import pytest

from infra.errors import UserError
from infra.ray_session import map_shards, ray_session
from infra.settings import RaySettings

LOCAL = RaySettings(address="", num_cpus=2, object_store_mb=80)


class Doubling:
    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.calls = 0

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        if item["number"] < 0:
            raise UserError("A number is negative: send it elsewhere.")
        return {**item, "number": item["number"] * self.factor, "calls": self.calls}


def test_actors_keep_their_state_and_values_keep_their_types() -> None:
    items = [{"number": n, "none": None if n % 2 else "x", "rows": [{"a": []}] * n, "raw": b"\0"} for n in range(6)]
    with ray_session(LOCAL), ray_session(LOCAL):  # the inner one joins the outer one
        assert list(map_shards(Doubling, [], 2, (2,))) == []
        results = sorted(map_shards(Doubling, items, 2, (2,)), key=lambda result: result["number"])
        assert [result["number"] for result in results] == [0, 2, 4, 6, 8, 10]
        assert [{**result, "number": result["number"] // 2} | {"calls": 0} for result in results] == [
            {**item, "calls": 0} for item in items
        ]
        assert max(result["calls"] for result in results) >= 3  # two actors for six items, not one actor per item

        with pytest.raises(UserError, match="A number is negative: send it elsewhere"):
            list(map_shards(Doubling, [{"number": -1}], 1, (2,)))


def test_a_cluster_that_does_not_answer_is_named() -> None:
    with (
        pytest.raises(UserError, match="127.0.0.1:1.*ray.address"),
        ray_session(RaySettings(address="127.0.0.1:1", num_cpus=1, object_store_mb=80)),
    ):
        pass
