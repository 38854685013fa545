"""What became of inputs that somebody has made up, counted over all tests that try some; pytest's last lines say it."""

from collections import Counter

REFUSED, TAKEN, OTHER = "refused in one line", "taken for what they are", "anything else"
OUTCOMES = (REFUSED, TAKEN, OTHER)
PROPERTY = "tally"


def lines(reports):
    """Lines that say what became of the inputs of every kind, and of all; [] where no test tried any.

    reports: Of pytest, whose `user_properties` hold (PROPERTY, [kind, outcome, number of inputs]).
    """
    found = {}
    for report in reports:
        for name, value in getattr(report, "user_properties", ()):
            if name == PROPERTY and report.when == "call":
                kind, outcome, count = value
                found.setdefault(kind, Counter())[outcome] += count
    if not found:
        return []
    found["all"] = sum(found.values(), Counter())
    return [
        f"{kind}: {counts.total():,} tried, " + ", ".join(f"{counts[outcome]:,} {outcome}" for outcome in OUTCOMES)
        for kind, counts in found.items()
    ]
