"""Depth encodings on planes, spheres and holes whose answers are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iumad.data.depth import (
    back_project,
    encode_depth,
    fill_invalid,
    remove_plane,
    robust_range,
    scale_depth,
    surface_normals,
    valid_mask,
)
from iumad.errors import ConfigError, DataError

SIZE = 48


def orthographic(z):
    """Points on a 1 mm raster below the given depth, x right, y down."""
    rows, columns = np.indices(z.shape)
    return np.stack([(columns - 20) * 1e-3, (rows - 20) * 1e-3, z], axis=-1).astype(np.float32)


def tilted_plane(a=0.3, b=-0.2, c=0.5):
    rows, columns = np.indices((SIZE, SIZE))
    return orthographic(a * (columns - 20) * 1e-3 + b * (rows - 20) * 1e-3 + c)


def test_valid_mask_by_hand():
    xyz = np.zeros((1, 3, 3), dtype=np.float32)
    xyz[0, 1] = [0, 0, 0.5]
    xyz[0, 2] = [0.1, 0, 0]
    assert valid_mask(xyz).tolist() == [[False, True, True]]


def test_fill_invalid_takes_the_nearest_valid_value():
    z = np.array([[1, 0, 0, 0, 5]], dtype=np.float32)
    valid = z > 0
    filled = fill_invalid(z, valid)
    assert filled[0, [0, 1, 3, 4]].tolist() == [1, 1, 5, 5]
    assert filled[0, 2] in (1, 5)  # as far from one as from the other
    assert z[0, 1] == 0  # the argument is left alone
    with pytest.raises(DataError, match="no valid pixel"):
        fill_invalid(z, np.zeros_like(valid))


def test_robust_range_by_hand():
    # z = 0, 1 .. 100: percentiles 1 and 99 are 1 and 99, a quarter of 98 is 24.5
    assert robust_range(np.arange(101, dtype=np.float32)) == pytest.approx((-23.5, 123.5))
    with pytest.raises(DataError, match="no valid pixel"):
        robust_range(np.zeros(0))


@given(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.sampled_from(["z", "z+normals"]))
def test_z_of_a_plane_comes_back_also_from_outside_the_range(a, b, encoding):
    plane = tilted_plane(a, b)
    low, high = 0.49, 0.52  # the plane reaches 0.5 +- (0.5 + 0.5) * 28 mm = 0.472 .. 0.528
    image = scale_depth(encode_depth(plane, encoding), low, high)
    assert image.dtype == np.float32
    # float32 around 1 resolves 1e-7 of 0.03 m; three roundings
    np.testing.assert_allclose(low + image[..., 0] * (high - low), plane[..., 2], atol=1e-7)


def test_z_has_three_equal_channels_and_known_values():
    plane = orthographic(np.full((SIZE, SIZE), 0.5) + np.linspace(0, 0.1, SIZE)[None, :])
    image = scale_depth(encode_depth(plane), 0.5, 0.7)
    assert (image[..., 0] == image[..., 1]).all()
    assert (image[..., 0] == image[..., 2]).all()
    np.testing.assert_allclose(image[0, [0, -1], 0], [0, 0.5], atol=1e-6)
    cut = scale_depth(encode_depth(plane), 0.52, 0.55, clip=True)
    assert (cut.min(), cut.max()) == (0, 1)
    flat = scale_depth(encode_depth(plane), 0.5, 0.5)
    assert (flat == 0.5).all()
    with pytest.raises(ConfigError, match="low < high"):
        scale_depth(encode_depth(plane), 0.6, 0.4)


def test_normals_of_a_plane():
    # z = a x + b y + c has the normal (a, b, -1) / |.|, whose z < 0 points to the camera
    a, b = 0.3, -0.2
    expected = np.array([a, b, -1]) / np.sqrt(a**2 + b**2 + 1)
    plane = tilted_plane(a, b)
    # z of 0.5 m in float32 is exact to 3e-8 m on 2 mm differences: 3e-5
    np.testing.assert_allclose(
        surface_normals(plane), np.broadcast_to(expected, plane.shape), atol=1e-4
    )
    x_and_y = encode_depth(plane, "z+normals")[..., 1:] * 2 - 1
    np.testing.assert_allclose(x_and_y, np.broadcast_to(expected[:2], x_and_y.shape), atol=1e-4)


def test_normals_beside_a_hole_stay_those_of_the_plane():
    plane = tilted_plane()
    expected = surface_normals(plane)
    plane[20:26, 15:30] = 0
    # next to the hole the difference is one-sided, which on a plane changes nothing
    np.testing.assert_allclose(surface_normals(plane), expected, atol=1e-4)


def test_normals_of_a_sphere():
    # sphere of 100 mm around (0, 0, 0.6): the normal of a point p is (p - centre) / radius
    radius, centre = 0.1, np.array([0, 0, 0.6])
    rows, columns = np.indices((SIZE, SIZE))
    x, y = (columns - 20) * 1e-3, (rows - 20) * 1e-3
    sphere = orthographic(0.6 - np.sqrt(radius**2 - x**2 - y**2))
    expected = (sphere - centre) / radius
    inner = (slice(1, -1), slice(1, -1))
    # central differences err by h^2 / 6 * z''' = 1e-6 / 6 * 3 x / radius^3 / .. < 2e-4 here
    np.testing.assert_allclose(surface_normals(sphere)[inner], expected[inner], atol=5e-4)


def test_isolated_points_face_the_camera():
    xyz = np.zeros((5, 5, 3), dtype=np.float32)
    xyz[2, 2] = [0, 0, 0.5]
    assert (surface_normals(xyz) == [0, 0, -1]).all()


def test_xyz255_wraps_like_the_release():
    # 0.5 m * 255 = 127.5 -> 127; -0.1 m -> -25.5 -> -25 -> 231; 1.2 m -> 306 -> 50
    xyz = np.array([[[0.5, -0.1, 1.2], [0, 0, 0]]], dtype=np.float32)
    np.testing.assert_array_equal(
        np.rint(encode_depth(xyz, "xyz255") * 255), [[[127, 231, 50], [0, 0, 0]]]
    )
    inside = np.array([[[0.25, 0.75, 1.0]]], dtype=np.float32)
    assert (np.abs(encode_depth(inside, "xyz255") - inside) < 1 / 255).all()


def test_back_projection_by_hand():
    depth = np.array([[2.0, 0.0], [2.0, 4.0]], dtype=np.float32)
    points = back_project(depth, fx=2.0, fy=4.0, cx=0.0, cy=1.0)
    # x = (column - 0) * z / 2, y = (row - 1) * z / 4
    assert points.tolist() == [[[0, -0.5, 2], [0, 0, 0]], [[0, 0, 2], [2, 0, 4]]]


@pytest.mark.parametrize("encoding", ["z", "z+normals", "xyz255"])
def test_encodings_stay_in_range(encoding):
    rng = np.random.default_rng(0)
    cloud = rng.normal(0.5, 0.3, (20, 30, 3)).astype(np.float32)
    cloud[rng.random((20, 30)) < 0.3] = 0
    image = encode_depth(cloud, encoding)
    if encoding != "xyz255":
        image = scale_depth(image, *robust_range(cloud[valid_mask(cloud)][:, 2]), clip=True)
    assert image.shape == (20, 30, 3)
    assert image.dtype == np.float32
    assert np.isfinite(image).all()
    assert 0 <= image.min() <= image.max() <= 1
    with pytest.raises(DataError, match="no valid pixel"):
        encode_depth(np.zeros((4, 4, 3), dtype=np.float32), encoding)


def scene_with_box(noise=2e-4, seed=0):
    """A tilted table at 0.6 m with a box of 20 mm height on it, and a hole in the measurement."""
    rng = np.random.default_rng(seed)
    cloud = tilted_plane(0.2, 0.1, 0.6)
    box = np.zeros((SIZE, SIZE), dtype=bool)
    box[15:35, 12:30] = True
    cloud[box, 2] -= 0.02
    cloud[..., 2] += rng.normal(0, noise, (SIZE, SIZE))
    cloud[40:44, 2:6] = 0
    return cloud, box


@pytest.mark.parametrize("seed", range(5))
def test_plane_removal_keeps_exactly_the_box(seed):
    cloud, box = scene_with_box(seed=seed)
    kept, foreground = remove_plane(cloud, np.random.default_rng(seed))
    assert (foreground == box).all()
    assert (kept[~box] == 0).all()
    assert (kept[box] == cloud[box]).all()


def test_plane_removal_survives_an_object_that_touches_the_border():
    cloud, box = scene_with_box()
    box[:] = False
    box[10:30, :] = True  # 20 of 48 rows, from the left border to the right one
    cloud[box, 2] -= 0.02
    cloud[box, 2] = np.minimum(cloud[box, 2], 0.6)
    _, foreground = remove_plane(cloud, np.random.default_rng(0))
    assert foreground[12:14, :].all()
    assert not foreground[:8].any()


def test_same_generator_same_plane():
    cloud, _ = scene_with_box()
    first, second = (remove_plane(cloud, np.random.default_rng(3))[0] for _ in range(2))
    assert (first == second).all()


def test_plane_removal_refuses_what_is_no_plane():
    rng = np.random.default_rng(0)
    rough = orthographic(rng.uniform(0.3, 0.9, (SIZE, SIZE)))
    with pytest.raises(DataError, match="do not lie in a plane"):
        remove_plane(rough, rng)
    with pytest.raises(DataError, match="nothing stands out"):
        remove_plane(tilted_plane(), rng)
    empty_border = np.zeros((SIZE, SIZE, 3), dtype=np.float32)
    empty_border[20:30, 20:30] = 0.5
    with pytest.raises(DataError, match="0 valid points"):
        remove_plane(empty_border, rng)
