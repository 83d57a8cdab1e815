# SPDX-License-Identifier: Apache-2.0
"""The same work done by other projects, from their own classes. Each file needs its project installed, and nothing else does."""
