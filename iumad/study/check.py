"""What can be known to fail before anything is computed: data, settings, and the sizes of every model."""

import torch

from iumad.config.schema import StudyConfig
from iumad.data import open_dataset
from iumad.errors import ConfigError
from iumad.features.backbone import Backbone
from iumad.models.base import InputSpec
from iumad.models.build import make_detector, with_random_weights
from iumad.models.device import pick_device
from iumad.study.steps import step_categories


def check_study(study: StudyConfig, device: str = "auto") -> None:
    """Open the data, split every setting, and make every model once without weights or data.

    Raises
    ------
    IumadError
        Device or data are not there, a setting does not use up the categories, the data lack a modality, or
        a model does not fit its sizes.
    """
    pick_device(device)
    dataset = open_dataset(study.data)
    channels = Backbone(study.features).channels
    made = set()
    for run in study.runs():
        absent = [name for name in run.modalities if name not in dataset.modalities]
        if absent:
            raise ConfigError(
                f"modalities: {run.modality} needs {', '.join(absent)}, which the data set {dataset.name!r} "
                f"does not have; it has {', '.join(dataset.modalities)}"
            )
        n_categories = len(step_categories(run, dataset.categories)[0])
        kind = (run.model.model_dump_json(), run.modalities)
        if kind not in made:
            spec = InputSpec(run.modalities, channels, run.features.grid, run.data.image_size)
            with torch.random.fork_rng(devices=[]):
                make_detector(with_random_weights(run.model), spec, n_categories)
            made.add(kind)
