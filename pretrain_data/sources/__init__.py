# SPDX-License-Identifier: Apache-2.0
"""Where raw text comes from: files of several formats, Wikipedia, TFDS data sets, Python's own documentation."""
