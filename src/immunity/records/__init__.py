"""What a study writes down, and the folder where it stands."""

from immunity.records.content import (
    RECOGNISING,
    Arm,
    Cell,
    CellKey,
    Diverged,
    MetricKind,
    MetricSpec,
    Plan,
    Point,
    Role,
    Run,
)
from immunity.records.folder import RecordFolder, Records

__all__ = [
    "RECOGNISING",
    "Arm",
    "Cell",
    "CellKey",
    "Diverged",
    "MetricKind",
    "MetricSpec",
    "Plan",
    "Point",
    "RecordFolder",
    "Records",
    "Role",
    "Run",
]
