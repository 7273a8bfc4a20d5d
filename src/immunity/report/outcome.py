"""What a study found, in a few lines for a terminal. The whole of it is the report."""

from immunity.records import Records
from immunity.report import flags
from immunity.report.comparison import compare
from immunity.report.verdict import judge

DRAWS = 500  # of the bootstrap: enough for a sentence


def outcome(records: Records) -> str:
    """One sentence for each concept and defence that have been measured, and what is wrong with it."""
    lines = []
    for concept in records.plan.concepts:
        for arm in records.plan.with_role("defended"):
            found = compare(records, concept, arm.name, draws=DRAWS)
            if found is None:
                lines.append(f"{concept}, {arm.title}: not measured yet")
                continue
            raised = flags.check(found)
            accused = ", ".join(flag.code for flag in raised if flag.severity != "note")
            lines.append(
                f"{concept}, {arm.title}: {judge(found, raised).headline}" + (f" [{accused}]" if accused else "")
            )
    return "\n".join(lines)
