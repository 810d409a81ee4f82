"""What a release needs outside the package: metadata, workflows, containers, dashboards."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from unmask.cli.main import make_app
from unmask.version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
if not DEPLOY.exists():
    pytest.skip("the source distribution has no deploy/", allow_module_level=True)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path: Path):
    return yaml.safe_load(path.read_text("utf-8"))


def serve_flags() -> set[str]:
    """Every flag of `unmask serve`."""
    return {
        name
        for item in make_app()["serve"].assemble_argument_collection()
        for name in item.names
        if name.startswith("-")
    }


def check_serve(words: list[str]) -> None:
    """Flags of a command that starts a server must exist; the first word is the model."""
    assert not words[0].startswith("-")
    flags = {word for word in words if word.startswith("--")}
    assert flags
    assert flags <= serve_flags()


def test_the_newest_heading_of_the_changelog_is_the_version():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    dated = re.findall(r"^## \[([\d.]+)\] - \d{4}-\d{2}-\d{2}$", text, re.MULTILINE)
    if not dated:
        assert "## [Unreleased]" in text
        return
    assert dated[0] == __version__


def test_the_classifiers_exist_and_name_what_is_tested():
    known = pytest.importorskip("trove_classifiers").classifiers
    assert set(PROJECT["classifiers"]) <= known
    assert "Operating System :: POSIX :: Linux" in PROJECT["classifiers"]
    assert "Operating System :: OS Independent" not in PROJECT["classifiers"], "not tested"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_only_what_exists(path):
    workflow = read(path)
    assert {"name", "permissions", "jobs"} <= workflow.keys()
    assert workflow[True], "yaml reads the key `on` as true"
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for job in workflow["jobs"].values():
        assert (
            job["timeout-minutes"] <= 60 or "environment" in job
            if "timeout-minutes" in job
            else True
        )
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            for line in step.get("run", "").splitlines():
                words = shlex.split(line.split("${")[0].replace('"', " "))
                if words[:1] == ["make"]:
                    assert words[1] in targets
                if words and words[0].startswith("."):
                    assert (ROOT / words[0]).exists()


def test_the_release_publishes_without_a_token_and_only_after_the_wheel_answered():
    jobs = read(ROOT / ".github/workflows/release.yml")["jobs"]
    publish = jobs["publish"]
    assert publish["needs"] == "build"
    assert publish["permissions"] == {"id-token": "write"}
    text = (ROOT / ".github/workflows/release.yml").read_text("utf-8")
    assert "secrets." not in text
    assert "unmask generate" in "".join(step.get("run", "") for step in jobs["build"]["steps"])


def test_the_forms_for_issues_have_unique_ids_and_required_answers():
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = read(path)
        if path.stem == "config":
            continue
        assert {"name", "description", "body"} <= form.keys()
        ids = [item["id"] for item in form["body"]]
        assert len(set(ids)) == len(ids)
        assert all(item["validations"]["required"] for item in form["body"])


def test_pre_commit_runs_the_pinned_ruff():
    config = read(ROOT / ".pre-commit-config.yaml")
    ruff = next(repo for repo in config["repos"] if "ruff" in repo["repo"])
    assert f"ruff=={ruff['rev'].removeprefix('v')}" in (ROOT / "constraints.txt").read_text("utf-8")
    entry = config["repos"][1]["hooks"][0]["entry"]
    assert (ROOT / entry.split()[-1]).exists()


# containers

INSTRUCTION = re.compile(r"^([A-Z]+) (.*)$")
KNOWN = {
    *("ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN"),
    *("STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
}


def instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    parsed = [INSTRUCTION.match(line) for line in text.splitlines() if line.strip()]
    assert all(parsed)
    return [(match[1], match[2]) for match in parsed]


def test_the_dockerfile_copies_what_exists_and_is_not_ignored():
    found = instructions()
    assert {name for name, _ in found} <= KNOWN
    ignore = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert ignore[0] == "*"
    for name, rest in found:
        if name == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source.removeprefix('./')}" in ignore, source


def test_the_container_runs_as_a_user_and_starts_a_server_that_exists():
    found = instructions()
    assert [rest for name, rest in found if name == "USER"] == ["unmask"]
    (entry,) = (json.loads(rest) for name, rest in found if name == "ENTRYPOINT")
    (command,) = (json.loads(rest) for name, rest in found if name == "CMD")
    assert entry == ["unmask", "serve"]
    check_serve(command)
    extra = next(rest for name, rest in found if name == "RUN" and "[serve]" in rest)
    assert "constraints.txt" in extra


def test_the_compose_file_mounts_what_exists():
    compose = read(DEPLOY / "compose.yaml")
    services = compose["services"]
    assert set(services) == {"unmask", "prometheus", "grafana"}
    build = services["unmask"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).exists()
    check_serve(["demo", *services["unmask"]["command"][1:]])
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).exists()
        assert set(service.get("depends_on", [])) <= set(services)


def test_prometheus_and_grafana_find_each_other():
    compose = read(DEPLOY / "compose.yaml")["services"]
    (target,) = read(DEPLOY / "prometheus.yml")["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target.split(":")[0] in compose
    (source,) = read(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["url"].split("//")[1].split(":")[0] in compose
    (provider,) = read(DEPLOY / "grafana/provisioning/dashboards/unmask.yaml")["providers"]
    assert any(provider["options"]["path"] in volume for volume in compose["grafana"]["volumes"])


def test_every_series_of_the_dashboard_is_one_of_the_server():
    page = (ROOT / "docs/reference/metrics.md").read_text("utf-8")
    rows = re.findall(r"^\| `([\w:]+)` \| (\w+) \|", page, re.MULTILINE)
    suffixes = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    series = {name.removesuffix("_total") + end for name, kind in rows for end in suffixes[kind]}
    dashboard = json.loads((DEPLOY / "grafana/unmask.json").read_text("utf-8"))
    uid = read(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")["datasources"][0]["uid"]
    asked = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == uid
            assert target["expr"].count("(") == target["expr"].count(")")
            asked |= set(re.findall(r'__name__="([\w:]+)"', target["expr"]))
    assert len(asked) > 10
    assert asked <= series
    places = [tuple(panel["gridPos"][k] for k in "xy") for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)


def test_the_manifests_probe_what_needs_no_key():
    from unmask.server.auth import PROBE_PATHS

    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes/unmask.yaml").read_text("utf-8")))
    kinds = {document["kind"]: document for document in documents}
    assert set(kinds) == {"Deployment", "Service", "PodDisruptionBudget"}
    pod = kinds["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    probes = {
        name: container[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "readiness", "liveness")
    }
    assert set(probes.values()) <= set(PROBE_PATHS)
    check_serve(container["args"])
    labels = pod["metadata"]["labels"]
    assert kinds["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert kinds["Service"]["spec"]["selector"] == labels
    wait = int(container["args"][container["args"].index("--shutdown-timeout") + 1])
    assert pod["spec"]["terminationGracePeriodSeconds"] > wait
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["spec"]["volumes"]}
