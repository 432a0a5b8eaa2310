"""Sizes of a page of a large job's candidates and bracket."""

PAGE = 256
MAX_PAGE = 4096
