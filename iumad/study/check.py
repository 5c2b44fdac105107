"""What can be known to fail before anything is computed: data, settings, and the sizes of every model."""

import torch

from iumad.config.schema import StudyConfig
from iumad.data import open_dataset
from iumad.data.check import data_problems
from iumad.errors import ConfigError, DataError
from iumad.features.backbone import Backbone
from iumad.models.base import InputSpec
from iumad.models.build import make_detector, with_random_weights
from iumad.models.device import pick_device


def check_study(study: StudyConfig, device: str = "auto") -> list[str]:
    """Look the data over, split every setting, and make every model once without weights or data.

    Returns
    -------
    list of str
        What is odd about the data, but can be used.

    Raises
    ------
    IumadError
        Device or data are not there, the data cannot be meant as they are (`iumad.data.check.data_problems`), a
        setting does not use up the categories, the data lack a modality, or a model does not fit its sizes.
    """
    pick_device(device)
    dataset = open_dataset(study.data)
    errors, warnings = data_problems(dataset)
    if errors:
        more = f" (and {len(errors) - 1} more; `iumad data check` lists them)"
        raise DataError(errors[0] + (more if len(errors) > 1 else ""))
    channels = Backbone(study.features).channels
    made = set()
    for run in study.runs():
        absent = [name for name in run.modalities if name not in dataset.modalities]
        if absent:
            raise ConfigError(
                f"modalities: {run.modality} needs {', '.join(absent)}, which the data set {dataset.name!r} "
                f"does not have; it has {', '.join(dataset.modalities)}"
            )
        n_categories = len(run.steps_of(dataset.categories)[0])
        kind = (run.model.model_dump_json(), run.modalities)
        if kind not in made:
            spec = InputSpec(run.modalities, channels, run.features.grid, run.data.image_size)
            with torch.random.fork_rng(devices=[]):
                make_detector(with_random_weights(run.model), spec, n_categories)
            made.add(kind)
    return warnings
