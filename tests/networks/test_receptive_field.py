from __future__ import annotations

from voxelwise.networks.receptive_field import Reach


def test_convolutions_add_up() -> None:
    assert Reach.of_input(1).conv(3).size == 3
    assert Reach.of_input(1).conv(3).conv(5).size == 7
    assert Reach.of_input(1).conv(3, dilation=2).size == 5
    assert Reach.of_input(1).convs(5, 3).size == Reach.of_input(1).conv(5).conv(5).conv(5).size == 13


def test_after_a_stride_a_step_is_longer() -> None:
    assert Reach.of_input(2).conv(2, stride=2).conv(3).size == 6
    assert Reach.of_input(4).conv(3, stride=2).conv(3, stride=2).size == 7


def test_the_way_up_depends_on_the_position() -> None:
    coarse = Reach.of_input(2).conv(2, stride=2).up(2)
    assert list(coarse.first) == [0, 0]
    assert list(coarse.last) == [1, 1]
    smoothed = coarse.conv(3)
    assert list(smoothed.first) == [-2, 0]
    assert list(smoothed.last) == [1, 3]
    assert smoothed.size == 4


def test_a_joined_map_sees_what_both_see() -> None:
    fine = Reach.of_input(2).conv(9)
    assert Reach.of_input(2).conv(2, stride=2).up(2).join(fine).size == 10 - 1


def test_unet_bottom_of_the_paper() -> None:
    """Ronneberger et al.: 140 pixels at the bottom."""
    seen = Reach.of_input(16)
    for level in range(5):
        seen = (seen.conv(2, stride=2) if level else seen).conv(3).conv(3)
    assert seen.size == 140


def test_valid_convolutions_see_ahead() -> None:
    seen = Reach.of_input(1).conv(3, padding=0).conv(3, padding=0)
    assert (list(seen.first), list(seen.last)) == ([0], [4])
    assert list(seen.crop(10).first) == [10]


def test_linear_interpolation_sees_two_voxels_below() -> None:
    """Voxel 0 lies between the last voxel before it and the first one, voxel 3 between that and the next."""
    fine = Reach.of_input(4).conv(4, stride=4, padding=0).linear(4)
    assert list(fine.first) == [-4, -4, 0, 0]
    assert list(fine.last) == [3, 3, 7, 7]


def test_an_up_convolution_of_another_kernel() -> None:
    odd = Reach.of_input(2).conv(1, stride=2).up(2, kernel=4, padding=1)
    assert (list(odd.first), list(odd.last)) == ([-2, 0], [0, 2])
