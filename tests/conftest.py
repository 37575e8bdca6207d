"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# A machine that others use too is no reason to fail: hypothesis allows 0.2 s per example otherwise.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
