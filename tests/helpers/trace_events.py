"""What the Trace Event Format asks of a file, and what lanes must look like for a viewer to draw them."""

import json
from collections import defaultdict
from pathlib import Path


def read(path: Path) -> list[dict]:
    """The events of a joined trace, after everything that the format asks of them has been checked."""
    content = json.loads(path.read_text())
    assert set(content) <= {"traceEvents", "displayTimeUnit", "otherData"}
    assert content["displayTimeUnit"] in ("ms", "ns")
    return checked(content["traceEvents"])


def read_part(path: Path) -> list[dict]:
    """Those of a part whose end is missing, as viewers read it: up to the last whole line."""
    text = path.read_text()
    assert text.startswith("[\n")
    whole = text[: text.rindex(",\n")]
    return checked(json.loads(whole + "]"))


def checked(events: list[dict]) -> list[dict]:
    """The same events; they are sound."""
    open_pairs: dict[tuple, list[float]] = defaultdict(list)
    for event in events:
        assert {"name", "ph", "ts", "pid", "tid"} <= set(event), event
        assert type(event["pid"]) is type(event["tid"]) is int
        assert type(event["name"]) is str
        assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] >= 0
            who = {"participant", "cohort", "participants"} & set(event["args"])
            assert len(who) == 1, f"of one, of some who step together, or of all: {event}"
        elif event["ph"] in ("b", "e"):
            pair = open_pairs[event["cat"], event["id"], event["pid"], event["name"]]
            pair.append(event["ts"])
            assert len(pair) == (1 if event["ph"] == "b" else 2), "an end without its beginning, or two of them"
        else:
            assert event["ph"] == "M", event
            names = ("process_name", "process_sort_index", "process_labels", "thread_name", "thread_sort_index")
            assert event["name"] in names
            assert "args" in event
    assert all(len(pair) == 2 and pair[0] <= pair[1] for pair in open_pairs.values())
    lanes = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            lanes[event["pid"], event["tid"]].append((event["ts"], -event["dur"], event))
    for lane in lanes.values():
        ends: list[float] = []
        for begin, minus, event in sorted(lane, key=lambda item: item[:2]):
            while ends and ends[-1] <= begin + 1e-2:
                ends.pop()
            assert not ends or begin - minus <= ends[-1] + 1e-2, f"{event} is neither inside nor after another"
            ends.append(begin - minus)
    return events


def spans(events: list[dict], category: str) -> list[dict]:
    """The complete events of a category."""
    return [event for event in events if event["ph"] == "X" and event["cat"] == category]
