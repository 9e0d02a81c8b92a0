"""The lab makes adapters on purpose, clean and poisoned, on real photos, and measures what was made.

Nothing of the scanner imports it.
"""
