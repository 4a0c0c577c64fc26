# SPDX-License-Identifier: Apache-2.0
"""The training stream: from tokenised sentences to masked, packed rows, as a pure function of position."""
