"""Sizes in bytes, as people write them. Imports pydantic alone."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import ByteSize, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

_SIZE = re.compile(r"\s*\d*\.?\d+\s*[A-Za-z]*\s*", re.ASCII)


def _parse(value: object, parse: ValidatorFunctionWrapHandler) -> ByteSize:
    try:
        # ByteSize ignores what follows a size: to it, 1,5GB is one byte.
        if not isinstance(value, str) or _SIZE.fullmatch(value):
            return ByteSize(parse(value))
    except ValidationError:
        pass
    raise ValueError(f"{str(value)[:40]!r} is not a size; write it like 512MiB, 2GiB or 1000000")


Size = Annotated[ByteSize, WrapValidator(_parse)]
"""Bytes, given as a number or with a unit: `512MiB`, `2GB`, in upper or lower case."""
