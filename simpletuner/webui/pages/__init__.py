"""The pages of the WebUI, registered with NiceGUI."""

from __future__ import annotations

from simpletuner.webui.pages.compare import register_compare
from simpletuner.webui.pages.project import register_project
from simpletuner.webui.pages.projects import register_projects
from simpletuner.webui.pages.runs import register_runs
from simpletuner.webui.site import Site


def register_pages(site: Site) -> None:
    """Register every page of a site: projects, one project, runs, one run, the comparison of runs."""
    register_projects(site)
    register_project(site)
    register_runs(site)
    register_compare(site)
