"""Label values and class numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.data import MetaTensor
from voxelwise.errors import CaseError
from voxelwise.transforms.labels import ToClasses, class_numbers, whole_labels


@given(st.lists(st.integers(0, 400), min_size=2, max_size=8, unique=True), st.data())
def test_values_come_back(values: list[int], data: st.DataObject) -> None:
    values = sorted(values)
    labels = data.draw(arrays(np.uint16, (3, 4, 2), elements=st.sampled_from(values)))
    classes = class_numbers(labels, values)
    assert classes.max() < len(values)
    np.testing.assert_array_equal(np.asarray(values)[classes], labels)


def test_nearly_whole_is_rounded_not_cut() -> None:
    labels, rounded = whole_labels(np.array([0, 0.9999999, 1.9999998], np.float32))
    assert labels.tolist() == [0, 1, 2]
    assert labels.dtype == np.uint8
    assert rounded or np.array([0.9999999], np.float32)[0] == 1


@pytest.mark.parametrize(
    ("bad", "words"), [([0.5, 0.5, 1], "2 voxels hold values that are not whole"), ([np.nan], "nan")]
)
def test_not_whole_is_refused(bad: list[float], words: str) -> None:
    with pytest.raises(CaseError, match=words) as caught:
        whole_labels(np.array(bad))
    assert caught.value.code == "label-not-whole"


def test_negative_and_huge_are_refused() -> None:
    with pytest.raises(CaseError, match="from -1 to 3, expected 0 to 65535"):
        whole_labels(np.array([-1, 3]))


def test_unknown_value_is_named_with_its_count() -> None:
    with pytest.raises(CaseError, match=r"label value 7 \(2 voxels\), expected 0, 1, 2"):
        class_numbers(np.array([0, 1, 7, 7], np.uint8), [0, 1, 2], "a.nii")


def test_step_takes_grey_in_colour_and_refuses_colours() -> None:
    grey = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 2, 1, 1).expand(3, 2, 1, 1)
    done = ToClasses(["label"], [0, 255])({"label": MetaTensor(grey)})
    assert done["label"].flatten().tolist() == [0, 1]
    colour = torch.stack([grey[0], grey[0] * 0, grey[0]])
    with pytest.raises(CaseError, match="3 channels that differ"):
        ToClasses(["label"], [0, 255])({"label": MetaTensor(colour)})
