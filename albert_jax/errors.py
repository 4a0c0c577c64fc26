# SPDX-License-Identifier: Apache-2.0
"""The one exception that a person is meant to read."""


class UserError(ValueError):
    """A bad input, file or setting: one sentence that names the value and says what to do about it.

    The command lines print it as ``error: <sentence>`` on standard error and exit with status 2; any other exception is
    a defect of ours and keeps its traceback.
    """
