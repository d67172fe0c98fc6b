"""What a run says at its end: every number that it is measured by, and how to fetch the result."""

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.summary import print_summary, pull_command
from infra.settings import load_settings


def _summary(**changes: Any) -> dict[str, Any]:
    measured = {"mean": 0.5, "std": 0.1, "low": 0.4, "high": 0.6, "samples": 9}
    return {
        "photos": {"in": 12, "kept": 9, "refused": {"duplicate": 1, "truncated": 2}},
        "truth": {"photos": 9, "people": 11, "caption_exact": 0.96, "mask_iou": 0.91},
        "training": {"loss_before": 0.4, "loss_after": 0.3, "falling": True, "start": "scratch"},
        "metrics": {
            name: measured for name in ("identity", "identity_gain", "scene_ratio", "object_ratio", "background_change")
        },
        "release": {"number": 1, "id": "0123456789abcdef", "promoted": True},
        "production": 1,
        "pull": "moa pull production DIR",
        "seconds": 200.0,
        **changes,
    }


def _printed(summary: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=40)
    print_summary(summary, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_everything_is_said_and_no_line_is_broken() -> None:
    printed = _printed(_summary(pull=f"moa pull production DIR --workspace {'x' * 99}"))
    for part in (
        "12 in, 9 kept, 3 refused: 1 duplicate, 2 truncated",
        "0.960 exactly right",
        "0.910 mean IoU over 11 people",
        "0.4000 → 0.3000 on the same samples and noise, falling (scratch)",
        "+0.500 over the prior",
        "0.500 of the prior's",
        "0.500 of another seed's change",
        "1 (0123456789abcdef), passed the gate",
        f"moa pull production DIR --workspace {'x' * 99}",
    ):
        assert part in printed, part


def test_what_was_not_measured_is_left_out() -> None:
    metrics = {**_summary()["metrics"], "object_ratio": {"mean": None}, "scene_ratio": None}
    printed = _printed(_summary(metrics=metrics, truth=None))
    assert "held objects" not in printed and "scene" not in printed and "captions" not in printed


def test_the_command_finds_the_workspace_again(tmp_path: Path) -> None:
    assert pull_command(load_settings("demo"), "production") == "moa pull production DIR"
    elsewhere = load_settings("demo", tmp_path / "my photos")
    assert pull_command(elsewhere, "2") == f"moa pull 2 DIR --workspace '{tmp_path / 'my photos'}'"
    assert pull_command(load_settings("sd15"), "production") == "moa pull production DIR --preset sd15"
