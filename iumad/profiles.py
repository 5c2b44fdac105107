"""A profile is a folder of params files with fixed names, one for each study of the book's pages."""

COMMON = "mini"  # the study of the notebooks that have none of their own
MEASURED = "efficiency"  # by `iumad study efficiency`; nothing is trained
COMPARED = (  # by the notebooks with a study of their own; all are trained
    "settings",
    "settings_many",
    "spurious",
    "unified",
    "ablation",
    "protection",
    "switches",
    "fusion",
    "bottleneck",
    "baselines",
)
STUDIES = (COMMON, *COMPARED, MEASURED)
