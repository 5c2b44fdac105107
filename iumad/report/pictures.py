"""Pictures of samples: image, depth, ground truth and anomaly maps, one column a sample."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import PIL.Image
from jaxtyping import Bool, Float, UInt8
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from iumad.config.schema import RunConfig
from iumad.data import open_dataset
from iumad.data.prepare import for_the_eye
from iumad.errors import DataError
from iumad.report.style import in_style, nothing_to_draw

CELL = 1.15  # inches
MAP_COLOURS = "inferno"  # ordered in lightness, also for colour-blind readers and in grey print
OUTLINE = "#00E5FF"

# A leading underscore: sizes may differ between the samples of one figure.
Image = UInt8[np.ndarray, "_h _w 3"]
Depth = Float[np.ndarray, "_h _w"]
Mask = Bool[np.ndarray, "_h _w"]
Map = Float[np.ndarray, "_h _w"]


def draw_maps(run: RunConfig, samples: pd.DataFrame, sample_ids: Sequence[str]) -> Figure:
    """Image, depth, ground truth and the anomaly maps of some methods, as `anomaly_grid` draws them.

    Parameters
    ----------
    run : RunConfig
        Of the data that are shown.
    samples : DataFrame
        Measurements of the kind "samples" (`iumad.study.measured`) of runs that differ in their method.
    sample_ids : sequence of str
        The columns; those without a map are left out.
    """
    drawn = samples[(samples["map"] != "") & samples["sample_id"].isin(list(sample_ids))]
    ids = [name for name in sample_ids if name in set(drawn["sample_id"])]
    if not ids:
        return nothing_to_draw()
    dataset = open_dataset(run.data)
    prepared = [for_the_eye(dataset.load(name), run.data, dataset.modalities) for name in ids]
    of_method = {
        str(method): part.set_index("sample_id").loc[ids]
        for method, part in drawn.groupby("method", sort=False)
    }
    size = run.data.image_size
    return anomaly_grid(
        [each.rgb for each in prepared if each.rgb is not None],
        [None if each.depth is None else each.depth[..., 0] for each in prepared],
        [each.outline for each in prepared],
        {
            name: [_map_of(row, size) for row in part.itertuples()]
            for name, part in of_method.items()
        },
        {name: part["score"].tolist() for name, part in of_method.items()},
        ["\n".join(name.split("/")[::2]) for name in ids],
    )


def _map_of(row: Any, size: int) -> np.ndarray:
    """The stored map of a sample at the size of its image."""
    grey = PIL.Image.open(io.BytesIO(base64.b64decode(row.map)))
    level = np.asarray(grey.resize((size, size), PIL.Image.Resampling.BILINEAR), dtype=float) / 255
    return row.low + (row.high - row.low) * level


@in_style
def anomaly_grid(
    images: Sequence[np.ndarray],
    depths: Sequence[np.ndarray | None],
    masks: Sequence[np.ndarray],
    maps: Mapping[str, Sequence[np.ndarray]],
    scores: Mapping[str, Sequence[float]],
    titles: Sequence[str],
) -> Figure:
    r"""Draw samples as columns; rows are image, depth, ground truth and one row of maps per method.

    Parameters
    ----------
    images : sequence of uint8 array (h, w, 3)
        RGB images.
    depths : sequence of array (h, w) or None
        Depth in any unit, grey from near (bright) to far within each sample; 0 and NaN are invalid
        and drawn in blue. The row is left out if all are None.
    masks : sequence of bool array (h, w)
        Ground truth; its outline is also drawn over the maps.
    maps : mapping of str to sequence of array (h, w)
        Per method, the anomaly map of each sample. A row has one colour scale.
    scores : mapping of str to sequence of float
        Per method, the image score of each sample, printed in its map.
    titles : sequence of str
        Heading of each column, e.g. "bagel\nhole".

    Raises
    ------
    DataError
        If the sequences differ in length, the methods differ, or a map has not its image's size.
    """
    _require_fitting(images, depths, masks, maps, scores, titles)
    names = ["image", "depth", "ground truth", *maps]
    if all(depth is None for depth in depths):
        names.remove("depth")

    n_columns = len(images)
    figure, axes = plt.subplots(
        len(names),
        n_columns + 1,  # the last column is for colour bars
        figsize=(CELL * n_columns + 1.1, CELL * len(names) + 0.5),
        width_ratios=[1] * n_columns + [0.08],
        squeeze=False,
    )
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    for axis in axes[:, :-1].flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(visible=True, color="#BBBBBB", linewidth=0.5)
    for name, axis in zip(names, axes[:, -1], strict=True):
        if name not in maps:
            axis.remove()
    row_of = dict(zip(names, axes, strict=True))
    for name, row in row_of.items():
        row[0].set_ylabel(name)

    for column, (image, depth, mask, title) in enumerate(
        zip(images, depths, masks, titles, strict=True)
    ):
        row_of["image"][column].imshow(image)
        row_of["image"][column].set_title(title, fontsize=8.5)
        row_of["ground truth"][column].imshow(image)
        _outline(row_of["ground truth"][column], mask)
        if depth is not None:
            _draw_depth(row_of["depth"][column], depth)
    for name in maps:
        _draw_maps(row_of[name], images, masks, maps[name], scores[name])
    return figure


def _draw_depth(axis: Axes, depth: Depth) -> None:
    valid = np.isfinite(depth) & (depth != 0)
    low, high = np.percentile(depth[valid], [1, 99]) if valid.any() else (0, 1)
    colours = plt.get_cmap("gray_r").with_extremes(bad="#9EC9E8")
    axis.imshow(np.ma.masked_array(depth, ~valid), cmap=colours, vmin=low, vmax=high)


def _draw_maps(
    axes: np.ndarray,
    images: Sequence[Image],
    masks: Sequence[Mask],
    maps: Sequence[Map],
    scores: Sequence[float],
) -> None:
    low, high = np.percentile(np.concatenate([each.ravel() for each in maps]), [1, 99.8])
    scale = Normalize(low, high, clip=True)
    for axis, image, mask, anomaly_map, score in zip(
        axes[:-1], images, masks, maps, scores, strict=True
    ):
        axis.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255)
        opacity = 0.25 + 0.65 * scale(
            anomaly_map
        )  # the object stays visible where nothing is found
        axis.imshow(anomaly_map, cmap=MAP_COLOURS, norm=scale, alpha=opacity)
        _outline(axis, mask)
        axis.text(
            0.04,
            0.04,
            f"{score:.3g}",
            transform=axis.transAxes,
            color="white",
            fontsize=7.5,
            bbox={"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1.5},
        )
    colours = ScalarMappable(scale, MAP_COLOURS)
    axes[0].figure.colorbar(colours, cax=axes[-1], label="anomaly score")
    axes[-1].tick_params(labelsize=7)


def _outline(axis: Axes, mask: Mask) -> None:
    if mask.any():
        axis.contour(mask, levels=[0.5], colors=OUTLINE, linewidths=1.1)


def _require_fitting(
    images: Sequence[np.ndarray],
    depths: Sequence[np.ndarray | None],
    masks: Sequence[np.ndarray],
    maps: Mapping[str, Sequence[np.ndarray]],
    scores: Mapping[str, Sequence[float]],
    titles: Sequence[str],
) -> None:
    if not images or not maps or list(maps) != list(scores):
        raise DataError(
            f"anomaly_grid needs images, and scores for the methods with maps, got {len(images)} "
            f"images, maps of {', '.join(maps)} and scores of {', '.join(scores)}"
        )
    lengths = {len(each) for each in (depths, masks, titles, *maps.values(), *scores.values())}
    if lengths != {len(images)}:
        raise DataError(f"{len(images)} images need as many of all else, got {sorted(lengths)}")
    for column, image in enumerate(images):
        for each in (depths[column], masks[column], *(maps[name][column] for name in maps)):
            if each is not None and each.shape != image.shape[:2]:
                raise DataError(
                    f"sample {column}: depth, mask and maps need the image's size "
                    f"{image.shape[:2]}, got {each.shape}"
                )
