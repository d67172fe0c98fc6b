import infra.torchvision_ops  # noqa: F401
from infra.torchvision_ops import nms

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

corner = st.integers(0, 12)
boxes_and_scores = st.lists(
    st.tuples(corner, corner, st.integers(1, 8), st.integers(1, 8), st.integers(0, 5)), max_size=12
)


@given(boxes_and_scores, st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_nms_keeps_the_best_of_each_crowd(rows: list[tuple[int, ...]], threshold: float) -> None:
    boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h, _ in rows], dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor([float(row[4]) for row in rows])
    kept = nms(boxes, scores, threshold).tolist()
    assert kept == _nms_by_definition(boxes.double().numpy(), scores.numpy(), threshold)


def _nms_by_definition(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(_iou(boxes[i], boxes[j]) <= threshold + 1e-12 for j in kept):
            kept.append(i)
    return kept


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    overlap = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
    return float(overlap / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - overlap))


def test_torchvisions_own_entry_points_use_it() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
    scores = torch.tensor([0.5, 0.9, 0.7])
    assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == [1, 2]
    groups = torch.tensor([0, 1, 0])
    assert torchvision.ops.batched_nms(boxes, scores, groups, 0.5).tolist() == [1, 2, 0]
    assert torchvision.ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []


def test_boxes_without_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="boxes"):
        nms(torch.zeros(2, 4), torch.zeros(3), 0.5)
