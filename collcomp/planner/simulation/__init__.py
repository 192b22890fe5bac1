"""Transfers over shared links in virtual time: max-min fair, many jobs, failures."""
