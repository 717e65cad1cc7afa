"""Moved to ``acq.core.memory``."""

from __future__ import annotations

from acq.core.memory import hand_back_freed_memory as hand_back_freed_memory
from acq.core.memory import keep_freed_memory as keep_freed_memory
