# SPDX-License-Identifier: Apache-2.0
"""Protocols that label pixels, or measure depth."""
