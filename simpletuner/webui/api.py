"""The HTTP API under ``/api/v1``: options, families, configurations. It adds nothing but form to the functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from simpletuner.configuration.config import Config
from simpletuner.configuration.fields import OptionInfo, describe_all
from simpletuner.configuration.problems import Problem, has_errors
from simpletuner.helpers.models.registry import FAMILIES
from simpletuner.translation import translator
from simpletuner.webui import api_runs
from simpletuner.webui.checking import check_inside
from simpletuner.webui.confinement import Refused
from simpletuner.webui.projects import (
    Conflict,
    Example,
    NotFound,
    Project,
    ProjectError,
    Summary,
    Taken,
    create_project,
    delete_project,
    duplicate_project,
    list_examples,
    list_projects,
    read_project,
    rename_project,
    save_project,
)
from simpletuner.webui.secrets import hide
from simpletuner.webui.site import Site

PREFIX = "/api/v1"
_STATUS: dict[type[Exception], int] = {ProjectError: 422, NotFound: 404, Taken: 409, Conflict: 409, Refused: 403}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class NewConfig(_Body):
    """A configuration to make: a copy of an example, a copy of another one, or of these values; else empty."""

    name: str
    example: str | None = None
    source: str | None = Field(None, alias="from", description="the configuration to copy, with its data sets")
    values: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> NewConfig:
        if sum(origin is not None for origin in (self.example, self.source, self.values)) > 1:
            raise ValueError("give one of example, from and values")
        return self


class NewName(_Body):
    """Another name for a configuration."""

    name: str


class Values(_Body):
    """The values of a configuration."""

    values: dict[str, Any]


class NewValues(Values):
    """Values that replace those of a configuration; ``version`` null replaces whatever is there."""

    version: str | None


@dataclass(frozen=True)
class StoredConfig:
    """A configuration as its file has it, secrets hidden; a hidden value that is sent back stays what it was."""

    name: str
    values: dict[str, Any]
    version: str


@dataclass(frozen=True)
class Checked:
    """What is wrong with a configuration; ``valid`` if nothing of it is an error."""

    problems: list[Problem]
    valid: bool


class DescribedFamily(BaseModel):
    """A family as published; ``token_grid`` is rows and columns of tokens at its resolution."""

    family: str
    type: str
    diffusers_class: str = Field(alias="class")
    blocks: int | None
    hidden_size: int | None
    default_tap: int | str | None
    alignment: str
    resolution: int
    token_grid: tuple[int, int]


def add_api(app: FastAPI, site: Site) -> None:
    """Every route of the API, and errors as ``{"detail": text}``. To be called before anything is mounted at "/"."""
    app.include_router(_facts(site), prefix=PREFIX)
    app.include_router(_configs(site), prefix=PREFIX)
    app.include_router(api_runs.router(site), prefix=PREFIX)

    @app.api_route("/api/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    def unknown(path: str) -> None:
        raise HTTPException(404, f"There is no /api/{path}.")

    for error in _STATUS:
        app.add_exception_handler(error, _failed)
    app.add_exception_handler(RequestValidationError, _invalid)


def _facts(site: Site) -> APIRouter:
    router = APIRouter(tags=["facts"])

    @router.get("/options")
    def options(language: str = "en") -> list[OptionInfo]:
        """Every option of a configuration, its label and help in a language: en, es, zh, hi or ja."""
        words = translator(language)
        return [replace(info, label=words(info.label), help=words(info.help)) for info in describe_all(Config)]

    @router.get("/families")
    def families() -> list[DescribedFamily]:
        """Every model family that can be trained."""
        return [DescribedFamily.model_validate(family.described()) for family in FAMILIES.values()]

    @router.get("/examples")
    def examples() -> list[Example]:
        """Every configuration that comes with the trainer."""
        return list_examples()

    @router.post("/validate")
    def validate(sent: Values) -> Checked:
        """Check values as `simpletuner check` does."""
        return _checked(site, sent.values)

    return router


def _configs(site: Site) -> APIRouter:
    router = APIRouter(prefix="/configs", tags=["configs"])

    @router.get("")
    def configs() -> list[Summary]:
        """Every configuration, also those that can't be read, with the reason."""
        return list_projects(site)

    @router.post("", status_code=201)
    def create(sent: NewConfig) -> StoredConfig:
        """Make a configuration."""
        if sent.source is not None:
            return _stored(duplicate_project(site, sent.source, sent.name))
        return _stored(create_project(site, sent.name, sent.example, values=sent.values))

    @router.get("/{name}")
    def read(name: str) -> StoredConfig:
        """A configuration."""
        return _stored(read_project(site, name))

    @router.put("/{name}")
    def save(name: str, sent: NewValues) -> StoredConfig:
        """Replace a configuration's values; 409 tells the version on disk if it isn't the one sent."""
        return _stored(save_project(site, name, sent.values, sent.version))

    @router.delete("/{name}", status_code=204)
    def delete(name: str) -> None:
        """Delete a configuration, and its list of data sets if no other one names it."""
        delete_project(site, name)

    @router.post("/{name}/rename")
    def rename(name: str, sent: NewName) -> StoredConfig:
        """Give a configuration another name."""
        return _stored(rename_project(site, name, sent.name))

    @router.post("/{name}/validate")
    def validate(name: str) -> Checked:
        """Check a configuration as `simpletuner check` does."""
        return _checked(site, read_project(site, name).values)

    return router


def _stored(project: Project) -> StoredConfig:
    return StoredConfig(project.name, hide(project.values), project.version)


def _checked(site: Site, values: Mapping[str, Any]) -> Checked:
    problems = check_inside(site, values)[1]
    return Checked(problems, not has_errors(problems))


def _failed(request: Request, error: Exception) -> JSONResponse:
    status = next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
    version = {"version": error.version} if isinstance(error, Conflict) else {}
    return JSONResponse({"detail": str(error), **version}, status)


def _invalid(request: Request, error: Exception) -> JSONResponse:
    """What a request lacks, in words; what it holds isn't repeated, as it may be a secret."""
    assert isinstance(error, RequestValidationError)
    parts = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
    return JSONResponse({"detail": "; ".join(parts)}, 422)
