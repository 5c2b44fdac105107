"""A look inside a trained model: classifiers, gates, what is protected, what probes read of its features.

The paper explains its gain by parts that can be looked at: a classifier that tells categories apart gates the
reconstruction, two label distributions agree, a projection keeps what earlier features used. Its Corollary 2 says
that the bottleneck keeps what tells the category and drops what is redundant. A trained network is a deterministic
map, so the mutual information of its features with an image is no finite number that could be measured. What a
linear probe can use of it is (Xu et al., ICLR 2020), in bits and from below:

- category Y: H(Y) minus the cross-entropy of a logistic regression on images that it has not seen;
- a number such as the strength of a perturbation: -1/2 log2(1 - R^2) of a ridge regression on such images, which
  is the mutual information if both are Gaussian.

All versions of one image stay in one fold, so a probe cannot know an image again.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float32, Int
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, log_loss, r2_score
from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from iumad.config.schema import RunConfig
from iumad.config.sections import PerturbConfig
from iumad.data.perturb import PerturbedDataset
from iumad.errors import ConfigError, DataError
from iumad.evaluation.evaluate import anomaly_maps
from iumad.features import open_store
from iumad.features.cache import Batch
from iumad.models.detector import Output, ReconstructionDetector, gate_figures
from iumad.models.fusion import kl_categorical
from iumad.study.runner import RunWork, remembered_after, trained_detector
from iumad.study.steps import steps_of
from iumad.training.increments import projections

FOLDS, INNER_FOLDS = 5, 3
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # C of the logistic regression, chosen on the training folds
PENALTIES = tuple(
    10.0**power for power in range(-2, 6)
)  # of the ridge regression, chosen in the same way


def probe(
    representations: Mapping[str, Float[np.ndarray, "n _"]],
    targets: pd.DataFrame,
    groups: pd.Series,
) -> pd.DataFrame:
    """What each representation tells about each target.

    Parameters
    ----------
    representations : mapping
        Name -> one row of features an image, e.g. "before" and "after".
    targets : pandas.DataFrame
        One row an image. A column of text is a class, a column of numbers is regressed; where a value is missing,
        the image is left out for that target.
    groups : pandas.Series
        What the rows are versions of, e.g. the sample's id.

    Returns
    -------
    pandas.DataFrame
        representation, target, score (accuracy, or R^2), chance (of the largest class, or 0), bits (at least 0),
        possible (entropy of the classes in bits; missing for a number), n.

    Raises
    ------
    DataError
        The lengths differ, or a target has one value or fewer groups than folds.
    """
    lengths = {name: len(features) for name, features in representations.items()}
    lengths |= {"targets": len(targets), "groups": len(groups)}
    if len(set(lengths.values())) > 1:
        raise DataError(f"one row an image is needed everywhere, got {lengths}")
    records = []
    for target in targets:
        known = targets[target].notna().to_numpy()
        values, within = targets[target][known], _numbered(groups[known])
        if values.nunique() < 2 or len(np.unique(within)) < FOLDS:
            raise DataError(
                f"target {target} needs 2 values and {FOLDS} groups, got {values.nunique()} and "
                f"{len(np.unique(within))}"
            )
        measure = _number if pd.api.types.is_numeric_dtype(values) else _classes
        for name, features in representations.items():
            chosen = np.asarray(features, dtype=np.float64)[known]
            records.append((name, target, *measure(chosen, values, within), len(values)))
    columns = ["representation", "target", "score", "chance", "bits", "possible", "n"]
    return pd.DataFrame(records, columns=columns)


def _classes(
    features: Float[np.ndarray, "n d"], values: pd.Series, groups: Int[np.ndarray, " n"]
) -> tuple[float, float, float, float]:
    labels = _numbered(values)
    shares = np.bincount(labels) / len(labels)
    predicted = np.full((len(labels), len(shares)), np.nan)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for train, test in folds.split(features, labels, groups):
        inner = StratifiedGroupKFold(INNER_FOLDS, shuffle=True, random_state=0)
        model = GridSearchCV(
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
            {"logisticregression__C": STRENGTHS},
            scoring="neg_log_loss",
            cv=inner,
        )
        model.fit(features[train], labels[train], groups=groups[train])
        predicted[test] = model.predict_proba(features[test])
    entropy = float(-(shares * np.log2(shares)).sum())
    bits = entropy - log_loss(labels, predicted) / np.log(2)
    accuracy = accuracy_score(labels, predicted.argmax(axis=1))
    return float(accuracy), float(shares.max()), max(float(bits), 0.0), entropy


def _number(
    features: Float[np.ndarray, "n d"], values: pd.Series, groups: Int[np.ndarray, " n"]
) -> tuple[float, float, float, float]:
    numbers = values.to_numpy(dtype=np.float64)
    predicted = np.full(len(numbers), np.nan)
    for train, test in GroupKFold(FOLDS, shuffle=True, random_state=0).split(
        features, groups=groups
    ):
        model = GridSearchCV(
            make_pipeline(StandardScaler(), Ridge()),
            {"ridge__alpha": PENALTIES},
            cv=GroupKFold(INNER_FOLDS, shuffle=True, random_state=0),
        )
        model.fit(features[train], numbers[train], groups=groups[train])
        predicted[test] = model.predict(features[test])
    share = float(r2_score(numbers, predicted))
    bits = -0.5 * np.log2(1 - min(max(share, 0.0), 1 - 1e-12))
    return share, 0.0, float(bits), float("nan")


def _numbered(values: pd.Series) -> Int[np.ndarray, " n"]:
    return np.unique(values.astype(str).to_numpy(), return_inverse=True)[1].astype(np.int64)


def diagnose(run: RunConfig, folder: str | Path, device: str = "auto") -> pd.DataFrame:
    """What a finished run's model knows after each step, on good test images of the categories seen so far.

    Parameters
    ----------
    run : RunConfig
        Of a method with a network.
    folder : path
        Results folder; missing steps are trained.
    device : "auto", "cpu", "cuda", "cuda:1", ...

    Returns
    -------
    DataFrame
        step, categories ("earlier" or "this step"), quantity, value. Quantities: ``accuracy M`` of the classifier
        of modality M (Eq. 3); ``accuracy before`` and ``after`` the bottleneck (heads of Eq. 8); ``KL`` of the two
        in nats; ``gate M``, the share of the variance of the last gate's channel means that lies between
        categories, in [0, 1]; ``attention M`` and ``gate size M`` of `gate_figures`; ``frozen``, the share of the
        earlier features' second moment that the projection of the step keeps updates away from, mean over
        protected layers (only for categories "earlier").
    """
    work = RunWork(run, device)
    records: list[dict] = []
    for step in steps_of(run, folder, work.dataset):
        detector = trained_detector(work, step)
        assert isinstance(detector, ReconstructionDetector)
        earlier = step.previous.seen if step.previous else ()
        groups = {"earlier": list(earlier), "this step": list(step.categories)}
        for group, categories in groups.items():
            if not categories:
                continue
            batch = work.store.batch(_good_images(work, categories)).to(work.device)
            inside = look_inside(detector, batch)
            if step.previous and group == "earlier" and run.increment.strategy == "projection":
                inside["frozen"] = frozen_share(remembered_after(work, step.previous))
            records += [
                {"step": step.number, "categories": group, "quantity": name, "value": value}
                for name, value in inside.items()
            ]
    return pd.DataFrame(records)


@torch.no_grad()
def look_inside(detector: ReconstructionDetector, batch: Batch) -> dict[str, float]:
    """Accuracies, KL and gates of one batch; see `diagnose`. What the model does not have is left out."""
    gates: dict[str, Tensor] = {}
    handles = [
        network.register_forward_hook(
            lambda _module, _inputs, outputs, m=modality: gates.update({m: outputs[0][-1]})
        )
        for modality, network in detector.conditions.items()
    ]
    try:
        output: Output = detector.eval()(batch)
    finally:
        for handle in handles:
            handle.remove()
    labels = batch.category
    found = {f"accuracy {m}": accuracy(logits, labels) for m, logits in output.logits.items()}
    if output.fused_logits is not None and output.filtered_logits is not None:
        found["accuracy before"] = accuracy(output.fused_logits, labels)
        found["accuracy after"] = accuracy(output.filtered_logits, labels)
        found["KL"] = float(kl_categorical(output.fused_logits, output.filtered_logits).mean())
    found |= {f"gate {m}": between_share(x.mean(dim=1), labels) for m, x in gates.items()}
    return found | gate_figures(detector, batch)


def accuracy(logits: Float[Tensor, "b y"], labels: Int[Tensor, " b"]) -> float:
    """Share of images whose largest logit is that of their category."""
    return float((logits.argmax(dim=1) == labels).double().mean())


def between_share(values: Float[Tensor, "b d"], labels: Int[Tensor, " b"]) -> float:
    """Share of the variance between categories (eta squared), over all channels; NaN for one category."""
    if len(labels.unique()) < 2:
        return float("nan")
    values = values.double()
    centre = values.mean(dim=0)
    total = (values - centre).square().sum()
    between = sum(
        (labels == label).sum() * (values[labels == label].mean(dim=0) - centre).square().sum()
        for label in labels.unique()
    )
    return float(between / total) if total > 0 else 0.0


def frozen_share(memory: Mapping[str, Float[Tensor, "d d"]]) -> float:
    """trace((I - P) G) / trace(G), mean over layers; G earlier features' second moments, P IUF's."""
    shares = [
        1 - float(torch.trace(p.double() @ memory[name]) / torch.trace(memory[name]))
        for name, p in projections(dict(memory)).items()
    ]
    return sum(shares) / len(shares)


def _good_images(work: RunWork, categories: list[str]) -> list[str]:
    index = work.dataset.index
    chosen = (index["split"] == "test") & (index["label"] == 0)
    return index[chosen & index["category"].isin(categories)]["sample_id"].tolist()


DOSES = (0.0, 0.5, 1.0)
PROBED_IMAGES = 10  # of each category; each goes through the backbone in every pair of doses


def bottleneck_features(
    run: RunConfig, folder: str | Path, device: str = "auto", doses: Sequence[float] = DOSES
) -> tuple[dict[str, Float32[np.ndarray, "n d"]], pd.DataFrame]:
    """Fused features of some good test images before and after the bottleneck, clean and perturbed in every dose.

    Parameters
    ----------
    run : RunConfig
        Of a method with a bottleneck; its last step is looked into, and trained if need be.
    folder : path
        Results folder.
    device : "auto", "cpu", "cuda", "cuda:1", ...
    doses : sequence of float
        Strengths of redundant noise and of spurious backgrounds; all pairs are tried on every image.

    Returns
    -------
    dict, DataFrame
        "before" and "after": means over tokens of F_fu and F_fu^g, one row an image, as the heads of the two
        predictions see them. And of the rows: sample_id, category, redundant, spurious, for
        `iumad.study.diagnosis.probe`.

    Raises
    ------
    ConfigError
        The method has no bottleneck.
    """
    work = RunWork(run, device)
    step = steps_of(run, folder, work.dataset)[-1]
    detector = trained_detector(work, step)
    bottleneck = getattr(detector, "bottleneck", None)
    if bottleneck is None:
        raise ConfigError(f"{run.method}: this method has no bottleneck that could be looked into")
    seen: dict[str, list[Tensor]] = {"before": [], "after": []}

    def keep(_module: nn.Module, inputs: tuple[Tensor], outputs: tuple[Tensor, ...]) -> None:
        seen["before"].append(inputs[0].mean(dim=1).float().cpu())
        seen["after"].append(outputs[0].mean(dim=1).float().cpu())

    category = work.dataset.index.set_index("sample_id")["category"]
    good = category[_good_images(work, list(step.seen))]
    ids, labels = good.groupby(good).head(PROBED_IMAGES).index.tolist(), []
    handle = bottleneck.register_forward_hook(keep)
    try:
        for redundant, spurious in itertools.product(doses, doses):
            perturb = PerturbConfig(redundant=redundant, spurious=spurious)
            dataset = PerturbedDataset(work.dataset, perturb, step.seen)
            store = (
                work.store if perturb.is_off else open_store(dataset, run, work.device, work.store)
            )
            anomaly_maps(detector, store, ids)
            doses_here = {"redundant": redundant, "spurious": spurious}
            labels.append(
                pd.DataFrame({"sample_id": ids, "category": category[ids].tolist()} | doses_here)
            )
    finally:
        handle.remove()
    features = {name: torch.cat(parts).numpy() for name, parts in seen.items()}
    return features, pd.concat(labels, ignore_index=True)
