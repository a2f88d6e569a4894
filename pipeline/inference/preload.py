"""What a process that predicts imports first: the stage, without the libraries that it has no use for."""

from ..start import NOT_NEEDED, left_out

with left_out(NOT_NEEDED):
    from . import spread

__all__ = ["spread"]
