"""Extraction: the text of a page, without what stands around it on every page of a site."""
