"""The committed JSON is generated from the code, complete, and has links that lead to existing pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dashboards import document
from dashboards.boards import DIRECTORY, NAMES, boards, path_of
from dashboards.frame import WIDTH, build, encode
from dashboards.panels import number, query
from dashboards.runbooks import RUNBOOKS
from tests.dashboards.committed import dashboard, panels

ROOT = Path(__file__).parents[2]
MADE_BY = "run `python -m dashboards` and commit what it writes"


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_json_is_generated_from_the_code(name: str) -> None:
    assert path_of(name).read_text(encoding="utf-8") == encode(boards()[name]), MADE_BY


def test_there_are_no_other_json_files() -> None:
    assert {path.stem for path in DIRECTORY.glob("*.json")} == set(NAMES)


def test_the_documentation_page_is_generated_from_the_code() -> None:
    assert document.PATH.read_text(encoding="utf-8") == document.page(boards()), MADE_BY
    for name in NAMES:
        assert (document.PATH.parent / "img" / f"dashboard-{name}.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", NAMES)
def test_each_panel_has_a_title_a_description_and_a_unit(name: str) -> None:
    for panel in panels(name):
        where = f"{name}: {panel.get('title')}"
        assert len(panel["title"]) > 2, where
        assert panel["description"].endswith("."), where
        assert panel["fieldConfig"]["defaults"]["unit"], where
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, where
        assert panel["targets"], where


@pytest.mark.parametrize("name", NAMES)
def test_ids_and_titles_are_unique(name: str) -> None:
    everything = dashboard(name)["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    assert len({panel["title"] for panel in everything}) == len(everything)
    for panel in panels(name):
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == [chr(ord("A") + number) for number in range(len(letters))]


def test_uids_are_unique() -> None:
    assert len({dashboard(name)["uid"] for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_panels_do_not_overlap(name: str) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard(name)["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= WIDTH
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                other = taken.setdefault((x, y), panel["title"])
                assert other == panel["title"], f"{panel['title']} covers {other}"


@pytest.mark.parametrize("name", NAMES)
def test_variables_are_defined_before_they_are_used(name: str) -> None:
    known: list[str] = []
    for variable in dashboard(name)["templating"]["list"]:
        used = re.findall(r"\$(\w+)", variable["query"])
        assert set(used) <= set(known)
        known.append(variable["name"])
    used_by_panels = set(re.findall(r"\$(?!__)(\w+)", str([panel["targets"] for panel in panels(name)])))
    # A variable without effect would mislead. On some dashboards only the annotation uses `connection`.
    assert used_by_panels | {"connection", "datasource"} == set(known)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_runbooks_of_alerts(name: str) -> None:
    rules = (ROOT / "alerts" / "router_trio.rules.yml").read_text(encoding="utf-8")
    alerts = set(re.findall(r"alert: (\w+)", rules))
    linked = [link["url"] for panel in panels(name) for link in panel.get("links", ())]
    assert linked
    for url in linked:
        start, _, file = url.rpartition("/")
        assert start == RUNBOOKS
        assert file.removesuffix(".md") in alerts
        assert (ROOT / "docs" / "runbooks" / file).is_file(), url


def test_a_row_of_panels_that_is_not_full_is_refused() -> None:
    panel = number("Number", "A number.", "short", query("up")).span(7)
    with pytest.raises(ValueError, match="widths add up to 24"):
        build("odd", "Odd", "Odd.", [("Row", [panel])])
