# SPDX-License-Identifier: Apache-2.0
"""What each paper states about its own training: a table per paper, which its method has as `Method.STATED`."""
