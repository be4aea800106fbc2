"""Saving a project from its page: what is unsaved, what became of the file on disk, and what to do about it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from nicegui import ui

from simpletuner.webui.confinement import Refused
from simpletuner.webui.pages.layout import Look, tagged
from simpletuner.webui.projects import Conflict, ProjectError
from simpletuner.webui.workspace import Workspace

POLL = 3.0
"""Seconds between two looks at the file on disk."""

_SAVE_KEY = """<script>document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && !event.altKey && event.key.toLowerCase() === "s") {
    event.preventDefault();
    emitEvent("save_project");
  }
});</script>"""
_STAY = "window.onbeforeunload = (event) => { event.preventDefault(); return ''; }"
_LEAVE = "window.onbeforeunload = null"


class Saving:
    """The mark of what is unsaved, the button that saves, and the banner of a file that changed elsewhere.

    Args:
        saved: hears that the files are now as the page has them.
        reloaded: hears that the page is to show what the files have.
        text_is_whole: whether the draft has all that was typed as JSON.
    """

    def __init__(
        self,
        workspace: Workspace,
        look: Look,
        saved: Callable[[], None],
        reloaded: Callable[[], None],
        text_is_whole: Callable[[], bool],
    ) -> None:
        self._workspace, self._look = workspace, look
        self._saved, self._reloaded, self._text_is_whole = saved, reloaded, text_is_whole
        self._warned = False

    def build_mark(self) -> None:
        """Build the mark of unsaved changes."""
        self._mark = tagged(ui.label(self._look.words("not saved")).classes("text-caption amber no-wrap"), "unsaved")
        self._mark.set_visibility(False)

    def build_button(self) -> None:
        """Build the button; Ctrl+S does the same."""
        button = ui.button(self._look.words("Save"), icon="save", on_click=self.save)
        tagged(button.props('title="Ctrl+S"').classes("q-ml-auto"), "save")
        ui.add_head_html(_SAVE_KEY)
        ui.on("save_project", self.save, [])

    def build_banner(self) -> None:
        """Build the banner, and begin to look at the disk now and then."""
        with ui.row().classes("w-full items-center rounded-borders q-pa-sm amber") as self._banner:
            self._banner.style("border: 1px solid var(--amber); gap: 0.5rem").props('role="alert"')
            tagged(self._banner, "changed_on_disk")
            self._told = ui.label().classes("col-grow")
            reload = ui.button(self._look.words("Reload"), icon="refresh", on_click=self.reload)
            tagged(reload.props("flat dense"), "reload")
        self._banner.set_visibility(False)
        ui.timer(POLL, self.look_at_disk, immediate=False)

    def show_changed(self) -> None:
        """Show whether there is anything to save; a browser asks before it leaves then."""
        changed = self._workspace.changed or not self._text_is_whole()
        self._mark.set_visibility(changed)
        if changed != self._warned:
            self._warned = changed
            ui.run_javascript(_STAY if changed else _LEAVE)

    async def save(self) -> bool:
        """Save what was changed; False where it could not be, or the reader chose not to."""
        return await self._save(overwrite=False)

    async def _save(self, *, overwrite: bool) -> bool:
        words = self._look.words
        if not self._text_is_whole():
            self._complain(words("Not saved: first correct the text on the JSON tab."))
            return False
        try:
            written = await self._workspace.save(overwrite=overwrite)
        except Conflict as conflict:
            return await self._resolve(conflict)
        except (ProjectError, Refused) as error:
            self._complain(error)
            return False
        if written:
            ui.notify(words("Saved."), type="positive", timeout=1500)
            self._banner.set_visibility(False)
        self.show_changed()
        self._saved()
        return True

    async def _resolve(self, conflict: Conflict) -> bool:
        """Ask what to do about a file that changed meanwhile."""
        words = self._look.words
        choices = {"cancel": words("Cancel"), "reload": words("Reload from disk"), "overwrite": words("Overwrite")}
        with ui.dialog().props("persistent") as dialog, tagged(ui.card(), "conflict"):
            ui.label(words("The file changed on disk")).classes("text-h6")
            ui.label(words("Somebody else, or another tab, changed it after it was opened here."))
            ui.label(str(conflict)).classes("text-caption faint").style("overflow-wrap: anywhere")
            with ui.row().classes("w-full justify-end"):
                for name, text in choices.items():
                    tagged(ui.button(text, on_click=partial(dialog.submit, name)).props("flat"), f"conflict_{name}")
        try:
            choice = await dialog
        finally:
            dialog.delete()
        if choice == "overwrite":
            return await self._save(overwrite=True)
        if choice == "reload":
            await self.reload()
        return False

    async def reload(self) -> None:
        """Take the files as they are on disk; what was changed here is gone."""
        try:
            await self._workspace.reload()
        except (ProjectError, Refused) as error:
            self._complain(error)
            return
        self._banner.set_visibility(False)
        self._reloaded()
        self.show_changed()

    async def look_at_disk(self) -> None:
        """Tell when the file was changed by somebody else."""
        words = self._look.words
        found = await asyncio.to_thread(self._workspace.look_at_disk)
        if found == "as before":
            return
        gone = words("This project was deleted or renamed elsewhere; saving writes it again.")
        self._told.set_text(gone if found == "gone" else words("The file changed on disk."))
        self._banner.set_visibility(found != "as here")

    def _complain(self, error: Exception | str) -> None:
        close = self._look.words("Close")
        ui.notify(str(error), type="negative", multi_line=True, timeout=0, close_button=close)
