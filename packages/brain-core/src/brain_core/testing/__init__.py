"""A check, for tests of your own, that a run which is killed continues bit for bit."""

from __future__ import annotations

from brain_core.testing.exact_resume import assert_resumes_exactly

__all__ = ["assert_resumes_exactly"]
