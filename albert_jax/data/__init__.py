# SPDX-License-Identifier: Apache-2.0
"""The training stream: from a data set of tokenised sentences to masked, packed rows, as a pure function of position."""
