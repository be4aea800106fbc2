"""Tiny models of every family of the registry: one module a family, of the family's name."""

from __future__ import annotations

from importlib import import_module

from simpletuner.helpers.models.registry import FAMILIES
from tests.families.cases import Case

CASES: dict[str, Case] = {}
for _family in FAMILIES:
    CASES |= import_module(f"tests.families.{_family}").CASES
