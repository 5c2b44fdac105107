"""Single files: exact types, the documented repairs, and refusals that name the file."""

import importlib.util
import struct
import zlib

import numpy as np
import pytest
import tifffile
import trees
from PIL import Image

from iumad.data.images import read_depth, read_mask, read_other, read_rgb, read_xyz
from iumad.errors import DataError


def test_colour_repairs(tmp_path):
    rgb = trees.rgb_array()
    alpha = np.full((*trees.SIZE, 1), 255, dtype=np.uint8)
    rgba = np.concatenate([rgb, alpha], axis=2)
    np.testing.assert_array_equal(read_rgb(trees.write_png(tmp_path / "a.png", rgba)), rgb)
    grey = read_rgb(trees.write_png(tmp_path / "g.png", rgb[..., 0]))
    np.testing.assert_array_equal(grey, np.repeat(rgb[..., :1], 3, axis=2))
    palette = Image.fromarray(rgb).quantize(16)
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "p.png"), np.array(palette.convert("RGB")))
    np.save(tmp_path / "n.npy", rgb)
    np.testing.assert_array_equal(read_rgb(tmp_path / "n.npy"), rgb)
    tifffile.imwrite(tmp_path / "t.tif", rgb, photometric="rgb")
    np.testing.assert_array_equal(read_rgb(tmp_path / "t.tif"), rgb)

    rgba[0, 0, 3] = 254
    with pytest.raises(DataError, match=r"b\.png: .*not opaque"):
        read_rgb(trees.write_png(tmp_path / "b.png", rgba))


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
@pytest.mark.parametrize("tag", [None, 1, *range(2, 9)])
def test_pictures_that_are_stored_turned(tmp_path, suffix, tag):
    """All three formats carry the same tag; viewers turn the picture, and masks would not match."""
    image, exif = Image.fromarray(trees.rgb_array()), Image.Exif()
    if tag is not None:
        exif[0x0112] = tag
    path = tmp_path / f"photo.{suffix}"
    image.save(path, exif=exif)
    if tag in (None, 1):
        assert read_rgb(path).shape == (*trees.SIZE, 3)
    else:
        with pytest.raises(DataError, match=rf"photo.*orientation tag {tag}.*save it upright"):
            read_rgb(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_images_of_other_sensors_are_read_as_stored(tmp_path, dtype):
    values = (np.arange(120).reshape(trees.SIZE) * 2).astype(dtype)
    for name, array in (("one.tiff", values), ("three.tiff", np.stack([values] * 3, axis=-1))):
        photometric = "rgb" if array.ndim == 3 else "minisblack"
        tifffile.imwrite(tmp_path / name, array, photometric=photometric)
        image = read_other(tmp_path / name)
        assert image.dtype == dtype
        np.testing.assert_array_equal(image, np.stack([values] * 3, axis=-1))
    if dtype == np.float32:
        values[0, 0] = np.nan
        tifffile.imwrite(tmp_path / "hole.tiff", values)
        with pytest.raises(DataError, match=r"hole\.tiff: holds NaN"):
            read_other(tmp_path / "hole.tiff")
    np.save(tmp_path / "int.npy", np.zeros((4, 4), dtype=np.int64))
    with pytest.raises(DataError, match="8 or 16 bits"):
        read_other(tmp_path / "int.npy")


def test_16_bit_colour_png(tmp_path):
    # Pillow writes none, but reads one as if it had 8 bits
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    pixels = zlib.compress(2 * (b"\0" + bytes(12)))
    path = tmp_path / "deep.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    with Image.open(path) as image:
        assert image.mode == "RGB"
    with pytest.raises(DataError, match=r"deep\.png: .* 8 bits per channel, got 16"):
        read_rgb(path)


def test_16_bit_grey_png_with_a_transparent_value(tmp_path):
    values = np.array([[0, 255, 256], [1000, 7, 59970]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "heat.png", transparency=7)
    np.testing.assert_array_equal(read_other(tmp_path / "heat.png")[..., 0], values)


def test_masks(tmp_path):
    mask = trees.mask_array() // 255 * 7
    np.testing.assert_array_equal(read_mask(trees.write_png(tmp_path / "m.png", mask)), mask > 0)
    for name in ("one.png", "one.tiff"):
        Image.fromarray(mask > 0).save(tmp_path / name)
        np.testing.assert_array_equal(read_mask(tmp_path / name), mask > 0)
    for name, array in (("rgb.png", trees.rgb_array()), ("m.jpg", mask)):
        with pytest.raises(DataError, match=name):
            read_mask(trees.write_png(tmp_path / name, array))
    np.save(tmp_path / "f.npy", mask / 7)
    with pytest.raises(DataError, match="whole numbers"):
        read_mask(tmp_path / "f.npy")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_wrong_coordinates_become_invalid(tmp_path, value):
    cloud = trees.xyz_array()
    cloud[2, 3, 0] = value
    xyz = read_xyz(trees.write_xyz(tmp_path / "c.tiff", cloud))
    assert (xyz[2, 3] == 0).all()
    cloud[2, 3] = 0
    np.testing.assert_array_equal(xyz, cloud)

    cloud[: trees.SIZE[0] // 2, :, 2] = value
    with pytest.raises(DataError, match=r"c\.tiff: 60 of 120 pixels are NaN"):
        read_xyz(trees.write_xyz(tmp_path / "c.tiff", cloud))


def test_point_clouds_of_the_wrong_kind(tmp_path):
    with pytest.raises(DataError, match="no valid pixel"):
        read_xyz(trees.write_xyz(tmp_path / "zero.tiff", trees.xyz_array() * 0))
    tifffile.imwrite(tmp_path / "z.tiff", trees.xyz_array()[..., 2])
    with pytest.raises(DataError, match=r"z\.tiff: a point cloud needs"):
        read_xyz(tmp_path / "z.tiff")
    with pytest.raises(DataError, match=r"rgb\.tiff: a point cloud needs"):
        read_xyz(trees.write_xyz(tmp_path / "rgb.tiff", trees.rgb_array()))
    np.save(tmp_path / "mm.npy", trees.xyz_array().astype(np.float64) * 1000)
    np.testing.assert_allclose(
        read_xyz(tmp_path / "mm.npy", scale=0.001), trees.xyz_array(), rtol=1e-6
    )


def test_depth_maps(tmp_path):
    stored = (trees.xyz_array()[..., 2] * 1000).astype(np.uint16)
    stored[0, 0] = 0
    expected = (stored * 0.001).astype(np.float32)
    tifffile.imwrite(tmp_path / "d.tiff", stored)
    np.save(tmp_path / "d.npy", stored)
    trees.write_png(tmp_path / "d.png", stored)
    for name in ("d.tiff", "d.npy", "d.png"):
        np.testing.assert_array_equal(read_depth(tmp_path / name, 0.001), expected)
    with pytest.raises(DataError, match="at least 16 bits, got uint8"):
        read_depth(trees.write_png(tmp_path / "8.png", stored.astype(np.uint8)))
    metres = expected.copy()
    metres[1, 1:3] = np.nan, -0.2
    np.save(tmp_path / "m.npy", metres)
    assert (read_depth(tmp_path / "m.npy")[1, 1:3] == 0).all()


def test_files_that_are_none(tmp_path):
    cases = {"empty.png": b"", "text.png": b"hello" * 20, "text.tiff": b"II*\0", "x.npy": b"PK\3\4"}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            read_rgb(tmp_path / name)
    with pytest.raises(DataError, match=r"none\.jpg"):
        read_rgb(tmp_path / "none.jpg")
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"object\.npy"):
        read_rgb(tmp_path / "object.npy")


def test_a_codec_that_is_not_installed_is_named(tmp_path):
    path = tmp_path / "depth.tiff"
    Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)).save(path, compression="tiff_lzw")
    if importlib.util.find_spec("imagecodecs"):
        assert (read_depth(path) == 0.5).all()
    else:
        with pytest.raises(DataError, match=r"depth\.tiff: .*LZW.*imagecodecs"):
            read_depth(path)
