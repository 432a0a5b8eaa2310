"""The sheet: one image of all candidates of a job, ranked, with the knockout that the winner won."""

from bestofn.service.media.contact_sheet.sheet import draw_sheet

__all__ = ["draw_sheet"]
