"""What a notebook opens: a study with its numbers, where they come from, and what of it is not run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from iumad.config.files import load_params
from iumad.config.schema import StudyConfig
from iumad.data import data_of
from iumad.report import tables, text
from iumad.report.style import Html, box, code, fill, fold, table
from iumad.study import claims
from iumad.study.load import OWN, PUBLISHED, image_counts, load_rows, progress
from iumad.study.measured import load_measured, measured_part
from iumad.study.verdicts import Evidence

PAPER_NAMES = {"mvtec3d": "MVTec 3D-AD", "eyecandies": "Eyecandies"}
MAIN = "mini"  # the study whose recipe the others should have


def images_an_epoch(study: StudyConfig) -> int | None:
    """Training images of all categories; None where data that are not here have an unknown number."""
    counts = image_counts(study, data_of(study.data))["train"]
    return int(counts.sum()) if counts.notna().all() else None


def image_steps(study: StudyConfig) -> int | None:
    """Images that a model of all categories (10-0) is trained on, repetitions counted; None where not known."""
    images = images_an_epoch(study)
    return None if images is None else study.training.epochs * images


@dataclass(frozen=True)
class Page:
    """A study and its numbers.

    Attributes
    ----------
    study : StudyConfig
    results : str or Path
        Results folder.
    folder : Path
        Folder of its params file, in which other studies lie.
    rows : DataFrame
        Rows of the finished runs (`iumad.study.load.load_rows`).
    """

    study: StudyConfig
    results: str | Path
    folder: Path
    rows: pd.DataFrame

    @property
    def setting(self) -> str:
        """The setting that the page looks at closely: the last one."""
        return self.study.settings[-1]

    @property
    def modality(self) -> str:
        """The modality that the page looks at closely: the last one."""
        return self.study.modalities[-1]

    def part(self, setting: str | None = None, modality: str | None = None) -> pd.DataFrame:
        """Rows of one setting and modality, the page's own where none is given."""
        here = (self.rows["setting"] == (setting or self.setting)) & (
            self.rows["modality"] == (modality or self.modality)
        )
        return self.rows[here]

    @cached_property
    def evidence(self) -> Evidence:
        """What verdicts on this study are made from."""
        return claims.load_evidence(self.study, self.results, self.folder)

    def judged(self, asked: Sequence[claims.Claim], name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Verdicts on claims that the study `name` decides, and the contrasts behind them."""
        chosen = tuple(claim for claim in asked if claim.study in (name, ""))
        contrasts = claims.evaluate_claims(
            chosen, {name: self.evidence}, tables.paper_name(self.study)
        )
        return claims.verdicts(chosen, contrasts), contrasts

    def compared(self, reference: str) -> pd.DataFrame:
        """Every method against a reference (`iumad.study.claims.compare`)."""
        paper = tables.paper_name(self.study)
        return claims.compare(self.study.profile, self.evidence, reference, dataset=paper)

    def of(
        self,
        settings: Sequence[str],
        modalities: Sequence[str],
        methods: Sequence[str] | None = None,
    ) -> "Page":
        """The page of a part of its study's grid; of all methods, where none are given."""
        methods = list(self.study.methods) if methods is None else methods
        parts = {"setting": settings, "modality": modalities, "method": methods}
        rows = self.rows[self.rows[list(parts)].isin(parts).all(axis=1)]
        chosen = self.study.select(methods=methods, settings=settings, modalities=modalities)
        return replace(self, study=chosen, rows=rows)

    def table(self, metrics: Sequence[str], csv: str) -> Html:
        """Methods by settings (`iumad.report.tables.paper_table`), with a line that says how they are read.

        Where FM is shown, what else is known of learning in steps is folded below.
        """
        frame = tables.paper_table(self.study, self.rows, metrics)
        shown = set(self.rows["modality"])
        where = f"{text.in_words(shown.pop()).capitalize()}. " if len(shown) == 1 else ""
        note = (
            f"{where}Percent, FM in points; mean ± standard deviation over seeds; bold: the best of those with "
            "the most seeds."
        )
        if 'class="paper"' in "".join(map(str, frame.to_numpy().ravel())):
            note += f" Grey: the paper on {PAPER_NAMES[tables.paper_name(self.study)]}."
        whole = table(frame, csv=csv, note=note)
        beside = [
            name
            for metric in metrics
            if metric.startswith("fm_")
            for name in (metric.replace("fm_", "new_"), metric.replace("fm_", "bwt_"), "accuracy")
            if name not in metrics
        ]
        more = tables.paper_table(self.study, self.rows, beside)
        if not {*more.columns.get_level_values(0)} - {""}:
            return whole
        title = (
            "Beside FM: new categories, backward transfer, good images whose category is recognised"
        )
        return Html(whole.source + fold(title, table(more, csv=f"{csv}-beside-fm")).source)

    def measured(self, kind: str) -> pd.DataFrame:
        """What was measured on the runs that the page looks at closely (`iumad.study.measured`)."""
        return load_measured(measured_part(self.study, kind), kind, self.results)

    def beside(self, name: str) -> "Page":
        """Another study of the page: the params file of that name beside its own, else the repository's."""
        path = self.folder / f"{name}.yaml"
        path = path if path.exists() else Path(f"../params/{name}.yaml")
        return open_page(load_params(path), self.results, path)

    def status(self) -> Html:
        """One line: how many runs are shown, who made them, and the command that makes them here."""
        runs = progress(self.study, self.results)
        counts = runs["source"].value_counts()
        own, published = int(counts.get(OWN, 0)), int(counts.get(PUBLISHED, 0))
        missing = len(runs) - own - published
        what = fill("profile <b>{}</b> on {}", self.study.profile, self.study.data.shown_name)
        command = code(f"iumad run params/{self.study.profile}.yaml")
        recipe = self._other_recipe()
        if not missing and not published:
            return box([fill("{}: all {} runs were made here.", what, own), *recipe], "note")
        parts = [(own, "made here"), (published, "published"), (missing, "not run")]
        said = ", ".join(f"{n} {name}" for n, name in parts if n)
        sentence = fill("{}: {} of {} runs. {} makes them here.", what, said, len(runs), command)
        if missing == len(runs):
            sentence = fill(
                "{}: no run is finished, and none is published. {} makes them.", what, command
            )
        return box([sentence, *recipe], "warning" if missing or recipe else "note")

    def _other_recipe(self) -> list[str]:
        """A sentence where the models are not trained as those of the main study, else nothing."""
        path = self.folder / f"{MAIN}.yaml"
        seen = image_steps(self.study)
        if self.study.profile == MAIN or seen is None or not path.exists():
            return []
        main = load_params(path)
        if self.study.data.name != main.data.name:
            return []
        if (self.study.training, self.study.model) == (main.training, main.model):
            return []
        return [
            fill(
                "Not trained as the main study: a model of all categories sees {} images here and {} there "
                "(params/{}.yaml), so numbers of the two are not comparable.",
                f"{seen:,}",
                f"{image_steps(main):,}",
                MAIN,
            )
        ]

    def provenance(self, of: str = "") -> Html:
        """Folded: time, machine and versions, and what each run cost; `of` tells the studies of a page apart."""
        environment = tables.environment_table(self.study, self.results)
        runs = tables.runs_table(self.study, self.results)
        parts = [table(environment), table(runs, csv=f"{self.study.profile}-runs")]
        missing = self._missing()
        title = f"Where this comes from: {of}" if of else "Where this comes from"
        return fold(title, *parts, *([missing] if missing else []))

    def _missing(self) -> Markup:
        runs = progress(self.study, self.results)
        left = runs[~runs["finished"]]
        lines = [
            fill("<li>{}, {}: {}</li>", modality, setting, ", ".join(dict.fromkeys(part["method"])))
            for (modality, setting), part in left.groupby(["modality", "setting"], sort=False)
        ]
        return fill("Not run: <ul>{}</ul>", Markup("").join(lines)) if lines else Markup("")


def open_page(study: StudyConfig, results: str | Path, params_file: str | Path) -> Page:
    """Read the numbers of a study: own ones where they were made here, else the published ones.

    Parameters
    ----------
    study : StudyConfig
    results : path
        Results folder.
    params_file : path
        The page's params file; other studies lie beside it.
    """
    return Page(study, results, Path(params_file).parent, load_rows(study, results))
