import matplotlib.cbook
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch.nn import functional

from iumad.config.sections import FeaturesConfig
from iumad.errors import ConfigError
from iumad.features import backbone as features
from iumad.features.backbone import Backbone, imagenet_classifier

LITE0 = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def classifier():
    return imagenet_classifier(LITE0)[0]


def probabilities(classifier, photo: np.ndarray) -> torch.Tensor:
    """Of the 1000 ImageNet classes, for the photo's central square at 224 pixels."""
    image = Image.fromarray(photo)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    array = np.array(image.resize((224, 224), Image.Resampling.BICUBIC))
    tensor = torch.from_numpy(array).permute(2, 0, 1)[None].float() / 255
    cfg = classifier.pretrained_cfg
    mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        return classifier((tensor - mean) / std).softmax(dim=-1)[0]


def portrait() -> np.ndarray:
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        return np.array(Image.open(file))


@pytest.mark.parametrize(
    ("photo", "label"),
    [
        (portrait, 652),  # military uniform
        (lambda: load_sample_image("china.jpg"), 698),  # palace
        (lambda: load_sample_image("flower.jpg"), 985),  # daisy
    ],
    ids=["uniform", "palace", "flower"],
)
def test_the_weights_know_imagenet_from_photos_of_installed_packages(classifier, photo, label):
    given = probabilities(classifier, photo())
    assert given.argmax() == label
    assert given[label] > 0.2  # chance is 0.001


def test_the_weights_know_a_hazelnut_of_the_real_data(classifier, real_data):
    photo = np.array(Image.open(real_data / "real_rgb/hazelnut/test/good/000.png").convert("RGB"))
    assert probabilities(classifier, photo).argmax() == 988  # acorn


def test_the_backbone_holds_the_classifiers_weights(classifier):
    backbone = Backbone(FeaturesConfig())
    assert backbone.weights_hash == features.PACKAGED_WEIGHTS[LITE0][1]
    ours, theirs = backbone.levels.state_dict(), classifier.state_dict()
    assert len(ours) > 150
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not backbone.levels.training


def test_channels_of_all_levels_are_stacked_on_one_grid():
    backbone = Backbone(FeaturesConfig(weights="random", grid=5))
    assert backbone.channels == 16 + 24 + 40 + 112
    assert backbone(torch.rand(2, 3, 64, 32)).shape == (2, 192, 5, 5)


def test_a_level_whose_size_is_the_grid_is_not_resampled():
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    backbone = Backbone(FeaturesConfig(weights="random", grid=8, levels=(1, 2)))
    got = backbone(image)
    quarter, eighth = backbone.levels((image - 0.5) / 0.5)
    assert quarter.shape[-1] == 16
    assert eighth.shape[-1] == 8
    torch.testing.assert_close(got[:, 24:], eighth, rtol=0, atol=1e-6)  # inputs rounded differently
    # aligned corners: the corners of the larger map stay corners
    torch.testing.assert_close(got[0, :24, 0, -1], quarter[0, :, 0, -1], rtol=0, atol=1e-5)
    resized = functional.interpolate(quarter, (8, 8), mode="bilinear", align_corners=True)
    torch.testing.assert_close(got[:, :24], resized, rtol=0, atol=1e-6)


def test_the_key_covers_all_that_features_depend_on():
    configs = [
        FeaturesConfig(weights="random"),
        FeaturesConfig(grid=8),
        FeaturesConfig(levels=(0, 1)),
        FeaturesConfig(weights="random", backbone="mobilenetv3_small_050"),
    ]
    keys = [Backbone(config).key for config in configs]
    assert len(set(keys)) == len(keys)
    assert Backbone(FeaturesConfig(weights="random")).key == keys[0]  # the same ones every time


def test_random_weights_leave_the_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    imagenet_classifier(LITE0, "random")
    assert torch.equal(torch.rand(3), expected)


def test_other_weights_than_the_published_ones_are_refused(monkeypatch):
    package, _ = features.PACKAGED_WEIGHTS[LITE0]
    monkeypatch.setitem(features.PACKAGED_WEIGHTS, LITE0, (package, "0" * 64))
    with pytest.raises(ConfigError, match=r"\.pth: SHA-256 5793\w+, expected 0000"):
        imagenet_classifier(LITE0)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"backbone": "efficientnet_lite_0"}, "timm has no model 'efficientnet_lite_0'"),
        ({"weights": "random", "levels": (0, 9)}, r"features\.levels \(0, 9\)"),
    ],
)
def test_a_backbone_that_does_not_exist(config, text):
    with pytest.raises(ConfigError, match=text):
        Backbone(FeaturesConfig(**config))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(features.PACKAGED_WEIGHTS, LITE0, ("no_such_weights", "0" * 64))
    with pytest.raises(ConfigError, match="needs the package no-such-weights"):
        imagenet_classifier(LITE0)


def test_without_a_network_the_error_says_which_backbones_need_none(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(ConfigError, match=rf"resnet18.*no route to host.*{LITE0}"):
        imagenet_classifier("resnet18")
