"""The files around the code say what the code does: links lead somewhere, and what is checked before a commit is what the gate checks."""

import re
from pathlib import Path

import pytest
import yaml

import di4c_lm

ROOT = Path(__file__).parents[2]
PAGES = sorted(ROOT.glob("*.md"))  # of the pages below docs/ the site's own build knows each link
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def broken_links(page: Path) -> list[str]:
    """The relative links of a page that lead to no file, or to no heading of one."""
    links = _LINK.findall(_CODE.sub("", page.read_text(encoding="utf-8")))
    found = []
    for link in links:
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        generated = target.resolve().parent == ROOT / "docs" / "reference"  # made at build time
        if "://" in link or generated and not target.exists():
            continue
        if not target.exists() or anchor and anchor not in anchors(target):
            found.append(link)
    return found


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading\n[a](page.md) [b](#a-heading) [c](#other) [d](none.md) `[e](f.md)` [g](https://g.org)\n"
    )
    assert broken_links(page) == ["#other", "none.md"]


def test_what_is_checked_before_a_commit_is_what_the_gate_checks() -> None:
    gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert [hook["entry"] for hook in hooks] == [line for line in gate if line.startswith(("ruff", "pyright"))]
    assert not any(hook["pass_filenames"] for hook in hooks)  # the whole tree, as the gate


def test_the_workflow_runs_the_gate() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_an_issue_form_has_what_github_asks_for(form: Path) -> None:
    plain = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert (
        plain["name"] and plain["description"] and len({field["id"] for field in plain["body"]}) == len(plain["body"])
    )
    assert all(
        field["type"] in ("input", "textarea", "dropdown") and field["attributes"]["label"] for field in plain["body"]
    )


def test_the_citation_is_valid_and_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    plain = yaml.safe_load(text)
    assert plain["version"] == di4c_lm.__version__
    assert f'license = "{plain["license"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pytest.importorskip("cffconvert").Citation(text).validate()
