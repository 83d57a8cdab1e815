# SPDX-License-Identifier: Apache-2.0
"""Documents: their width, their links, and the files behind their figures."""
