"""The eager backend: in place, block by block, without ever holding [b, l, n, d]."""
from __future__ import annotations

from model_adapters.vlmamba.scan.reference import causal_conv, selective_scan  # noqa: F401
