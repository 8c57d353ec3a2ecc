"""Which errors are no fault of a job or an adapter, so that the scheduler tries the same again later."""

from __future__ import annotations

import errno

from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, TimeoutError

from tunewright.errors import StorageUnavailable

_OF_THE_MACHINE = frozenset({
    errno.ENOSPC, errno.EDQUOT, errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT, errno.ESTALE,
})  # fmt: skip
"""A full disk; too little memory, too few processes or open files; a network file system that does not answer."""
_TEMPORARY = (StorageUnavailable, OperationalError, InterfaceError, InternalError, TimeoutError)
"""The other errors of SQLAlchemy are about what is stored, and come again."""


def is_temporary(error: BaseException) -> bool:
    """Whether the database, the disk, the bucket or the machine was at fault. Other errors of files are not among them:
    a file that is missing stays so."""
    if isinstance(error, OSError):
        return error.errno in _OF_THE_MACHINE
    return isinstance(error, _TEMPORARY)
