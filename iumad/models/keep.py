"""IB-IUMAD that forgets nothing: a trunk frozen after the base step, and small own parts. Not in the paper.

After the base step the network stays as it is, but for a few parameters (`model.own`) of which every later step
trains a copy, beginning with the base step's. An image is scored with the copy of its category, which the model
recognises itself: the nearest mean of frozen features, measured once when the category is learnt. Beside the
reconstruction stands a small bank of patches of the category; each map is in units of its mean on good images.
What an old category is scored with never changes, so its maps do not either, as long as it is still recognised.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from iumad.config.methods import KeepConfig
from iumad.features.cache import Batch, FeatureStore
from iumad.models.bank import distance_between_images, greedy_coreset, nearest_patches
from iumad.models.base import InputSpec, in_chunks
from iumad.models.detector import ReconstructionDetector

OWN = {"none": 0, "norms": 1, "queries": 2, "projections": 3}  # each with those before
BANK = "bank "  # before a modality: the name of its bank's map


class KeepDetector(ReconstructionDetector):
    """See the module's text.

    Parameters
    ----------
    config : KeepConfig
    spec : InputSpec
    n_categories : int

    Attributes
    ----------
    prototypes : of each category met so far, the mean over its training images of `summary`
    step_of : the number of the step that learnt each category
    units : of each category and map, the mean on good images
    own : step -> parameter -> value, of the steps that are finished
    banks : "category:modality" -> stored patches
    """

    config: KeepConfig

    def __init__(self, config: KeepConfig, spec: InputSpec, n_categories: int) -> None:
        super().__init__(config, spec, n_categories)
        self.prototypes: Float[Tensor, "y k"]
        self.step_of: Int[Tensor, " y"]
        self.units: Float[Tensor, "y maps"]
        banks = [BANK + modality for modality in spec.modalities] if config.patches else []
        self.maps = (*self.targets, *banks)
        size = len(spec.modalities) * spec.channels
        self.register_buffer("prototypes", torch.zeros(n_categories, size))
        self.register_buffer("step_of", torch.zeros(n_categories, dtype=torch.long))
        self.register_buffer("units", torch.ones(n_categories, len(self.maps)))
        self.own: dict[str, dict[str, Tensor]] = {}
        self.banks: dict[str, Float[Tensor, "m c"]] = {}
        self.rests = False

    @cached_property
    def own_parameters(self) -> dict[str, nn.Parameter]:
        """What a later step trains, by name; to look them up is a tenth of an image's time."""
        return {
            name: p
            for name, p in self.named_parameters()
            if 0 < _rank(name) <= OWN[self.config.own]
        }

    def begin_increment(self) -> None:
        """The trunk rests, its running statistics too; own parts begin as the base step left them."""
        self.rests = True
        self.requires_grad_(False)
        with torch.no_grad():
            for name, p in self.own_parameters.items():
                p.copy_(self.own["0"][name])
                p.requires_grad_(True)

    def train(self, mode: bool = True) -> "KeepDetector":
        """As ever, but batch norms of a frozen trunk go on as when scoring."""
        super().train(mode)
        for module in self.modules():
            if self.rests and isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.eval()
        return self

    @torch.no_grad()
    def fit(
        self, store: FeatureStore, sample_ids: Sequence[str], generator: torch.Generator
    ) -> None:
        """Statistics of the base step; means and banks of the step's categories."""
        super().fit(store, sample_ids, generator)
        for category, ids in self._by_category(store, sample_ids).items():
            batches = [batch.to(self.device) for batch in in_chunks(store, ids)]
            means = torch.cat([self.summary(batch) for batch in batches])
            self.prototypes[category] = means.mean(dim=0)
            self.step_of[category] = len(self.own)
            for place, name in enumerate(self.maps):
                if not name.startswith(BANK):
                    continue
                modality = name.removeprefix(BANK)
                images = torch.cat([self.standardised(batch, modality) for batch in batches])
                patches = images.flatten(0, 1)
                chosen = greedy_coreset(patches, self.config.patches, generator)
                self.banks[f"{category}:{modality}"] = patches[chosen].half()
                self.units[category, place] = distance_between_images(images)

    @torch.no_grad()
    def calibrate(self, store: FeatureStore, sample_ids: Sequence[str]) -> None:
        """Keep the step's own parts, and measure the unit of its categories' reconstruction."""
        step = str(int(self.step_of.max()))
        self.own[step] = {name: p.detach().clone() for name, p in self.own_parameters.items()}
        for category, ids in self._by_category(store, sample_ids).items():
            sums = torch.zeros(len(self.targets), device=self.device)
            for batch in in_chunks(store, ids):
                errors = super().residual_maps(batch.to(self.device))
                sums += torch.stack([error.mean(dim=(1, 2)).sum() for error in errors.values()])
            self.units[category, : len(self.targets)] = sums / len(ids)

    def summary(self, batch: Batch) -> Float[Tensor, "b k"]:
        """Mean over tokens of the standardised features, all modalities."""
        return torch.cat([self.standardised(batch, m).mean(dim=1) for m in self.modalities], dim=1)

    @torch.no_grad()
    def category_logits(self, batch: Batch) -> Float[Tensor, "b y"]:
        """Minus the distance to the mean of every category."""
        return -torch.cdist(self.summary(batch), self.prototypes)

    @torch.no_grad()
    def residual_maps(self, batch: Batch) -> dict[str, Float[Tensor, "b g g"]]:
        """Each map in units of its mean on good images of the category that is recognised."""
        return self._maps(batch, self.category_logits(batch).argmax(dim=1))

    @torch.no_grad()
    def token_map_of(self, batch: Batch, category: int) -> Float[Tensor, "b g g"]:
        """The token map of images that are all said to be of one category."""
        return self.combine(self._maps(batch, torch.full_like(batch.category, category)))

    def combine(self, residuals: dict[str, Float[Tensor, "b g g"]]) -> Float[Tensor, "b g g"]:
        """Root mean square of the maps, which have their units already."""
        return torch.stack([*residuals.values()]).square().mean(dim=0).sqrt()

    @torch.no_grad()
    def maps_and_logits(
        self, batch: Batch
    ) -> tuple[Float[Tensor, "b size size"], Float[Tensor, "b y"]]:
        """Both from one pass."""
        logits = self.category_logits(batch)
        return self.enlarge(self.combine(self._maps(batch, logits.argmax(dim=1)))), logits

    def _maps(
        self, batch: Batch, categories: Int[Tensor, " b"]
    ) -> dict[str, Float[Tensor, "b g g"]]:
        shape = (len(batch), self.grid, self.grid)
        found = {name: self.units.new_zeros(shape) for name in self.maps}
        for category in categories.unique().tolist():
            rows = categories == category
            part = batch.rows(rows)
            with self._own_parts(str(int(self.step_of[category]))):
                maps = super().residual_maps(part)
            for modality in self.modalities if self.config.patches else ():
                bank = self.banks[f"{category}:{modality}"].float()
                queries = self.standardised(part, modality).flatten(0, 1)
                distances = nearest_patches(queries, bank, 1)[0]
                maps[BANK + modality] = distances.view(-1, *shape[1:])
            for place, name in enumerate(self.maps):
                found[name][rows] = maps[name] / self.units[category, place]
        return found

    @contextmanager
    def _own_parts(self, step: str) -> Iterator[None]:
        """The network with the own parts of a finished step; one that is trained now has its own in place."""
        parameters = self.own_parameters if step in self.own else {}
        present = {name: p.data for name, p in parameters.items()}
        try:
            for name, p in parameters.items():
                p.data = self.own[step][name]
            yield
        finally:
            for name, p in parameters.items():
                p.data = present[name]

    @staticmethod
    def _by_category(store: FeatureStore, sample_ids: Sequence[str]) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        for sample_id in sample_ids:
            found.setdefault(int(store.batch([sample_id]).category), []).append(sample_id)
        return found

    def pretend_fitted(self, images: int) -> None:
        """Random patches for every category, and own parts of as many steps."""
        size = min(self.config.patches, images * self.grid**2)
        for category in range(self.n_categories):
            self.step_of[category] = category
            parameters = self.own_parameters
            self.own[str(category)] = {k: p.detach().clone() for k, p in parameters.items()}
            for modality in self.modalities if size else ():
                patches = torch.randn(size, self.channels, device=self.device)
                self.banks[f"{category}:{modality}"] = patches.half()

    def get_extra_state(self) -> dict[str, dict]:
        """Own parts and banks, so that `state_dict` is the whole model."""
        return {"own": self.own, "banks": self.banks}

    def set_extra_state(self, state: dict[str, dict]) -> None:
        """Put back what `get_extra_state` gave."""
        self.own = {step: dict(parts) for step, parts in state["own"].items()}
        self.banks = dict(state["banks"])
        self._apply_to_kept(lambda x: x.to(self.device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "KeepDetector":
        """Move own parts and banks with the rest of the model."""
        self._apply_to_kept(fn)
        self.__dict__.pop("own_parameters", None)
        return super()._apply(fn, recurse)

    def _apply_to_kept(self, fn: Callable[[Tensor], Tensor]) -> None:
        self.banks = {name: fn(bank) for name, bank in self.banks.items()}
        self.own = {k: {name: fn(x) for name, x in own.items()} for k, own in self.own.items()}


def _rank(name: str) -> int:
    """From which choice of `model.own` on a parameter is a step's own; 0: never."""
    if name.startswith("conditions.") or "head_" in name:
        return 0
    if name.startswith("project_"):
        return 3
    if name.rpartition(".")[2] in ("learned", "row", "column"):
        return 2
    return 1 if "norm" in name or name.endswith(".bias") else 0
