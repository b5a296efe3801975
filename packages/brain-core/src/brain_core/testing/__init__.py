"""Check that a killed training run resumes bit for bit, for use in your own tests."""

from __future__ import annotations

from brain_core.testing.exact_resume import assert_resumes_exactly

__all__ = ["assert_resumes_exactly"]
