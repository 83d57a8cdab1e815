# SPDX-License-Identifier: Apache-2.0
"""Protocols that classify or find whole images."""
