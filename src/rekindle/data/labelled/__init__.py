# SPDX-License-Identifier: Apache-2.0
"""Labelled data, a reader for each kind."""
